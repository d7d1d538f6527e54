"""The rules of docs/verification.md: what was done to an entry, told from the entries next to it in its lane.

They work on the few places that chains.py leaves in doubt, with the entries at the places around those.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from meshaudit.chains import Row, Run
from meshaudit.checkpoint import Head

# Among so many unsound entries a moved one is looked for: a bound, so that a ruined ledger is told soon.
DISPLACED = 200

Seqs = tuple[int, int]


class Problem(NamedTuple):
    """One fault. `id` is None where entries are missing; `found_by` says what it contradicts."""

    lane: int | None
    seq: int | None
    id: int | None
    problem: str
    found_by: Literal["chain", "checkpoint"] = "chain"


def deleted(lane: int, first: int, last: int, found_by: Literal["chain", "checkpoint"] = "chain") -> Problem:
    """Entries `first` to `last` of a lane are missing."""
    text = "deleted" if first == last else f"deleted (entries {first} to {last})"
    return Problem(lane, first, None, text, found_by)


def doubtful(runs: Sequence[Run], unsound: Sequence[int], head: Head | None, genesis: bytes) -> set[int]:
    """The seqs of a lane at which something may be wrong: where its runs begin, end and overlap."""
    if len(runs) == 1 and not unsound and head is not None:
        run = runs[0]
        if (run.first, run.prev_hash, run.after - 1, run.hash) == (1, genesis, head.seq, head.hash):
            return set()
    last = head.seq if head is not None else 0
    seqs = {*unsound, last}
    reached = 0
    for run in sorted(runs, key=lambda run: run.first):
        seqs |= {run.first, run.after - 1}
        seqs.update(range(run.first, min(run.after, reached)))
        seqs.update(range(run.first, min(run.after, 1)))
        seqs.update(range(max(run.first, last + 1), run.after))
        reached = max(reached, run.after)
    return seqs


def gaps(covered: Sequence[Seqs], last: int) -> Iterator[Seqs]:
    """What is missing of 1 to `last`, given the (first, last) of what is there."""
    reached = 0
    for first, end in (*sorted(covered), (last + 1, last + 1)):
        if first > reached + 1 and reached < last:
            yield reached + 1, min(first - 1, last)
        reached = max(reached, end)


class Displaced:
    """Knows whether an unsound entry belongs at the place of another one."""

    def __init__(self, unsound: Sequence[Row]) -> None:
        first = sorted(unsound, key=order)[:DISPLACED]
        self._entries = {(row.lane, row.seq, row.id, row.hash) for row in first}
        self._places = {(row.lane, row.seq) for row in first if row.lane is not None and row.seq is not None}

    def __contains__(self, row: Row) -> bool:
        if (row.lane, row.seq, row.id, row.hash) not in self._entries:
            return False
        return any(
            (lane, seq) != (row.lane, row.seq) and row.sound_at(lane, seq) for lane, seq in self._places
        )


def order(row: Row | Problem) -> tuple[bool, int, bool, int, bool, int]:
    """By lane, seq and id; NULLs last, as in SQL, except for the id, which missing entries do not have."""
    lane, seq, number = row.lane, row.seq, row.id
    return lane is None, lane or 0, seq is None, seq or 0, number is not None, number or 0


class Lane:
    """One lane's doubtful places and their neighbours."""

    def __init__(
        self, rows: Mapping[int, Sequence[Row]], head: Head | None, genesis: bytes, displaced: Displaced
    ) -> None:
        self._rows, self._head, self._genesis, self._displaced = rows, head, genesis, displaced
        self._last = head.seq if head is not None else 0
        self._flagged: set[int] = set()  # id() of rows at shared places that are not the true ones

    def problems(self, seqs: Collection[int]) -> Iterator[tuple[Row, str]]:
        """What is wrong with the entries at those places."""
        # Downwards: whether an entry is the true one follows from which of the next ones is.
        for seq in sorted(seqs, reverse=True):
            if len(self._at(seq)) > 1:
                self._choose(seq)
        for seq in sorted(seqs):
            for row in self._rows.get(seq, ()):
                problem = self._problem(row, seq)
                if problem is not None:
                    yield row, problem

    def _at(self, seq: int) -> Sequence[Row]:
        return self._rows.get(seq, ()) if 1 <= seq <= self._last else ()

    def _true_at(self, seq: int) -> list[Row]:
        return [row for row in self._at(seq) if id(row) not in self._flagged]

    def _choose(self, seq: int) -> None:
        true: Row | None = None
        for row in self._at(seq):
            if row.sound and true is None and self._named(row, seq):
                true = row
            else:
                self._flagged.add(id(row))

    def _named(self, row: Row, seq: int) -> bool:
        if self._head is not None and seq == self._last and row.hash == self._head.hash:
            return True
        return any(later.prev_hash == row.hash for later in self._true_at(seq + 1))

    def _unnamed(self, row: Row, seq: int) -> bool:
        """Whether what should name this entry is there, and does not."""
        return (seq == self._last or bool(self._true_at(seq + 1))) and not self._named(row, seq)

    def _problem(self, row: Row, seq: int) -> str | None:
        if not 1 <= seq <= self._last:
            return "inserted"
        if id(row) in self._flagged:
            return "forked" if row.sound else "inserted"
        if not row.sound:
            return "reordered" if row in self._displaced else "edited"
        return "edited" if self._made_anew(row, seq) else None

    def _made_anew(self, row: Row, seq: int) -> bool:
        """Whether this sound entry was given a new hash: its neighbours, sound as well, contradict it."""
        if not self._unnamed(row, seq):
            return seq == 1 and row.prev_hash != self._genesis
        if seq == self._last or (seq == 1 and row.prev_hash != self._genesis):
            return True
        before = self._at(seq - 1)
        if before and all(earlier.sound and earlier.hash != row.prev_hash for earlier in before):
            return True
        # The break is behind it: its own, unless the later entry is unsound or made anew itself.
        return any(later.sound and not self._unnamed(later, seq + 1) for later in self._true_at(seq + 1))
