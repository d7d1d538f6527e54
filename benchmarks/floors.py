"""What the parts of an audited access cost at least, and write benchmarks/floors.json.

    make bench-floors ARGS="[--pg VERSION] [--rounds N] [--seconds S]"

At 32 clients, in interleaved rounds, each as a share of the same thing unaudited. What a target asks of the whole cannot be
had where a part that it needs is already below it (docs/adr/0007-cost.md, docs/adr/0017-writes.md).
"""

import argparse
import json
import statistics
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import SETTINGS, run_script
from meshaudit import schema
from meshaudit.server import Server
from tests.servers import bindir_for

HERE = Path(__file__).parent
CLIENTS = 32
READ = "\\set n random(1, 10000)\nselect {name}((select id from bench.ids where n = :n));\n"
INSERT = "insert into floor.{name} (project, key, value) values (1, 'k', '\\\\xabababababababab');\n"
UPDATE = "\\set n random(1, 600000)\nupdate floor.{name} set value = '\\\\xcdcdcdcd' where id = :n;\n"
DELETE = (
    "\\set i :i + 1\n\\set n {start} + :i * 32 + :client_id + 1\ndelete from floor.{name} where id = :n;\n"
)
VIEWS = {
    "an INSTEAD OF trigger": "v_view",
    "and a row's trigger that does nothing": "v_nothing",
    "and a message of constant content": "v_message",
    "and a whole record, signed": "v_signed",
}
# of which statement: its script, what it is compared with, and the parts
FLOORS: dict[str, tuple[str, str, dict[str, str]]] = {
    "read, of the unaudited one": (
        READ,
        "bench.read_unaudited",
        {
            "a message of constant content": "floor.read_message",
            "a whole record, not signed": "floor.read_record",
            "a whole record, signed": "floor.read_signed",
        },
    ),
    "read with an entry, of the plain INSERT": (
        READ,
        "bench.read_plain",
        {
            "and a head of one's own that moves on": "floor.read_chained",
            "and a message of constant content, not flushed": "floor.read_chained_message",
        },
    ),
    "insert, of the unprotected one": (INSERT, "t_bare", VIEWS),
    "update, of the unprotected one (one record, not two)": (UPDATE, "t_bare", VIEWS),
    "delete, of the unprotected one": (
        DELETE,
        "t_bare",
        {name.removeprefix("and "): view for name, view in list(VIEWS.items())[1:]},
    ),
}


def measure(server: Server, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """For each statement the median of the rounds' shares, part by part."""
    results: dict[str, dict[str, float]] = {}
    for what, (script, base, parts) in FLOORS.items():
        user = "postgres" if script == READ else "app"
        shares: dict[str, list[float]] = {part: [] for part in parts}
        for number in range(rounds):
            start = number * 600_000 // rounds

            def rate(name: str, start: int = start, script: str = script, user: str = user) -> float:
                return run_script(server, script.format(name=name, start=start), CLIENTS, seconds, user)

            unaudited = rate(base)
            for part, name in parts.items():
                shares[part].append(rate(name) / unaudited)
        results[what] = {part: round(statistics.median(values), 2) for part, values in shares.items()}
    return results


def main() -> None:
    """Run everything on a server of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floors")
    parser.add_argument("--pg", default="embedded", help="15, 16, 17, 18 or embedded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    with Server.temporary(bindir=bindir_for(args.pg), settings=SETTINGS) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("create database bench")
            conn.execute("create role app login")
        with psycopg.connect(server.dsn("bench"), autocommit=True) as conn:
            schema.install(conn)
            conn.execute((HERE / "setup.sql").read_bytes())
            conn.execute("select meshaudit.arm_journal()")
            conn.execute((HERE / "floors.sql").read_bytes())
        results = measure(server, args.rounds, args.seconds)
    table = Table("what", "part", "share", title=f"{CLIENTS} clients")
    for what, parts in results.items():
        for part, share in parts.items():
            table.add_row(what, part, f"{share:.2f}")
    Console().print(table)
    (HERE / "floors.json").write_text(json.dumps({"rounds": args.rounds, "shares": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
