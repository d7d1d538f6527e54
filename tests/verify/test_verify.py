"""The outside verifier on intact ledgers: where rows lie, who asks, what disturbs."""

import contextlib
import threading
from datetime import UTC, datetime

import psycopg
import pytest

from meshaudit.errors import BadArgument, NoPermission, NotMigrated
from meshaudit.verify import Report, verify
from tests.support import Db
from tests.verify.tampering import AT, Ledger, deleted, real_ledger


def test_an_intact_ledger(ledger: Ledger):
    ledger.expect()
    assert verify(ledger.su) == Report([], len(ledger.ids), len(ledger.lanes))
    assert verify(ledger.su, checkpoint=ledger.checkpoint).intact


def test_an_empty_ledger(db: Db):
    assert verify(db.su) == Report([], 0, 0)
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []
    assert verify(db.su, from_time=datetime(2020, 1, 1, tzinfo=UTC)).intact


def test_the_physical_order_does_not_matter(ledger: Ledger):
    for way in ("random()", "seq desc", "id desc", "lane, seq"):
        ledger.do("truncate {L}", rows=None)
        ledger.do(f"insert into {{L}} select * from kept order by {way}", rows=len(ledger.ids))
        ledger.expect()


def test_entries_in_other_partitions(db: Db):
    """A chain across the default partition (long ago, far ahead), this month's and the next one's."""
    ledger = real_ledger(db, lanes=1, rounds=1)
    lane = ledger.lanes[0]
    ages = [
        "- interval '20 years'",
        "+ interval '5 years'",
        "",
        "+ interval '31 days'",
        "- interval '40 years'",
    ]
    for seq, age in enumerate(ages, start=2):
        ledger.do(f'update {{L}} set "timestamp" = "timestamp" {age} where lane = %s and seq = %s', lane, seq)
    assert len(ledger.all("select distinct tableoid from meshaudit_private.ledger")) == 3
    assert len(ledger.found()) == 4
    ledger.rewrite(lane, 1, head=True)
    ledger.keep()
    ledger.expect()
    ledger.expect(to_time=datetime(2019, 1, 1, tzinfo=UTC))
    ledger.expect(from_time=datetime(2030, 1, 1, tzinfo=UTC))
    ledger.edit(lane, 2, scope="x")
    ledger.expect(ledger.entry(lane, 2, "edited"))
    ledger.expect(ledger.entry(lane, 2, "edited"), to_time=datetime(2019, 1, 1, tzinfo=UTC))
    ledger.reset()
    ledger.do("delete from {L} where lane = %s and seq in (3, 4)", lane, rows=2)
    ledger.expect(deleted(lane, 3, 4))


def test_writers_at_work_cause_no_false_alarm(db: Db):
    client, reader = db.role("client", "meshaudit_client"), db.connect(db.pg.superuser)
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        levels = list(psycopg.IsolationLevel)
        try:
            with db.connect(client, autocommit=False) as conn:
                conn.isolation_level = levels[number % len(levels)]
                turn = 0
                while not stop.is_set():
                    turn += 1
                    with contextlib.suppress(psycopg.errors.SerializationFailure), conn.transaction():
                        row = conn.execute(
                            "select meshaudit.write_secret(%s, '\\x00')", (f"{number}-{turn % 5}",)
                        ).fetchone()
                        conn.execute("select meshaudit.read_secrets(%s)", ([row[0]] if row else [],))
                        if turn % 3 == 0:
                            raise psycopg.Rollback
        except BaseException as exc:
            failures.append(exc)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    try:
        seen: list[int] = []
        while len(set(seen)) < 6 and not failures:
            report = verify(reader)
            assert report.problems == []
            assert reader.execute("select * from meshaudit.verify()").fetchall() == []
            start = reader.execute("select clock_timestamp() - interval '50 ms'").fetchone()
            assert start is not None
            assert verify(reader, from_time=start[0]).intact
            assert reader.execute("select * from meshaudit.verify(%s)", start).fetchall() == []
            seen.append(report.entries)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not failures
    assert seen == sorted(seen)


def test_session_settings_do_not_matter(ledger: Ledger, ledger_db: Db):
    odd = (
        "-c client_encoding=LATIN1 -c timezone=Asia/Kathmandu -c datestyle=German -c bytea_output=escape"
        " -c statement_timeout=1h -c search_path=pg_temp,public,pg_catalog -c standard_conforming_strings=off"
        " -c extra_float_digits=-15 -c quote_all_identifiers=on -c default_transaction_isolation=serializable"
    )
    ledger.edit(ledger.lanes[0], AT, scope="Zürich 🔑", user_agent="密")
    ledger.rewrite(ledger.lanes[0], AT, head=True)
    with ledger_db.connect(options=odd, autocommit=False) as conn:
        conn.execute("create operator public.|| (function = byteacat, leftarg = bytea, rightarg = bytea)")
        conn.rollback()
        for name in ("client_encoding", "statement_timeout", "transaction_read_only"):
            before = conn.execute(f"show {name}".encode()).fetchone()
            conn.rollback()
            assert verify(conn).intact
            assert conn.execute("select * from meshaudit.verify()").fetchall() == []
            assert conn.execute(f"show {name}".encode()).fetchone() == before
            conn.rollback()


