"""Both verifiers, on every kind of falsification: what is found, where, and what it is called."""

import contextlib
import itertools
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshaudit.checkpoint import parse_checkpoint
from meshaudit.errors import BadArgument, NoPermission, NotMigrated
from meshaudit.verify import Checkpoint, Report, take_checkpoint, verify
from tests.flavours import Templates
from tests.support import Db
from tests.tampering import CONTENT, Ledger, deleted, real_ledger, times


@pytest.fixture(scope="module")
def module_db(template: Templates) -> Iterator[Db]:
    db = template.clone("superuser")
    try:
        yield db
    finally:
        db.drop()


@pytest.fixture(scope="module")
def shared(module_db: Db) -> Ledger:
    ledger = real_ledger(module_db)
    assert min(ledger.lengths.values()) >= 8
    return ledger


@pytest.fixture
def ledger(shared: Ledger) -> Iterator[Ledger]:
    """The same ledger for every test, unharmed again each time."""
    yield shared
    shared.reset()


@pytest.fixture
def lane(ledger: Ledger) -> int:
    return ledger.lanes[0]


@pytest.fixture
def end(ledger: Ledger, lane: int) -> int:
    """The lane's last seq."""
    return ledger.lengths[lane]


def test_an_intact_ledger(ledger: Ledger):
    ledger.expect()
    assert verify(ledger.su) == Report([], len(ledger.ids), len(ledger.lanes))
    assert verify(ledger.su, checkpoint=ledger.checkpoint).intact


def test_an_empty_ledger(db: Db):
    assert verify(db.su) == Report([], 0, 0)
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []
    assert verify(db.su, from_time=datetime(2020, 1, 1, tzinfo=UTC)).intact


# Editing.

VALUES: dict[str, Any] = {
    "secret_id": "other",
    "access_type": "write",
    "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
    "user_identity": "somebody",
    "ip_address": "203.0.113.9",
    "operation": "delete",
    "outcome": "denied",
    "secret_table": "public.other",
    "scope": "elsewhere",
    "identity_source": "jwt",
    "claimed_identity": "somebody",
    "db_user": "somebody",
    "db_role": "somebody",
    "application_name": None,
    "user_agent": "curl",
    "request_id": "r",
    "access_id": "00000000-0000-0000-0000-000000000000",
    "prev_hash": bytes(32),
    "hash": bytes(32),
}
# The read in the middle of a lane: VALUES differ from what it has.
AT = 5


@pytest.mark.parametrize("column", [*CONTENT, "prev_hash", "hash"])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_column_edited(ledger: Ledger, lane: int, end: int, column: str, where: str):
    seq = {"first": 1, "middle": AT, "last": end}[where]
    (before,) = ledger.all(
        f'select "{column}"::text from meshaudit_private.ledger where lane = %s and seq = %s', lane, seq
    )
    value = VALUES[column]
    if (value,) == before:
        value = {"access_type": "read"}[column]
    ledger.edit(lane, seq, **{column: value})
    ledger.expect(ledger.entry(lane, seq, "edited"))


def test_the_id_edited(ledger: Ledger, lane: int):
    ledger.edit(lane, AT, id=10**12)
    ledger.expect((lane, AT, 10**12, "edited"))


def test_null_and_empty_text_are_not_the_same(ledger: Ledger, lane: int):
    ledger.edit(lane, AT, user_agent="")
    ledger.expect(ledger.entry(lane, AT, "edited"))


@pytest.mark.parametrize("hashes", [b"", None, bytes(31), bytes(33)])
@pytest.mark.parametrize("column", ["hash", "prev_hash"])
def test_hashes_of_another_length(ledger: Ledger, lane: int, hashes: bytes | None, column: str):
    ledger.do(f"alter table {{L}} alter {column} drop not null", rows=None)
    ledger.edit(lane, AT, **{column: hashes})
    ledger.expect(ledger.entry(lane, AT, "edited"))


@pytest.mark.parametrize("moved", [-1, 1])
def test_the_border_between_the_hashes_moved(ledger: Ledger, lane: int, moved: int):
    """The bytes side by side stay the same."""
    ledger.do(
        """update {L} set hash = substr(hash || prev_hash, 1, 32 + %s),
          prev_hash = substr(hash || prev_hash, 33 + %s)
        where lane = %s and seq = %s""",
        moved, moved, lane, AT,
    )  # fmt: skip
    ledger.expect(ledger.entry(lane, AT, "edited"))


def test_every_entry_edited(ledger: Ledger):
    ledger.do("update {L} set scope = scope || 'x'", rows=len(ledger.ids))
    ledger.expect(*(ledger.entry(*place, "edited") for place in ledger.ids))


