"""Archives that have expired: the Parquet file is gone, and the log says that it may be.

An expiry counts when its document's digest is in an entry, of the database or of an archive, or in a later
document that counts. Otherwise the file is simply missing. Written from docs/archive-format.md.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pyarrow.compute as pc
import pyarrow.parquet as pq

from meshaudit.archive_content import Broken
from meshaudit.archive_faults import MISSING, Fault
from meshaudit.archive_place import Place
from meshaudit.archive_verify import Archives, Manifest

FORMAT = "meshaudit expiry v1"
SUFFIX = ".expiry.json"
_FIELDS = {"format", "ledger_id", "manifest", "partition", "previous"}


class Expiry(NamedTuple):
    """An expiry's document."""

    digest: str
    ledger_id: str
    partition: str
    manifest: str  # the sha256 of the manifest of what has expired
    previous: str | None  # the digest of the document of the expiry before


class Log(NamedTuple):
    """What a database knows of expiries: the documents, and the digests that entries name."""

    documents: list[str]
    named: frozenset[str]


def parse(data: bytes) -> Expiry:
    """A document, if it is spelt as one is. Raises Broken."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise Broken("it is not JSON") from exc
    if not isinstance(body, dict) or set(body) != _FIELDS or body["format"] != FORMAT:
        raise Broken(f'it is no document of format "{FORMAT}"')
    if (json.dumps(body, sort_keys=True, separators=(",", ":")) + "\n").encode() != data:
        raise Broken("it was altered: it is not spelt as one is")
    texts = [body[name] for name in ("ledger_id", "partition", "manifest")]
    if not all(isinstance(text, str) for text in [*texts, body["previous"] or ""]):
        raise Broken("a field of it has no meaning")
    ledger_id, partition, manifest = texts
    return Expiry(hashlib.sha256(data).hexdigest(), ledger_id, partition, manifest, body["previous"])


def read_log(conn: psycopg.Connection[Any]) -> Log:
    """The database's expiries."""
    rows = conn.execute(
        """
        select e.document,
          exists (
            select from meshaudit.audit_logs l
            where l.lane = e.lane and l.seq = e.seq and l.secret_table = 'meshaudit.expiry'
              and l.operation = 'delete' and split_part(l.secret_id, ' ', 3)
                = encode(sha256(convert_to(e.document, 'UTF8')), 'hex'))
        from meshaudit.expiries() e
        """
    ).fetchall()
    return Log(
        [document for document, _ in rows],
        frozenset(hashlib.sha256(text.encode()).hexdigest() for text, named in rows if named),
    )


def judged(archives: Archives, where: Path | str, log: Log | None = None) -> tuple[Archives, list[Manifest]]:
    """The archives without the faults that are lawful expiries; and the manifests of those."""
    place = Place(where)
    by_digest = {m.digest: m for m in archives.manifests}
    documents, faults = _documents(place, by_digest)
    if log is not None:
        known = {one.digest: one for one in _parsed(log.documents)}
        faults += [
            Fault(one.partition + SUFFIX, "the log knows of no such expiry")
            for digest, one in documents.items()
            if digest not in known
        ]
        documents = known | documents
    absent = {f.file for f in archives.faults if f.problem == MISSING}
    gone = [m for m in archives.manifests if m.data in absent]
    named = set(log.named) if log is not None else set[str]()
    if gone:
        broken = {f.file for f in archives.faults}
        named.update(_named_in(place, (m for m in archives.manifests if m.data not in broken)))
    lawful = _backed(documents, named)
    told = {one.manifest for one in documents.values()}
    expired = [m for m in gone if m.digest in lawful]
    over = {m.data for m in expired}
    unsure = {m.data for m in gone if m.digest in told} - over
    faults += [
        Fault(f.file, _doubt(log)) if f.file in unsure and f.problem == MISSING else f
        for f in archives.faults
        if not (f.file in over and f.problem == MISSING)
    ]
    left = archives.entries - sum(m.entries for m in expired)
    return archives._replace(faults=faults, entries=left), expired


def _doubt(log: Log | None) -> str:
    if log is None:
        return "it is missing; whether it has expired lawfully the log says: name the database with --dsn"
    return "it is missing, and no entry of the log says that it has expired"


def _documents(place: Place, manifests: dict[str, Manifest]) -> tuple[dict[str, Expiry], list[Fault]]:
    """The documents of a place, and what is wrong with them."""
    found: dict[str, Expiry] = {}
    faults: list[Fault] = []
    for name in place.names(SUFFIX):
        try:
            one = parse(place.read(name))
        except OSError as exc:
            faults.append(Fault(name, f"it cannot be read ({exc.strerror})"))
        except Broken as broken:
            faults.append(Fault(name, str(broken)))
        else:
            manifest = manifests.get(one.manifest)
            if one.partition + SUFFIX != name:
                faults.append(Fault(name, f"it is of {one.partition}, under another name"))
            elif manifest is None or (manifest.partition, str(manifest.ledger_id)) != (
                one.partition,
                one.ledger_id,
            ):
                faults.append(Fault(name, "the manifest that it names is not here"))
            found[one.digest] = one
    return found, faults


def _parsed(texts: Iterable[str]) -> Iterator[Expiry]:
    for text in texts:
        try:
            yield parse(text.encode())
        except Broken:
            continue  # then it is no expiry of anything


def _backed(documents: dict[str, Expiry], named: set[str]) -> set[str]:
    """The manifests whose expiry the log stands for."""
    counted: set[str] = set()
    waiting = [*named]
    while waiting:
        one = documents.get(waiting.pop())
        if one is not None and one.digest not in counted:
            counted.add(one.digest)
            if one.previous is not None:
                waiting.append(one.previous)
    return {documents[digest].manifest for digest in counted}


def _named_in(place: Place, manifests: Iterable[Manifest]) -> Iterator[str]:
    """The documents that entries in archives name, whose every hash has been recomputed."""
    columns = ["secret_table", "operation", "secret_id"]
    for m in manifests:
        with place.open(m.data) as opened, pq.ParquetFile(opened) as file:
            for batch in file.iter_batches(columns=columns):
                wanted = pc.and_(
                    pc.equal(batch.column("secret_table"), "meshaudit.expiry"),
                    pc.equal(batch.column("operation"), "delete"),
                )
                for text in batch.column("secret_id").filter(wanted).to_pylist():
                    yield text.split(" ")[-1]
