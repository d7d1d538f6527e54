"""Verify archives: every file, every manifest, every hash and link, and what joins them. Needs no database.

Written from docs/archive-format.md; it shares no code with what writes archives, and writes nothing.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from meshaudit import canonical
from meshaudit.archive_content import Broken, Stretch, digest
from meshaudit.archive_faults import MISSING, Fault, Outside
from meshaudit.archive_place import Place
from meshaudit.errors import BadArgument

FORMAT = "meshaudit archive v1"
_MANIFEST, _DATA = ".manifest.json", ".parquet"
_HASH = re.compile(r"[0-9a-f]{64}")
_FIELDS = {
    *("format", "canonical_bytes", "ledger_id", "partition", "from", "to"),
    *("entries", "files", "previous", "runs", "digest"),
}
_SMALL = 300_000  # entries; below, processes cost more than they bring


class Manifest(NamedTuple):
    """A manifest that is well-formed."""

    name: str
    digest: str
    ledger_id: UUID
    partition: str
    start: datetime
    end: datetime
    entries: int
    previous: str | None
    runs: list[Stretch]
    data: str
    size: int
    sha256: str


class Archives(NamedTuple):
    """What a place holds. `hashes`: of the places that were asked for."""

    faults: list[Fault]
    manifests: list[Manifest]
    entries: int
    hashes: dict[tuple[int, int], bytes]
    absent: int  # entries between those of the archives: still in the database, if it is asked

    def outside(self) -> Outside:
        """What of it concerns a database."""
        return Outside(
            {m.partition: m.ledger_id for m in self.manifests},
            {m.partition: m.digest for m in self.manifests},
            self.hashes,
        )


def verify(
    where: Path | str,
    wanted: Mapping[int, int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int | None = None,
) -> Archives:
    """Verify all archives of a directory or store. `wanted`: a seq of each lane whose hash is to be given."""
    place = Place(where)
    if place.path is not None and not place.path.is_dir():
        raise BadArgument(f"{place} is not a directory", "give the place that meshaudit archive wrote to")
    faults: list[Fault] = []
    manifests: list[Manifest] = []
    for name in place.names(_MANIFEST):
        try:
            manifests.append(parse(place, name))
        except Broken as broken:
            faults.append(Fault(name, str(broken)))
    known = {m.data for m in manifests} | {f.file.removesuffix(_MANIFEST) + _DATA for f in faults}
    faults += [Fault(name, "no manifest names it") for name in place.names(_DATA) if name not in known]
    if not manifests and not faults:
        raise BadArgument(f"{place} holds no archive", "give the place that meshaudit archive wrote to")

    total, done, hashes = sum(m.entries for m in manifests), 0, {}
    for one, problem, found in _all(place, manifests, wanted or {}, workers, total):
        if problem:
            faults.append(Fault(one.data, problem))
        hashes.update(found)
        done += one.entries
        progress(done, total)
    joins, absent = _joined(manifests)
    faults += joins
    return Archives(faults, manifests, done, hashes, absent)


def parse(place: Place, name: str) -> Manifest:
    """A manifest, checked against itself. Raises Broken."""
    try:
        data = place.read(name)
        body = json.loads(data)
    except OSError as exc:
        raise Broken(f"it cannot be read ({exc.strerror})") from exc
    except (ValueError, RecursionError) as exc:
        raise Broken("it is not JSON") from exc
    if not isinstance(body, dict) or set(body) != _FIELDS or body["format"] != FORMAT:
        raise Broken(f'it is no manifest of format "{FORMAT}"')
    without = {key: value for key, value in body.items() if key != "digest"}
    if _bytes(body) != data or hashlib.sha256(_bytes(without)).hexdigest() != body["digest"]:
        raise Broken("it was altered: its digest is another")
    try:
        (file,) = body["files"]
        manifest = Manifest(
            name,
            hashlib.sha256(data).hexdigest(),
            UUID(body["ledger_id"]),
            str(body["partition"]),
            datetime.fromisoformat(body["from"]),
            datetime.fromisoformat(body["to"]),
            int(body["entries"]),
            body["previous"],
            [Stretch(r[0], r[1], r[2], bytes.fromhex(r[3]), bytes.fromhex(r[4])) for r in body["runs"]],
            str(file["name"]),
            int(file["bytes"]),
            str(file["sha256"]),
        )
    except (ValueError, TypeError, KeyError, IndexError) as exc:
        raise Broken("a field of it has no meaning") from exc
    if name != manifest.partition + _MANIFEST or file["name"] != manifest.partition + _DATA:
        raise Broken(f"it is the manifest of {manifest.partition}, under another name")
    if manifest.previous is not None and not _HASH.fullmatch(str(manifest.previous)):
        raise Broken("a field of it has no meaning")
    return manifest


def _bytes(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, sort_keys=True, separators=(",", ":")) + "\n").encode()


def content(place: Place, m: Manifest) -> str | None:
    """What is wrong with a manifest's file; None if nothing is."""
    return _content(place, m, {})[1]


