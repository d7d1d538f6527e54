"""The journal in the benchmarks: what it adds to a read, how fast it seals, how soon an entry is there."""

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from meshaudit import sealer
from meshaudit.server import Server

CLIENTS = 32
# name: function, armed, vault_mode, journal_flush
VARIANTS = {
    "unaudited read": ("bench.read_unaudited", False, "ledger", True),
    "plain INSERT": ("bench.read_plain", False, "ledger", True),
    "ledger, journal armed": ("meshaudit.read_secret", True, "ledger", True),
    "ledger, journal armed, no flush": ("meshaudit.read_secret", True, "ledger", False),
    "journal mode": ("meshaudit.read_secret", True, "journal", True),
    "journal mode, no flush": ("meshaudit.read_secret", True, "journal", False),
}
Pgbench = Callable[[Server, str, int, float], float]


def drain(conn: psycopg.Connection[Any]) -> int:
    """Seal until nothing is left; returns the number of entries made."""
    total = 0
    while made := conn.execute("select meshaudit.seal()").fetchone():
        if not made[0]:
            return total
        total += made[0]
    return total


def _state(conn: psycopg.Connection[Any], armed: bool, mode: str, flush: bool) -> None:
    is_armed = conn.execute("select ok from meshaudit.status() where \"check\" = 'journal'").fetchone() == (
        True,
    )
    if armed and not is_armed:
        conn.execute("select meshaudit.arm_journal()")
    elif is_armed and not armed:
        conn.execute("select meshaudit.disarm_journal()")
    conn.execute("select meshaudit.set_setting('vault_mode', %s)", [mode])
    conn.execute("select meshaudit.set_setting('journal_flush', %s)", [str(flush).lower()])


def reads(
    server: Server, conn: psycopg.Connection[Any], pgbench: Pgbench, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Every variant once a round at 32 clients, with ratios to the unaudited read and to the plain INSERT."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, (function, *state) in VARIANTS.items():
            _state(conn, *state)  # type: ignore[arg-type]
            rates[name].append(pgbench(server, function, CLIENTS, seconds))
            if state[0]:
                drain(conn)

    def ratio(values: list[float], base: str) -> float:
        return round(statistics.median(a / b for a, b in zip(values, rates[base], strict=True)), 3)

    return {
        name: {
            "tps": round(statistics.median(values), 1),
            "of unaudited": ratio(values, "unaudited read"),
            "of plain": ratio(values, "plain INSERT"),
        }
        for name, values in rates.items()
    }


def sealing(conn: psycopg.Connection[Any]) -> dict[str, float]:
    """Entries a second that are made of records, and records a second whose entry is there already."""
    read = "perform meshaudit.read_secret((select id from bench.ids where n = i % 10000 + 1));"
    loop = f"do $$ begin for i in 1 .. 50000 loop {read} if i % 100 = 0 then commit; end if; end loop; end $$"
    rates = {}
    for name, mode in (("sealed entries/s", "journal"), ("records/s with an entry", "ledger")):
        _state(conn, True, mode, False)
        drain(conn)
        conn.execute(loop.encode())
        start = time.perf_counter()
        drain(conn)
        rates[name] = round(50_000 / (time.perf_counter() - start), 1)
    return rates


def latency(server: Server, conn: psycopg.Connection[Any], count: int = 20) -> dict[str, float]:
    """Seconds from a read that is rolled back to its entry, while `meshaudit seal --follow` runs."""
    _state(conn, True, "ledger", True)
    drain(conn)
    stop = threading.Event()
    worker = threading.Thread(
        target=sealer.follow, args=(server.dsn("bench"),), kwargs={"stop": stop, "log": lambda *_, **__: None}
    )
    worker.start()
    query = "select count(*) from meshaudit.audit_logs where outcome = 'rolled_back'"
    took = []
    try:
        with psycopg.connect(server.dsn("bench")) as reader:
            for _ in range(count):
                before = conn.execute(query).fetchone()
                start = time.perf_counter()
                reader.execute("select meshaudit.read_secret((select id from bench.ids limit 1))")
                reader.rollback()
                while conn.execute(query).fetchone() == before:
                    time.sleep(0.005)
                took.append(time.perf_counter() - start)
    finally:
        stop.set()
        worker.join()
    return {"median s": round(statistics.median(took), 3), "max s": round(max(took), 3)}
