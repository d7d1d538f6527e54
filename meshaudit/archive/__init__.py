"""Archiving: partitions out to Parquet, proved, retired. docs/archive-format.md is the specification.

Invariant: what verifies an archive (meshaudit.archive_verify) shares no code with what writes it.
"""
