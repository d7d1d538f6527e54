"""The feed: each committed entry once, in an order that a cursor can follow, bounded, closed to others."""

import json
import random
import threading
from typing import Any

import psycopg
import pytest

from tests.journal_support import Conn, Journal, one
from tests.support import Db, wait_until

FEED = "select meshaudit.feed()"
COPIED = (
    'id, secret_id, access_type, "timestamp", user_identity, ip_address, operation, outcome, secret_table,'
    " scope, identity_source, claimed_identity, db_user, db_role, application_name, user_agent, request_id,"
    " access_id, lane, seq, hash"
)


def feed(conn: Conn) -> int:
    total = 0
    while added := one(conn, FEED):
        total += added
    return total


def ids(conn: Conn) -> list[int]:
    rows = conn.execute(
        "select id from meshaudit.audit_feed where kind = 'entry' order by feed_id"
    ).fetchall()
    return [row[0] for row in rows]


def logged(conn: Conn) -> list[int]:
    return [row[0] for row in conn.execute("select id from meshaudit.audit_logs order by id").fetchall()]


def write(conn: Conn, key: str = "k", scope: str = "") -> Any:
    return one(conn, "select meshaudit.write_secret(%s, 'v', %s)", key, scope)


def test_an_entry_becomes_an_event(any_db: Db) -> None:
    client = any_db.connect(any_db.role("client", "meshaudit_client"))
    operator = any_db.connect(any_db.role("operator", "meshaudit_operator"))
    write(client)
    assert one(operator, FEED) == 1
    assert one(operator, FEED) == 0
    queries = [f"select {COPIED} from meshaudit.{name} order by id" for name in ("audit_feed", "audit_logs")]
    events, entries = (any_db.su.execute(query.encode()).fetchall() for query in queries)
    assert events == entries
    assert any_db.su.execute("select feed_id, kind, alert from meshaudit.audit_feed").fetchall() == [
        (1, "entry", None)
    ]


def test_types_are_those_of_the_log(db: Db) -> None:
    """The contract: the log's columns but prev_hash, with the log's types."""
    query = """select attname, format_type(atttypid, atttypmod) from pg_attribute
      where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum"""
    log = db.su.execute(query, ["meshaudit.audit_logs"]).fetchall()
    ours = db.su.execute(query, ["meshaudit.audit_feed"]).fetchall()
    assert ours[0] == ("feed_id", "bigint")
    assert ours[1 : 1 + len(log) - 1] == [column for column in log if column[0] != "prev_hash"]
    assert ours[len(log) :] == [("kind", "text"), ("alert", "jsonb")]


def test_sealing_feeds(db: Db) -> None:
    journal = Journal(db)
    client = journal.client()
    client.execute("begin")
    one(client, "select meshaudit.read_secret(%s)", journal.secret)
    client.execute("rollback")
    assert journal.seal() == 1
    assert ids(db.su) == logged(db.su)
    last = "select outcome from meshaudit.audit_feed where kind = 'entry' order by feed_id desc limit 1"
    assert one(db.su, last) == "rolled_back"


def test_who_listens_is_told(db: Db) -> None:
    listener = db.connect()
    listener.execute("listen meshaudit_feed")
    write(db.su)
    write(db.su, "other")
    feed(db.su)
    feed(db.su)
    assert [n.payload for n in listener.notifies(timeout=0.5)] == ["2"]


def test_what_is_not_committed_waits(db: Db) -> None:
    opened, other = db.connect(), db.connect()
    opened.execute("begin")
    write(opened, "late")
    write(other, "early")
    assert feed(db.su) == 1
    opened.execute("savepoint s")
    write(opened, "undone")
    opened.execute("rollback to s")
    write(opened, "later")
    assert feed(db.su) == 0
    opened.execute("commit")
    assert feed(db.su) == 2
    assert sorted(ids(db.su)) == logged(db.su)
    assert len(logged(db.su)) == 3


def test_prepared_transactions(db: Db) -> None:
    for end in ("rollback", "commit"):
        conn = db.connect()
        conn.execute("begin")
        write(conn, end)
        conn.execute(f"prepare transaction '{db.name}_{end}'".encode())
        assert feed(db.su) == 0
        conn.execute(f"{end} prepared '{db.name}_{end}'".encode())
    assert feed(db.su) == 1


def test_an_old_entry_comes_late(db: Db) -> None:
    """What is sealed late bears the time of its access; so does a transaction of days."""
    journal = Journal(db)
    feed(db.su)
    client = journal.client()
    client.execute("begin")
    one(client, "select meshaudit.read_secret(%s)", journal.secret)
    client.execute("rollback")
    # no clock can be set: so the other side of the same comparison, with "recent" in the future
    body = one(db.su, "select pg_get_functiondef('meshaudit_private.feed_entries(bigint,int)'::regprocedure)")
    db.su.execute(body.replace("- '1 day'", "+ '1 day'").encode())
    assert journal.seal() == 1
    assert sorted(ids(db.su)) == logged(db.su)


