"""Measure archiving and verifying archives, and write benchmarks/archive.json.

A year of entries (search_load.sql), archived by `meshaudit archive`, verified by `meshaudit verify --archive`:
the commands as they are, in processes of their own. Memory is what all of a command's processes hold at once,
without what they share, sampled. The kernel's count of processor time is that of the command and of the server.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.search import SETTINGS, load, scalar
from meshaudit import schema
from meshaudit.server import Server
from tests.servers import ROOT, bindir_for

HERE = Path(__file__).parent
SAMPLE = 0.1  # seconds


def command(*args: str, dsn: str = "") -> dict[str, float]:
    """Run meshaudit; seconds, processor seconds, and MB at the worst moment."""
    given = {"PYTHONPATH": str(ROOT), "MESHAUDIT_DSN": dsn}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "meshaudit", *args],
        env={k: v for k, v in os.environ.items() if not k.startswith(("PG", "MESHAUDIT_"))} | given,
        stdout=subprocess.DEVNULL,
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.returncode is None:
            peak = max(peak, _held(process.pid))
            time.sleep(SAMPLE)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise SystemExit(f"meshaudit {args[0]} failed")
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "mb": peak / 2**20}


def _held(pid: int) -> int:
    """The memory of a process and its children, what they share counted once."""
    total = 0
    try:
        one = psutil.Process(pid)
        for process in (one, *one.children(recursive=True)):
            total += process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        pass
    return total


def server_cpu(server: Server) -> float:
    """Processor seconds of the server's processes, those included that have ended."""
    pid = int((server.pgdata / "postmaster.pid").read_text().split()[0])
    times = psutil.Process(pid).cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for process in psutil.Process(pid).children():
        total += sum(process.cpu_times()[:2])
    return float(total)


def measure(server: Server, rows: int, place: str) -> dict[str, Any]:
    """Archive everything, then verify the archive alone and beside the database."""
    dsn = server.dsn("bench")
    with psycopg.connect(dsn, autocommit=True) as conn:
        before, used = scalar(conn, "select count(*) from meshaudit.audit_logs"), server_cpu(server)
        written = command("archive", "--to", place, "--before", "2999-01-01", dsn=dsn)
        used = server_cpu(server) - used
        left = scalar(
            conn, "select count(*) from meshaudit.audit_logs where secret_table <> 'meshaudit.archive'"
        )
        # what the server has still to write is not the verifier's
        conn.execute("checkpoint")
    entries = before - left
    if entries < rows * 0.99:
        raise SystemExit(f"only {entries} entries were archived")
    verified = [command("verify", "--archive", place) for _ in range(3)]
    command("verify", "--archive", place, dsn=dsn)
    best = min(verified, key=lambda run: run["seconds"])
    return {
        "entries": entries,
        "partitions": len(list(Path(place).glob("*.parquet"))),
        "bytes an entry": round(sum(p.stat().st_size for p in Path(place).iterdir()) / entries, 1),
        "archive": _figures(written, entries) | {"server µs an entry": round(used / entries * 1e6, 2)},
        "verify": _figures(best, entries),
    }


def _figures(run: dict[str, float], entries: int) -> dict[str, float]:
    return {
        "entries/s": round(entries / run["seconds"]),
        "seconds": round(run["seconds"], 1),
        "µs of processor an entry": round(run["cpu"] / entries * 1e6, 2),
        "peak MB": round(run["mb"]),
    }


def main() -> None:
    """Load, archive, verify, write down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.archive")
    parser.add_argument("--pg", default="embedded", help="15, 16, 17, 18 or embedded")
    parser.add_argument("--rows", type=int, default=10_000_000)
    args = parser.parse_args()
    with (
        Server.temporary(bindir=bindir_for(args.pg), settings=SETTINGS) as server,
        tempfile.TemporaryDirectory() as place,
    ):
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("create database bench")
        with psycopg.connect(server.dsn("bench"), autocommit=True) as conn:
            schema.install(conn)
            start = time.perf_counter()
            load(server, args.rows)
            loaded = round(time.perf_counter() - start, 1)
            version = conn.info.parameter_status("server_version")
        results = {"postgres": version, "seconds to load": loaded} | measure(server, args.rows, place)
        results["load average"] = [round(number, 1) for number in os.getloadavg()]
    show(results)
    target = HERE / "archive.json"
    target.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {target}")


def show(results: dict[str, Any]) -> None:
    """Print them as a table."""
    table = Table("", "archive", "verify", title=f"{results['entries']:,} entries")
    for name in results["archive"]:
        table.add_row(
            name,
            *(
                f"{results[part].get(name, ''):,}" if results[part].get(name) is not None else ""
                for part in ("archive", "verify")
            ),
        )
    Console().print(table)
    print(f"{results['bytes an entry']} bytes an entry")


if __name__ == "__main__":
    main()
