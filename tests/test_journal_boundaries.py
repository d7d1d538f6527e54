"""Where the sealer's rules end: what is fresh, what is a replay, which key, how short, which version; and floods.

Records are made here as the product makes them, signed with a key read as superuser: nobody else could.
"""

import hashlib
import hmac
from typing import Any

import psycopg
import pytest

from tests.journal_support import READ, Journal, one
from tests.support import Db
from tests.test_journal_forgery import emit, genuine, records

PAD = 128


@pytest.fixture
def journal(db: Db) -> Journal:
    return Journal(db)


def keys(journal: Journal) -> dict[int, bytes]:
    """Each key, as it was before it was padded and xored."""
    rows = journal.db.su.execute("select key_id, inner_key from meshaudit_private.journal_keys").fetchall()
    return {key_id: bytes(b ^ 0x36 for b in inner) for key_id, inner in rows}


def signed(journal: Journal, payload: bytes, key_id: int | None = None) -> bytes:
    known = keys(journal)
    key_id = key_id or max(known)
    return b"\x01" + key_id.to_bytes(4, "big") + hmac.digest(known[key_id], payload, hashlib.sha256) + payload


def written(payload: bytes, at: str) -> bytes:
    """The same record, but written elsewhere in the log (and so another access)."""
    return b"(" + at.encode() + payload[payload.index(b",") :]


def seal_messages(journal: Journal, at: str, content: bytes, upto: str) -> int:
    return int(
        one(
            journal.db.su,
            "select meshaudit_private.seal_messages(array[%s::pg_lsn], array[%s::bytea], %s::pg_lsn, true)",
            at,
            content,
            upto,
        )
    )


def read_only_record(journal: Journal) -> bytes:
    """An access's payload that needs no transaction's end."""
    client = journal.client()
    client.execute("begin read only")
    one(client, READ, journal.secret)
    client.execute("rollback")
    return records(journal)[-1][37:]


def test_what_we_sign_is_what_the_product_signs(journal: Journal) -> None:
    record = genuine(journal)
    assert signed(journal, record[37:]) == record


@pytest.mark.parametrize(("offset", "entries"), [(-1, 1), (0, 1), (1, 1)])
def test_written_where_sealing_ended(journal: Journal, offset: int, entries: int) -> None:
    """A record written just before, at, or just after sealed_lsn is sealed once, and once only when it comes again."""
    payload = read_only_record(journal)
    journal.seal()
    sealed = "select (sealed_lsn + %s::numeric)::text, (sealed_lsn + 100)::text, (sealed_lsn + 200)::text"
    at, lsn, upto = journal.db.su.execute(
        f"{sealed} from meshaudit_private.journal_progress", [offset]
    ).fetchall()[0]
    journal.start = journal.last_id()
    record = signed(journal, written(payload, at))
    assert seal_messages(journal, lsn, record, upto) == entries
    later = (
        "select (sealed_lsn + 100)::text, (sealed_lsn + 200)::text from meshaudit_private.journal_progress"
    )
    lsn, upto = journal.db.su.execute(later).fetchall()[0]
    assert seal_messages(journal, lsn, record, upto) == 0
    assert journal.outcomes() == ["granted"]
    assert journal.refused() == (0, 0, 1)


@pytest.mark.parametrize(("behind", "entries"), [(536870912, 1), (536870913, 0), (-1, 0)])
def test_how_far_behind_a_record_may_come(journal: Journal, behind: int, entries: int) -> None:
    """512 MiB to the byte; and none comes before it was written."""
    payload = read_only_record(journal)
    journal.seal()
    journal.start = journal.last_id()
    at, lsn, upto = journal.db.su.execute(
        "select (sealed_lsn + 1)::text, (sealed_lsn + 1 + %s::numeric)::text, (sealed_lsn + 600000000)::text"
        " from meshaudit_private.journal_progress",
        [behind],
    ).fetchall()[0]
    assert seal_messages(journal, lsn, signed(journal, written(payload, at)), upto) == entries
    assert journal.refused() == (0, 0, 1 - entries)
    assert len(journal.outcomes()) == entries


def test_a_replay_of_what_still_waits(journal: Journal) -> None:
    """Before its transaction ends, in the run that finds it over, and after."""
    client, thief = journal.client(), journal.client()
    client.execute("begin")
    one(client, READ, journal.secret)
    record = records(journal)[-1]
    for _ in range(3):
        emit(thief, record, record)
        assert journal.seal() == 0
    assert one(journal.db.su, "select count(*) from meshaudit_private.journal_pending") == 1
    emit(thief, record)
    client.execute("commit")
    emit(thief, record)
    assert journal.seal() == 0
    emit(thief, record)
    assert journal.seal() == 0
    assert journal.outcomes() == ["granted"]
    assert one(journal.db.su, "select count(*) from meshaudit_private.journal_pending") == 0


def test_records_under_the_key_before(journal: Journal) -> None:
    """What was signed before a new arming, and comes after it, counts once; nobody can say it was sealed before."""
    payload = read_only_record(journal)
    journal.seal()
    old = max(keys(journal))
    journal.operator.execute("select meshaudit.disarm_journal()")
    journal.operator.execute("select meshaudit.arm_journal()")
    assert max(keys(journal)) == old + 1
    journal.start = journal.last_id()
    at, lsn, upto = journal.db.su.execute(
        "select (sealed_lsn + 1)::text, (sealed_lsn + 100)::text, (sealed_lsn + 200)::text"
        " from meshaudit_private.journal_progress"
    ).fetchall()[0]
    record = signed(journal, written(payload, at), old)
    assert seal_messages(journal, lsn, record, upto) == 1
    assert seal_messages(journal, lsn, record, upto) == 0
    assert journal.outcomes() == ["granted"]
    # the new key's number over the old one's signature
    assert seal_messages(journal, lsn, record[:1] + (old + 1).to_bytes(4, "big") + record[5:], upto) == 0
    assert journal.refused() == (1, 0, 1)


