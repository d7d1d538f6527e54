"""The manifest of an archived partition: one JSON file, written once, the same bytes for the same content."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from meshaudit.archive_rows import Content

FORMAT = "meshaudit archive v1"


def text(
    *,
    ledger_id: UUID,
    partition: str,
    start: datetime,
    end: datetime,
    content: Content,
    files: Sequence[Path],
    names: Sequence[str],
    previous: str | None,
) -> str:
    """The manifest's text. `files` are read for their digests; `names` are what they will be called."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "canonical_bytes": 1,
        "ledger_id": str(ledger_id),
        "partition": partition,
        "from": start.astimezone(UTC).isoformat(),
        "to": end.astimezone(UTC).isoformat(),
        "entries": content.entries,
        "files": [
            {"name": name, "bytes": path.stat().st_size, "sha256": digest(path)}
            for path, name in zip(files, names, strict=True)
        ],
        "previous": previous,
        "runs": [
            [run.lane, run.first, run.last, run.prev_hash.hex(), run.hash.hex()] for run in content.runs
        ],
    }
    body["digest"] = hashlib.sha256(serialized(body).encode()).hexdigest()
    return serialized(body)


def serialized(body: dict[str, Any]) -> str:
    """The one way in which a manifest is written."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n"


def digest(path: Path) -> str:
    """A file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
