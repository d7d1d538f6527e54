"""Sealers get along, end half-way, and begin where they must."""

from typing import Any

import psycopg
import pytest

from tests.journal_support import READ, Journal, one, seal
from tests.test_journal_slot import SEAL, SET, journal

__all__ = ["journal"]  # the fixture


def test_sealing_takes_read_committed(journal: Journal) -> None:
    journal.operator.execute("begin isolation level repeatable read")
    with pytest.raises(psycopg.Error) as caught:
        journal.operator.execute(SEAL)
    assert caught.value.sqlstate == "MA005"
    journal.operator.execute("rollback")


def rolled_back_reads(journal: Journal, count: int) -> None:
    client = journal.client()
    for _ in range(count):
        client.execute("begin")
        one(client, READ, journal.secret)
        client.execute("rollback")


def test_two_sealers(journal: Journal) -> None:
    rolled_back_reads(journal, 3)
    journal.operator.execute("begin")
    first = one(journal.operator, SEAL)
    other = journal.db.connect()
    other.execute("set lock_timeout = '200ms'")
    assert one(other, SEAL) == 0
    journal.operator.execute("commit")
    assert first + seal(other) == 3
    assert journal.outcomes() == ["rolled_back"] * 3


@pytest.mark.parametrize("how", ["rollback", "terminate", "cancel"])
def test_a_sealer_that_ends_half_way(journal: Journal, how: str) -> None:
    rolled_back_reads(journal, 3)
    sealer = journal.db.connect()
    sealer.execute("begin")
    one(sealer, SEAL)
    if how == "rollback":
        sealer.execute("rollback")
    elif how == "terminate":
        journal.terminate(sealer)
    else:
        sealer.execute("set statement_timeout = '50ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            sealer.execute("select pg_sleep(5)")
        sealer.execute("rollback")
    assert journal.seal() == 3
    assert journal.seal() == 0
    assert journal.outcomes() == ["rolled_back"] * 3


def test_a_backlog_longer_than_one_run(journal: Journal) -> None:
    rolled_back_reads(journal, 30)
    inner = "select meshaudit_private.seal(7)"
    made = [int(one(journal.db.su, inner)) for _ in range(12)]
    assert sum(made) == 30
    assert max(made) <= 7
    assert journal.outcomes() == ["rolled_back"] * 30


def test_an_open_setting_does_not_stop_sealing(journal: Journal) -> None:
    rolled_back_reads(journal, 1)
    other = journal.db.connect()
    journal.db.su.execute("update meshaudit_private.journal set healthy_until = '-infinity'")
    other.execute("begin")
    other.execute(SET, ["journal_flush", "false"])
    journal.operator.execute("set lock_timeout = '1s'")
    assert journal.seal() == 1
    other.execute("rollback")


def test_reading_does_not_begin_far_back(journal: Journal) -> None:
    """Who may tell the log what is running does; what the slot holds is sealed once all the same."""
    if journal.db.pg.version < 16:
        pytest.skip("pg_log_standby_snapshot() is of 16")
    su = journal.db.su
    role = journal.db.role("operator", "meshaudit_operator", replication=True)
    operator = journal.db.connect(role)
    behind = "select pg_current_wal_lsn() - restart_lsn from pg_replication_slots where slot_name = (select slot_name from meshaudit_private.journal)"

    def runs(conn: psycopg.Connection[Any]) -> int:
        for _ in range(24):
            su.execute("select pg_logical_emit_message(false, 'other', repeat('x', 1000000))")
        rolled_back_reads(journal, 2)
        return sum(int(one(conn, SEAL)) for _ in range(5))

    assert runs(su) == 2
    assert one(su, behind) < 16 * 2**20
    su.execute(f"grant execute on function pg_log_standby_snapshot() to {role}".encode())
    try:
        assert runs(operator) == 2
        assert one(su, behind) < 16 * 2**20
    finally:
        su.execute(f"revoke execute on function pg_log_standby_snapshot() from {role}".encode())
    assert runs(operator) == 2
    assert journal.outcomes() == ["rolled_back"] * 6
