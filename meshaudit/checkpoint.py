"""Checkpoints: the lanes' heads at one moment, to be kept where the database's owner cannot write.

Invariant: a file that is not wholly a checkpoint is refused in one line; half a proof proves nothing.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from meshaudit.errors import BadArgument, translate

FORMAT = "meshaudit checkpoint v1"
_HASH = re.compile(r"[0-9a-f]{64}")
_INT4, _INT8 = range(-(2**31), 2**31), range(1, 2**63)


class Head(NamedTuple):
    """A lane's last entry."""

    seq: int
    hash: bytes


class Checkpoint(NamedTuple):
    """Which ledger, and how far each of its lanes had come."""

    ledger_id: UUID
    lanes: Mapping[int, Head]

    @property
    def entries(self) -> int:
        """How many entries there were."""
        return sum(head.seq for head in self.lanes.values())


def take_checkpoint(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    """The checkpoint of this moment, as JSON holds it."""
    try:
        row = conn.execute("select meshaudit.checkpoint()").fetchone()
    except psycopg.Error as exc:
        raise translate(exc) from exc
    assert row is not None
    document: dict[str, Any] = row[0]
    return document


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint that was kept in a file."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as exc:
        raise BadArgument(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise BadArgument(f"{path} is not JSON") from exc
    try:
        return parse_checkpoint(document)
    except ValueError as exc:
        hint = "it is what `meshaudit checkpoint` prints, unchanged"
        raise BadArgument(f"{path} is not a checkpoint: {exc}", hint) from exc


def parse_checkpoint(document: object) -> Checkpoint:
    """A checkpoint from its JSON; ValueError says what is wrong with it."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'no "format": "{FORMAT}"')
    lanes: dict[int, Head] = {}
    listed = document.get("lanes")
    if not isinstance(listed, list):
        raise ValueError('"lanes" is not a list')
    for item in listed:
        lane, head = _lane(item)
        if lane in lanes:
            raise ValueError(f"lane {lane} is listed twice")
        lanes[lane] = head
    return Checkpoint(_ledger_id(document), lanes)


def current(conn: psycopg.Connection[Any]) -> Checkpoint:
    """The heads of now. They may have been altered: what makes no sense is a head that fits no entry."""
    document = take_checkpoint(conn)
    lanes = {
        item["lane"]: Head(item["seq"], bytes.fromhex(item["hash"] or ""))
        for item in document["lanes"]
        if item["lane"] is not None
    }
    return Checkpoint(_ledger_id(document), lanes)


def _ledger_id(document: dict[str, Any]) -> UUID:
    try:
        return UUID(document["ledger_id"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise ValueError('"ledger_id" is not a UUID') from None


def _lane(item: object) -> tuple[int, Head]:
    if not isinstance(item, dict):
        raise ValueError("a lane is not an object")
    lane, seq, digest = item.get("lane"), item.get("seq"), item.get("hash")
    # bool is an int to Python, and JSON's true is none
    if type(lane) is not int or type(seq) is not int or lane not in _INT4 or seq not in _INT8:
        raise ValueError("a lane's number or seq is not an integer in range")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise ValueError(f"the hash of lane {lane} is not 64 hexadecimal digits")
    return lane, Head(seq, bytes.fromhex(digest))