Checked = tuple[Manifest, str | None, dict[tuple[int, int], bytes]]


def _all(
    place: Place, manifests: list[Manifest], wanted: Mapping[int, int], workers: int | None, total: int
) -> Iterator[Checked]:
    workers = workers or min(os.cpu_count() or 1, len(manifests))
    if workers <= 1 or total < _SMALL:
        yield from (_content(place, m, wanted) for m in manifests)
        return
    # Not forked: threads of the libraries would be lost half-way.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        same = len(manifests)
        yield from pool.map(_content, [place] * same, manifests, [dict(wanted)] * same)


def _content(place: Place, m: Manifest, wanted: Mapping[int, int]) -> Checked:
    """Whether a file is what its manifest says."""
    # here: a process that hands files to others needs no library for it
    from meshaudit.archive_rows import read

    try:
        with place.open(m.data) as file:
            size, sha256 = digest(file)
            if size != m.size:
                raise Broken(f"it has {size} bytes instead of {m.size}")
            if sha256 != m.sha256:
                raise Broken("it was altered: its sha256 is another than its manifest's")
            file.seek(0)
            content = read(file, m.start, m.end, wanted)
        if content.entries != m.entries or content.runs != m.runs:
            raise Broken("its entries are not those of its manifest")
    except FileNotFoundError:
        return m, MISSING, {}
    except OSError as exc:
        return m, f"it cannot be read ({exc.strerror})", {}
    except Broken as broken:
        return m, str(broken), {}
    return m, None, content.hashes


def _joined(manifests: list[Manifest]) -> tuple[list[Fault], int]:
    """What does not fit between archives, and how many entries lie between them."""
    faults: list[Fault] = []
    there = {m.digest for m in manifests}
    followed: dict[str | None, Manifest] = {}
    for m in manifests:
        if m.ledger_id != manifests[0].ledger_id:
            faults.append(Fault(m.name, f"it is of another ledger than {manifests[0].name}"))
        if m.previous is not None and m.previous not in there:
            faults.append(Fault(m.name, "the archive before it is missing, or was altered"))
        if m.previous in followed:
            faults.append(Fault(m.name, f"{followed[m.previous].name} has the same one before it"))
        followed[m.previous] = m

    lanes: dict[int, list[tuple[Stretch, Manifest]]] = {}
    for m in manifests:
        for run in m.runs:
            lanes.setdefault(run.lane, []).append((run, m))
    absent = 0
    told: set[str] = set()
    for lane, runs in lanes.items():
        runs.sort(key=lambda pair: pair[0])
        first, owner = runs[0]
        if first.first == 1 and first.prev_hash != canonical.genesis(owner.ledger_id, lane):
            faults.append(Fault(owner.name, f"lane {lane} does not begin as one of its ledger's"))
        absent += first.first - 1
        for (one, _), (two, m) in pairwise(runs):
            problem = None
            if two.first <= one.last:
                problem = f"lane {lane}, seq {two.first} is in two archives"
            elif two.first > one.last + 1:
                absent += two.first - one.last - 1
            elif two.prev_hash != one.hash:
                problem = f"lane {lane}, seq {two.first} does not follow the entry before it"
            if problem and m.name not in told:
                told.add(m.name)
                faults.append(Fault(m.name, problem))
    return faults, absent
