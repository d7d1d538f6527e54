"""Searching archives, with the filters of search_audit_logs() and in its order; also beside a database.

DuckDB reads only the row groups that can hold what is asked for. Nothing is verified here: verify does that.
"""

import hashlib
import heapq
import io
import ipaddress
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import fsspec

from meshaudit import canonical
from meshaudit.archive_place import Place, Ranges
from meshaudit.errors import BadArgument, MeshauditError
from meshaudit.queries import COLUMNS, PAGE, Entry, Filters

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AHEAD = 256 << 10
_EXACT = ("secret_id", "user_identity", "access_type", "operation", "outcome", "scope")


def search(
    where: Path | str, filters: Filters, *, after: str | None = None, limit: int | None = None
) -> Iterator[list[Entry]]:
    """Entries of a place's archives, newest first, a page at a time."""
    place = Place(where)
    names = place.names(".parquet") if place.path is None or place.path.is_dir() else []
    if not names:
        raise BadArgument(f"{place} holds no archive", "give the place that meshaudit archive wrote to")
    store = None
    try:
        with duckdb.connect() as conn:
            conn.execute("set timezone = 'UTC'")
            if place.path is not None:
                files = [str(place.path / name) for name in names]
            else:
                store = _Store(place)
                conn.register_filesystem(store)
                # footers are fetched once, not for every page
                conn.execute("set parquet_metadata_cache = true")
                files = [f"{_Store.protocol}://{name}" for name in names]
            tests, values = _tests(conn, files, filters)
            left = limit
            while left is None or left > 0:
                size = PAGE if left is None else min(PAGE, left)
                page = _page(conn, files, tests, values, after, size)
                if page:
                    yield page
                if len(page) < size:
                    return
                after = page[-1].cursor
                left = None if left is None else left - size
    except duckdb.Error as exc:
        if store is not None and store.failure is not None:
            raise store.failure from exc
        raise MeshauditError(
            f"an archive cannot be read: {str(exc).splitlines()[0]}", "meshaudit verify --archive names it"
        ) from exc


