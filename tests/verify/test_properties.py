"""Anything at all that is done to a ledger is found, and both verifiers say the same."""

import contextlib
import random
from datetime import UTC, datetime
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verify.tampering import VALUES, Ledger, times

cases = st.tuples(
    st.sampled_from(["edit", "edit", "delete", "insert", "insert sound", "swap"]),
    st.integers(0, 10**6),
    st.integers(1, 10**6),
    st.sampled_from(sorted(VALUES)),
    st.booleans(),
)


@settings(max_examples=80)
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


@settings(max_examples=25)
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
