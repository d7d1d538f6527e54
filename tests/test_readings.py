"""Reading the log leaves a trace: who, for what, how many entries; once, and never of itself."""

import json
from typing import Any

import psycopg
import pytest

from meshaudit.verify import verify
from tests.journal_support import Journal, one
from tests.support import Db

Conn = psycopg.Connection[Any]
TOLD = (
    "select secret_id, operation, outcome, user_identity, db_role, scope, access_type"
    " from meshaudit.audit_logs where secret_table = 'meshaudit.audit_logs' order by id"
)


def told(db: Db) -> list[str]:
    return [row[0] for row in db.su.execute(TOLD)]


@pytest.fixture
def auditor(db: Db) -> Conn:
    """Of one scope, in which there are three entries."""
    role = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s, 'a')", [role])
    for number in range(2):
        db.su.execute("select meshaudit.write_secret(%s, 'v', 'a')", [str(number)])
    return db.connect(role)


SEARCH = "select * from meshaudit.search_audit_logs(scope => 'a', outcome => 'granted', page_size => 2)"


def test_a_search_says_for_what_and_how_many(db: Db, auditor: Conn) -> None:
    assert len(auditor.execute(SEARCH).fetchall()) == 2
    me = auditor.info.user
    assert db.su.execute(TOLD).fetchall() == [
        ("search (outcome granted, scope a): 2 entries", "read", "granted", me, me, "*", "read")
    ]
    auditor.execute("select * from meshaudit.search_audit_logs(secret_id => 'nothing')")
    auditor.execute("select * from meshaudit.search_audit_logs(user_identity => %s)", ["x" * 5000])
    assert told(db)[1] == "search (secret_id nothing): 0 entries"
    assert len(told(db)[2]) <= 512
    assert told(db)[2].endswith("x): 0 entries")
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []


QUERIES = {
    "rows": "select * from meshaudit.audit_logs",
    "count": "select count(*) from meshaudit.audit_logs",
    "nothing found": "select * from meshaudit.audit_logs where secret_id = 'nothing'",
    "one column": "select hash from meshaudit.audit_logs order by lane limit 1",
    "correlated": "select (select max(l.seq) from meshaudit.audit_logs l where l.lane = g)"
    " from generate_series(1, 9) g",
    "cursor": "begin; declare c cursor for select * from"
    " meshaudit.audit_logs; fetch 1 from c; fetch 1 from c;"
    " commit",
    "copy": "copy (select * from meshaudit.audit_logs) to stdout",
    "postgrest": "with pgrst_source as (select audit_logs.* from meshaudit.audit_logs"
    " where scope = 'a' limit 5 offset 0) select count(*), json_agg(t) from (select * from pgrst_source) t",
    "explain analyze": "explain analyze select * from meshaudit.audit_logs",
}


@pytest.mark.parametrize("how", QUERIES)
def test_a_query_of_the_view(db: Db, auditor: Conn, how: str) -> None:
    if how == "copy":
        with auditor.cursor().copy(QUERIES[how].encode()) as copy:
            assert list(copy)
    else:
        auditor.execute(QUERIES[how].encode())
    assert told(db) == ["a query"]


def test_what_records_nothing(db: Db, auditor: Conn) -> None:
    """Plans, and what meshaudit reads for itself."""
    auditor.execute("explain select * from meshaudit.audit_logs")
    auditor.execute("select meshaudit.sees_everything()")
    db.su.execute("select meshaudit.grant_auditor(%s)", [auditor.info.user])
    auditor.execute("select * from meshaudit.verify()")
    auditor.execute("select meshaudit.checkpoint()")
    auditor.execute("select * from meshaudit.status()")
    assert told(db) == []


