"""Searching archives: what the database answered before, the archive answers after."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.archive.support import (
    QUESTIONS,
    accesses,
)
from tests.cli_support import ok, run
from tests.support import Db


@pytest.mark.parametrize("filters", QUESTIONS, ids=" ".join)
def test_logs_of_archives(kept: tuple[Any, Db, Path], filters: tuple[str, ...]) -> None:
    """What the database answered before is what the archive answers after, and both together."""
    before, db, place = kept
    args = ("logs", "--archive", str(place), "--format", "json", "--limit", "0", *filters)
    assert accesses(ok(*args)) == before[filters]
    assert accesses(ok(*args, dsn=db.dsn())) == before[filters]


def test_logs_of_archives_in_pages_and_times(kept: tuple[Any, Db, Path]) -> None:
    before, _, place = kept
    everything = before[()]
    args = ("logs", "--archive", str(place), "--format", "json")
    done = run(*args, "--limit", "7")
    assert json.loads(done.stdout) == everything[:7]
    cursor = done.stderr.split("--after ")[1].split(",")[0]
    assert json.loads(ok(*args, "--limit", "7", "--after", cursor)) == everything[7:14]
    at = everything[100]["timestamp"]
    assert json.loads(ok(*args, "--limit", "0", "--from", at)) == everything[:101]
    assert json.loads(ok(*args, "--limit", "0", "--to", at)) == everything[101:]
