"""The demo: told to the end, honest when a step fails, and nothing left behind however it ends."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli_support import PROGRAM, environment
from tests.servers import ROOT
from tests.support import wait_until


@pytest.fixture
def scratch() -> Iterator[Path]:
    """The demo's TMPDIR: what it leaves there, it has left behind."""
    # Not tmp_path, which is private to us; as root the server is another user.
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        wait_until(lambda: not _processes(name), what="the end of the demo's processes")
        assert [path for path in Path(name).iterdir() if not _is_probe(path)] == []


def _is_probe(path: Path) -> bool:
    """What Python's tempfile tries a directory out with; a signal at that moment leaves it there."""
    return (
        path.is_file() and re.fullmatch(r"[a-z0-9_]{8}", path.name) is not None and path.stat().st_size <= 4
    )


def _processes(folder: str) -> list[list[str]]:
    lines = (p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"]))
    return [line for line in lines if any(folder in word for word in line)]


def _start(scratch: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command or (*PROGRAM, "demo"),
        env=environment({"TMPDIR": str(scratch), "PGHOSTADDR": "192.0.2.1"}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_whole_story(scratch: Path) -> None:
    with _start(scratch) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, ""), out
    assert "\x1b" not in out
    named = re.findall(r"altered: (lane \d+, seq \d+, id \d+: edited)", out)
    assert len(named) == 1
    lane, seq, number = re.findall(r"\d+", named[0])
    assert f"✘ entry {number} (lane {lane}, seq {seq}) is not what was recorded: edited." in out
    assert out.splitlines()[-1] == "   ✔ the other 12 of 13 entries are."
    for refusal in ("ERROR 42501: ", "ERROR MA003: the audit log is append-only: update is refused"):
        assert refusal in out
    # The log that was searched never shows a value.
    assert all("\\x" not in line for line in out.splitlines() if "127.0.0.1" in line)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("1. A Postgres", signal.SIGINT),
        ("2. Three logins", signal.SIGINT),
        ("2. Three logins", signal.SIGTERM),
        ("$ meshaudit verify", signal.SIGINT),
    ],
)
def test_interrupted(scratch: Path, moment: str, number: signal.Signals) -> None:
    with _start(scratch) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if moment in line:
                break
        # As a terminal does it, which tells the whole group; and SIGTERM comes to the process alone.
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err == ""


def test_a_reader_that_goes_away(scratch: Path) -> None:
    with _start(scratch) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.wait(timeout=30)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode != 0


def test_a_step_that_fails_is_named(scratch: Path) -> None:
    # If nothing was altered, the story must not end well.
    quiet = (
        "import sys; from meshaudit import demo\ndemo.Story.tamper = lambda story: None\nsys.exit(demo.run())"
    )
    with _start(scratch, sys.executable, "-c", quiet) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == ""
    assert "✘ step 6, verify names the entry, did not go as told: exit code 1" in out