def test_no_setting_hides_a_reading(db: Db, auditor: Conn) -> None:
    """What a search shows to the policy cannot be made up, nor seen, nor kept."""
    auditor.execute("begin")
    auditor.execute(SEARCH)
    assert one(auditor, "select current_setting('meshaudit.search')") == ""
    auditor.execute("commit")
    for forged in ("x", "0" * 36, "0" * 100, "a" * 36 + "b" * 64, "é" * 40):
        auditor.execute("select set_config('meshaudit.search', %s, false)", [forged])
        auditor.execute("select * from meshaudit.audit_logs")
    assert told(db)[1:] == ["a query"] * 5
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        auditor.execute("select meshaudit_private.begin_search(current_user, null)")


def test_who_can_make_a_token_is_recorded_all_the_same(db: Db) -> None:
    """pg_read_all_data brings USAGE on every schema, and so the functions that make tokens within reach."""
    role = db.role("auditor", "pg_read_all_data")
    db.su.execute("select meshaudit.grant_auditor(%s, 'a')", [role])
    conn = db.connect(role)
    token = one(conn, "select (meshaudit_private.begin_search(%s, null)).token", role)
    conn.execute("select set_config('meshaudit.search', %s, false)", [token])
    conn.execute("select * from meshaudit.audit_logs")
    assert told(db) == ["a query"]


def test_who_sees_nothing_is_denied(db: Db) -> None:
    conn = db.connect(db.role("nobody", "meshaudit_auditor"))
    assert conn.execute("select * from meshaudit.audit_logs").fetchall() == []
    assert conn.execute("select * from meshaudit.search_audit_logs()").fetchall() == []
    assert [(row[0], row[2]) for row in db.su.execute(TOLD)] == [
        ("a query", "denied"),
        ("search (): 0 entries", "denied"),
    ]


def test_read_only(db: Db, auditor: Conn) -> None:
    """Without a journal nothing records it; with one it is recorded; require_journal refuses without one."""
    auditor.execute("set default_transaction_read_only = on")
    assert len(auditor.execute(SEARCH).fetchall()) == 2
    auditor.execute("select * from meshaudit.audit_logs")
    assert told(db) == []
    journal = Journal(db)
    auditor.execute(SEARCH)
    auditor.execute("select * from meshaudit.audit_logs")
    journal.seal()
    recorded = ["search (outcome granted, scope a): 2 entries", "a query"]
    assert told(db) == recorded
    db.su.execute("select pg_drop_replication_slot(slot_name) from meshaudit_private.journal")
    db.su.execute("update meshaudit_private.journal set healthy_until = '-infinity'")
    auditor.execute(SEARCH)
    db.su.execute("update meshaudit_private.journal set required = true")
    for query in (SEARCH, "select * from meshaudit.audit_logs"):
        with pytest.raises(psycopg.Error) as caught:
            auditor.execute(query.encode())
        assert caught.value.sqlstate == "MA002"
    assert told(db) == recorded


def test_a_reading_that_is_rolled_back(db: Db, auditor: Conn) -> None:
    journal = Journal(db)
    auditor.execute("begin")
    auditor.execute(SEARCH)
    auditor.execute("rollback")
    journal.seal()
    assert [(row[0], row[2]) for row in db.su.execute(TOLD)] == [
        ("search (outcome granted, scope a): 2 entries", "rolled_back")
    ]


def test_the_verifier_leaves_a_trace_too(db: Db, auditor: Conn) -> None:
    db.su.execute("select meshaudit.grant_auditor(%s)", [auditor.info.user])
    journal = Journal(db)
    assert verify(auditor).intact
    journal.seal()
    assert set(told(db)) == {"a query"}


def test_behind_a_gateway(db: Db) -> None:
    """The JWT's subject is who searched."""
    login = db.role("gateway", "meshaudit_auditor")
    db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [login])
    db.su.execute("select meshaudit.grant_auditor('alice', 'a')")
    conn = db.connect(login, autocommit=False)
    conn.execute("select set_config('request.jwt.claims', %s, true)", [json.dumps({"sub": "alice"})])
    conn.execute(SEARCH)
    conn.commit()
    assert [(row[0], row[3]) for row in db.su.execute(TOLD)] == [
        ("search (outcome granted, scope a): 1 entries", "alice")
    ]