def test_a_long_batch_lets_others_go_first(db: Db) -> None:
    secrets = [write(db.su, f"k{i}") for i in range(50)]
    feed(db.su)
    db.su.execute("select count(*) from meshaudit.read_secrets(%s)", [secrets])
    write(db.connect(), "other")
    before = len(ids(db.su))
    limited = "select meshaudit_private.feed(20)"
    assert one(db.su, limited) == 20
    first = db.su.execute(
        "select operation, count(*) from meshaudit.audit_feed where feed_id > %s group by 1 order by 1",
        [before],
    ).fetchall()
    assert first == [("create", 1), ("read", 19)]
    assert [one(db.su, limited), one(db.su, limited)] == [20, 11]
    assert sorted(ids(db.su)) == logged(db.su)


def test_it_stays_bounded(db: Db) -> None:
    db.su.execute("select meshaudit.set_setting('feed_keep', '1000')")
    secrets = [write(db.su, f"k{i}") for i in range(30)]
    for _ in range(4):
        for _ in range(14):
            db.su.execute("select count(*) from meshaudit.read_secrets(%s)", [secrets])
        feed(db.su)
    total = len(logged(db.su)) + one(db.su, "select count(*) from meshaudit.alerts")
    oldest, newest = db.su.execute("select * from meshaudit.feed_range()").fetchall()[0]
    assert newest == total
    assert oldest == newest - 999
    assert one(db.su, "select count(*) from meshaudit.audit_feed") == 1000


def test_only_read_committed(db: Db) -> None:
    conn = db.connect()
    conn.execute("begin isolation level repeatable read")
    with pytest.raises(psycopg.errors.DatabaseError) as refused:
        conn.execute(FEED)
    assert refused.value.sqlstate == "MA005"


def test_two_at_a_time(db: Db) -> None:
    first = db.connect()
    write(db.su)
    first.execute("begin")
    assert one(first, FEED) == 1
    write(db.su, "other")
    assert one(db.su, FEED) == 0
    first.execute("rollback")
    assert one(db.su, FEED) == 2


def test_nobody_writes_by_hand(any_db: Db) -> None:
    write(any_db.su)
    feed(any_db.su)
    for role in (None, any_db.role("writer", "pg_write_all_data", "pg_read_all_data"), any_db.pg.superuser):
        conn = any_db.connect(role)
        for statement in (
            "insert into meshaudit.audit_feed (feed_id, scope, kind) values (7, '', 'entry')",
            "update meshaudit.audit_feed set user_identity = 'x'",
            "delete from meshaudit.audit_feed",
            "truncate meshaudit.audit_feed",
        ):
            with pytest.raises(psycopg.Error) as refused:
                conn.execute(statement.encode())
            assert refused.value.sqlstate in ("MA003", "42501"), statement
    assert ids(any_db.su) == logged(any_db.su)


def test_auditors_see_their_scopes(any_db: Db) -> None:
    everything, some, none = (any_db.role(name, "meshaudit_auditor") for name in ("all", "some", "none"))
    any_db.su.execute(
        "select meshaudit.grant_auditor(%s), meshaudit.grant_auditor(%s, 'a')", [everything, some]
    )
    write(any_db.su, "k", "a")
    write(any_db.su, "k", "b")
    feed(any_db.su)
    seen = {}
    for role in (everything, some, none):
        rows = (
            any_db.connect(role).execute("select scope from meshaudit.audit_feed order by feed_id").fetchall()
        )
        seen[role] = [scope for (scope,) in rows]
    assert seen == {everything: ["*", "a", "a", "b"], some: ["a", "a"], none: []}


def test_a_failure_to_feed_undoes_no_sealing(db: Db) -> None:
    journal = Journal(db)
    client = journal.client()
    client.execute("begin")
    one(client, "select meshaudit.read_secret(%s)", journal.secret)
    client.execute("rollback")
    db.su.execute("alter table meshaudit.audit_feed add constraint broken check (false) not valid")
    assert journal.seal() == 1
    ok, detail = journal.status()["feed"]
    assert not ok
    assert "fails" in detail
    db.su.execute("alter table meshaudit.audit_feed drop constraint broken")
    feed(db.su)
    assert sorted(ids(db.su)) == logged(db.su)
    assert journal.status()["feed"][0]


