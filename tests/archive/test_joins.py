"""What joins archives, manifest by manifest: each fault that no file has by itself, and its absence."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from meshaudit import canonical
from meshaudit.archive_content import Stretch
from meshaudit.archive_verify import Manifest, _bytes, _joined, verify
from tests.archive.history import load
from tests.cli_support import ok
from tests.support import Db

LEDGER, OTHER = UUID(int=1), UUID(int=2)
H = [hashlib.sha256(bytes([n])).digest() for n in range(9)]


def _manifest(number: int, *runs: Stretch, **changes: Any) -> Manifest:
    name, at = f"p{number}", datetime(2026, number, 1, tzinfo=UTC)
    previous = f"digest {number - 1}" if number > 1 else None
    entries = sum(run.last - run.first + 1 for run in runs)
    made = Manifest(
        f"{name}.manifest.json",
        f"digest {number}",
        LEDGER,
        name,
        at,
        at,
        entries,
        previous,
        list(runs),
        "",
        0,
        "",
    )
    return made._replace(**changes)


FIRST = _manifest(1, Stretch(7, 1, 3, canonical.genesis(LEDGER, 7), H[3]))
SECOND = _manifest(2, Stretch(7, 4, 6, H[3], H[6]))
THIRD = _manifest(3, Stretch(7, 9, 9, H[8], H[0]))
CASES = {
    "whole": ([FIRST, SECOND], None, 0),
    "some are in the database": ([FIRST, SECOND, THIRD], None, 2),
    "the first are": ([THIRD._replace(previous=None)], None, 8),
    "not linked": ([FIRST, _manifest(2, Stretch(7, 4, 6, H[4], H[6]))], "lane 7, seq 4 does not follow the entry before it", 0),
    "of another beginning": ([_manifest(1, Stretch(7, 1, 3, H[1], H[3]))], "lane 7 does not begin as one of its ledger's", 0),
    "of another lane's beginning": ([_manifest(1, Stretch(7, 1, 3, canonical.genesis(LEDGER, 8), H[3]))], "lane 7 does not begin", 0),
    "in two": ([FIRST, _manifest(2, Stretch(7, 3, 6, H[2], H[6]))], "lane 7, seq 3 is in two archives", 0),
    "one before is missing": ([FIRST, THIRD], "the archive before it is missing", 5),
    "two after one": ([FIRST, SECOND, _manifest(3, previous="digest 1")], "has the same one before it", 0),
    "two first ones": ([FIRST, SECOND._replace(previous=None)], "has the same one before it", 0),
    "of two ledgers": ([FIRST, SECOND._replace(ledger_id=OTHER)], "it is of another ledger", 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_joins_them(case: str) -> None:
    manifests, fault, absent = CASES[case]
    faults, between = _joined(manifests)
    found = [f.problem for f in faults]
    assert (len(found) == 1 and fault in found[0]) if fault else not found, found
    assert between == absent


def _rewritten(place: Path, change: Callable[[dict[str, Any]], None]) -> list[str]:
    """What is told of a manifest that was changed and given the digest of what it says now."""
    (path,) = place.glob("*.manifest.json")
    kept = path.read_bytes()
    body = json.loads(kept)
    change(body)
    body["digest"] = hashlib.sha256(_bytes({k: v for k, v in body.items() if k != "digest"})).hexdigest()
    path.write_bytes(_bytes(body))
    told = [fault.problem for fault in verify(place).faults]
    path.write_bytes(kept)
    return told


def test_a_manifest_and_its_file_say_the_same(db: Db, tmp_path: Path) -> None:
    load(db.su, months=1, rows=60, lanes=2)
    ok("archive", "--to", str(tmp_path), "--before", "2999-01-01", dsn=db.dsn())
    assert verify(tmp_path).faults == []
    differs = ["its entries are not those of its manifest"]
    assert _rewritten(tmp_path, lambda body: body.update(entries=body["entries"] + 1)) == differs
    assert _rewritten(tmp_path, lambda body: body["runs"][0].__setitem__(4, "00" * 32)) == differs
    assert _rewritten(tmp_path, lambda body: body["runs"].pop()) == differs
    # a byte that no entry is made of
    (data,) = tmp_path.glob("*.parquet")
    whole = data.read_bytes()
    assert whole.count(b"parquet-cpp-arrow") == 1
    data.write_bytes(whole.replace(b"parquet-cpp-arrow", b"parquet-cpp-Arrow"))
    assert [f.problem for f in verify(tmp_path).faults] == [
        "it was altered: its sha256 is another than its manifest's"
    ]
