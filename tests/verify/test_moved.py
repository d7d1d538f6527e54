"""Entries deleted, inserted, reordered or forked, by both verifiers."""

import itertools

import pytest

from meshaudit.verify import verify
from tests.support import Db
from tests.verify.tampering import AT, CONTENT, Ledger, deleted, real_ledger


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 3), (AT, AT), (AT, AT + 1), (-1, -1), (-3, -1)])
def test_entries_deleted(ledger: Ledger, lane: int, end: int, first: int, last: int):
    first, last = (seq if seq > 0 else end + 1 + seq for seq in (first, last))
    ledger.do(
        "delete from {L} where lane = %s and seq between %s and %s", lane, first, last, rows=last - first + 1
    )
    ledger.expect(deleted(lane, first, last))


def test_every_second_entry_deleted(ledger: Ledger, lane: int, end: int):
    gone = [seq for seq in range(1, end + 1) if seq % 2]
    ledger.do("delete from {L} where lane = %s and seq %% 2 = 1", lane, rows=len(gone))
    ledger.expect(*(deleted(lane, seq) for seq in gone))


def test_a_lane_deleted(ledger: Ledger, lane: int, end: int):
    ledger.do("delete from {L} where lane = %s", lane, rows=end)
    ledger.expect(deleted(lane, 1, end))


def test_the_table_emptied(ledger: Ledger):
    ledger.do("truncate {L}", rows=None)
    gone = [deleted(lane, 1, length) for lane, length in ledger.lengths.items()]
    ledger.expect(*gone)
    ledger.expect(*gone, checkpoint=ledger.checkpoint)


def test_a_gap_closed_by_renumbering(ledger: Ledger, lane: int, end: int):
    ledger.do("delete from {L} where lane = %s and seq = %s", lane, AT)
    ledger.do("update {L} set seq = seq - 1 where lane = %s and seq > %s", lane, AT, rows=end - AT)
    moved = [(lane, seq, ledger.ids[lane, seq + 1]) for seq in range(AT, end)]
    *others, last = moved
    # The last one's own place is among those of no other entry: it is missing now.
    ledger.expect(*((*entry, "reordered") for entry in others), (*last, "edited"), deleted(lane, end))


# Inserting.


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_copy_with_the_chain_fields_of_the_original(ledger: Ledger, lane: int, end: int, where: str):
    seq = {"first": 1, "middle": AT, "last": end}[where]
    number = ledger.copy(lane, seq)
    ledger.expect((lane, seq, number, "inserted"))


def test_a_copy_with_a_lower_id_is_still_the_false_one(ledger: Ledger, lane: int):
    number = ledger.copy(lane, AT, id="-1")
    ledger.expect((lane, AT, number, "inserted"))


def test_an_entry_beyond_the_head(ledger: Ledger, lane: int, end: int):
    unsound = ledger.copy(lane, end, seq="seq + 1")
    sound = ledger.copy(lane, end, seq="seq + 3", prev_hash="hash")
    ledger.rehash(sound)
    ledger.expect((lane, end + 1, unsound, "inserted"), (lane, end + 3, sound, "inserted"))


def test_an_entry_that_properly_continues_the_lane_beyond_its_head(ledger: Ledger, lane: int, end: int):
    number = ledger.copy(lane, end, seq="seq + 1", prev_hash="hash")
    ledger.rehash(number)
    ledger.expect((lane, end + 1, number, "inserted"))


@pytest.mark.parametrize("seq", [0, -5, -(2**63), 2**63 - 1])
def test_a_seq_that_cannot_be(ledger: Ledger, lane: int, seq: int):
    number = ledger.copy(lane, 1, seq=f"({seq})::bigint")
    ledger.rehash(number)
    ledger.expect((lane, seq, number, "inserted"))


@pytest.mark.parametrize("other", [0, -1, 2**31 - 1, -(2**31)])
def test_a_lane_that_does_not_exist(ledger: Ledger, lane: int, other: int):
    number = ledger.copy(lane, 1, lane=f"({other})::int")
    ledger.rehash(number)
    ledger.expect((other, 1, number, "inserted"))


def test_a_lane_made_up_with_a_head(ledger: Ledger, lane: int):
    number = ledger.copy(lane, 1, lane="99999")
    ledger.rehash(number)
    ledger.do("insert into {H} (lane, seq, hash) select lane, seq, hash from {L} where lane = 99999")
    ledger.expect((99999, 1, number, "edited"))  # its genesis is another lane's


def test_entries_of_another_ledger(ledger: Ledger, lane: int):
    ledger.do("update meshaudit_private.settings set ledger_id = gen_random_uuid()")
    try:
        ledger.expect(*(ledger.entry(lane, 1, "edited") for lane in ledger.lanes))
        report = verify(ledger.su, checkpoint=ledger.checkpoint)
        assert report.problems[-1][3:] == ("ledger replaced", "checkpoint")
    finally:
        ledger.do("update meshaudit_private.settings set ledger_id = %s", ledger.checkpoint.ledger_id)


# Reordering.


def test_two_entries_of_a_lane_swapped(ledger: Ledger, lane: int):
    ledger.do("update {L} set seq = 9 - seq where lane = %s and seq in (2, 7)", lane, rows=2)
    ids = ledger.ids
    ledger.expect((lane, 2, ids[lane, 7], "reordered"), (lane, 7, ids[lane, 2], "reordered"))


