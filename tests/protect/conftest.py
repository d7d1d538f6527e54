"""The reference tables, before protect() and after."""

from collections.abc import Iterator

import pytest

from tests.protect.support import App, make_app
from tests.support import Db


@pytest.fixture
def app(db: Db) -> Iterator[App]:
    yield make_app(db)
    disarm(db)


@pytest.fixture
def any_app(any_db: Db) -> Iterator[App]:
    if any_db.flavour != "superuser":
        any_db.su.execute("grant create on schema public to public")
    yield make_app(any_db)
    disarm(any_db)


@pytest.fixture
def protected(app: App) -> App:
    app.protect()
    app.entries()
    return app


def disarm(db: Db) -> None:
    """A slot outlives its database's last test, and holds the server's log."""
    if db.su.execute("select armed from meshaudit_private.journal").fetchone() == (True,):
        db.su.execute("select meshaudit.disarm_journal()")