def test_two_edits_side_by_side(ledger: Ledger, lane: int):
    ledger.edit(lane, AT, scope="x")
    ledger.edit(lane, AT + 1, scope="y")
    ledger.expect(ledger.entry(lane, AT, "edited"), ledger.entry(lane, AT + 1, "edited"))


# Making the hash anew.


@pytest.mark.parametrize("where", ["first", "second", "middle", "last but one", "last"])
def test_an_entry_edited_and_its_hash_made_anew(ledger: Ledger, lane: int, end: int, where: str):
    seq = {"first": 1, "second": 2, "middle": AT, "last but one": end - 1, "last": end}[where]
    ledger.edit(lane, seq, scope="elsewhere")
    ledger.rehash(ledger.ids[lane, seq])
    ledger.expect(ledger.entry(lane, seq, "edited"))


@pytest.mark.parametrize("where", ["first", "second", "middle", "last but one", "last"])
def test_an_entry_made_anew_on_another_predecessor(ledger: Ledger, lane: int, end: int, where: str):
    seq = {"first": 1, "second": 2, "middle": AT, "last but one": end - 1, "last": end}[where]
    ledger.edit(lane, seq, prev_hash=bytes(32))
    ledger.rehash(ledger.ids[lane, seq])
    ledger.expect(ledger.entry(lane, seq, "edited"))


def test_two_entries_made_anew_together(ledger: Ledger, lane: int):
    ledger.edit(lane, AT, scope="elsewhere")
    ledger.rehash(ledger.ids[lane, AT])
    ledger.do(
        "update {L} l set prev_hash = b.hash from {L} b where b.lane = l.lane and b.seq = l.seq - 1"
        " and l.lane = %s and l.seq = %s", lane, AT + 1,
    )  # fmt: skip
    ledger.rehash(ledger.ids[lane, AT + 1])
    ledger.expect(ledger.entry(lane, AT + 1, "edited"))


def test_a_tail_rewritten_is_contradicted_by_the_head(ledger: Ledger, lane: int, end: int):
    ledger.edit(lane, AT, scope="elsewhere")
    ledger.rewrite(lane, AT, head=False)
    ledger.expect(ledger.entry(lane, end, "edited"))


def test_a_tail_rewritten_with_its_head_shows_only_from_outside(ledger: Ledger, lane: int, end: int):
    ledger.edit(lane, AT, scope="elsewhere")
    ledger.rewrite(lane, AT, head=True)
    ledger.expect()
    ledger.expect(ledger.entry(lane, end, "edited"), checkpoint=ledger.checkpoint)


# Deleting.


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


# Heads and checkpoints.


def test_a_head_removed(ledger: Ledger, lane: int, end: int):
    ledger.do("delete from {H} where lane = %s", lane)
    ledger.expect(*(ledger.entry(lane, seq, "inserted") for seq in range(1, end + 1)))


def test_a_head_set_back(ledger: Ledger, lane: int, end: int):
    ledger.do("update {H} set seq = seq - 1, hash = prev_hash where lane = %s", lane)
    ledger.expect(ledger.entry(lane, end, "inserted"))


def test_a_heads_seq_set_back(ledger: Ledger, lane: int, end: int):
    ledger.do("update {H} set seq = seq - 1 where lane = %s", lane)
    ledger.expect(ledger.entry(lane, end - 1, "edited"), ledger.entry(lane, end, "inserted"))


def test_a_head_set_to_nothing(ledger: Ledger, lane: int, end: int):
    ledger.do("update {H} set seq = 0 where lane = %s", lane)
    ledger.expect(*(ledger.entry(lane, seq, "inserted") for seq in range(1, end + 1)))


def test_a_head_set_forward(ledger: Ledger, lane: int, end: int):
    ledger.do("update {H} set seq = seq + 2 where lane = %s", lane)
    ledger.expect(deleted(lane, end + 1, end + 2))


def test_a_heads_hash_edited(ledger: Ledger, lane: int, end: int):
    ledger.do("update {H} set hash = '' where lane = %s", lane)
    ledger.expect(ledger.entry(lane, end, "edited"))


def test_a_tail_cut_with_its_head(ledger: Ledger, lane: int, end: int):
    ledger.do("delete from {L} where lane = %s and seq > %s", lane, AT, rows=end - AT)
    ledger.do(
        "update {H} h set seq = l.seq, hash = l.hash from {L} l where l.lane = h.lane and l.lane = %s"
        " and l.seq = %s", lane, AT,
    )  # fmt: skip
    ledger.expect()
    ledger.expect(deleted(lane, AT + 1, end), checkpoint=ledger.checkpoint)


def test_a_lane_removed_with_its_head(ledger: Ledger, lane: int, end: int):
    ledger.do("delete from {L} where lane = %s", lane, rows=end)
    ledger.do("delete from {H} where lane = %s", lane)
    ledger.expect()
    ledger.expect(deleted(lane, 1, end), checkpoint=ledger.checkpoint)