def test_neighbours_swapped(ledger: Ledger, lane: int):
    ledger.do("update {L} set seq = 7 - seq where lane = %s and seq in (3, 4)", lane, rows=2)
    ids = ledger.ids
    ledger.expect((lane, 3, ids[lane, 4], "reordered"), (lane, 4, ids[lane, 3], "reordered"))


def test_entries_of_two_lanes_swapped(ledger: Ledger):
    one, two, *_ = ledger.lanes
    ledger.do(
        "update {L} set lane = %s + %s - lane, seq = 9 - seq where (lane, seq) in ((%s, 3), (%s, 6))",
        one, two, one, two, rows=2,
    )  # fmt: skip
    ids = ledger.ids
    ledger.expect((one, 3, ids[two, 6], "reordered"), (two, 6, ids[one, 3], "reordered"))


def test_a_lane_reversed(ledger: Ledger, lane: int, end: int):
    ledger.do("update {L} set seq = %s + 1 - seq where lane = %s", end, lane, rows=end)
    middle = (end + 1) / 2
    ledger.expect(
        *(
            (lane, end + 1 - seq, ledger.ids[lane, seq], "reordered")
            for seq in range(1, end + 1)
            if seq != middle
        )
    )


def test_contents_swapped_but_not_the_chain_fields(ledger: Ledger, lane: int):
    columns = ", ".join(f'"{name}" = o."{name}"' for name in ("id", *CONTENT))
    ledger.do(
        f"update {{L}} l set {columns} from {{L}} o where l.lane = %s and o.lane = l.lane"
        " and (l.seq, o.seq) in ((2, 6), (6, 2))", lane, rows=2,
    )  # fmt: skip
    ids = ledger.ids
    ledger.expect((lane, 2, ids[lane, 6], "edited"), (lane, 6, ids[lane, 2], "edited"))


# Forking.


@pytest.mark.parametrize("lower", [False, True], ids=["later", "with a lower id"])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_sound_entry_beside_the_true_one(ledger: Ledger, lane: int, end: int, where: str, lower: bool):
    seq = {"first": 1, "middle": AT, "last": end}[where]
    number = ledger.copy(lane, seq, scope="'elsewhere'", **({"id": "-1"} if lower else {}))
    ledger.rehash(number)
    ledger.expect((lane, seq, number, "forked"))


def test_a_whole_branch(ledger: Ledger, lane: int):
    branch = [ledger.copy(lane, seq, scope="'elsewhere'") for seq in (4, 5, 6)]
    ledger.rehash(branch[0])
    for before, number in itertools.pairwise(branch):
        ledger.do(
            "update {L} l set prev_hash = b.hash from {L} b where b.id = %s and l.id = %s", before, number
        )
        ledger.rehash(number)
    ledger.expect(*((lane, seq, number, "forked") for seq, number in zip((4, 5, 6), branch, strict=True)))


def test_a_branch_beside_an_edited_entry(ledger: Ledger, lane: int):
    """Of two at one seq neither is the true one."""
    number = ledger.copy(lane, AT, scope="'elsewhere'")
    ledger.rehash(number)
    ledger.do("update {L} set scope = 'x' where id = %s", ledger.ids[lane, AT])
    ledger.expect((lane, AT, number, "forked"), ledger.entry(lane, AT, "inserted"))


def test_the_same_row_twice(ledger: Ledger, lane: int):
    ledger.do("alter table {L} drop constraint ledger_pkey", rows=None)
    ledger.copy(lane, AT, id="id", timestamp='"timestamp"')
    ledger.expect(ledger.entry(lane, AT, "forked"))
    ledger.reset()
    ledger.do('alter table {L} add constraint ledger_pkey primary key (lane, seq, "timestamp")', rows=None)


def test_a_place_without_a_number(db: Db):
    ledger = real_ledger(db, lanes=1, rounds=1)
    lane = ledger.lanes[0]
    ledger.do("alter table {L} drop constraint ledger_pkey", rows=None)
    ledger.do("alter table {L} alter lane drop not null, alter seq drop not null", rows=None)
    one, two = ledger.copy(lane, 2, lane="null"), ledger.copy(lane, 2, seq="null")
    ledger.expect((None, 2, one, "inserted"), (lane, None, two, "inserted"))


def test_among_very_many_unsound_entries_only_the_first_are_looked_at_for_moved_ones(db: Db):
    """A bound on the work; what is beyond it is still found, and called edited."""
    client = db.connect(db.role("client", "meshaudit_client"))
    client.execute("select meshaudit.write_secret('k' || i, '\\x00') from generate_series(1, 130) i")
    ids = [number for (number,) in db.su.execute("select id from meshaudit_private.secrets").fetchall()]
    client.execute("select * from meshaudit.read_secrets(%s)", (ids,))
    ledger = Ledger(db)
    (lane,) = ledger.lanes
    ledger.do("update {L} set scope = 'x' where seq not in (10, 20, 210, 220)", rows=256)
    ledger.do("update {L} set seq = 30 - seq where seq in (10, 20)", rows=2)
    ledger.do("update {L} set seq = 430 - seq where seq in (210, 220)", rows=2)
    moved = {10: 20, 20: 10, 210: 220, 220: 210}
    ledger.expect(
        *(
            (lane, seq, ledger.ids[lane, moved.get(seq, seq)], "reordered" if seq in (10, 20) else "edited")
            for seq in range(1, 261)
        )
    )