def test_truncated_at_each_byte_and_other_versions(journal: Journal) -> None:
    record = genuine(journal)
    assert journal.seal() == 1
    stranger = journal.db.connect(journal.db.role("stranger"))
    emit(stranger, *(record[:n] for n in range(len(record))))
    emit(stranger, *(bytes([version]) + record[1:] for version in (0, 2, 3, 127, 128, 255)))
    emit(stranger, record + b"\x00", record + record, b"\x02" + signed(journal, b"(,)")[1:])
    assert journal.seal() == 0
    assert journal.outcomes() == ["rolled_back"]
    forged, garbage, replayed = journal.refused()
    assert (forged, garbage, replayed) == (len(record) - 40 + 2, 40 + 7, 0)


HARD = (
    "",
    '"',
    "\\",
    '",(),"',
    "a\nb\tc",
    '{x,NULL,"y"}',
    "NULL",
    "ünï 🔑",
    "\x7f\x01",
    "'" * 40,
    "(",
    ")",
    ",",
)


def test_whatever_a_session_says_of_itself_is_read_back(journal: Journal) -> None:
    client = journal.client()
    for text in HARD:
        client.execute("begin read only")
        client.execute("select set_config('meshaudit.actor', %s, true)", [text])
        client.execute("select set_config('application_name', %s, true)", [text])
        one(client, READ, journal.secret)
        client.execute("rollback")
    assert journal.seal() == len(HARD)
    rows = journal.db.su.execute(
        'select claimed_identity from meshaudit.audit_logs where id > %s order by "timestamp"',
        [journal.start],
    )
    assert [r[0] for r in rows] == [t or None for t in HARD]
    assert journal.outcomes() == ["granted"] * len(HARD)


def test_more_than_a_run_holds_at_once(journal: Journal) -> None:
    """64 MB of messages: the others wait for the next run."""
    stranger = journal.db.connect(journal.db.role("stranger"))
    stranger.execute(
        "select count(pg_logical_emit_message(false, 'meshaudit', repeat('x', 4000000))) from generate_series(1, 20)"
    )
    genuine(journal)
    journal.db.su.execute("select pg_logical_emit_message(true, 'x', '')")
    assert one(journal.operator, "select meshaudit.seal()") == 0
    assert journal.refused() == (0, 16, 0)
    assert journal.seal() == 1
    assert journal.refused() == (0, 20, 0)
    assert journal.outcomes() == ["rolled_back"]


def test_places_beside_each_other_in_a_lane(journal: Journal) -> None:
    """Of 600 accesses in a lane, each third rolled back: those, and no others, lack their entry."""
    client = journal.client()
    reads = "select count(meshaudit.read_secret(%s)) from generate_series(1, 2)"
    for _ in range(200):
        client.execute(reads, [journal.secret])
        client.execute("begin")
        one(client, READ, journal.secret)
        client.execute("rollback")
    assert journal.seal() == 200
    assert sorted(journal.outcomes()) == ["granted"] * 400 + ["rolled_back"] * 200


def test_floods_of_foreign_messages(journal: Journal) -> None:
    """More than a run takes, of others, transactional or not, do not keep it from going on."""
    stranger = journal.db.connect(journal.db.role("stranger"))
    for prefix, transactional in (("x", True), ("meshaudit", True), ("x", False)):
        stranger.execute(
            "select count(pg_logical_emit_message(%s, %s, '')) from generate_series(1, 101000)",
            [transactional, prefix],
        )
    genuine(journal)
    end = one(journal.db.su, "select pg_current_wal_insert_lsn()::text")
    made = [int(one(journal.operator, "select meshaudit.seal()")) for _ in range(5)]
    assert sum(made) == 1
    assert journal.outcomes() == ["rolled_back"]
    assert one(journal.db.su, "select sealed_lsn >= %s::pg_lsn from meshaudit_private.journal_progress", end)


def test_an_open_transaction_of_many_accesses_is_not_opened_again_and_again(journal: Journal) -> None:
    client = journal.client()
    client.execute("begin")
    client.execute("select count(meshaudit.read_secret(%s)) from generate_series(1, 300)", [journal.secret])
    assert journal.seal() == 0
    su = journal.db.su
    assert one(su, "select count(*) from meshaudit_private.journal_pending") == 300
    assert one(su, "select meshaudit_private.ended_transactions()::text") == "{}"
    plan = "explain select from meshaudit_private.journal_pending p where p.xid = any (meshaudit_private.ended_transactions())"
    su.execute("set enable_seqscan = off")
    assert "journal_pending_xid_idx" in str(su.execute(plan.encode()).fetchall())
    client.execute("rollback")
    assert journal.seal() == 300
    assert journal.outcomes() == ["rolled_back"] * 300


def test_a_slot_that_is_moved_while_it_is_read(journal: Journal) -> None:
    """Between begin_seal() and the look at it, by somebody with REPLICATION."""
    genuine(journal)
    su = journal.db.su
    slot = one(su, "select slot_name from meshaudit_private.journal")
    before: Any = one(su, "select sealed_lsn from meshaudit_private.journal_progress")
    su.execute("select pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [slot])
    with pytest.raises(psycopg.Error, match="was moved while it was read") as refused:
        seal_messages(journal, "0/1", b"", one(su, "select pg_current_wal_flush_lsn()::text"))
    assert refused.value.sqlstate == "MA002"
    assert one(su, "select sealed_lsn from meshaudit_private.journal_progress") == before