def test_everything_removed_with_the_heads(ledger: Ledger):
    ledger.do("truncate {L}, {H}", rows=None)
    ledger.expect()
    gone = [deleted(lane, 1, length) for lane, length in ledger.lengths.items()]
    ledger.expect(*gone, checkpoint=ledger.checkpoint)


def test_a_checkpoint_allows_what_came_after_it(db: Db):
    client = db.connect(db.role("client", "meshaudit_client"))
    write = "select meshaudit.write_secret(%s, '\\x00')"
    client.execute(write, ("x",))
    earlier = parse_checkpoint(take_checkpoint(db.su))
    for key in ("x", "y", "z"):
        client.execute(write, (key,))
    report = verify(db.su, checkpoint=earlier)
    assert (report.problems, report.entries, earlier.entries) == ([], 4, 1)
    assert verify(db.su, checkpoint=Checkpoint(earlier.ledger_id, {})).intact


def test_a_checkpoint_does_not_tell_again_what_the_chain_told(ledger: Ledger, lane: int, end: int):
    ledger.edit(lane, end, hash=bytes(32))
    ledger.expect(ledger.entry(lane, end, "edited"), checkpoint=ledger.checkpoint)
    ledger.reset()
    ledger.do("delete from {L} where lane = %s and seq >= %s", lane, AT, rows=end - AT + 1)
    ledger.expect(deleted(lane, AT, end), checkpoint=ledger.checkpoint)


# Ranges of time.


@settings(max_examples=40)
@given(cuts=st.lists(st.tuples(st.integers(0, 10**6), st.integers(-1, 1)), min_size=2, max_size=2))
def test_any_range_of_an_intact_ledger_is_intact(shared: Ledger, cuts: list[tuple[int, int]]):
    at = times(shared)
    start, stop = sorted(at[n % len(at)] + timedelta(microseconds=step) for n, step in cuts)
    shared.expect(from_time=start)
    shared.expect(to_time=stop)
    if start < stop:
        shared.expect(from_time=start, to_time=stop)


def test_a_range_tells_of_its_entries_what_the_whole_tells(ledger: Ledger, lane: int, end: int):
    """Edges included: a neighbour outside of the range still bears witness."""
    at = dict(ledger.all('select seq, "timestamp" from meshaudit_private.ledger where lane = %s', lane))
    one = timedelta(microseconds=1)
    for seq in (1, 2, AT, end - 1, end):
        for anew in (False, True):
            ledger.edit(lane, seq, scope="elsewhere")
            if anew:
                ledger.rehash(ledger.ids[lane, seq])
            expected = ledger.entry(lane, seq, "edited")
            ledger.expect(expected, from_time=at[seq])
            ledger.expect(expected, to_time=at[seq] + one)
            ledger.expect(expected, from_time=at[seq], to_time=at[seq] + one)
            ledger.expect(from_time=at[seq] + one)
            ledger.expect(to_time=at[seq])
            ledger.reset()


def test_a_range_tells_of_gaps_beside_its_entries(ledger: Ledger, lane: int, end: int):
    at = dict(ledger.all('select seq, "timestamp" from meshaudit_private.ledger where lane = %s', lane))
    one = timedelta(microseconds=1)
    ledger.do("delete from {L} where lane = %s and seq in (3, 4, 6, %s)", lane, end, rows=4)
    three, six, last = deleted(lane, 3, 4), deleted(lane, 6), deleted(lane, end)
    ledger.expect(three, six, last)
    ledger.expect(three, six, from_time=at[5], to_time=at[5] + one)
    ledger.expect(three, to_time=at[2] + one)
    ledger.expect(six, last, from_time=at[7])
    ledger.expect(six, from_time=at[7], to_time=at[7] + one)
    ledger.expect(to_time=at[1] + one)
    ledger.expect(last, from_time=at[end - 1])


# Anything at all.

cases = st.tuples(
    st.sampled_from(["edit", "edit", "delete", "insert", "insert sound", "swap"]),
    st.integers(0, 10**6),
    st.integers(1, 10**6),
    st.sampled_from(sorted(VALUES)),
    st.booleans(),
)


