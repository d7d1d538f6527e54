"""Results of verifications: kept by who may verify, shown by status and metrics, told by an alert; forged by no client."""

from typing import Any

import psycopg
import pytest

from tests.cli_support import fails, ok, run
from tests.journal_support import Conn, one
from tests.support import Db
from tests.test_feed import feed, write

LAST = (
    "select method, verified_by, problems, ended_at is not null from meshaudit_private.verifications"
    " order by verification_id"
)


def kept(db: Db) -> list[tuple[Any, ...]]:
    return db.su.execute(LAST.encode()).fetchall()


def status(db: Db) -> tuple[bool, str]:
    row = db.su.execute(
        "select ok, detail from meshaudit.status() where \"check\" = 'verification'"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def metrics(db: Db) -> dict[str, float]:
    rows = db.su.execute("select name, value from meshaudit.metrics() where name ~ '^meshaudit_verif'")
    return dict(rows.fetchall())


def alter(db: Db) -> None:
    with db.su.transaction():
        db.su.execute("alter table meshaudit_private.ledger disable trigger user")
        db.su.execute("update meshaudit_private.ledger set secret_table = 'x' where id = 1")
        db.su.execute("alter table meshaudit_private.ledger enable always trigger append_only")
        db.su.execute("alter table meshaudit_private.ledger enable always trigger chain_entry")


@pytest.fixture
def auditor(db: Db) -> Conn:
    role = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s)", [role])
    write(db.su)
    return db.connect(role)


def test_both_verifiers_keep_their_result(db: Db, auditor: Conn) -> None:
    assert status(db) == (False, "never recorded; run meshaudit verify, nightly and from elsewhere")
    assert metrics(db) == {}
    me = auditor.info.user
    assert auditor.execute("select * from meshaudit.verify()").fetchall() == []
    ok("verify", dsn=db.dsn(me))
    assert kept(db) == [("database", me, 0, True), ("outside", me, 0, True)]
    good, detail = status(db)
    assert good
    assert detail.endswith(f"by {me} (outside): intact")
    found = metrics(db)
    assert found["meshaudit_verified_problems"] == 0
    assert found["meshaudit_verified_entries"] == 2
    assert 0 <= found["meshaudit_verified_age_seconds"] < 60
    # A part of the log proves nothing about the rest.
    auditor.execute("select * from meshaudit.verify(from_time => now() - interval '1 hour')")
    ok("verify", "--from", "2020-01-01", dsn=db.dsn(me))
    ok("verify", "--no-record", dsn=db.dsn(me))
    assert len(kept(db)) == 2
    db.su.execute("update meshaudit_private.verifications set ended_at = now() - interval '9 days'")
    good, detail = status(db)
    assert not good
    assert detail.endswith("run meshaudit verify nightly")


def test_a_failed_one_is_told_once(db: Db, auditor: Conn) -> None:
    me = auditor.info.user
    alter(db)
    feed(db.su)
    assert run("verify", "--record", dsn=db.dsn(me)).returncode == 1
    assert kept(db) == [("outside", me, 1, True)]
    good, detail = status(db)
    assert not good
    assert "1 problems, first: lane " in detail
    assert detail.endswith("id 1: edited")

    def told() -> list[tuple[Any, ...]]:
        db.su.execute("update meshaudit_private.alert_state set checked_at = '-infinity'")
        feed(db.su)
        return db.su.execute(
            "select rule, severity, count, message ~ 'id 1: edited$' from meshaudit.alerts"
        ).fetchall()

    assert told() == [("verification", "critical", 1, True)]
    assert told() == [("verification", "critical", 1, True)]
    totals = "select value from meshaudit.metrics() where name = 'meshaudit_alerts_total' and labels ->> 'rule' = 'verification'"
    assert one(db.su, totals) == 1
    assert len(auditor.execute("select * from meshaudit.verify()").fetchall()) == 1
    assert told() == [("verification", "critical", 2, True)]
    assert one(db.su, totals) == 1
    # One that finds nothing takes no alert back.
    one(db.su, "select meshaudit.record_verification(0)")
    assert len(told()) == 1
    assert status(db)[0]


