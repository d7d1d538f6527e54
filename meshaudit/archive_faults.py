"""Faults of archives, and what the database's log says about the archives that it went to.

Apart from archive_verify, so that verifying a database needs none of the libraries that read archives.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

MISSING = "it is missing"  # of a Parquet file that a manifest names


class Fault(NamedTuple):
    """What is wrong with a file."""

    file: str
    problem: str


class Outside(NamedTuple):
    """Verified archives, as far as the database has to do with them."""

    ledgers: Mapping[str, UUID]  # of each partition's manifest
    digests: Mapping[str, str]  # of each partition's manifest
    hashes: Mapping[tuple[int, int], bytes]  # of places that were asked for

    def compared(self, ledger_id: UUID, retired: Mapping[str, str]) -> Sequence[Fault]:
        """What differs from what was retired: partition and digest of its manifest."""
        faults = [
            Fault(f"{partition}.manifest.json", problem)
            for partition, digest in sorted(retired.items())
            if (problem := self._wrong(partition, digest))
        ]
        faults += [
            Fault(f"{partition}.manifest.json", "the log knows of no retirement to it; archive again")
            for partition in sorted(self.digests.keys() - retired.keys())
        ]
        faults += [
            Fault(f"{partition}.manifest.json", "it is of another ledger than the database")
            for partition, ledger in sorted(self.ledgers.items())
            if ledger != ledger_id
        ]
        return faults

    def foreign(self, ledger_id: UUID, retired: Mapping[str, str]) -> bool:
        """Whether they have nothing to do with this ledger, and so say nothing about it.

        One that the log names is its own, whatever the ledger calls itself by now.
        """
        ours = ledger_id in self.ledgers.values() or set(self.digests.values()) & set(retired.values())
        return bool(self.ledgers) and not ours

    def _wrong(self, partition: str, digest: str) -> str:
        if partition not in self.digests:
            return f"missing, or not what it was: the log says that {partition} was retired to it"
        return "" if self.digests[partition] == digest else "it is not the manifest that the log names"
