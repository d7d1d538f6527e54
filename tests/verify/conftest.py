"""One ledger for all tests of this folder: falsified by each, unharmed again for the next."""

from collections.abc import Iterator

import pytest

from tests.flavours import Templates
from tests.support import Db
from tests.verify.tampering import Ledger, real_ledger


@pytest.fixture(scope="session")
def ledger_db(template: Templates) -> Iterator[Db]:
    db = template.clone("superuser")
    try:
        yield db
    finally:
        db.drop()


@pytest.fixture(scope="session")
def shared(ledger_db: Db) -> Ledger:
    ledger = real_ledger(ledger_db)
    assert min(ledger.lengths.values()) >= 8
    return ledger


@pytest.fixture
def ledger(shared: Ledger) -> Iterator[Ledger]:
    """The same ledger for every test, unharmed again each time."""
    yield shared
    shared.reset()


@pytest.fixture
def lane(ledger: Ledger) -> int:
    return ledger.lanes[0]


@pytest.fixture
def end(ledger: Ledger, lane: int) -> int:
    """The lane's last seq."""
    return ledger.lengths[lane]
