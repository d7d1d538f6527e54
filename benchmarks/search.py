"""Search."""
import threading
from pathlib import Path
import psycopg
from meshaudit.server import Server

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


def load(server: Server, rows: int) -> None:
    with psycopg.connect(server.dsn("bench"), autocommit=True) as conn:
        conn.execute((HERE / "search_load.sql").read_bytes().replace(b"%(rows)s", b"so many"))

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