class _Store(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """An object store as DuckDB sees it, which asks for the ranges of the row groups that matter."""

    protocol = "meshaudit"
    cachable = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self.failure: MeshauditError | None = None

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return _Handle(self._file(path))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": self._file(path).size, "type": "file"}

    def modified(self, path: str) -> datetime:
        return _EPOCH  # a file of an archive never changes

    def glob(self, path: str, **_: Any) -> list[str]:
        return [path]

    def _file(self, path: str) -> Ranges:
        try:
            return Ranges(self._place, path.rpartition("/")[2])
        except MeshauditError as error:
            # DuckDB would tell of it in words of its own
            self.failure = error
            raise


class _Handle:
    """An open file in which every thread has a place of its own: DuckDB's share it, and seek, then read."""

    def __init__(self, first: Ranges) -> None:
        self._first = first
        self._of: dict[int, io.BufferedReader] = {}

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._mine().seek(offset, whence)

    def tell(self) -> int:
        return self._mine().tell()

    def read(self, size: int = -1) -> bytes:
        return self._mine().read(size)

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._of.clear()

    def _mine(self) -> io.BufferedReader:
        thread = threading.get_ident()
        if thread not in self._of:
            self._of[thread] = io.BufferedReader(self._first.again(), _AHEAD)
        return self._of[thread]


def merged(*searches: Iterator[list[Entry]], limit: int | None) -> Iterator[list[Entry]]:
    """Several searches as one; an entry that is in two (a restored one) comes once."""
    streams = [(entry for page in pages for entry in page) for pages in searches]
    page: list[Entry] = []
    before: Entry | None = None
    count = 0
    for entry in heapq.merge(*streams, key=lambda entry: (entry.timestamp, entry.id), reverse=True):
        if before is not None and (entry.lane, entry.seq) == (before.lane, before.seq):
            continue
        before = entry
        page.append(entry)
        count += 1
        if len(page) == PAGE or count == limit:
            yield page
            page = []
        if count == limit:
            return
    if page:
        yield page


def _tests(conn: Any, files: list[str], filters: Filters) -> tuple[str, list[Any]]:
    tests, values = ["true"], list[Any]()
    for name in _EXACT:
        if (value := getattr(filters, name)) is not None:
            tests.append(f"e.{name} = ?")
            values.append(value)
    for test, time in ((">=", filters.from_time), ("<", filters.to_time)):
        if time is not None:
            tests.append(f'e."timestamp" {test} ?')
            values.append(time)
    if filters.ip is not None:
        network = ipaddress.ip_network(filters.ip, strict=False)
        found = conn.execute("select distinct ip_address from read_parquet(?)", [files]).fetchall()
        tests.append("list_contains(?, e.ip_address)")
        values.append([text for (text,) in found if text is not None and _within(text, network)])
    return " and ".join(tests), values


def _within(text: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    one = ipaddress.ip_interface(text).network
    return one.version == network.version and one.subnet_of(network)  # type: ignore[arg-type]


def _page(
    conn: Any, files: list[str], tests: str, values: list[Any], after: str | None, size: int
) -> list[Entry]:
    if after is not None:
        place = bytes.fromhex(after)
        if len(place) != 20 or _cursor(place[:16]) != after:
            raise BadArgument("this is not a cursor", "take it from the last line of a search")
        at, number = struct.unpack(">qq", place[:16])
        tests += ' and (e."timestamp" < ? or (e."timestamp" = ? and e.id < ?))'
        time = canonical.EPOCH + timedelta(microseconds=at)
        values = [*values, time, time, number]
    columns = ", ".join('epoch_us(e."timestamp")' if name == "timestamp" else f"e.{name}" for name in COLUMNS)
    rows = conn.execute(
        f"select {columns} from read_parquet(?) e where {tests}"
        ' order by e."timestamp" desc, e.id desc limit ?',
        [files, *values, size],
    ).fetchall()
    entries = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    _link(conn, files, entries)
    return [_entry(entry) for entry in entries]


def _link(conn: Any, files: list[str], entries: list[dict[str, Any]]) -> None:
    """Where the file leaves prev_hash out, it is the hash of the entry before."""
    silent = [(e["lane"], e["seq"] - 1) for e in entries if e["prev_hash"] is None]
    if not silent:
        return
    lanes, seqs = (list(column) for column in zip(*silent, strict=True))
    found = conn.execute(
        "select e.lane, e.seq, e.hash from read_parquet(?) e"
        " semi join (select unnest(?::int[]) as lane, unnest(?::bigint[]) as seq) w"
        " on e.lane = w.lane and e.seq = w.seq",
        [files, lanes, seqs],
    ).fetchall()
    hashes = {(lane, seq): digest for lane, seq, digest in found}
    for entry in entries:
        if entry["prev_hash"] is None:
            entry["prev_hash"] = hashes.get((entry["lane"], entry["seq"] - 1), b"")


def _cursor(place: bytes) -> str:
    """As meshaudit.log_cursor() makes it: a place, and what tells it from a mistyped one."""
    return (place + hashlib.sha256(place).digest()[:4]).hex()


def _entry(row: dict[str, Any]) -> Entry:
    time = _EPOCH + timedelta(microseconds=row["timestamp"])
    address = None
    if row["ip_address"] is not None:
        interface = ipaddress.ip_interface(row["ip_address"])
        whole = interface.network.prefixlen == interface.max_prefixlen
        address = interface.ip if whole else interface
    return Entry(
        **{
            **row,
            "timestamp": time,
            "ip_address": address,
            "access_id": UUID(bytes=row["access_id"]),
            "cursor": _cursor(struct.pack(">qq", canonical.microseconds(time), row["id"])),
        }
    )
