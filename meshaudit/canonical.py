"""Canonical bytes, version 1, written from docs/canonical-bytes.md alone: what an entry's hash is made of.

Invariants: nothing here asks a database or knows how entries are written; the vectors in
tests/vectors/canonical-v1.json are made by this module and reproduced by the SQL core.
"""

import hashlib
import ipaddress
import struct
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

VERSION = 1
# PostgreSQL's numbers of the types.
_INT4, _INT8, _TEXT, _INET, _TIMESTAMPTZ, _UUID = 23, 20, 25, 869, 1184, 2950

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_FAMILIES = {4: 2, 6: 3}
_PLACE = struct.Struct(">iiiiiiiiq")


class Entry(NamedTuple):
    """An entry's fields in canonical order; the timestamp is microseconds since 2000-01-01 UTC."""

    lane: int
    seq: int
    id: int
    secret_id: str
    access_type: str
    timestamp: int
    user_identity: str
    ip_address: str | None
    operation: str
    outcome: str
    secret_table: str
    scope: str
    identity_source: str
    claimed_identity: str | None
    db_user: str
    db_role: str
    application_name: str | None
    user_agent: str | None
    request_id: str | None
    access_id: UUID


def microseconds(time: datetime) -> int:
    """A time as the canonical bytes hold it."""
    return (time - EPOCH) // timedelta(microseconds=1)


def genesis(ledger_id: UUID, lane: int) -> bytes:
    """What the first entry of a lane holds as prev_hash."""
    return hashlib.sha256(b"meshaudit ledger v1" + ledger_id.bytes + struct.pack(">i", lane)).digest()


def entry_hash(prev_hash: bytes, canonical: bytes) -> bytes:
    """An entry's hash."""
    return hashlib.sha256(prev_hash + canonical).digest()


def place(lane: int, seq: int) -> bytes:
    """The canonical bytes of the first three fields: version, lane and seq."""
    return _PLACE.pack(_INT4, 4, VERSION, _INT4, 4, lane, _INT8, 8, seq)


def encode(entry: Entry) -> bytes:
    """An entry's canonical bytes."""
    return b"".join(
        (
            place(entry.lane, entry.seq),
            _field(_INT8, struct.pack(">q", entry.id)),
            _text(entry.secret_id),
            _text(entry.access_type),
            _field(_TIMESTAMPTZ, struct.pack(">q", entry.timestamp)),
            _text(entry.user_identity),
            _field(_INET, None if entry.ip_address is None else _address(entry.ip_address)),
            *map(_text, entry[8:19]),
            _field(_UUID, entry.access_id.bytes),
        )
    )


def _text(value: str | None) -> bytes:
    return _field(_TEXT, None if value is None else value.encode("utf-8"))


def _field(kind: int, value: bytes | None) -> bytes:
    if value is None:
        return struct.pack(">ii", kind, -1)
    return struct.pack(">ii", kind, len(value)) + value


def _address(text: str) -> bytes:
    interface = ipaddress.ip_interface(text)
    packed = interface.ip.packed
    return bytes((_FAMILIES[interface.version], interface.network.prefixlen, 0, len(packed))) + packed
