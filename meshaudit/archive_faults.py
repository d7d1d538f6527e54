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

    ledger_ids: frozenset[UUID]
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
        if self.ledger_ids - {ledger_id}:
            faults.append(Fault("", "the archives are of another ledger than the database"))
        return faults

    def _wrong(self, partition: str, digest: str) -> str:
        if partition not in self.digests:
            return f"missing, or not what it was: the log says that {partition} was retired to it"
        return "" if self.digests[partition] == digest else "it is not the manifest that the log names"
