"""Running the real program, as its users do."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tests.servers import ROOT

PROGRAM = [sys.executable, "-m", "meshaudit"]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would point the program at another server or change its looks."""
    stray = ("PG", "MESHAUDIT_", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(stray)}
    return kept | {"PYTHONPATH": str(ROOT)} | dict(extra or {})


def run(*args: str, dsn: str = "", env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run meshaudit to its end."""
    given = ({"MESHAUDIT_DSN": dsn} if dsn else {}) | dict(env or {})
    done = subprocess.run([*PROGRAM, *args], env=environment(given), capture_output=True)
    # Not text=True, which would turn \r\n into \n.
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


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
