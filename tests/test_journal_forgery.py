"""Only records that meshaudit wrote become entries, each once; others are counted. Denials are bounded."""

from typing import Any

import psycopg
import pytest

from tests.journal_support import READ, READ_MANY, Journal, one, stranger
from tests.support import Db

PEEK = """
select substr(data, 25) from pg_logical_slot_peek_binary_changes(
  (select slot_name from meshaudit_private.journal), null, null,
  'proto_version', '1', 'publication_names', 'meshaudit_journal', 'messages', 'true')
where get_byte(data, 0) = 77
"""


@pytest.fixture
def journal(db: Db) -> Journal:
    return Journal(db)


def emit(conn: psycopg.Connection[Any], *contents: bytes, transactional: bool = False) -> None:
    for content in contents:
        conn.execute("select pg_logical_emit_message(%s, 'meshaudit', %s)", [transactional, content])


def records(journal: Journal) -> list[bytes]:
    """What is in the journal and not sealed yet."""
    journal.db.su.execute("create table if not exists flushes_the_log ()")
    return [bytes(row[0]) for row in journal.db.su.execute(PEEK)]


def genuine(journal: Journal) -> bytes:
    client = journal.client()
    client.execute("begin")
    one(client, READ, journal.secret)
    client.execute("rollback")
    return records(journal)[-1]


def test_forged(journal: Journal) -> None:
    record = genuine(journal)
    assert journal.seal() == 1
    payload = record[37:]
    forger = journal.db.connect(journal.db.role("stranger"))
    emit(
        forger,
        record[:5] + bytes(32) + payload,
        record[:37] + payload.replace(b"rolled", b"forged") + b" ",
        record[:37] + payload[:-1],
        record[:-1],
        record[:1] + (99).to_bytes(4, "big") + record[5:],
        record[:1] + (2**31 + 7).to_bytes(4, "big") + record[5:],
        record[:37],
        record[:40],
    )
    assert journal.seal() == 0
    assert len(journal.told()) == 1
    # of the shortest, one is too short to be a record at all
    assert journal.refused() == (7, 1, 0)
    ok, detail = journal.status()["journal records refused"]
    assert not ok
    assert detail == "7 forged, 1 garbage, 0 replayed"


def test_garbage(journal: Journal) -> None:
    forger = journal.db.connect(journal.db.role("stranger"))
    emit(forger, b"", b"\x00", b"\x01", bytes(39), bytes(4000), b"\xff" * 100, b"\x02" + bytes(99))
    assert journal.seal() == 0
    assert journal.refused() == (0, 7, 0)
    forger.execute("select pg_logical_emit_message(false, 'meshaudit', '')")
    forger.execute("select pg_logical_emit_message(false, 'meshaudit2', 'x')")
    forger.execute("select pg_logical_emit_message(false, '', 'x')")
    assert journal.seal() == 0
    assert journal.refused() == (0, 8, 0)


def test_huge_messages_do_not_stop_the_sealer(journal: Journal) -> None:
    forger = journal.db.connect(journal.db.role("stranger"))
    for _ in range(20):
        forger.execute("select pg_logical_emit_message(false, 'meshaudit', repeat('x', 3000000))")
    forger.execute("select pg_logical_emit_message(false, 'meshaudit', repeat('x', 50000000))")
    genuine(journal)
    for _ in range(20):
        forger.execute("select pg_logical_emit_message(false, 'meshaudit', repeat('x', 4000000))")
    assert sum(int(one(journal.operator, "select meshaudit.seal()")) for _ in range(4)) == 1
    assert journal.outcomes() == ["rolled_back"]
    assert journal.refused() == (0, 41, 0)


def test_replayed(journal: Journal) -> None:
    record = genuine(journal)
    thief = journal.db.connect(journal.db.role("stranger"))
    emit(thief, record)
    assert journal.seal() == 1
    emit(thief, record, record)
    assert journal.seal() == 0
    assert journal.outcomes() == ["rolled_back"]
    assert journal.refused() == (0, 0, 3)


def test_replayed_as_transactional(journal: Journal) -> None:
    record = genuine(journal)
    journal.seal()
    emit(journal.db.connect(journal.db.role("stranger")), record, transactional=True)
    assert journal.seal() == 0
    assert journal.refused() == (0, 1, 0)


