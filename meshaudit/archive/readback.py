"""What was written, as it can be read, verified by the verifier's code; if it is much, in another process."""

from datetime import datetime
from typing import NamedTuple

from meshaudit import archive_rows
from meshaudit.archive_place import Place
from meshaudit.errors import MeshauditError


class ReadBack(NamedTuple):
    """A file that verifies."""

    bytes: int
    sha256: str
    content: archive_rows.Content


def read_back(where: str, name: str, start: datetime, end: datetime) -> ReadBack:
    """Read and verify a file. Raises MeshauditError."""
    try:
        with Place(where).open(name) as file:
            size, sha256 = archive_rows.digest(file)
            file.seek(0)
            return ReadBack(size, sha256, archive_rows.read(file, start, end))
    except FileNotFoundError as exc:
        raise MeshauditError(
            f"{name} is not in {where}", "somebody else has removed it; run it again"
        ) from exc
    except archive_rows.Broken as broken:
        raise MeshauditError(
            f"{name.lstrip('.')} does not verify, and was not retired: {broken}",
            "run meshaudit verify: it names what was altered",
        ) from broken
