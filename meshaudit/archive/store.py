"""Where archives go: a directory, or an object store.

Invariants
  * a file is there whole or not at all: in a directory it gets its name when it is on disk, in a store when
    all its parts are;
  * until publish() a file is a draft, and only a run that holds the ledger's lock makes or removes drafts;
  * a manifest is put only where none is, unless it is to replace the one that was looked at.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from uuid import UUID

import obstore

from meshaudit import remote
from meshaudit.errors import BadArgument

_PART = 16 << 20  # of 10,000 at most: 160 GB a partition
_UPLOADS = 3  # at once
_OWNER = "meshaudit-ledger"


class Store(Protocol):
    """What the archiver does with the place."""

    where: str

    def prepare(self, ledger_id: UUID) -> None:
        """Make it, where it can be made; refuse if it is another ledger's."""

    def draft(self, name: str) -> str:
        """What a file is called until it is published."""

    def write(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A draft to be written; whole and durable when the block ends, gone if it fails."""

    def publish(self, name: str) -> None:
        """Give the draft its name."""

    def put(self, name: str, data: bytes, *, replace: bool) -> None:
        """A small file, durable. Raises FileExistsError if it is there and not to be replaced."""

    def read(self, name: str) -> bytes | None:
        """A small file; None if it is not there."""

    def names(self) -> list[str]:
        """All that is there, drafts too."""

    def size(self, name: str) -> int:
        """In bytes. Raises FileNotFoundError."""

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    def sweep(self, name: str) -> None:
        """Remove what a killed run left of this file."""


def store(where: str | Path) -> Store:
    """The place that a path or URL names."""
    path = remote.directory(where)
    return Directory(path) if path is not None else Bucket(str(where).rstrip("/"))


class Directory:
    """On this machine."""

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise BadArgument(f"{path} is not a directory", "an archive is a directory")
        self.path, self.where = path, str(path)

    def prepare(self, ledger_id: UUID) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def draft(self, name: str) -> str:
        return f".{name}.{os.getpid()}"

    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        path = self.path / self.draft(name)
        try:
            with path.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def publish(self, name: str) -> None:
        (self.path / self.draft(name)).replace(self.path / name)
        self._flush()

    def put(self, name: str, data: bytes, *, replace: bool) -> None:
        fresh = self.path / self.draft(name)
        try:
            with self.write(name) as file:
                file.write(data)
            if replace:
                fresh.replace(self.path / name)
            else:
                (self.path / name).hardlink_to(fresh)
            self._flush()
        finally:
            fresh.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)
        self._flush()

    def sweep(self, name: str) -> None:
        for path in self.path.glob(f".{name}.*"):
            path.unlink(missing_ok=True)

    def _flush(self) -> None:
        """Names given or taken are on disk afterwards."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Bucket:
    """In an object store. Nothing is renamed: a draft has its name, and counts once a manifest names it."""

    def __init__(self, url: str) -> None:
        self.where, self._client = url, remote.connect(url)

    def prepare(self, ledger_id: UUID) -> None:
        owner = str(ledger_id).encode() + b"\n"
        with contextlib.suppress(FileExistsError):
            self.put(_OWNER, owner, replace=False)
        if self.read(_OWNER) != owner:
            raise BadArgument(
                f"{self.where} holds another ledger's archives", "archive to a place of its own"
            )

    def draft(self, name: str) -> str:
        return name

    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        # In memory are the part that fills and those on their way. What a killed run has uploaded is no
        # object, and goes with the bucket's lifecycle rule.
        file = obstore.open_writer(self._client, name, buffer_size=_PART, max_concurrency=_UPLOADS)
        try:
            yield _Sink(file, self.where)  # type: ignore[misc]
        except BaseException:
            with contextlib.suppress(Exception):
                file.__exit__(*sys.exc_info())  # the library gives up the upload
            raise
        with self._errors():
            file.close()

    def publish(self, name: str) -> None:
        pass

    def put(self, name: str, data: bytes, *, replace: bool) -> None:
        try:
            with self._errors():
                obstore.put(self._client, name, data, mode="overwrite" if replace else "create")
        except remote.failures.AlreadyExistsError as exc:
            raise FileExistsError(None, "it is there", name) from exc

    def read(self, name: str) -> bytes | None:
        try:
            with self._errors():
                return bytes(obstore.get(self._client, name).bytes())
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        with self._errors():
            listed = obstore.list_with_delimiter(self._client)["objects"]
        return sorted(str(one["path"]).rpartition("/")[2] for one in listed)

    def size(self, name: str) -> int:
        with self._errors():
            return int(obstore.head(self._client, name)["size"])

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._errors():
            obstore.delete(self._client, name)

    def sweep(self, name: str) -> None:
        pass

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        with remote.errors(self.where):
            yield


class _Sink(io.RawIOBase):
    """The library's writer as a file."""

    def __init__(self, writer: Any, where: str) -> None:
        self._writer, self._where, self._at = writer, where, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        with remote.errors(self._where):
            self._writer.write(data)
        size = memoryview(data).nbytes
        self._at += size
        return size
