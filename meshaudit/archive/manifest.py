"""The manifest of an archived partition: one JSON file, written once, the same bytes for the same content."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from meshaudit.archive_content import Content

FORMAT = "meshaudit archive v1"


def text(
    *,
    ledger_id: UUID,
    partition: str,
    start: datetime,
    end: datetime,
    content: Content,
    file: tuple[str, int, str],
    previous: str | None,
) -> str:
    """The manifest's text. `file`: its name, bytes and sha256."""
    name, size, sha256 = file
    body: dict[str, Any] = {
        "format": FORMAT,
        "canonical_bytes": 1,
        "ledger_id": str(ledger_id),
        "partition": partition,
        "from": start.astimezone(UTC).isoformat(),
        "to": end.astimezone(UTC).isoformat(),
        "entries": content.entries,
        "files": [{"name": name, "bytes": size, "sha256": sha256}],
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
