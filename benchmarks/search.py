"""Search ten million entries over twelve months, and write benchmarks/search.json.

    python -m benchmarks.search [--rows N] [--pg VERSION] [--repeat N]

As an auditor of all, under row security: the first and the hundredth page (of 100) of every single filter and
of the common pairs, timed at the client over loopback, recording of the search and its commit included.
As an auditor of one scope: the same for what that scope holds. The chains are whole: verify() is run.
"""

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from meshaudit import schema
from meshaudit.server import Server
from tests.servers import bindir_for

HERE = Path(__file__).parent
SETTINGS = {
    "shared_buffers": "4GB",
    "max_wal_size": "16GB",
    "max_connections": "100",
    "wal_level": "logical",
    "checkpoint_timeout": "1h",
    "maintenance_work_mem": "1GB",
}
WORKERS = 2
PAGE, DEEP = 100, 100
ALL, ONE = "auditor_of_all", "auditor_of_one"
SCOPE = "project3"


def load(server: Server, rows: int) -> None:
    """Entries as a year of use would leave them."""
    with psycopg.connect(server.dsn("bench"), autocommit=True) as conn:
        conn.execute((HERE / "search_load.sql").read_bytes())

        def work(number: int) -> None:
            with psycopg.connect(server.dsn("bench"), autocommit=True) as own:
                own.execute("set synchronous_commit = off")
                own.execute("select bench.entries(%s, %s, %s)", [rows, number, WORKERS])

        threads = [threading.Thread(target=work, args=[number]) for number in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        conn.execute((HERE / "search_attach.sql").read_bytes())
        conn.execute("vacuum analyze")
        # else what was loaded is written back during the searches, and their commits wait behind it
        conn.execute("checkpoint")
        for role, scope in ((ALL, "*"), (ONE, SCOPE)):
            conn.execute(f"create role {role} login".encode())
            conn.execute("select meshaudit.grant_auditor(%s, %s)", [role, scope])


def wanted(conn: psycopg.Connection[Any]) -> dict[str, dict[str, Any]]:
    """The filters. Times: two and a half months; secrets and identities: the busiest, unless said."""
    secret, rarer = (scalar(conn, f"select md5('secret{n}')::uuid::text") for n in (0, 4000))
    start, end = conn.execute(
        "select t - interval '8 months', t - interval '5 months 15 days' from date_trunc('month', now()) t"
    ).fetchall()[0]
    span = {"from_time": start, "to_time": end}
    return {
        "no filter": {},
        "secret_id": {"secret_id": secret},
        "secret_id, seldom read": {"secret_id": rarer},
        "secret_id, unknown": {"secret_id": "nothing"},
        "time range": span,
        "user_identity": {"user_identity": "service_3"},
        "access_type read": {"access_type": "read"},
        "access_type write": {"access_type": "write"},
        "operation read": {"operation": "read"},
        "operation update": {"operation": "update"},
        "operation create": {"operation": "create"},
        "operation delete": {"operation": "delete"},
        "outcome granted": {"outcome": "granted"},
        "outcome denied": {"outcome": "denied"},
        "outcome rolled_back": {"outcome": "rolled_back"},
        "scope": {"scope": SCOPE},
        "scope, rare": {"scope": "rare"},
        "ip": {"ip": "10.0.0.0"},
        "ip, rare": {"ip": "10.0.200.7"},
        "ip network": {"ip": "10.0.0.0/24"},
        "secret_id, time": {"secret_id": secret, **span},
        "user_identity, time": {"user_identity": "service_3", **span},
        "secret_id, user_identity": {"secret_id": secret, "user_identity": "service_0"},
        "secret_id, rare user_identity": {"secret_id": secret, "user_identity": "service_19"},
        "rare secret_id, user_identity": {"secret_id": rarer, "user_identity": "service_5"},
        "secret_id of the scope": {"secret_id": scalar(conn, "select md5('secret3')::uuid::text")},
    }


# An auditor of one scope: what its scope holds. Its secret is that scope's busiest.
OF_ONE = (
    "no filter",
    "time range",
    "access_type read",
    "operation read",
    "outcome granted",
    "scope",
    "ip, rare",
    "secret_id of the scope",
    # of another scope: nothing to see, and the one search that is not bounded
    "secret_id",
    "user_identity",
    "user_identity, time",
    "access_type write",
    "operation create",
    "outcome denied",
    "ip network",
)


def measure(conn: psycopg.Connection[Any], filters: dict[str, Any], repeat: int) -> dict[str, Any]:
    """Milliseconds of the first page, and of the hundredth or the last there is."""
    named = "".join(f"{name} => %({name})s, " for name in filters)
    query = (
        'select s.*, meshaudit.log_cursor(s."timestamp", s.id) from meshaudit.search_audit_logs('
        f"{named}after => %(after)s, page_size => {PAGE}) s"
    ).encode()
    conn.execute("set default_transaction_read_only = on")
    after, pages = None, 1
    while pages < DEEP:
        rows = conn.execute(query, {**filters, "after": after}).fetchall()
        if len(rows) < PAGE:
            break
        after, pages = rows[-1][-1], pages + 1
    conn.execute("set default_transaction_read_only = off")
    found: dict[str, Any] = {"pages": pages}
    for place in (None, after):
        times, used = [], cpu(conn)
        for _ in range(repeat):
            start = time.perf_counter()
            conn.execute(query, {**filters, "after": place}).fetchall()
            times.append((time.perf_counter() - start) * 1000)
        used = cpu(conn) - used
        times.sort()
        found["first" if place is None else "deep"] = {
            "page": 1 if place is None else pages,
            "p50": round(statistics.median(times), 2),
            "p99": round(times[int(len(times) * 0.99) - 1], 2),
            "cpu": round(used / repeat, 2),
        }
    found.setdefault("deep", found["first"])
    return found


def cpu(conn: psycopg.Connection[Any]) -> float:
    """Milliseconds of a processor that its backend has used: what it costs, whoever else is busy."""
    stat = Path(f"/proc/{conn.info.backend_pid}/schedstat")
    return int(stat.read_text().split()[0]) / 1e6 if stat.exists() else 0.0


def scalar(conn: psycopg.Connection[Any], query: str) -> Any:
    """The one value that a query gives."""
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


SIZES = """
select coalesce(substring(i.relname from '^ledger_[0-9]{4}_[0-9]{2}_(.*)$'), 'table') as what,
  sum(pg_relation_size(i.oid)) as bytes
from pg_inherits p
join pg_class c on c.oid = p.inhrelid
join pg_class i on i.oid = c.oid or i.oid in (select x.indexrelid from pg_index x where x.indrelid = c.oid)
where p.inhparent = 'meshaudit_private.ledger'::regclass group by 1 order by 1
"""


def main() -> None:
    """Load, search, write down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search")
    parser.add_argument("--pg", default="embedded", help="15, 16, 17, 18 or embedded")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=200)
    args = parser.parse_args()
    results: dict[str, Any] = {"rows": args.rows, "repeat": args.repeat, "page size": PAGE}
    with Server.temporary(bindir=bindir_for(args.pg), settings=SETTINGS) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("create database bench")
        with psycopg.connect(server.dsn("bench"), autocommit=True) as conn:
            schema.install(conn)
            start = time.perf_counter()
            load(server, args.rows)
            results["seconds to load"] = round(time.perf_counter() - start, 1)
            results["postgres"] = conn.info.parameter_status("server_version")
            start = time.perf_counter()
            if problems := conn.execute("select * from meshaudit.verify()").fetchall():
                raise SystemExit(f"the chains are not whole: {problems[:3]}")
            results["seconds to verify"] = round(time.perf_counter() - start, 1)
            sizes = conn.execute(SIZES.encode()).fetchall()
            results["bytes per entry"] = {what: round(float(size) / args.rows, 1) for what, size in sizes}
            results["bytes per entry"]["total"] = round(sum(float(s) for _, s in sizes) / args.rows, 1)
            filters = wanted(conn)
        for role, names in ((ALL, tuple(filters)), (ONE, OF_ONE)):
            with psycopg.connect(server.dsn("bench", user=role), autocommit=True) as conn:
                results[role] = {name: measure(conn, filters[name], args.repeat) for name in names}
                show(role, results[role])
    target = HERE / "search.json"
    target.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results["bytes per entry"]))
    print(f"written to {target}")


def show(role: str, results: dict[str, Any]) -> None:
    """Print them as a table."""
    columns = ("first p50", "p99", "cpu", "page", "p50", "p99", "cpu")
    table = Table("filter", *columns, title=f"{role}, milliseconds")
    for name, cell in results.items():
        first, deep = cell["first"], cell["deep"]
        figures = (
            *(first[k] for k in ("p50", "p99", "cpu")),
            *(deep[k] for k in ("page", "p50", "p99", "cpu")),
        )
        table.add_row(name, *map(str, figures))
    Console().print(table)


if __name__ == "__main__":
    main()