@settings(max_examples=600)
@given(case=cases, data=st.data())
def test_any_falsification_of_one_entry_is_found(
    shared: Ledger, case: tuple[str, int, int, str, bool], data: Any
):
    kind, number, step, column, ranged = case
    places = sorted(shared.ids)
    lane, seq = places[number % len(places)]
    other_lane, other_seq = places[(number + 1 + step % (len(places) - 1)) % len(places)]
    touched = {shared.ids[lane, seq]}
    gone: set[tuple[int, int]] = set()
    try:
        if kind == "edit":
            (was,) = shared.all(
                f'select "{column}" from meshaudit_private.ledger where lane = %s and seq = %s', lane, seq
            )
            value = data.draw(_other(column, was[0]))
            shared.edit(lane, seq, **{column: value})
        elif kind == "delete":
            shared.do("delete from {L} where lane = %s and seq = %s", lane, seq)
            gone = {(lane, seq)}
        elif kind == "swap":
            shared.do(
                "update {L} l set lane = o.lane, seq = o.seq from {L} o"
                " where (l.id, o.id) in ((%s, %s), (%s, %s))",
                *[shared.ids[lane, seq], shared.ids[other_lane, other_seq]] * 1,
                *[shared.ids[other_lane, other_seq], shared.ids[lane, seq]],
                rows=2,
            )  # fmt: skip
            touched.add(shared.ids[other_lane, other_seq])
        else:
            touched = {shared.copy(lane, seq, lane=str(other_lane), seq=str(other_seq))}
            if kind == "insert sound":
                shared.rehash(*touched)
        found = shared.found()
        assert found
        assert {f[2] for f in found if f[2] is not None} == (set() if gone else touched)
        assert {f[:2] for f in found if f[2] is None} == gone
        if ranged:
            at = times(shared)
            shared.found(from_time=at[number % len(at)])
            shared.found(to_time=at[step % len(at)])
    finally:
        shared.reset()


def _other(column: str, was: Any) -> st.SearchStrategy[Any]:
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "access_type": st.sampled_from(["read", "write"]),
        "operation": st.sampled_from(["read", "create", "update", "delete"]),
        "outcome": st.sampled_from(["granted", "denied", "rolled_back"]),
        "identity_source": st.sampled_from(["jwt", "database"]),
        "timestamp": st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
        "ip_address": st.ip_addresses(),
        "access_id": st.uuids(),
        "hash": st.binary(max_size=40),
        "prev_hash": st.binary(max_size=40),
    }
    return kinds.get(column, text).filter(lambda value: value != was)


@settings(max_examples=2500)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 12))
def test_both_verifiers_agree_on_any_mess(shared: Ledger, seed: int, count: int):
    """Many falsifications at once, and the physical order of the rows shuffled as well."""
    chance = random.Random(seed)
    with contextlib.suppress(psycopg.errors.UniqueViolation), shared.su.transaction():
        for _ in range(count):
            rows = shared.all("select lane, seq, id from meshaudit_private.ledger order by 1, 2, 3")
            (lane, seq, number), (other_lane, other_seq, _other_id) = chance.choice(rows), chance.choice(rows)
            match chance.randrange(7):
                case 0:
                    shared.do("update {L} set scope = scope || 'x' where id = %s", number, rows=None)
                case 1:
                    shared.do("update {L} set scope = scope || 'y' where id = %s", number, rows=None)
                    shared.do("update {L} l set hash = pg_temp.rehash(l, l.prev_hash) where id = %s", number)
                case 2:
                    shared.do("delete from {L} where id = %s", number)
                case 3:
                    shared.do(
                        "update {L} set lane = %s, seq = %s where id = %s", other_lane, other_seq, number
                    )
                case 4:
                    shared.do(
                        "update {L} l set prev_hash = b.hash, hash = pg_temp.rehash(l, b.hash) from {L} b"
                        " where b.lane = %s and b.seq = %s and l.id = %s", lane, seq - 1, number, rows=None,
                    )  # fmt: skip
                case 5:
                    shared.do("update {H} set seq = seq + %s where lane = %s", chance.choice([-1, 1]), lane)
                case 6:
                    shared.do("create temp table shuffled on commit drop as table {L}", rows=None)
                    shared.do("truncate {L}", rows=None)
                    shared.do(
                        "insert into {L} select * from shuffled order by md5(id || %s)", str(seed), rows=None
                    )
                    shared.do("drop table shuffled", rows=None)
    try:
        shared.found()
        at = times(shared)
        shared.found(from_time=at[seed % len(at)])
    finally:
        shared.reset()


# Where the rows lie.


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


# Sessions, privileges, disturbances.


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


def test_session_settings_do_not_matter(ledger: Ledger, module_db: Db):
    odd = (
        "-c client_encoding=LATIN1 -c timezone=Asia/Kathmandu -c datestyle=German -c bytea_output=escape"
        " -c statement_timeout=1h -c search_path=pg_temp,public,pg_catalog -c standard_conforming_strings=off"
        " -c extra_float_digits=-15 -c quote_all_identifiers=on -c default_transaction_isolation=serializable"
    )
    ledger.edit(ledger.lanes[0], AT, scope="Zürich 🔑", user_agent="密")
    ledger.rewrite(ledger.lanes[0], AT, head=True)
    with module_db.connect(options=odd, autocommit=False) as conn:
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
