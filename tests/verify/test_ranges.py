"""Ranges of time tell of their entries what the whole ledger tells."""

from datetime import timedelta

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verify.tampering import AT, Ledger, deleted, times


@settings(max_examples=40)
@given(cuts=st.lists(st.tuples(st.integers(0, 10**6), st.integers(-1, 1)), min_size=2, max_size=2))
def test_any_range_of_an_intact_ledger_is_intact(shared: Ledger, cuts: list[tuple[int, int]]):
    at = times(shared)
    start, stop = sorted(at[n % len(at)] + timedelta(microseconds=step) for n, step in cuts)
    shared.expect(from_time=start)
    shared.expect(to_time=stop)
    if start < stop:
        shared.expect(from_time=start, to_time=stop)


def test_an_empty_range_is_not_called_intact(ledger: Ledger):
    for to_time in ("2026-01-01", "2025-01-01"):
        with pytest.raises(psycopg.Error, match="the range of time is empty") as caught:
            ledger.all("select * from meshaudit.verify('2026-01-01', %s)", to_time)
        assert caught.value.sqlstate == "MA005"
        ledger.reset()


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
