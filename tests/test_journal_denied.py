"""Denials leave entries: who was refused what, whatever becomes of the transaction."""

import hashlib

import psycopg
import pytest

from tests.journal_support import READ, READ_MANY, Journal, Told, one, stranger
from tests.test_journal import journal, plain

__all__ = ["journal", "plain"]  # the fixtures


@pytest.mark.parametrize("query", [READ, "select meshaudit.read_secret_by_key(%s)"])
@pytest.mark.parametrize("begin", ["begin", "begin read only", None])
def test_denied(plain: Journal, query: str, begin: str | None) -> None:
    what = str(stranger())
    client = plain.client()
    if begin:
        client.execute(begin.encode())
    with pytest.raises(psycopg.Error) as caught:
        client.execute(query.encode(), [what])
    assert caught.value.sqlstate == "MA004"
    if begin:
        client.execute("rollback")
    assert plain.seal() == 1
    assert plain.told() == [Told("read", "denied", what)]
    assert plain.entry()["user_identity"] == plain.role


def test_denied_on_every_flavour(journal: Journal) -> None:
    with pytest.raises(psycopg.Error, match="no such secret"):
        journal.client().execute(READ, [stranger()])
    assert journal.seal() == 1
    assert journal.outcomes() == ["denied"]


def test_denials_do_not_wait_for_their_transaction(plain: Journal) -> None:
    client = plain.client()
    client.execute("begin")
    one(client, READ, plain.secret)
    client.execute("savepoint a")
    with pytest.raises(psycopg.Error, match="no such secret"):
        client.execute(READ, [stranger()])
    client.execute("rollback to a")
    assert plain.seal() == 1
    assert plain.outcomes() == ["denied"]
    client.execute("commit")
    assert plain.seal() == 0
    assert plain.outcomes() == ["granted", "denied"]


def test_unknown_ids_in_bulk(plain: Journal) -> None:
    unknown = sorted(stranger() for _ in range(3))
    client = plain.client()
    found = client.execute(READ_MANY, [[plain.secret, *unknown]]).fetchall()
    assert found == [(plain.secret, b"first")]
    assert plain.seal() == 3
    told = plain.told()
    assert sorted(e.secret_id for e in told if e.outcome == "denied") == [str(i) for i in unknown]
    assert [e.secret_id for e in told if e.outcome == "granted"] == [str(plain.secret)]


@pytest.mark.parametrize("begin", ["begin", "begin read only"])
def test_the_id_that_is_none(plain: Journal, begin: str) -> None:
    """What makes no entry would hold up all that come after it."""
    client = plain.client()
    client.execute(begin.encode())
    with pytest.raises(psycopg.Error, match="no such secret: <NULL>"):
        client.execute("select meshaudit.read_secret(null)")
    client.execute("rollback")
    client.execute("begin read only")
    one(client, READ, plain.secret)
    client.execute("commit")
    assert plain.seal() == 2
    assert plain.told() == [Told("read", "denied", "<NULL>"), Told("read", "granted", str(plain.secret))]


def test_what_was_asked_for_is_bounded(plain: Journal) -> None:
    with pytest.raises(psycopg.Error, match="no such secret"):
        plain.client().execute("select meshaudit.read_secret_by_key(%s, %s)", ["ü" * 512, "ö" * 255])
    plain.seal()
    entry = plain.entry()
    digest = hashlib.sha256(("ü" * 512).encode()).hexdigest()
    assert (entry["secret_id"], entry["scope"]) == (f"{'ü' * 100} sha256:{digest}", "ö" * 255)