def test_status_says_that_nobody_feeds(db: Db) -> None:
    def feed_line() -> tuple[bool, str]:
        query = "select ok, detail from meshaudit.status() where \"check\" = 'feed'"
        ok, detail = db.su.execute(query.encode()).fetchall()[0]
        return ok, detail

    assert feed_line()[0]
    write(db.su)
    ok, detail = feed_line()
    assert not ok
    assert detail.startswith("1 entries behind, last run never")
    feed(db.su)
    assert feed_line()[0]


def test_it_looks_only_where_something_moved(db: Db) -> None:
    """The plan is an index's range a lane, with the partitions of long ago left out."""
    secrets = [write(db.su, f"k{i}") for i in range(20)]
    for _ in range(40):
        db.su.execute("select count(*) from meshaudit.read_secrets(%s)", [secrets])
    db.su.execute("analyze meshaudit_private.ledger")
    feed(db.su)
    write(db.su, "one more")
    db.su.execute("load 'auto_explain'")
    db.su.execute("set auto_explain.log_min_duration = 0")
    db.su.execute("set auto_explain.log_nested_statements = on")
    db.su.execute("set auto_explain.log_format = json")
    db.su.execute("set auto_explain.log_analyze = on")
    db.su.execute("set client_min_messages = log")
    plans: list[dict[str, Any]] = []

    def keep(notice: psycopg.errors.Diagnostic) -> None:
        text = notice.message_primary or ""
        if "plan:" in text and "insert into meshaudit.audit_feed" in text:
            plans.append(json.loads(text[text.index("{") :])["Plan"])

    db.su.add_notice_handler(keep)
    assert one(db.su, FEED) == 1
    assert len(plans) == 1
    text = json.dumps(plans)
    assert "Index Scan" in text
    for _, node in scans(plans[0]):
        assert node["Node Type"] in ("Index Scan", "Function Scan"), node
        assert node["Actual Rows"] * node["Actual Loops"] <= 1


def scans(node: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = [("", node)] if "Scan" in node["Node Type"] and "Subquery" not in node["Node Type"] else []
    return found + [scan for child in node.get("Plans", []) for scan in scans(child)]


def test_each_entry_once_under_concurrent_writers_and_killed_sealers(db: Db) -> None:
    """Writers commit, roll back and get lost, sealers are killed in mid-run; a reader who follows by feed_id
    alone sees every entry once."""
    journal = Journal(db)
    secrets = journal.many(20)
    stop = threading.Event()
    seen: list[int] = []
    failures: list[BaseException] = []

    def guarded(work: Any) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as exc:
                failures.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def writer(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            with psycopg.connect(db.dsn(journal.role), autocommit=True) as conn:
                for _ in range(5):
                    conn.execute("begin")
                    for _ in range(chance.randint(1, 3)):
                        one(conn, "select meshaudit.read_secret(%s)", chance.choice(secrets))
                    if chance.random() < 0.3:
                        conn.execute("select count(*) from meshaudit.read_secrets(%s)", [secrets])
                    stop.wait(chance.random() * 0.05)
                    conn.execute(chance.choice(["commit", "commit", "rollback"]))
                conn.execute("begin")
                one(conn, "select meshaudit.read_secret(%s)", chance.choice(secrets))

    def sealer(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            with psycopg.connect(db.dsn(), autocommit=True) as conn:
                timer = threading.Timer(chance.random() * 0.1, kill, [conn.info.backend_pid])
                timer.start()
                try:
                    while not stop.is_set():
                        conn.execute(chance.choice(["select meshaudit.seal()", FEED]).encode())
                except psycopg.OperationalError:
                    pass
                finally:
                    timer.cancel()
                    timer.join()

    def kill(pid: int) -> None:
        with psycopg.connect(db.pg.dsn(), autocommit=True) as conn:
            conn.execute("select pg_terminate_backend(%s)", [pid])

    def follow(conn: Conn) -> None:
        last = seen[-1] if seen else 0
        query = "select feed_id from meshaudit.audit_feed where feed_id > %s order by feed_id"
        seen.extend(row[0] for row in conn.execute(query, [last]).fetchall())

    def reader() -> None:
        with psycopg.connect(db.pg.dsn(db.name), autocommit=True) as conn:
            while not stop.is_set():
                follow(conn)

    threads = [guarded(lambda n=n: writer(n)) for n in range(4)]
    threads += [guarded(lambda n=n: sealer(n)) for n in range(2)]
    threads.append(guarded(reader))
    stop.wait(4)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert failures == []
    busy = "select from pg_stat_activity where datname = %s and backend_type = 'client backend'"
    wait_until(lambda: db.pg.run(busy, db.name).rowcount <= 3, what="the end of the killed")
    journal.seal()
    feed(db.su)
    follow(db.su)
    fed = ids(db.su)
    assert sorted(fed) == logged(db.su)
    assert len(fed) > 100
    assert seen == list(range(1, one(db.su, "select newest from meshaudit.feed_range()") + 1))
