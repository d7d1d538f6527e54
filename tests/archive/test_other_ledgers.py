"""Archives and a database that are not of one ledger."""

from pathlib import Path

from tests.archive.support import SOON
from tests.cli_support import fails, ok, run
from tests.support import Db


def _renamed(db: Db) -> None:
    # The databases of these tests are copies, and so their ledgers have one id.
    db.su.execute("alter table meshaudit_private.settings disable trigger user")
    db.su.execute("update meshaudit_private.settings set ledger_id = gen_random_uuid()")


def test_archives_of_another_ledger(archived: tuple[Db, Path], db: Db, tmp_path: Path) -> None:
    """They say nothing about this one: it is not altered, it could not be checked."""
    theirs, place = archived
    _renamed(db)
    told = fails("verify", "--archive", str(place), "--record", dsn=db.dsn())
    assert "these archives are of another ledger than the database (hint: is --archive right?)" in told
    records = "select count(*) from meshaudit_private.verifications"
    assert db.su.execute(records).fetchone() == (0,)
    # A checkpoint tells that it was the ledger that was replaced.
    ok("checkpoint", "--output", str(tmp_path / "c"), dsn=theirs.dsn())
    replaced = ("verify", "--archive", str(place), "--checkpoint", str(tmp_path / "c"))
    done = run(*replaced, dsn=db.dsn())
    assert done.returncode == 1
    assert "altered: ledger replaced (contradicts the checkpoint)" in done.stdout
    assert "altered: : " not in done.stdout


def test_a_ledger_that_calls_itself_another(past: Db, tmp_path: Path) -> None:
    """Its log names these archives, so they are its own."""
    ok("archive", "--to", str(tmp_path), "--before", SOON, dsn=past.dsn())
    _renamed(past)
    done = run("verify", "--archive", str(tmp_path), dsn=past.dsn())
    assert done.returncode == 1
    assert "manifest.json: it is of another ledger than the database" in done.stdout