def test_replayed_much_later(journal: Journal) -> None:
    """journal_seen forgets in time; then the record itself says that it is old."""
    record = genuine(journal)
    assert journal.seal() == 1
    filler = journal.db.connect(journal.db.role("stranger"))
    for _ in range(55):
        filler.execute("select pg_logical_emit_message(false, 'filler', repeat('x', 10000000))")
    journal.db.su.execute("delete from meshaudit_private.journal_seen")
    emit(filler, record)
    assert journal.seal() == 0
    assert journal.refused() == (0, 0, 1)
    assert journal.outcomes() == ["rolled_back"]


def test_replayed_bulk(journal: Journal) -> None:
    ids = journal.many(600)
    client = journal.client()
    client.execute("begin read only")
    client.execute(READ_MANY, [ids])
    client.execute("rollback")
    stolen = records(journal)[-2:]
    emit(client, *stolen)
    assert journal.seal() == 600
    assert journal.refused() == (0, 0, 600)
    assert journal.outcomes() == ["granted"] * 600


def test_a_record_of_a_committed_access_makes_none_again(journal: Journal) -> None:
    one(journal.client(), READ, journal.secret)
    record = records(journal)[-1]
    emit(journal.client(), record)
    assert journal.seal() == 0
    assert journal.outcomes() == ["granted"]


def test_pending_and_replayed(journal: Journal) -> None:
    client, thief = journal.client(), journal.client()
    client.execute("begin")
    one(client, READ, journal.secret)
    record = records(journal)[-1]
    assert journal.seal() == 0
    emit(thief, record)
    assert journal.seal() == 0
    client.execute("rollback")
    emit(thief, record)
    assert journal.seal() == 1
    assert journal.outcomes() == ["rolled_back"]


def test_keys_are_out_of_reach(journal: Journal) -> None:
    for role in (
        journal.role,
        journal.db.role("auditor", "meshaudit_auditor"),
        journal.db.role("op", "meshaudit_operator"),
    ):
        conn = journal.db.connect(role)
        for query in (
            "table meshaudit_private.journal",
            "table meshaudit_private.journal_keys",
            "table meshaudit_private.journal_pending",
            "select meshaudit_private.sign(1, '', '', null)",
            "select meshaudit_private.journal_access('read', 'granted', 'a', 'b', 'c', 'd')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(query.encode())


def test_unsealed_records_outlive_their_key(journal: Journal) -> None:
    client = journal.client()
    client.execute("begin")
    one(client, READ, journal.secret)
    client.execute("rollback")
    old = records(journal)[-1]
    assert one(journal.operator, "select meshaudit.disarm_journal()") is True
    # disarming has sealed
    assert [e.outcome for e in journal.told() if e.operation == "read"] == ["rolled_back"]
    journal.operator.execute("select meshaudit.arm_journal()")
    new = genuine(journal)
    assert old[1:5] != new[1:5]
    emit(client, old)  # genuine still, and sealed long since
    assert journal.seal() == 1
    assert journal.refused() == (0, 0, 1)


def test_a_flood_of_denials_is_bounded(journal: Journal) -> None:
    loop = """
    do $$
    begin
      for i in 1 .. 10000 loop
        begin
          perform meshaudit.read_secret(gen_random_uuid());
        exception when others then null;
        end;
      end loop;
    end
    $$"""
    # one minute at a time, so that the bound is exact
    minute = "select date_trunc('minute', clock_timestamp())"
    started = one(journal.db.su, minute)
    journal.client().execute(loop.encode())
    minutes = 1 + int((one(journal.db.su, minute) - started).total_seconds() // 60)
    other = journal.db.connect(journal.db.role("other", "meshaudit_client"))
    with pytest.raises(psycopg.Error, match="no such secret"):
        other.execute(READ, [stranger()])
    journal.seal()
    outcomes = journal.outcomes()
    assert 60 < len(outcomes) <= 60 * minutes + 1
    # the clock cannot be moved, the minutes can: then the rest is told
    journal.db.su.execute(
        "update meshaudit_private.journal_denials set minute = minute - interval '4 minutes'"
    )
    journal.seal()
    told = journal.db.su.execute(
        "select user_identity, secret_id, outcome from meshaudit.audit_logs"
        " where secret_table = 'meshaudit.denials'"
    ).fetchall()
    assert {(who, outcome) for who, _, outcome in told} == {(journal.role, "denied")}
    assert sum(int(what.split()[0]) for _, what, _ in told) == 10000 - (len(outcomes) - 1)
    assert journal.told()[-1].outcome == "denied"
