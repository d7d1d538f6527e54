"""Canonical bytes: what Python makes from the page and what the SQL core hashes are the same bytes."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.pq import ExecStatus

from meshaudit import canonical
from meshaudit.canonical import Entry

ROOT = Path(__file__).resolve().parent.parent
VECTORS = json.loads((ROOT / "tests" / "vectors" / "canonical-v1.json").read_text("utf-8"))

_TEXT = "convert_from(decode(${}, 'hex'), 'UTF8')"
_TAIL = "meshaudit_private.entry_tail({})".format(
    ", ".join(
        f"${n}" if name in ("id", "timestamp", "ip_address", "access_id") else _TEXT.format(n)
        for n, name in enumerate(Entry._fields[2:], start=1)
    )
)
_OIDS = {"id": 20, "timestamp": 1184, "ip_address": 869, "access_id": 2950}


def _entry(fields: dict[str, Any]) -> Entry:
    return Entry(**{**fields, "access_id": UUID(fields["access_id"])})


def _in_sql(conn: psycopg.Connection[Any], entry: Entry, prev_hash: bytes) -> tuple[bytes, bytes]:
    """The tail and the hash as the SQL core has them. Text travels as hex: it must survive any encoding."""
    params: list[bytes | None] = []
    value: Any
    for name, value in zip(entry._fields[2:], entry[2:], strict=True):
        if value is None:
            params.append(None)
        elif name == "timestamp":
            params.append(struct.pack(">q", value))
        elif name in _OIDS:
            params.append(str(value).encode())
        else:
            params.append(value.encode("utf-8").hex().encode())
    oids = [_OIDS.get(name, 25) for name in entry._fields[2:]]
    formats = [int(name == "timestamp") for name in entry._fields[2:]]
    n = len(params)
    query = (
        f"select tail, meshaudit_private.entry_hash(${n + 1}, ${n + 2}, ${n + 3}, tail) from {_TAIL} t (tail)"
    )
    result = conn.pgconn.exec_params(
        query.encode(),
        [*params, prev_hash, str(entry.lane).encode(), str(entry.seq).encode()],
        [*oids, 17, 23, 20],
        [*formats, 1, 0, 0],
        1,
    )
    assert result.status == ExecStatus.TUPLES_OK, result.error_message
    tail, digest = result.get_value(0, 0), result.get_value(0, 1)
    assert tail is not None
    assert digest is not None
    return tail, digest


def _in_python(entry: Entry, prev_hash: bytes) -> tuple[bytes, bytes]:
    encoded = canonical.encode(entry)
    place = canonical.place(entry.lane, entry.seq)
    assert encoded.startswith(place)
    return encoded[len(place) :], canonical.entry_hash(prev_hash, encoded)


def test_vectors_are_what_the_script_writes():
    subprocess.run([sys.executable, ROOT / "scripts" / "make_vectors.py", "--check"], check=True, cwd=ROOT)


@pytest.mark.parametrize("vector", VECTORS["entries"], ids=lambda vector: vector["what"])
def test_python_reproduces_the_vector(vector: dict[str, Any]):
    encoded = canonical.encode(_entry(vector["entry"]))
    assert encoded.hex() == vector["canonical"]
    assert canonical.entry_hash(bytes.fromhex(vector["prev_hash"]), encoded).hex() == vector["hash"]


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
def test_sql_reproduces_the_vectors(conn: psycopg.Connection[Any], encoding: str):
    conn.execute(f"set client_encoding = '{encoding}'".encode())
    for vector in VECTORS["entries"]:
        entry, prev_hash = _entry(vector["entry"]), bytes.fromhex(vector["prev_hash"])
        tail, digest = _in_sql(conn, entry, prev_hash)
        place = canonical.place(entry.lane, entry.seq)
        assert ((place + tail).hex(), digest.hex()) == (vector["canonical"], vector["hash"]), vector["what"]


def test_the_genesis_hashes(conn: psycopg.Connection[Any]):
    ledger_id = UUID(VECTORS["ledger_id"])
    for vector in VECTORS["genesis"]:
        assert canonical.genesis(ledger_id, vector["lane"]).hex() == vector["hash"]
        found = conn.execute(
            "select meshaudit_private.genesis_hash(%s, %s)", (ledger_id, vector["lane"])
        ).fetchone()
        assert found == (bytes.fromhex(vector["hash"]),)


def test_any_change_of_an_entry_changes_its_bytes():
    """Two entries never share their bytes: text cannot flow from one field into the next."""
    entry = _entry(VECTORS["entries"][0]["entry"])
    variants = {canonical.encode(entry)}
    for name, value in entry._asdict().items():
        changed: Any
        if isinstance(value, int):
            changed = value + 1
        elif isinstance(value, UUID):
            changed = UUID(int=value.int + 1)
        elif name == "ip_address":
            changed = "192.0.2.18"
        else:
            changed = f"{value or ''}x"
        variants.add(canonical.encode(entry._replace(**{name: changed})))
    assert len(variants) == 1 + len(entry)
    parted = entry._replace(secret_table="ab", scope="c")
    assert canonical.encode(parted) != canonical.encode(parted._replace(secret_table="a", scope="bc"))
    assert canonical.encode(entry._replace(user_agent="")) != canonical.encode(
        entry._replace(user_agent=None)
    )


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
addresses = st.one_of(
    st.none(),
    st.ip_addresses().map(str),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
)
entries = st.builds(
    Entry,
    lane=st.integers(-(2**31), 2**31 - 1),
    seq=st.integers(-(2**63), 2**63 - 1),
    id=st.integers(-(2**63), 2**63 - 1),
    secret_id=text,
    access_type=st.sampled_from(["read", "write"]),
    timestamp=st.integers(-211_813_488_000_000_000, 9_223_371_331_199_999_999),
    user_identity=text,
    ip_address=addresses,
    operation=st.sampled_from(["read", "create", "update", "delete"]),
    outcome=st.sampled_from(["granted", "denied", "rolled_back"]),
    secret_table=text,
    scope=text,
    identity_source=st.sampled_from(["jwt", "database"]),
    claimed_identity=st.none() | text,
    db_user=text,
    db_role=text,
    application_name=st.none() | text,
    user_agent=st.none() | text,
    request_id=st.none() | text,
    access_id=st.uuids(),
)
SESSION = {
    "client_encoding": ["UTF8", "LATIN1", "SQL_ASCII", "EUC_JP"],
    "timezone": ["UTC", "Asia/Kathmandu", "America/St_Johns"],
    "datestyle": ["ISO, MDY", "German", "SQL, DMY", "Postgres, YMD"],
    "intervalstyle": ["postgres", "sql_standard", "iso_8601"],
    "bytea_output": ["hex", "escape"],
    "standard_conforming_strings": ["on", "off"],
    "escape_string_warning": ["on", "off"],
    "backslash_quote": ["on", "off", "safe_encoding"],
    "extra_float_digits": ["-15", "3"],
    "quote_all_identifiers": ["on", "off"],
    "xmlbinary": ["hex", "base64"],
    "lc_messages": ["C"],
    "search_path": ["public", "pg_temp, public, pg_catalog", ""],
    "array_nulls": ["on", "off"],
    "transform_null_equals": ["on", "off"],
}
sessions = st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in SESSION.items()})


@settings(max_examples=300)
@given(entry=entries, prev_hash=st.binary(min_size=32, max_size=32), session=sessions)
@example(
    entry=_entry(VECTORS["entries"][17]["entry"]),
    prev_hash=bytes(32),
    session={name: values[-1] for name, values in SESSION.items()},
)
def test_sql_and_python_make_the_same_bytes(
    conn: psycopg.Connection[Any], entry: Entry, prev_hash: bytes, session: dict[str, str]
):
    conn.pgconn.exec_(b"reset all")
    for name, value in session.items():
        result = conn.pgconn.exec_(f"set {name} to {value if ',' in value else repr(value)}".encode())
        assert result.status == ExecStatus.COMMAND_OK, (name, value, result.error_message)
    assert _in_sql(conn, entry, prev_hash) == _in_python(entry, prev_hash)


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1", "EUC_JP"])
def test_the_writing_side_makes_these_bytes(conn: psycopg.Connection[Any], encoding: str):
    """Real entries, by whichever of the ways an encoding takes, are what the page says."""
    conn.execute(f"set client_encoding = '{encoding}'".encode())
    conn.execute("set application_name = 'worker'")
    ((one, two),) = conn.execute(
        "select meshaudit.write_secret('k', '\\x00', 'a'), meshaudit.write_secret('l', '\\x00', 'b')"
    ).fetchall()
    conn.execute("select * from meshaudit.read_secrets(%s)", ([one, two, one],))
    conn.execute("select meshaudit.read_secret(%s)", (one,))
    rows = conn.execute(
        """
        select lane, seq, id, secret_id, access_type, extract(epoch from "timestamp") * 1000000,
          user_identity, host(ip_address), operation, outcome, secret_table, scope, identity_source,
          claimed_identity, db_user, db_role, application_name, user_agent, request_id, access_id,
          prev_hash, hash, meshaudit.checkpoint()
        from meshaudit.audit_logs order by lane, seq
        """
    ).fetchall()
    assert len(rows) == 5
    since_1970 = 946_684_800_000_000
    for row in rows:
        *fields, prev_hash, digest, checkpoint = row
        fields[5] = int(fields[5]) - since_1970
        entry = Entry(*fields)
        assert canonical.entry_hash(prev_hash, canonical.encode(entry)) == digest
        if entry.seq == 1:
            assert prev_hash == canonical.genesis(UUID(checkpoint["ledger_id"]), entry.lane)