def test_a_failure_is_not_pushed_out_before_it_is_told(db: Db, auditor: Conn) -> None:
    feed(db.su)
    db.su.execute("select meshaudit.record_verification(problems => 1, first_problem => 'gone')")
    many = "select count(meshaudit.record_verification(problems => 0)) from generate_series(1, 1100)"
    assert auditor.execute(many).fetchone() == (1100,)
    failed = "select count(*) from meshaudit_private.verifications where problems > 0"
    assert db.su.execute(failed).fetchone() == (1,)
    assert len(kept(db)) <= 1001
    db.su.execute("update meshaudit_private.alert_state set checked_at = now() - interval '1 hour'")
    feed(db.su)
    told = "select count(*) from meshaudit.alerts where rule = 'verification' and message like '%gone'"
    assert db.su.execute(told).fetchone() == (1,)


def test_where_nothing_can_be_written(db: Db, auditor: Conn) -> None:
    me = auditor.info.user
    auditor.execute("set default_transaction_read_only = on")
    assert auditor.execute("select * from meshaudit.verify()").fetchall() == []
    assert one(auditor, "select meshaudit.record_verification(0)") is None
    db.pg.run(f"alter role {me} set default_transaction_read_only = on")
    assert "intact" in ok("verify", dsn=db.dsn(me))
    assert "nothing can be written here" in fails_late(db.dsn(me))
    assert kept(db) == []


def fails_late(dsn: str) -> str:
    done = run("verify", "--record", dsn=dsn)
    assert done.returncode == 2
    return done.stderr


def test_nobody_else_gives_a_result(db: Db, auditor: Conn) -> None:
    """No client, no auditor of a part, and of a running one only who began it."""
    client = db.connect(db.role("client", "meshaudit_client"))
    part = db.role("part")
    db.su.execute("select meshaudit.grant_auditor(%s, 'a')", [part])
    statements = (
        "select meshaudit.record_verification(0)",
        "select meshaudit_private.record_verification(null, 'database', 0, 0, 0, null, 'postgres')",
        "insert into meshaudit_private.verifications (method, verified_by, problems) values ('outside', 'x', 0)",
        "update meshaudit_private.verifications set problems = 0",
        "delete from meshaudit_private.verifications",
    )
    for conn in (client, db.connect(part)):
        for statement in statements:
            with pytest.raises(psycopg.Error) as refused:
                conn.execute(statement.encode())
            assert refused.value.sqlstate in ("42501", "MA001"), statement
    with pytest.raises(psycopg.Error) as refused:
        db.connect(part).execute("select * from meshaudit.verify()")
    assert refused.value.sqlstate == "MA001"
    number = one(auditor, "select meshaudit.record_verification(entries => 1, total => 4)")
    other = db.connect(db.role("operator", "meshaudit_operator"))
    end = "select meshaudit.record_verification(0, verification => %s)"
    for conn, given in ((other, number), (auditor, number + 1)):
        with pytest.raises(psycopg.Error) as refused:
            one(conn, end, given)
        assert refused.value.sqlstate == "MA005"
    assert metrics(db) == {"meshaudit_verify_progress_ratio": 0.25}
    assert status(db)[1].endswith("; running: 1 of 4 entries")
    assert one(auditor, end, number) == number
    with pytest.raises(psycopg.Error) as refused:
        one(auditor, end, number)
    assert refused.value.sqlstate == "MA005"
    for wrong in ("-1", "0, entries => -1"):
        with pytest.raises(psycopg.Error) as refused:
            one(auditor, f"select meshaudit.record_verification({wrong})")
        assert refused.value.sqlstate == "MA005"


def test_progress(db: Db, auditor: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told over a connection of its own, while the verifier is in its snapshot."""
    from meshaudit import verifications
    from meshaudit.verify import verify

    monkeypatch.setattr(verifications, "_EVERY", 0.0)
    with verifications.Recorder(db.dsn(auditor.info.user), required=True) as recorder:
        report = verify(auditor, progress=recorder.progress)
        assert metrics(db)["meshaudit_verify_progress_ratio"] == 1
        assert recorder.end(auditor, report.entries, 0, None)
    assert kept(db) == [("outside", auditor.info.user, 0, True)]
    assert "meshaudit_verify_progress_ratio" not in metrics(db)


def test_record_is_for_the_whole_log(db: Db) -> None:
    assert "--record is for the whole log" in fails("verify", "--record", "--to", "2026-01-01", dsn=db.dsn())
