"""The outside verifier: recomputes every hash and link from the rows that an auditor sees.

It shares no code with the SQL core and imports nothing that writes. All of it happens in one snapshot, so
writers do not disturb it; it takes no lock that they notice. `faults` has the rules, `chains` does the work.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus

from meshaudit import canonical
from meshaudit.archive_faults import Fault, Outside
from meshaudit.chains import ROW, Chains, Row, Run, fetch
from meshaudit.checkpoint import Checkpoint, Head, current, read_checkpoint, take_checkpoint
from meshaudit.errors import BadArgument, NoPermission, translate
from meshaudit.faults import Displaced, Lane, Problem, Seqs, deleted, doubtful, gaps, order
from meshaudit.retired import Retired, read_retired

__all__ = ["Checkpoint", "Problem", "Report", "read_checkpoint", "take_checkpoint", "verify"]

Progress = Callable[[int, int], None]

# Physical order from the first page on keeps the number of runs small; the rest is for speed and for logins
# whose statement_timeout is meant for requests.
_SETTINGS = """
set local client_encoding = 'UTF8';
set local search_path = pg_catalog, pg_temp;
set local synchronize_seqscans = off;
set local max_parallel_workers_per_gather = 0;
set local jit = off;
set local statement_timeout = 0;
set local idle_in_transaction_session_timeout = 0;
-- before the snapshot: a partition that is retired between the two would look cut out
lock table meshaudit.audit_logs in access share mode
"""


class Report(NamedTuple):
    """What verify() found. No problems: intact."""

    problems: list[Problem]
    entries: int
    lanes: int
    retired: int = 0  # entries that are in archives, as the log itself says
    unproved: int = 0  # lanes of the checkpoint whose entry is in an archive that was not looked at
    archive_faults: Sequence[Fault] = ()

    @property
    def intact(self) -> bool:
        """Whether nothing was found."""
        return not self.problems and not self.archive_faults


def verify(
    conn: psycopg.Connection[Any],
    *,
    from_time: datetime | None = None,
    to_time: datetime | None = None,
    checkpoint: Checkpoint | None = None,
    archives: Outside | None = None,
    progress: Progress | None = None,
) -> Report:
    """Verify the ledger, or the entries of from_time <= timestamp < to_time.

    With a checkpoint: also that nothing recorded before it has gone or changed. With archives, which have
    been verified: also that they are those to which the log says that entries were retired. `progress` gets
    the number of entries done and about how many there are. The connection must not be in a transaction.
    """
    span = _Span(from_time, to_time)
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise BadArgument("verify needs a connection that is not in a transaction")
    try:
        with _snapshot(conn):
            return _verify(conn, span, checkpoint, archives, progress or (lambda done, total: None))
    except psycopg.Error as exc:
        raise translate(exc) from exc


def _verify(
    conn: psycopg.Connection[Any],
    span: "_Span",
    held: Checkpoint | None,
    archives: Outside | None,
    progress: Progress,
) -> Report:
    seen = conn.execute("select meshaudit.sees_everything()").fetchone()
    if seen != (True,):
        raise NoPermission(
            "this role sees only a part of the log, and a part of a chain cannot be verified",
            "connect as an auditor of scope '*': select meshaudit.grant_auditor('…')",
        )
    now = current(conn)
    retired = read_retired(conn)
    # Of a ledger that was replaced the checkpoint tells, and more than that it could not be checked.
    replaced = held is not None and held.ledger_id != now.ledger_id
    if archives is not None and not replaced and archives.foreign(now.ledger_id, retired.digests):
        raise BadArgument("these archives are of another ledger than the database", "is --archive right?")
    chains = Chains()
    query = f"select {ROW} from meshaudit.audit_logs{span.where()}"
    total = max(now.entries, 1)
    chains.read(conn, query, lambda done: progress(min(done, total), total))
    progress(total, total)
    problems = [Problem(row.lane, row.seq, row.id, "inserted") for row in chains.homeless]
    if not span.limited:
        for stretches in retired.runs.values():
            chains.include(stretches)
    runs = chains.runs()
    problems += _altered(conn, span, now, runs, chains.unsound, retired)
    problems += _missing(conn, span, now, runs, chains.unsound, retired)
    unproved = 0
    if held is not None:
        contradictions, unproved = _contradictions(conn, now, held, problems, retired, archives)
        problems += contradictions
    return Report(
        sorted(problems, key=order),
        chains.entries,
        len(now.lanes),
        retired.entries,
        unproved,
        archives.compared(now.ledger_id, retired.digests) if archives is not None else (),
    )


def _altered(
    conn: psycopg.Connection[Any],
    span: "_Span",
    now: Checkpoint,
    runs: dict[int, list[Run]],
    unsound: Sequence[Row],
    retired: Retired,
) -> Iterator[Problem]:
    bad: dict[int, list[int]] = {}
    for row in unsound:
        assert row.lane is not None
        assert row.seq is not None
        bad.setdefault(row.lane, []).append(row.seq)
    doubts: dict[int, set[int]] = {}
    genesis = {lane: canonical.genesis(now.ledger_id, lane) for lane in runs.keys() | bad.keys()}
    for lane, first_hash in genesis.items():
        seqs = doubtful(runs.get(lane, ()), bad.get(lane, ()), now.lanes.get(lane), first_hash)
        if seqs:
            doubts[lane] = seqs
    # An entry's fault shows in the one before it and the two behind.
    places = {
        (lane, seq + step)
        for lane, seqs in doubts.items()
        for seq in seqs
        for step in (-1, 0, 1, 2)
        if -(2**63) <= seq + step < 2**63
    }
    lanes: dict[int, dict[int, list[Row]]] = {}
    for row in sorted(fetch(conn, places), key=order):
        assert row.lane is not None
        assert row.seq is not None
        if retired.holds(row.lane, row.seq):
            if span.holds(row):
                yield Problem(row.lane, row.seq, row.id, "inserted")
        else:
            lanes.setdefault(row.lane, {}).setdefault(row.seq, []).append(row)
    for row in retired.ends(doubts):
        assert row.lane is not None
        assert row.seq is not None
        lanes.setdefault(row.lane, {}).setdefault(row.seq, []).append(row)
    displaced = Displaced(unsound)
    for lane, seqs in doubts.items():
        judge = Lane(lanes.get(lane, {}), now.lanes.get(lane), genesis[lane], displaced)
        for row, problem in judge.problems(seqs):
            if span.holds(row):
                yield Problem(lane, row.seq, row.id, problem)


def _missing(
    conn: psycopg.Connection[Any],
    span: "_Span",
    now: Checkpoint,
    runs: dict[int, list[Run]],
    unsound: Sequence[Row],
    retired: Retired,
) -> Iterator[Problem]:
    covered: dict[int, list[Seqs]] = {} if span.limited else {lane: [] for lane in now.lanes}
    for lane, stretches in runs.items():
        covered.setdefault(lane, []).extend((run.first, run.after - 1) for run in stretches)
    for row in unsound:
        assert row.lane is not None
        assert row.seq is not None
        covered.setdefault(row.lane, []).append((row.seq, row.seq))
    absent = [
        (lane, *gap)
        for lane, stretches in covered.items()
        if lane in now.lanes
        for gap in gaps(stretches, now.lanes[lane].seq)
    ]
    if span.limited:
        absent = [
            (lane, *part)
            for lane, *gap in _beside(conn, now, absent)
            for part in retired.without(lane, gap[0], gap[1])
            if part[0] == gap[0] or part[1] == gap[1]
        ]
    for lane, first, last in absent:
        yield deleted(lane, first, last)


def _beside(
    conn: psycopg.Connection[Any], now: Checkpoint, absent: list[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """Of the numbers that a range of time lacks, those next to its entries that the whole ledger lacks."""
    rows = conn.execute(
        """
        select g.lane, g.first, g.last,
          (select max(l.seq) from meshaudit.audit_logs l where l.lane = g.lane and l.seq <= g.last),
          (select min(l.seq) from meshaudit.audit_logs l where l.lane = g.lane and l.seq >= g.first)
        from unnest(%s::int4[], %s::int8[], %s::int8[]) g (lane, first, last)
        """,
        [list(column) for column in zip(*absent, strict=True)] if absent else [[], [], []],
    ).fetchall()
    found: set[tuple[int, int, int]] = set()
    for lane, first, last, below, above in rows:
        # Without an entry of the range on that side there is nothing that the gap would be next to.
        if first > 1:
            found.add((lane, first, last if above is None else min(last, above - 1)))
        if last < now.lanes[lane].seq:
            found.add((lane, first if below is None else max(first, below + 1), last))
    return sorted(gap for gap in found if gap[1] <= gap[2])


def _contradictions(
    conn: psycopg.Connection[Any],
    now: Checkpoint,
    held: Checkpoint,
    known: Sequence[Problem],
    retired: Retired,
    archives: Outside | None,
) -> tuple[list[Problem], int]:
    """What a checkpoint knows and the ledger no longer does, unless it is told already.

    And of how many lanes only an archive, which was not given, could tell.
    """
    if now.ledger_id != held.ledger_id:
        return [Problem(None, None, None, "ledger replaced", "checkpoint")], 0
    found: list[Problem] = []
    unproved = 0
    told = {(problem.lane, problem.seq) for problem in known}
    lanes = sorted(held.lanes)
    rows = conn.execute(
        """
        select c.lane, e.id, e.hash,
          case when e.hash is null then
            (select max(l.seq) from meshaudit.audit_logs l where l.lane = c.lane and l.seq < c.seq) end
        from unnest(%s::int4[], %s::int8[]) c (lane, seq)
        left join meshaudit.audit_logs e on e.lane = c.lane and e.seq = c.seq
        order by c.lane, e.id
        """,
        [lanes, [held.lanes[lane].seq for lane in lanes]],
    ).fetchall()
    entries: dict[int, list[tuple[int | None, bytes | None]]] = {}
    for lane, number, digest, before in rows:
        head: Head = held.lanes[lane]
        entries.setdefault(lane, []).append((number, digest))
        if number is None and digest is None and retired.holds(lane, head.seq):
            there = retired.hash_at(lane, head.seq)
            if there is None and archives is not None:
                there = archives.hashes.get((lane, head.seq))
            if there is None:
                unproved += 1
            elif there != head.hash and (lane, head.seq) not in told:
                found.append(Problem(lane, head.seq, None, "edited", "checkpoint"))
        elif number is None and digest is None:
            for first, last in retired.without(lane, max(before or 0, 0) + 1, head.seq):
                if (lane, first) not in told:
                    found.append(deleted(lane, first, last, "checkpoint"))
    for lane, rivals in entries.items():
        head = held.lanes[lane]
        if rivals == [(None, None)] or any(digest == head.hash for _, digest in rivals):
            continue
        if (lane, head.seq) not in told:
            found.append(Problem(lane, head.seq, rivals[0][0], "edited", "checkpoint"))
    return found, unproved


class _Span:
    """The range of time that is looked at."""

    def __init__(self, from_time: datetime | None, to_time: datetime | None) -> None:
        for time in (from_time, to_time):
            if time is not None and time.tzinfo is None:
                raise BadArgument(f"{time} has no time zone")
        if from_time is not None and to_time is not None and from_time >= to_time:
            raise BadArgument("the range of time is empty", "it holds from <= timestamp < to")
        self._from, self._to = from_time, to_time

    @property
    def limited(self) -> bool:
        return self._from is not None or self._to is not None

    def where(self) -> str:
        """As SQL. Written out, because COPY takes no parameters."""
        bounds = ((">=", self._from), ("<", self._to))
        tests = [f'"timestamp" {op} {_literal(time)}' for op, time in bounds if time is not None]
        return f" where {' and '.join(tests)}" if tests else ""

    def holds(self, row: Row) -> bool:
        if not self.limited:
            return True
        return (
            row.timestamp is not None
            and (self._from is None or row.timestamp >= canonical.microseconds(self._from))
            and (self._to is None or row.timestamp < canonical.microseconds(self._to))
        )


def _literal(time: datetime) -> str:
    return f"timestamptz '{time.astimezone(UTC).isoformat(sep=' ')}'"


@contextlib.contextmanager
def _snapshot(conn: psycopg.Connection[Any]) -> Iterator[None]:
    saved = conn.isolation_level, conn.read_only, conn.deferrable
    conn.isolation_level, conn.read_only, conn.deferrable = (
        psycopg.IsolationLevel.REPEATABLE_READ,
        True,
        None,
    )
    try:
        with conn.transaction():
            conn.execute(_SETTINGS, prepare=False)
            yield
    finally:
        if not conn.closed and conn.info.transaction_status == TransactionStatus.IDLE:
            conn.isolation_level, conn.read_only, conn.deferrable = saved
