"""Reading a checkpoint: wholly one, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from meshaudit.checkpoint import Head, read_checkpoint, take_checkpoint
from meshaudit.errors import BadArgument, NoPermission, NotMigrated
from tests.support import Db

GOOD: dict[str, Any] = {
    "format": "meshaudit checkpoint v1",
    "ledger_id": "6b8f2a34-9c1d-4e57-8a20-f3d4c5b6a798",
    "time": "2026-11-24T03:00:00.000000Z",
    "entries": 3,
    "lanes": [{"lane": 1, "seq": 2, "hash": "ab" * 32}, {"lane": 7, "seq": 1, "hash": "cd" * 32}],
}


def _lane(**changes: Any) -> dict[str, Any]:
    return GOOD | {"lanes": [GOOD["lanes"][0] | changes]}


def test_a_good_one(tmp_path: Path):
    file = tmp_path / "checkpoint.json"
    file.write_text(json.dumps(GOOD), "utf-8")
    held = read_checkpoint(file)
    assert str(held.ledger_id) == GOOD["ledger_id"]
    assert held.lanes == {1: Head(2, b"\xab" * 32), 7: Head(1, b"\xcd" * 32)}
    assert held.entries == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], "no \"format\""),
        ("null", "no \"format\""),
        ({}, "no \"format\""),
        (GOOD | {"format": "meshaudit checkpoint v2"}, "no \"format\""),
        (GOOD | {"ledger_id": "7"}, "\"ledger_id\" is not a UUID"),
        (GOOD | {"ledger_id": 7}, "\"ledger_id\" is not a UUID"),
        ({k: v for k, v in GOOD.items() if k != "ledger_id"}, "\"ledger_id\" is not a UUID"),
        (GOOD | {"lanes": {}}, "\"lanes\" is not a list"),
        ({k: v for k, v in GOOD.items() if k != "lanes"}, "\"lanes\" is not a list"),
        (GOOD | {"lanes": [1]}, "a lane is not an object"),
        (GOOD | {"lanes": GOOD["lanes"] * 2}, "lane 1 is listed twice"),
        (_lane(lane="1"), "not an integer in range"),
        (_lane(lane=True), "not an integer in range"),
        (_lane(lane=2**31), "not an integer in range"),
        (_lane(seq=0), "not an integer in range"),
        (_lane(seq=1.5), "not an integer in range"),
        (_lane(seq=2**63), "not an integer in range"),
        (_lane(hash="ab"), "not 64 hexadecimal digits"),
        (_lane(hash=None), "not 64 hexadecimal digits"),
        (_lane(hash="zz" * 32), "not 64 hexadecimal digits"),
    ],
)  # fmt: skip
def test_a_bad_one(tmp_path: Path, content: Any, told: str):
    file = tmp_path / "checkpoint.json"
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadArgument) as refused:
        read_checkpoint(file)
    assert told in refused.value.message
    assert str(file) in refused.value.message
    assert "\n" not in refused.value.message


def test_no_file(tmp_path: Path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(BadArgument, match="cannot read"):
            read_checkpoint(path)


def test_what_is_taken_can_be_read(db: Db, tmp_path: Path):
    client = db.connect(db.role("client", "meshaudit_client"))
    client.execute("select meshaudit.write_secret('k', '\\x00')")
    file = tmp_path / "checkpoint.json"
    file.write_text(json.dumps(take_checkpoint(db.su)), "utf-8")
    held = read_checkpoint(file)
    rows = db.su.execute("select lane, seq, hash from meshaudit.audit_logs").fetchall()
    assert held.lanes == {lane: Head(seq, digest) for lane, seq, digest in rows}


def test_who_may_not_take_one(db: Db, empty_db: Db):
    with pytest.raises(NoPermission):
        take_checkpoint(db.connect(db.role("client", "meshaudit_client")))
    with pytest.raises(NotMigrated):
        take_checkpoint(empty_db.su)
