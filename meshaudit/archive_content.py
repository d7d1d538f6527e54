"""What is in an archive's file, as its manifest and the file itself tell it.

Apart from archive_rows, so that who only hands files to others needs none of the libraries that read them.
"""

import hashlib
from typing import BinaryIO, NamedTuple

from meshaudit.archive_place import pieces


class Stretch(NamedTuple):
    """Entries `first` to `last` of a lane, each linked to the one before."""

    lane: int
    first: int
    last: int
    prev_hash: bytes
    hash: bytes


class Broken(Exception):
    """What is wrong with a file, in words."""


class Content(NamedTuple):
    """What a sound file holds. `hashes` are those of the places that were asked for."""

    entries: int
    runs: list[Stretch]
    hashes: dict[tuple[int, int], bytes]


def digest(file: BinaryIO) -> tuple[int, str]:
    """A file's bytes and sha256."""
    size, sha256 = 0, hashlib.sha256()
    for piece in pieces(file):
        size += len(piece)
        sha256.update(piece)
    return size, sha256.hexdigest()
