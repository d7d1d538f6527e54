"""The directory of a local server: made by initdb, described by server.json, guarded by a lock.

Invariants: nothing that exists and is not ours is touched; an interrupted initdb leaves nothing that
looks like a cluster; passwords are only ever in files of mode 0600.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meshaudit import osuser
from meshaudit.errors import ServerError

SUPERUSER = "postgres"
_STATE = "server.json"
_CONF = "meshaudit.conf"


@contextlib.contextmanager
def locked(data: Path) -> Iterator[None]:
    """Make `data` if needed and hold its lock, so that two runs of `up` make one server."""
    try:
        if not data.is_dir():
            data.mkdir(parents=True)
            # The server's user passes through to pgdata and cannot list what else is here.
            data.chmod(0o711)
        lock = (data / ".lock").open("w")
    except OSError as exc:
        raise ServerError(f"cannot use {data}: {exc.strerror}", "choose another data directory") from exc
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def require_ours(data: Path) -> None:
    """Raise if `data` holds anything but what an interrupted start of ours leaves."""
    if any(path.name not in {".lock", "pgdata.new"} for path in data.iterdir()):
        raise _foreign(data)


def refuse_foreign(data: Path) -> None:
    """Raise, before anything is left in it, if `data` is plainly somebody else's directory.

    One with a lock may be being made just now: that is for who holds the lock to judge.
    """
    try:
        names = {path.name for path in data.iterdir()}
    except OSError:
        return  # not there yet, or told when the lock is taken
    if names and not names & {".lock", _STATE}:
        raise _foreign(data)


def _foreign(data: Path) -> ServerError:
    return ServerError(f"{data} is not empty and holds no server of ours", "choose an empty data directory")


def temporary_dir(first: Path | None = None) -> Path:
    """A new directory that any user can pass through, whatever TMPDIR says; in `first`, if that will do."""
    user = osuser.service_user(None)
    for parent in dict.fromkeys(
        (*([str(first)] if first else []), tempfile.gettempdir(), "/tmp", "/var/tmp")
    ):
        if Path(parent).is_dir() and osuser.can_enter(Path(parent), user):
            data = Path(tempfile.mkdtemp(prefix="meshaudit-", dir=parent))
            data.chmod(0o711)
            return data
    raise ServerError("no temporary directory is open to the user Postgres runs as", "set TMPDIR")


def initdb(data: Path, bindir: Path, user: osuser.OsUser | None, password: str | None, *, sync: bool) -> None:
    """Make the cluster in data/pgdata; without a password it trusts every local user."""
    # Made aside and renamed, so that it is there whole or not at all.
    fresh = data / "pgdata.new"
    args: list[str | Path] = [bindir / "initdb", "-D", fresh, "-U", SUPERUSER, "-E", "UTF8"]
    args += ["--no-instructions", *([] if sync else ["--no-sync"])]
    args += ["-A", "trust" if password is None else "scram-sha-256"]
    code, output = 1, ""
    with tempfile.TemporaryDirectory(dir=data) as scratch:
        if password is not None:
            pwfile = Path(scratch, "pw")
            write_private(pwfile, password, user)
            Path(scratch).chmod(0o711)
            args.append(f"--pwfile={pwfile}")
        for locale in ("C.UTF-8", "C"):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(mode=0o700)
            if user is not None:
                os.chown(fresh, user.uid, user.gid)
            code, output = osuser.run([*args, f"--locale={locale}"], user, cwd=Path("/"))
            if code == 0 or "locale" not in output:
                break
    if code != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        raise ServerError(f"initdb failed: {output.splitlines()[-1] if output else code}")
    with (fresh / "postgresql.conf").open("a") as conf:
        conf.write(f"\ninclude = '{_CONF}'\n")
    fresh.rename(data / "pgdata")


def check_version(data: Path, bindir: Path, user: osuser.OsUser | None) -> None:
    """Raise if another major version made the cluster than the one that would run it."""
    made_by = (data / "pgdata" / "PG_VERSION").read_text().strip()
    _, output = osuser.run([bindir / "postgres", "-V"], user, cwd=Path("/"))
    found = re.search(r"\(PostgreSQL\) (\d+)", output)
    if found is None or found[1] != made_by:
        raise ServerError(
            f"{data} was made by Postgres {made_by}, but this is {output}",
            "use another data directory, or the Postgres that made it",
        )


def read_state(data: Path) -> dict[str, Any] | None:
    """What server.json says, or None where there is no server."""
    try:
        state: dict[str, Any] = json.loads((data / _STATE).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ServerError(f"cannot read {data / _STATE}: {exc}") from exc
    return state


def write_state(data: Path, state: Mapping[str, Any]) -> None:
    """Keep what is needed to find the server again."""
    write_private(data / _STATE, json.dumps(state, indent=2) + "\n", None)


def write_conf(pgdata: Path, conf: Mapping[str, str], user: osuser.OsUser | None) -> None:
    """The settings that postgresql.conf includes last."""
    quoted = {key: value.replace("'", "''") for key, value in conf.items()}
    text = "".join(f"{key} = '{value}'\n" for key, value in quoted.items())
    write_private(pgdata / _CONF, text, user)


def write_private(path: Path, text: str, owner: osuser.OsUser | None) -> None:
    """Replace `path` in one step by a file that only `owner` (by default ourselves) can read."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    # O_EXCL: in a directory that the server's user owns, never follow a link it may have left.
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        if owner is not None:
            os.fchown(file.fileno(), owner.uid, owner.gid)
    fresh.replace(path)
