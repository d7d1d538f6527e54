"""As which OS user a local Postgres runs, and how that user gets at the files it needs.

Postgres refuses to run as root. When we are root, its programs run as an unprivileged user with no other
group of ours. Invariant: no directory's permissions are ever widened for that user. An installation it
cannot reach (a virtualenv under a private home) is copied to a cache that only root can write; a data
directory it cannot reach is an error.
"""

import contextlib
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from meshaudit.errors import ServerError

CACHE = Path("/var/cache/meshaudit")


@dataclass(frozen=True)
class OsUser:
    """The user that Postgres runs as, because we ourselves are root."""

    name: str
    uid: int
    gid: int


def service_user(pgdata: Path | None) -> OsUser | None:
    """Who runs a server on `pgdata`, or a new one; None means ourselves, as we are not root."""
    if os.geteuid() != 0:
        return None
    if pgdata is not None and pgdata.exists():
        # Keep whoever made it: a user named postgres may have appeared since.
        owner = pgdata.stat().st_uid
        if owner == 0:
            raise ServerError(f"{pgdata} belongs to root, as whom Postgres does not run")
        entry = pwd.getpwuid(owner)
        return OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise ServerError(
        "Postgres does not run as root, and there is no user postgres or nobody to run it as",
        "create a user named postgres, or run this as an ordinary user",
    )


def popen_args(user: OsUser | None) -> dict[str, object]:
    """Arguments for subprocess that drop to `user`."""
    if user is None:
        return {}
    return {"user": user.uid, "group": user.gid, "extra_groups": []}


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without PG* (a stray PGDATA or PGPORT would win over us) and in one language."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    return kept | {"LC_ALL": "C"} | dict(extra or {})


def run(
    args: Sequence[str | Path],
    user: OsUser | None,
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run a program as `user`: its exit code and its output, both streams."""
    # A file, not a pipe: a daemon that inherits a pipe would keep us reading for ever.
    with tempfile.TemporaryFile("w+b") as out:
        # A session of its own: Ctrl-C comes to us, and we let the program reach a state that we can
        # clean up, instead of leaving half a server behind.
        process = subprocess.Popen(  # type: ignore[call-overload]
            [str(a) for a in args],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=clean_env(env),
            start_new_session=True,
            **popen_args(user),
        )
        try:
            code = int(process.wait())
        except BaseException:
            process.wait()
            raise
        out.seek(0)
        return code, out.read().decode(errors="replace").strip()


def wait_gone(victims: Sequence[psutil.Process]) -> None:
    """Wait until killed processes are gone."""
    # Whoever still holds the shared memory would make the next start fail. Zombies hold nothing, but
    # are given a moment to be reaped; in a container nobody may ever do so.
    start = time.monotonic()
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.is_running():
                waited = time.monotonic() - start
                if waited > 0.2 and process.status() == psutil.STATUS_ZOMBIE:
                    break
                if waited > 10:
                    raise ServerError(f"process {process.pid} survived SIGKILL")
                time.sleep(0.01)


def can_enter(folder: Path, user: OsUser | None) -> bool:
    """Whether `user` reaches `folder`: asked of the system itself, which knows more than mode bits."""
    return run(["/bin/sh", "-c", 'cd "$0"', folder], user, cwd=Path("/"))[0] == 0


def require_enterable(folder: Path, user: OsUser | None) -> None:
    """Raise unless `user` reaches `folder`."""
    if not can_enter(folder, user):
        name = user.name if user else "this user"
        raise ServerError(
            f"{name}, as whom Postgres must run here, cannot enter {folder}",
            "choose a data directory outside private homes, such as /var/lib/meshaudit",
        )


def usable_bindir(bindir: Path, user: OsUser | None) -> Path:
    """`bindir`, or the bin directory of a copy of that installation which `user` can run."""
    for name in ("initdb", "pg_ctl", "postgres"):
        if not (bindir / name).exists():
            raise ServerError(f"no {name} in {bindir}", "is this Postgres's own bin directory?")
    if _runs(bindir, user):
        return bindir
    if user is None:
        raise ServerError(f"the Postgres programs in {bindir} do not run here")
    copy = _copy_installation(bindir)
    if not _runs(copy, user):
        raise ServerError(f"the Postgres programs in {bindir} do not run as {user.name}")
    return copy


def _runs(bindir: Path, user: OsUser | None) -> bool:
    try:
        # initdb needs libpq, and an unreadable share/ makes it fail later: ask for both now.
        code, _ = run([bindir / "initdb", "--version"], user, cwd=Path("/"))
        share_code, _ = run(["/bin/sh", "-c", 'ls "$0" >/dev/null', bindir.parent], user, cwd=Path("/"))
    except PermissionError:
        return False
    return code == 0 and share_code == 0


def _copy_installation(bindir: Path) -> Path:
    prefix = bindir.resolve().parent
    if not (prefix / "share").is_dir():
        raise ServerError(f"{bindir} is private and not a self-contained installation")
    digest = hashlib.sha256((bindir / "postgres").read_bytes()).hexdigest()[:16]
    target = CACHE / digest
    copy = target / prefix.parent.name / prefix.name / bindir.name
    try:
        if not CACHE.is_dir():
            CACHE.mkdir(parents=True)
            CACHE.chmod(0o755)  # whatever the umask
        state = CACHE.stat()
        if state.st_uid != 0 or state.st_mode & 0o022:
            raise ServerError(f"{CACHE} can be written by others than root", f"remove {CACHE}")
        if not copy.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                staged = Path(scratch, "staged")
                _copy_readable(prefix, staged / prefix.parent.name / prefix.name)
                # Wheels keep bundled libraries in NAME.libs beside the package, found by $ORIGIN.
                libs = prefix.parent.with_name(prefix.parent.name + ".libs")
                if libs.is_dir():
                    _copy_readable(libs, staged / libs.name)
                staged.chmod(0o755)
                (staged / prefix.parent.name).chmod(0o755)
                # Renaming is atomic: another process sees the whole copy or none.
                try:
                    staged.rename(target)
                except OSError:
                    if not copy.is_dir():
                        raise
    except OSError as exc:
        raise ServerError(f"cannot copy Postgres to {CACHE}: {exc}") from exc
    return copy


def _copy_readable(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)
    for folder, _, files in os.walk(target):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
