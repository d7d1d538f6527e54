"""How entries look in Parquet: columns, types, encodings."""

from datetime import datetime
from typing import Any

import pyarrow as pa

from meshaudit import canonical

TEXT = (
    "secret_id",
    "access_type",
    "user_identity",
    "ip_address",
    "operation",
    "outcome",
    "secret_table",
    "scope",
    "identity_source",
    "claimed_identity",
    "db_user",
    "db_role",
    "application_name",
    "user_agent",
    "request_id",
)
_OTHERS = {
    "id": pa.int64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "access_id": pa.binary(16),
    "lane": pa.int32(),
    "seq": pa.int64(),
    "hash": pa.binary(32),
    "prev_hash": pa.binary(32),
}
NULLABLE = ("ip_address", "claimed_identity", "application_name", "user_agent", "request_id", "prev_hash")
COLUMNS = (*canonical.Entry._fields[2:], "lane", "seq", "hash", "prev_hash")
SCHEMA = pa.schema(
    [pa.field(name, _OTHERS.get(name, pa.string()), nullable=name in NULLABLE) for name in COLUMNS]
)

ROW_GROUP = 65_536  # as much is in memory while it is written
_DELTA = ("id", "timestamp", "seq")

WRITER: dict[str, Any] = {
    "version": "2.6",
    # what nothing compresses is not tried
    "compression": {name: "none" if name in ("access_id", "hash") else "zstd" for name in COLUMNS},
    "compression_level": {name: 1 for name in COLUMNS if name not in ("access_id", "hash")},
    "use_dictionary": [*(name for name in TEXT if name != "request_id"), "lane"],
    "column_encoding": dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
    # of what is searched by
    "write_statistics": [
        *("id", "timestamp", "lane", "seq", "secret_id", "user_identity", "scope"),
        *("access_type", "operation", "outcome", "ip_address"),
    ],
    # By time, the least and greatest secret of a row group say nothing: a filter does.
    "bloom_filter_options": {name: {"ndv": 20_000, "fpp": 0.02} for name in ("secret_id", "user_identity")},
}

_SQL = {
    "ip_address": "pg_catalog.text(ip_address)",
    "access_id": "pg_catalog.uuid_send(access_id)",
}


def query(start: datetime, end: datetime) -> str:
    """The entries of a range of time, in the order in which an archive has them."""
    columns = ", ".join(f"{_SQL[name]} as {name}" if name in _SQL else f'"{name}"' for name in COLUMNS)
    # Written out: COPY, which the driver makes of it, takes no parameters.
    return (
        f"select {columns} from meshaudit.audit_logs"
        f" where \"timestamp\" >= timestamptz '{start.isoformat()}'"
        f' and "timestamp" < timestamptz \'{end.isoformat()}\' order by "timestamp"'
    )
