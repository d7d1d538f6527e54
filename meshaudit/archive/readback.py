"""What was written, as it can be read, verified by the verifier's code; if it is much, in another process."""

from datetime import datetime
from typing import NamedTuple

from meshaudit.archive_content import Broken, Content, digest
from meshaudit.archive_place import Place
from meshaudit.errors import MeshauditError


class ReadBack(NamedTuple):
    """A file that verifies."""

    bytes: int
    sha256: str
    content: Content


def read_back(where: str, name: str, start: datetime, end: datetime) -> ReadBack:
    """Read and verify a file. Raises MeshauditError."""
    # here: the process that writes needs it only for small files
    from meshaudit.archive_rows import read

    try:
        with Place(where).open(name) as file:
            size, sha256 = digest(file)
            file.seek(0)
            return ReadBack(size, sha256, read(file, start, end))
    except FileNotFoundError as exc:
        raise MeshauditError(
            f"{name} is not in {where}", "somebody else has removed it; run it again"
        ) from exc
    except Broken as broken:
        raise MeshauditError(
            f"{name.lstrip('.')} does not verify, and was not retired: {broken}",
            "run meshaudit verify: it names what was altered",
        ) from broken
