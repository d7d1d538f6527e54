"""Measure what the audit costs, and write benchmarks/results.json.

Machines are noisy, so variants run in interleaved rounds and only ratios inside one run mean anything:
each figure is a median of the rounds, each ratio a median of the rounds' own ratios.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks import journal, protect
from meshaudit import schema
from meshaudit.server import Server
from meshaudit.verify import verify
from tests.servers import bindir_for, client

HERE = Path(__file__).parent
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "max_connections": "200",
    "wal_level": "logical",
    "checkpoint_timeout": "1h",
}
READS = {
    "unaudited read": "bench.read_unaudited",
    "plain INSERT": "bench.read_plain",
    "ledger read": "meshaudit.read_secret",
    "naive chain": "bench.read_naive",
}
BASE = "plain INSERT"


def pgbench(server: Server, function: str, clients: int, seconds: float) -> float:
    """Transactions a second of one read per transaction."""
    text = f"\\set n random(1, 10000)\nselect {function}((select id from bench.ids where n = :n));\n"
    return run_script(server, text, clients, seconds)


def run_script(server: Server, script: str, clients: int, seconds: float, user: str = "postgres") -> float:
    """Transactions a second of a pgbench script. Its variable i is each client's own, and -1 at first."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        command = [
            client("pgbench"),
            "-n",
            "-M",
            "prepared",
            "-c",
            clients,
            "-j",
            min(clients, 2),
            "-D",
            "i=-1",
        ]
        command += ["-T", int(seconds), "-f", file.name, server.dsn("bench", user=user)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if found is None:
        raise SystemExit(f"pgbench failed: {done.stderr}")
    return float(found[1])


def reads(server: Server, clients: int, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Every variant once a round; medians of rates, and of ratios to the plain INSERT of the same round."""
    rates: dict[str, list[float]] = {name: [] for name in READS}
    for number in range(rounds):
        # the order turns with the round, so that no variant always follows the same one
        names = list(READS)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            rates[name].append(pgbench(server, READS[name], clients, seconds))
    return {
        name: {
            "tps": round(statistics.median(values), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(values, rates[BASE], strict=True)), 3),
        }
        for name, values in rates.items()
    }


def per_second(run: Any, entries: int, rounds: int) -> float:
    """Entries a second, the median of the rounds."""
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        rates.append(entries / (time.perf_counter() - start))
    return round(statistics.median(rates), 1)


def bulk(conn: psycopg.Connection[Any], rounds: int) -> float:
    """Entries a second of read_secrets() with 10,000 ids."""
    query = "select count(*) from meshaudit.read_secrets(array(select id from bench.ids))"
    return per_second(lambda: conn.execute(query), 10_000, rounds)


def verification(conn: psycopg.Connection[Any], rows: int) -> dict[str, float]:
    """Rows a second that verify() checks, in SQL and in Python, on a ledger of at least `rows`."""
    count = "select count(*) from meshaudit.audit_logs"
    while (have := scalar(conn, count)) < rows:
        conn.execute("select count(*) from meshaudit.read_secrets(array(select id from bench.ids))")
    conn.execute("vacuum analyze")
    conn.execute("checkpoint")
    return {
        "entries": have,
        "sql rows/s": per_second(lambda: conn.execute("select * from meshaudit.verify()"), have, 3),
        "python rows/s": per_second(lambda: verify(conn), have, 3),
        "bytes per entry": round(scalar(conn, SIZE) / have, 1),
        "of which indexes": round(scalar(conn, INDEXES) / have, 1),
    }


SIZE = """select sum(pg_total_relation_size(inhrelid)) from pg_inherits
where inhparent = 'meshaudit_private.ledger'::regclass"""
INDEXES = SIZE.replace("pg_total_relation_size", "pg_indexes_size")


def scalar(conn: psycopg.Connection[Any], query: str) -> int:
    """The one number that a query gives."""
    row = conn.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0


def show(results: dict[str, Any]) -> None:
    """Print the results as tables."""
    console = Console()
    table = Table("one read per transaction", title=f"PostgreSQL {results['postgres']}")
    for clients in results["reads"]:
        table.add_column(f"{clients} clients", justify="right")
        table.add_column("of plain", justify="right")
    for name in READS:
        cells = [results["reads"][c][name] for c in results["reads"]]
        table.add_row(name, *(f"{v:,}" for cell in cells for v in (cell["tps"], cell["ratio"])))
    console.print(table)
    second = Table("with the journal, 32 clients")
    for title in ("tps", "of unaudited", "of plain"):
        second.add_column(title, justify="right")
    for name, cell in results["journal reads, 32 clients"].items():
        second.add_row(name, *(f"{value:,}" for value in cell.values()))
    console.print(second)
    third = Table("protected table, 32 clients")
    for title in ("unprotected tps", "ledger", "journal", "plain view"):
        third.add_column(title, justify="right")
    for name, cell in results["protected table, 32 clients"].items():
        third.add_row(name, *(f"{value:,}" for value in cell.values()))
    console.print(third)
    rest = Table("what", "figure")
    rest.add_row("bulk read, entries/s", f"{results['bulk entries/s']:,}")
    for part in ("sealing", "access to entry", "verify"):
        for name, value in results[part].items():
            rest.add_row(f"{part}: {name}", f"{value:,}")
    console.print(rest)


def main() -> None:
    """Run everything on a server of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--pg", default="embedded", help="15, 16, 17, 18 or embedded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--rows", type=int, default=2_000_000, help="entries for verification")
    args = parser.parse_args()
    with Server.temporary(bindir=bindir_for(args.pg), settings=SETTINGS) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("create database bench")
        with psycopg.connect(server.dsn("bench"), autocommit=True) as conn:
            schema.install(conn)
            conn.execute((HERE / "setup.sql").read_bytes())
            results: dict[str, Any] = {
                "postgres": conn.info.parameter_status("server_version"),
                "machine": f"{platform.machine()}, {platform.system()}",
                "rounds": args.rounds,
                "seconds": args.seconds,
                "reads": {
                    clients: reads(server, clients, args.rounds, args.seconds)
                    for clients in map(int, args.clients.split(","))
                },
                "bulk entries/s": bulk(conn, args.rounds * 3),
                "journal reads, 32 clients": journal.reads(server, conn, pgbench, args.rounds, args.seconds),
                "sealing": journal.sealing(conn),
                "access to entry": journal.latency(server, conn),
                "protected table, 32 clients": protect.compare(
                    server, conn, run_script, args.rounds, args.seconds
                ),
                "verify": verification(conn, args.rows),
            }
    show(results)
    target = HERE / "results.json"
    target.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {target.relative_to(Path.cwd()) if target.is_relative_to(Path.cwd()) else target}")


if __name__ == "__main__":
    main()
