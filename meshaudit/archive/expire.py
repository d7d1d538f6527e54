"""Expiring archives: the log first, then the document beside the manifest, then the Parquet file goes.

Killed at any instant it can run again: what the log says has expired is swept, whoever had begun.
"""

from pathlib import Path
from typing import Any

import psycopg

from meshaudit import retention
from meshaudit.archive import writer


def is_here(place: Path, partition: str, manifest: str) -> bool:
    """Whether a place holds that archive, by its manifest."""
    try:
        return (place / f"{partition}.manifest.json").read_bytes() == manifest.encode()
    except FileNotFoundError:
        return False


def expire(conn: psycopg.Connection[Any], place: Path, partition: str) -> None:
    """Record that an archive's period is over, and delete its data."""
    _carry_out(place, partition, retention.expire(conn, partition))


def sweep(conn: psycopg.Connection[Any], place: Path) -> list[str]:
    """What a killed run has recorded and not carried out; returns the partitions."""
    manifests = retention.manifests(conn)
    return [
        partition
        for partition, document in retention.expiries(conn).items()
        if is_here(place, partition, manifests[partition]) and _carry_out(place, partition, document)
    ]


def _carry_out(place: Path, partition: str, document: str) -> bool:
    """The document is on disk before the file goes. False: nothing was left to do."""
    done = _write(place, f"{partition}.expiry.json", document)
    return delete_data(place, partition) or done


def _write(place: Path, name: str, text: str) -> bool:
    final, fresh = place / name, place / f".{name}"
    if final.exists() and final.read_bytes() == text.encode():
        return False
    fresh.write_bytes(text.encode())
    writer.flush(fresh)
    fresh.replace(final)
    writer.flush(place)
    return True


def delete_data(place: Path, partition: str) -> bool:
    """Delete an archive's entries; False if they are gone already. The only place where that is done."""
    try:
        (place / f"{partition}.parquet").unlink()
    except FileNotFoundError:
        return False
    writer.flush(place)
    return True
