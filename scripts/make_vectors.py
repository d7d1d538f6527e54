"""Write tests/vectors/canonical-v1.json: entries with their canonical bytes and hashes, for other verifiers.

`--check` says whether the file is what this would write.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from meshaudit import canonical
from meshaudit.canonical import Entry

FILE = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "canonical-v1.json"

LEDGER_ID = UUID("6b8f2a34-9c1d-4e57-8a20-f3d4c5b6a798")
INT4_MIN, INT4_MAX = -(2**31), 2**31 - 1
INT8_MIN, INT8_MAX = -(2**63), 2**63 - 1

ORDINARY = Entry(
    lane=7,
    seq=42,
    id=1001,
    secret_id="0b4c2f6e-51f4-4b0e-9f4e-0d7c1a2b3c4d",
    access_type="read",
    timestamp=849_534_245_123_456,  # 2026-12-02
    user_identity="billing",
    ip_address="192.0.2.17",
    operation="read",
    outcome="granted",
    secret_table="meshaudit.secrets",
    scope="payments",
    identity_source="database",
    claimed_identity=None,
    db_user="billing",
    db_role="billing",
    application_name="billing-worker",
    user_agent=None,
    request_id=None,
    access_id=UUID("2f1e0d3c-4b5a-4978-8695-a4b3c2d1e0f9"),
)

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("an ordinary read", {}),
    ("the first entry of a lane", {"seq": 1}),
    ("a write", {"access_type": "write", "operation": "create"}),
    ("an update", {"access_type": "write", "operation": "update"}),
    ("a deletion", {"access_type": "write", "operation": "delete"}),
    ("a denial", {"outcome": "denied"}),
    ("rolled back", {"outcome": "rolled_back"}),
    ("no address", {"ip_address": None}),
    (
        "all that may be NULL is",
        {"ip_address": None, "claimed_identity": None, "application_name": None, "user_agent": None},
    ),
    (
        "nothing is NULL",
        {
            "identity_source": "jwt",
            "user_identity": "8d3c6b1a-0f2e-4d5c-9b8a-7f6e5d4c3b2a",
            "db_user": "authenticator",
            "db_role": "authenticated",
            "claimed_identity": "someone",
            "user_agent": "supabase-js/2.45",
            "request_id": "req-1",
        },
    ),
    (
        "empty text is not NULL",
        {"scope": "", "secret_id": "", "claimed_identity": "", "application_name": "", "user_agent": ""},
    ),
    ("two bytes a character", {"scope": "Zürich", "user_identity": "jürgen"}),
    ("three bytes a character", {"secret_id": "密钥", "scope": "東京"}),
    ("four bytes a character", {"secret_id": "🔑", "user_agent": "🗝️ 𠮷𐍈", "scope": "a🔑b"}),
    ("composed, not normalized", {"scope": "e\u0301 \u00e9"}),
    ("right to left, and a zero-width space", {"scope": "מפתח\u200b"}),
    ("control characters", {"application_name": "a\tb\nc\rd\x01\x7f"}),
    ("quotes and backslashes", {"secret_id": "'\"\\x41\\\\$$;--", "scope": "\\000"}),
    ("blanks at the ends", {"scope": "  padded  "}),
    ("long text", {"user_agent": "agent " * 700, "secret_id": "k" * 512}),
    ("long text of four bytes a character", {"scope": "🔑" * 255}),
    ("a network", {"ip_address": "10.20.0.0/16"}),
    ("a host with a prefix", {"ip_address": "10.20.30.40/8"}),
    ("all of IPv4", {"ip_address": "0.0.0.0/0"}),
    ("IPv6", {"ip_address": "2001:db8::17"}),
    ("IPv6 with a prefix", {"ip_address": "2001:db8::17/64"}),
    ("IPv4 in IPv6", {"ip_address": "::ffff:192.0.2.17"}),
    ("the least numbers", {"lane": INT4_MIN, "seq": INT8_MIN, "id": INT8_MIN}),
    ("the greatest numbers", {"lane": INT4_MAX, "seq": INT8_MAX, "id": INT8_MAX}),
    ("minus one", {"lane": -1, "seq": -1, "id": -1}),
    ("2000-01-01 00:00:00 UTC", {"timestamp": 0}),
    ("a microsecond before 2000", {"timestamp": -1}),
    ("1969-12-31 23:59:59.999999 UTC", {"timestamp": -946_684_800_000_001}),
    ("4713 BC, the first that PostgreSQL has", {"timestamp": -211_813_488_000_000_000}),
    ("294276 AD, the last that PostgreSQL has", {"timestamp": 9_223_371_331_199_999_999}),
    ("infinity", {"timestamp": INT8_MAX}),
    ("minus infinity", {"timestamp": INT8_MIN}),
    ("the nil UUID", {"access_id": UUID(int=0)}),
    ("the greatest UUID", {"access_id": UUID(int=2**128 - 1)}),
]

GENESIS_LANES = (1, 2, 256, 257, INT4_MAX, 0, -1, INT4_MIN)


def text() -> str:
    """What belongs in the file."""
    entries = []
    for what, changes in VARIANTS:
        entry = ORDINARY._replace(**changes)
        if entry.seq == 1:
            prev_hash = canonical.genesis(LEDGER_ID, entry.lane)
        else:
            prev_hash = hashlib.sha256(what.encode()).digest()
        encoded = canonical.encode(entry)
        entries.append(
            {
                "what": what,
                "entry": {**entry._asdict(), "access_id": str(entry.access_id)},
                "prev_hash": prev_hash.hex(),
                "canonical": encoded.hex(),
                "hash": canonical.entry_hash(prev_hash, encoded).hex(),
            }
        )
    genesis = [{"lane": lane, "hash": canonical.genesis(LEDGER_ID, lane).hex()} for lane in GENESIS_LANES]
    document = {
        "version": canonical.VERSION,
        "about": "docs/canonical-bytes.md; timestamps are microseconds since 2000-01-01 00:00:00 UTC",
        "ledger_id": str(LEDGER_ID),
        "genesis": genesis,
        "entries": entries,
    }
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def main() -> None:
    if "--check" in sys.argv[1:]:
        if not FILE.exists() or FILE.read_text("utf-8") != text():
            sys.exit(f"{FILE.name} is out of date; run: python scripts/make_vectors.py")
        return
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text(), "utf-8")


if __name__ == "__main__":
    main()
