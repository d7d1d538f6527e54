"""Running the real program, as its users do."""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.servers import ROOT

PROGRAM = [sys.executable, "-m", "meshaudit"]
# What an interpreter looks at when it starts: with others of these, one is started.
_INTERPRETER = ("PYTHONIOENCODING", "PYTHONUTF8", "PYTHONWARNINGS", "LC_ALL", "LC_CTYPE", "LANG")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would point the program at another server or change its looks."""
    stray = ("PG", "MESHAUDIT_", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(stray)}
    return kept | {"PYTHONPATH": str(ROOT)} | dict(extra or {})


def run(*args: str, dsn: str = "", env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run meshaudit to its end, forked from a process that has imported it (tests/zygote.py)."""
    given = environment(({"MESHAUDIT_DSN": dsn} if dsn else {}) | dict(env or {}))
    if os.environ.get("MESHAUDIT_TEST_EXEC") or any(given.get(k) != os.environ.get(k) for k in _INTERPRETER):
        done = subprocess.run([*PROGRAM, *args], env=given, capture_output=True)
        # Not text=True, which would turn \r\n into \n.
        return subprocess.CompletedProcess(args, done.returncode, done.stdout.decode(), done.stderr.decode())
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        code = _forked(args, given, out.fileno(), err.fileno())
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(args, code, out.read().decode(), err.read().decode())


@functools.cache
def _zygote() -> tuple[socket.socket, threading.Lock]:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.zygote", str(theirs.fileno())],
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    assert ours.recv(1) == b"r"

    def end() -> None:
        ours.close()
        process.wait(20)

    atexit.register(end)
    return ours, threading.Lock()


def _forked(args: tuple[str, ...], env: Mapping[str, str], out: int, err: int) -> int:
    asking, lock = _zygote()
    told, status = os.pipe()
    try:
        text = json.dumps({"args": args, "env": dict(env), "cwd": str(Path.cwd())}).encode()
        assert len(text) < 100_000
        with lock:
            socket.send_fds(asking, [text], [out, err, status])
    finally:
        os.close(status)
    with os.fdopen(told, "rb") as reading:
        code = reading.read()
    return int(code) if code else -signal.SIGKILL


def ok(*args: str, dsn: str = "", env: Mapping[str, str] | None = None) -> str:
    """Its stdout; it must succeed."""
    done = run(*args, dsn=dsn, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ok_json(*args: str, dsn: str) -> Any:
    """Its stdout as JSON."""
    return json.loads(ok("--json", *args, dsn=dsn))


def fails(*args: str, dsn: str = "", env: Mapping[str, str] | None = None) -> str:
    """The one line it says when it fails."""
    done = run(*args, dsn=dsn, env=env)
    assert_one_line(done)
    return done.stderr


def assert_one_line(done: subprocess.CompletedProcess[str]) -> None:
    """Exit 2, nothing on stdout, and on stderr one line with a hint."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(")\n")
    assert done.stderr.count("\n") == 1
    assert "(hint: " in done.stderr
    assert "Traceback" not in done.stderr
