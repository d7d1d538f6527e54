"""Where archives are, to be read: a directory, or an object store, of which only ranges are fetched.

Writes nothing, and shares nothing with what does.
"""

import copy
import io
from pathlib import Path
from typing import Any, BinaryIO

import obstore

from meshaudit import remote

_PIECE = 8 << 20


class Place:
    """A directory or a store's prefix. Can be handed to another process."""

    def __init__(self, where: str | Path) -> None:
        self.where: str = str(where).rstrip("/") or "/"
        self.path: Path | None = remote.directory(where)
        self._client: Any = None

    def __str__(self) -> str:
        return self.where

    def __reduce__(self) -> Any:
        return Place, (self.path or self.where,)

    def names(self, suffix: str) -> list[str]:
        """Names of the files there that end so, sorted; those that begin with a dot aside."""
        if self.path is not None:
            found = [path.name for path in self.path.glob(f"*{suffix}")]
        else:
            with remote.errors(self.where):
                listed = obstore.list_with_delimiter(self.client)["objects"]
            found = [str(one["path"]).rpartition("/")[2] for one in listed]
        return sorted(name for name in found if name.endswith(suffix) and not name.startswith("."))

    def read(self, name: str) -> bytes:
        """A small file, whole."""
        if self.path is not None:
            return (self.path / name).read_bytes()
        with remote.errors(self.where):
            return bytes(obstore.get(self.client, name).bytes())

    def open(self, name: str) -> BinaryIO:
        """A file, to be read here and there. Always the same version of it, or an OSError."""
        if self.path is not None:
            return (self.path / name).open("rb")
        return Ranges(self, name)  # type: ignore[return-value]

    @property
    def client(self) -> Any:
        """Of the object store."""
        if self._client is None:
            self._client = remote.connect(self.where)
        return self._client


class Ranges(io.RawIOBase):
    """An object as a file: each read is a request for that range."""

    def __init__(self, place: Place, name: str) -> None:
        self._place, self._name, self._at = place, name, 0
        with remote.errors(place.where):
            about = obstore.head(place.client, name)
        self.size, self._tag = int(about["size"]), about["e_tag"]

    def again(self) -> "Ranges":
        """The same version of it, opened once more."""
        other = copy.copy(self)
        other._at = 0
        return other

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(self.size - self._at, 0)
        count = left if size is None or size < 0 else min(size, left)
        if count == 0:
            return b""
        options: Any = {"range": (self._at, self._at + count)}
        if self._tag is not None:
            options["if_match"] = self._tag
        try:
            with remote.errors(self._place.where):
                data = bytes(obstore.get(self._place.client, self._name, options=options).bytes())
        except remote.failures.PreconditionError as exc:
            raise OSError(None, "it was replaced while it was read") from exc
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def pieces(file: BinaryIO) -> Any:
    """A file from here to its end, some MB at a time."""
    while piece := file.read(_PIECE):
        yield piece
