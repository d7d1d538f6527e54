"""A hot standby refuses; promoted, it records, and its chain goes on."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from meshaudit import cluster, osuser
from meshaudit.server import Server, embedded_bindir
from tests.conftest import _wanted
from tests.journal_support import READ, READ_MANY, one, seal
from tests.servers import DEBIAN_15, bindir_for
from tests.support import SETTINGS, wait_until

Conn = psycopg.Connection[Any]


def _basebackup(version: str) -> Path:
    """pg_basebackup of that very version: only its own server's counts."""
    own = {"15": DEBIAN_15, "embedded": embedded_bindir()}.get(version)
    if own is None or not (own / "pg_basebackup").exists():
        pytest.skip(f"no pg_basebackup for {version}")
    return own / "pg_basebackup"


@contextlib.contextmanager
def standby_of(primary: Server, program: Path) -> Iterator[Server]:
    """A running hot standby. Its directory looks as Server.create would have made it."""
    data = cluster.temporary_dir()
    user = osuser.service_user(None)
    try:
        scratch = data / "copy"
        scratch.mkdir(mode=0o700)
        if user is not None:
            shutil.chown(scratch, user.uid, user.gid)
        args: list[str | Path] = [program, "-D", scratch, "-d", primary.dsn(), "-X", "stream", "-c", "fast"]
        code, output = osuser.run([*args, "-R"], user, cwd=Path("/"))
        assert code == 0, output
        scratch.rename(data / "pgdata")
        state = {"port": None, "chosen": False, "password": None, "settings": dict(SETTINGS)}
        cluster.write_state(data, state | {"bindir": str(primary.bindir)})
        with Server.open(data) as server:
            yield server
    finally:
        shutil.rmtree(data, ignore_errors=True)


def refused(conn: Conn, query: str, *params: Any) -> None:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(query.encode(), params or None)
    assert caught.value.sqlstate == "MA002", caught.value
    assert caught.value.diag.message_hint


def test_standby_and_promotion() -> None:
    from meshaudit import schema

    version = _wanted()
    if version not in ("15", "embedded"):
        pytest.skip("needs a server of its own with pg_basebackup beside it")
    program = _basebackup(version)
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(Server.temporary(bindir=bindir_for(version), settings=SETTINGS))
        conn = stack.enter_context(psycopg.connect(primary.dsn(), autocommit=True))
        schema.install(conn)
        conn.execute("select meshaudit.arm_journal()")
        secret = one(conn, "select meshaudit.write_secret('k', 'v')")
        standby = stack.enter_context(standby_of(primary, program))
        there = stack.enter_context(psycopg.connect(standby.dsn(), autocommit=True))

        one(conn, READ, secret)
        conn.execute("begin")
        one(conn, READ, secret)
        conn.execute("rollback")
        seal(conn)
        end = one(conn, "select pg_current_wal_flush_lsn()")
        wait_until(lambda: one(there, "select pg_last_wal_replay_lsn() >= %s", end), what="the standby")

        assert one(there, "select pg_is_in_recovery()")
        refused(there, READ, secret)
        refused(there, READ_MANY, [secret])
        refused(there, "select meshaudit.read_secret_by_key('k')")
        assert there.execute("select * from meshaudit.verify()").fetchall() == []
        assert one(there, "select count(*) from meshaudit.audit_logs where outcome = 'rolled_back'") == 1

        primary.kill()
        one(there, "select pg_promote()")
        assert one(there, READ, secret) == b"v"
        # slots are not replicated: what the old primary had not sealed is lost, and it is said
        there.execute("begin read only")
        refused(there, READ, secret)
        there.execute("rollback")
        refused(there, "select meshaudit.seal()")
        assert one(there, "select meshaudit.arm_journal()").startswith("armed anew")
        there.execute("begin read only")
        assert one(there, READ, secret) == b"v"
        there.execute("commit")
        assert seal(there) == 1
        gaps = "select count(*) from meshaudit.audit_logs where secret_id like 'gap %'"
        assert one(there, gaps) == 1
        assert there.execute("select * from meshaudit.verify()").fetchall() == []