def test_entries_written_under_another_encoding(db: Db):
    client = db.role("client", "meshaudit_client")
    for encoding, scope in (("LATIN1", "Zürich"), ("UTF8", "Zürich 🔑"), ("EUC_JP", "東京")):
        with db.connect(client, client_encoding=encoding) as conn:
            row = conn.execute("select meshaudit.write_secret('k', '\\x00', %s)", (scope,)).fetchone()
            assert row is not None
            conn.execute("select meshaudit.read_secrets(%s)", ([row[0]],))
    ledger = Ledger(db)
    assert len(ledger.ids) == 6
    ledger.expect()


def test_an_auditor_of_everything_can_verify(any_db: Db):
    auditor = any_db.role("auditor")
    any_db.connect().execute("select meshaudit.grant_auditor(%s)", (auditor,))
    client = any_db.connect(any_db.role("client", "meshaudit_client"))
    client.execute("select meshaudit.write_secret('k', '\\x00', 'a')")
    report = verify(any_db.connect(auditor))
    assert (report.problems, report.entries) == ([], 2)


def test_an_auditor_of_a_part_is_told_so(db: Db):
    auditor = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s, 'a')", (auditor,))
    client = db.connect(db.role("client", "meshaudit_client"))
    for scope in ("a", "b"):
        client.execute("select meshaudit.write_secret('k', '\\x00', %s)", (scope,))
    conn = db.connect(auditor)
    assert conn.execute("select count(*) from meshaudit.audit_logs").fetchone() == (1 + 1,)[:1]
    with pytest.raises(NoPermission, match="only a part of the log") as refused:
        verify(conn)
    assert "grant_auditor" in refused.value.hint
    db.su.execute("select meshaudit.grant_auditor(%s, '*')", (auditor,))
    assert verify(conn).intact


@pytest.mark.parametrize("groups", [(), ("meshaudit_client",), ("meshaudit_operator",)])
def test_who_does_not_read_the_log_cannot_verify_from_outside(db: Db, groups: tuple[str, ...]):
    with pytest.raises(NoPermission):
        verify(db.connect(db.role("other", *groups)))


def test_a_member_without_a_grant_cannot_verify(db: Db):
    with pytest.raises(NoPermission):
        verify(db.connect(db.role("other", "meshaudit_auditor")))


def test_a_role_that_bypasses_row_security_can_verify(db: Db):
    role = db.role("admin", "meshaudit_auditor", "pg_read_all_data", "meshaudit_operator", bypassrls=True)
    assert verify(db.connect(role)).intact


def test_a_database_without_meshaudit(empty_db: Db):
    with pytest.raises(NotMigrated):
        verify(empty_db.su)


def test_bad_arguments(ledger: Ledger):
    now = datetime.now(UTC)
    with pytest.raises(BadArgument, match="time zone"):
        verify(ledger.su, from_time=datetime(2026, 1, 1))
    with pytest.raises(BadArgument, match="empty"):
        verify(ledger.su, from_time=now, to_time=now)
    with ledger.su.transaction(), pytest.raises(BadArgument, match="in a transaction"):
        verify(ledger.su)


def test_progress_runs_to_the_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("meshaudit.chains._CHUNK", 10)
    steps: list[tuple[int, int]] = []
    report = verify(ledger.su, progress=lambda done, total: steps.append((done, total)))
    total = len(ledger.ids)
    assert report.entries == total
    assert steps[:2] == [(10 - 1, total), (20 - 1, total)] or steps[:2] == [(10, total), (20, total)]
    assert steps[-1] == (total, total)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_connection_survives_an_interruption(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
):
    def interrupt(done: int, total: int) -> None:
        raise error

    monkeypatch.setattr("meshaudit.chains._CHUNK", 10)
    with pytest.raises(error):
        verify(ledger.su, progress=interrupt)
    assert ledger.su.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    ledger.expect()


def test_an_error_in_the_stream_is_raised(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("meshaudit.verify.ROW", "hash, prev_hash, record_send(row(1 / (id - id)))")
    with pytest.raises(Exception, match="division by zero"):
        verify(ledger.su)
    monkeypatch.undo()
    ledger.expect()


def test_memory_holds_runs_not_entries(ledger: Ledger):
    from meshaudit.chains import ROW, Chains

    chains = Chains()
    with ledger.su.transaction():
        query = f"select {ROW} from (select * from meshaudit.audit_logs order by id) l"
        chains.read(ledger.su, query, lambda done: None)
    assert chains.entries == len(ledger.ids)
    assert {lane: len(runs) for lane, runs in chains.runs().items()} == dict.fromkeys(ledger.lanes, 1)
    assert len(chains._runs) == len(ledger.lanes)
