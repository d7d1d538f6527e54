"""The memory that an export takes, by the number of entries: `make bench-api`, for a million.

The entries are written past the access path, in one statement and without chains: how they came about does
not matter to
who reads them.
"""

import sys
import time

import psycopg

from meshaudit.server import Server
from tests.api_support import Api, bearer
from tests.cli_support import ok

BOUND = 150 << 20
_FILL = """
alter table meshaudit_private.ledger disable trigger user;
insert into meshaudit_private.ledger
  (secret_id, operation, outcome, secret_table, scope, application_name, lane, seq, prev_hash, hash)
select gen_random_uuid()::text, 'read', 'granted', 'meshaudit.secrets', 'tenant-' || n % 10, 'a service',
1, n,
  sha256(n::text::bytea), sha256((n + 1)::text::bytea)
from generate_series(1, {number}) n;
alter table meshaudit_private.ledger enable always trigger append_only;
analyze meshaudit_private.ledger
"""


def fill(conn: psycopg.Connection[object], number: int) -> None:
    """So many entries in lane 1, which verify will call forged."""
    for statement in _FILL.format(number=number).split(";"):
        conn.execute(statement.encode())


def export(api: Api, who: dict[str, str], form: str) -> tuple[int, int, float]:
    """Lines, bytes and seconds of an export, read as it comes."""
    lines = size = 0
    began = time.monotonic()
    with api.client.stream(
        "GET", f"/api/audit-logs/export?format={form}", headers=who, timeout=600
    ) as answer:
        assert answer.status_code == 200, answer.read()
        for chunk in answer.iter_raw():
            lines += chunk.count(b"\n")
            size += len(chunk)
    return lines, size, time.monotonic() - began


def main() -> None:
    """Fill, export, tell."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with Server.temporary(settings={"fsync": "off", "max_wal_size": "4GB"}) as server:
        ok("migrate", dsn=server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(
                "create role authenticated nologin; create role gate login noinherit password 'x';"
                "grant authenticated to gate; select meshaudit.set_setting('gateway_roles', 'gate');"
                "select meshaudit.grant_auditor('reader')"
            )
            fill(conn, number)
        api = Api(psycopg.conninfo.make_conninfo(server.dsn(), user="gate", password="x"))
        try:
            api.get("/api/audit-logs", bearer("reader"))
            print(f"at rest: {api.memory() >> 20} MB resident")
            for form in ("csv", "jsonl"):
                lines, size, seconds = export(api, bearer("reader"), form)
                assert lines >= number, lines
                print(
                    f"{form}: {lines:,} lines, {size >> 20} MB in {seconds:.1f} s; {api.memory() >> 20}"
                    f" MB resident at most"
                )
            assert api.memory() < BOUND, api.memory()
        finally:
            api.stop()


if __name__ == "__main__":
    main()
