"""Expiring archives: the log first, then the document beside the manifest, then the Parquet file goes.

Killed at any instant it can run again: what the log says has expired is swept, whoever had begun.
"""

from pathlib import Path
from typing import Any

import psycopg

from meshaudit import retention
from meshaudit.archive.store import Store, store


def is_here(where: Path | str, partition: str, manifest: str) -> bool:
    """Whether a place holds that archive, by its manifest."""
    return store(where).read(f"{partition}.manifest.json") == manifest.encode()


def expire(conn: psycopg.Connection[Any], where: Path | str, partition: str) -> None:
    """Record that an archive's period is over, and delete its data."""
    _carry_out(store(where), partition, retention.expire(conn, partition))


def sweep(conn: psycopg.Connection[Any], where: Path | str) -> list[str]:
    """What a killed run has recorded and not carried out; returns the partitions."""
    place, manifests = store(where), retention.manifests(conn)
    there = set(place.names())
    done: list[str] = []
    for partition, document in retention.expiries(conn).items():
        if f"{partition}.expiry.json" in there and f"{partition}.parquet" not in there:
            continue
        if is_here(where, partition, manifests[partition]):
            _carry_out(place, partition, document)
            done.append(partition)
    return done


def _carry_out(place: Store, partition: str, document: str) -> None:
    """The document is there for good before the file goes."""
    place.put(f"{partition}.expiry.json", document.encode(), replace=True)
    place.delete(f"{partition}.parquet")
