"""What the database says was retired, and whether the log itself says so.

A retirement counts when its manifest's digest is in an entry, or in a later manifest that counts. Otherwise
its entries are simply missing.
"""

import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

import psycopg

from meshaudit.chains import Row, Run


class Retired(NamedTuple):
    """The retired stretches of each lane, and the digest of each retired partition's manifest."""

    runs: dict[int, list[Run]]
    digests: dict[str, str]  # restored ones included

    def hash_at(self, lane: int, seq: int) -> bytes | None:
        """The hash of a retired entry, where manifests say it: at the end of a stretch."""
        return next((run.hash for run in self.runs.get(lane, ()) if run.after - 1 == seq), None)

    def holds(self, lane: int, seq: int) -> bool:
        """Whether that entry is retired."""
        return any(run.first <= seq < run.after for run in self.runs.get(lane, ()))

    def without(self, lane: int, first: int, last: int) -> Iterable[tuple[int, int]]:
        """What of `first` to `last` is not retired."""
        for run in sorted(self.runs.get(lane, ()), key=lambda run: run.first):
            if run.after <= first or run.first > last:
                continue
            if run.first > first:
                yield first, run.first - 1
            first = run.after
        if first <= last:
            yield first, last

    def ends(self, lanes: Container[int]) -> Iterable[Row]:
        """The first and last entries of the stretches, as far as manifests tell them."""
        for lane, runs in self.runs.items():
            for run in runs if lane in lanes else ():
                last = run.after - 1
                if last == run.first:
                    yield Row(lane, last, None, None, run.prev_hash, run.hash, True, b"")
                else:
                    yield Row(lane, run.first, None, None, run.prev_hash, None, True, b"")
                    yield Row(lane, last, None, None, None, run.hash, True, b"")

    @property
    def entries(self) -> int:
        """How many entries are retired."""
        return sum(run.after - run.first for runs in self.runs.values() for run in runs)


def read_retired(conn: psycopg.Connection[Any]) -> Retired:
    """From the retirements, those that the log stands for."""
    rows = conn.execute(
        """
        select r.partition, r.manifest, r.restored,
          exists (
            select from meshaudit.audit_logs l
            where l.lane = r.lane and l.seq = r.seq and l.secret_table = 'meshaudit.archive'
              and l.operation = 'delete' and l.secret_id = r.partition || ' '
                || encode(sha256(convert_to(r.manifest, 'UTF8')), 'hex'))
        from meshaudit.retirements() r
        """
    ).fetchall()
    named = {hashlib.sha256(text.encode()).hexdigest(): row for row in rows for text in [row[1]]}
    counted: dict[str, dict[str, Any]] = {}
    waiting = [digest for digest, row in named.items() if row[3]]
    while waiting:
        digest = waiting.pop()
        if digest in counted or digest not in named:
            continue
        counted[digest] = body = json.loads(named[digest][1])
        if body["previous"] is not None:
            waiting.append(body["previous"])
    runs: dict[int, list[Run]] = {}
    for digest, body in counted.items():
        if not named[digest][2]:
            for run in _runs(body):
                runs.setdefault(run.lane, []).append(run)
    return Retired(runs, {named[digest][0]: digest for digest in counted})


def _runs(body: Mapping[str, Any]) -> Iterable[Run]:
    for lane, first, last, prev_hash, digest in body["runs"]:
        run = Run(lane, first, bytes.fromhex(prev_hash), bytes.fromhex(digest))
        run.after = last + 1
        yield run
