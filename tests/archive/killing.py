"""kill -9 of the archiver at random instants, then a rerun: nothing lost, nothing doubled.

`python -m tests.archive.killing [KILLS]` kills a hundred times over twelve partitions; the fast tests a few.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq

from meshaudit.archive.store import store
from meshaudit.archive_place import Place
from tests.cli_support import PROGRAM, environment, ok, ok_json

BEFORE = ("--before", "2999-01-01")


def kill_and_rerun(
    su: psycopg.Connection[Any], dsn: str, place: Path | str, kills: int, dice: random.Random
) -> int:
    """Kill so many archivers, then run one to its end. Returns how many were still at work."""
    arrays = su.execute("select array_agg(access_id::text order by access_id) from meshaudit.audit_logs")
    ((expected,),) = arrays.fetchall()
    killed = 0
    for _ in range(kills):
        command = [*PROGRAM, "archive", "--to", str(place), *BEFORE, "--json"]
        process = subprocess.Popen(
            command, env=environment({"MESHAUDIT_DSN": dsn}), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # From the first file on: most of a start is Python's own.
        deadline = time.monotonic() + 60
        before = _seen(place)
        while process.poll() is None and _seen(place) == before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.15))
        killed += process.poll() is None
        process.kill()
        process.communicate()
        assert su.execute("select * from meshaudit.verify()").fetchall() == []
    ok("archive", "--to", str(place), *BEFORE, dsn=dsn)
    both = ok_json("verify", "--archive", str(place), dsn=dsn)
    assert both["intact"], both
    assert both["archived"] == both["retired"]
    there = Place(place)
    assert [name for name in _seen(place) if name.startswith(".")] == []
    archived: list[bytes] = []
    for name in there.names(".parquet"):
        with there.open(name) as file:
            archived += pq.read_table(file, columns=["access_id"]).column("access_id").to_pylist()
    left = su.execute(
        "select access_id::text from meshaudit.audit_logs where secret_table <> 'meshaudit.archive'"
    ).fetchall()
    found = sorted([value.hex() for value in archived] + [row[0].replace("-", "") for row in left])
    assert found == [value.replace("-", "") for value in expected], "each entry exactly once"
    return killed


def _seen(place: Path | str) -> list[str]:
    return [name for name in store(place).names() if name != "meshaudit-ledger"]


def main() -> None:
    from meshaudit.server import Server
    from tests.archive.history import load

    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    dice, done, killed = random.Random(1), 0, 0
    with Server.temporary() as server, tempfile.TemporaryDirectory() as scratch:
        ok("migrate", dsn=server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            while done < kills:
                name = f"past_{done}"
                admin.execute(f"create database {name}".encode())
                ok("migrate", dsn=server.dsn(name))
                with psycopg.connect(server.dsn(name), autocommit=True) as su:
                    load(su, months=12, rows=2400)
                    part = min(10, kills - done)
                    killed += kill_and_rerun(su, server.dsn(name), Path(scratch) / name, part, dice)
                    done += part
                admin.execute(f"drop database {name}".encode())
                print(f"{done} kills, {killed} of an archiver at work: one history each time", flush=True)


if __name__ == "__main__":
    main()
