"""Ledgers with months behind them, in the database or archived."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.archive.history import load
from tests.archive.support import MONTHS, QUESTIONS, ROWS, SOON, accesses
from tests.cli_support import ok
from tests.flavours import Templates
from tests.support import Db


@pytest.fixture
def past(db: Db) -> Db:
    """A ledger with three months behind it."""
    load(db.su, months=MONTHS, rows=ROWS)
    return db


@pytest.fixture(scope="module")
def kept(template: Templates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Db, Path]]:
    """What searches answered before all was archived; the database; the archive."""
    db = template.clone("superuser")
    try:
        load(db.su, months=MONTHS, rows=ROWS)
        answers = {
            question: accesses(ok("logs", "--format", "json", "--limit", "0", *question, dsn=db.dsn()))
            for question in QUESTIONS
        }
        place = tmp_path_factory.mktemp("archive")
        ok("archive", "--to", str(place), "--before", SOON, dsn=db.dsn())
        yield answers, db, place
    finally:
        db.drop()


@pytest.fixture(scope="module")
def archived(template: Templates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Db, Path]]:
    """One whose past has been retired, for tests that do no harm."""
    db = template.clone("superuser")
    try:
        load(db.su, months=MONTHS, rows=ROWS)
        place = tmp_path_factory.mktemp("archive")
        ok("archive", "--to", str(place), "--before", SOON, dsn=db.dsn())
        yield db, place
    finally:
        db.drop()


@pytest.fixture
def four_months(db: Db) -> Db:
    """A ledger with four months behind it."""
    load(db.su, months=4, rows=400)
    return db
