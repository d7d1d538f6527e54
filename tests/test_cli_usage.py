"""How commands are spelt: where --dsn and --json may stand, and what is said of a spelling that is none."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli_support import PROGRAM, assert_one_line, environment, fails, ok, run
from tests.support import Db

WRONG = {"MESHAUDIT_DSN": "host=nowhere.invalid"}
# A group and its subcommand, and where there is one, what to say of JSON.
GROUPS = [
    (["alerts"], ["rules"]),
    (["retention"], ["set", "red", "--keep-in-database", "90 days"]),
    (["hold"], ["list"]),
    (["journal"], ["disarm"]),
    (["identity"], ["erase", "somebody", "--reason", "r"]),
]


@pytest.mark.parametrize(("group", "rest"), GROUPS, ids=[group[0] for group, _ in GROUPS])
def test_dsn_and_json_between_a_group_and_its_subcommand(db: Db, group: list[str], rest: list[str]) -> None:
    # The database that the environment names must not be touched in its stead.
    json.loads(ok(*group, "--dsn", db.dsn(), "--json", *rest, env=WRONG))
    json.loads(ok("--dsn", "host=nowhere.invalid", "--json", *group, "--dsn", db.dsn(), *rest, env=WRONG))
    json.loads(ok(*group, "--dsn", "host=nowhere.invalid", *rest, "--dsn", db.dsn(), "--json", env=WRONG))
    assert "nowhere.invalid" in fails(*group, "--dsn", "host=nowhere.invalid", *rest, dsn=db.dsn())


@pytest.mark.parametrize("given", [["--limit", "50"], ["--open"]], ids=["limit", "open"])
def test_what_is_for_the_list_of_alerts_only(db: Db, given: list[str]) -> None:
    assert f"{given[0]} is for the list of alerts, not for rules" in fails(
        "alerts", *given, "rules", dsn=db.dsn()
    )


MISSPELT = [
    (["bogus"], "No such command 'bogus'", ""),
    (["bogus\x1b[31m\r\n\u202e"], "No such command 'bogus\\x1b[31m", ""),
    (["logs", "--bogus\x1b[31m\r\n\u202e"], "No such option: --bogus\\x1b[31m", "logs"),
    (["--bogus"], "No such option: --bogus", ""),
    (["logs", "--limit", "x"], "Invalid value for '--limit'", "logs"),
    (["logs", "--limit", "-1"], "Invalid value for '--limit'", "logs"),
    (["logs", "--limit"], "'--limit'", "logs"),
    (["logs", "--no-such"], "No such option: --no-such", "logs"),
    (["logs", "too", "many"], "unexpected extra argument", "logs"),
    (["hold", "lift", "1"], "Missing option '--reason'", "hold lift"),
    (["hold", "lift"], "Missing argument 'NUMBER'", "hold lift"),
    (["hold", "raise"], "No such command 'raise'", "hold"),
    (["protect", "t"], "Missing option '--secret-column'", "protect"),
    (["alerts", "ack", "one"], "Invalid value for 'ID'", "alerts ack"),
]


@pytest.mark.parametrize(("args", "said", "command"), MISSPELT, ids=[repr(args) for args, _, _ in MISSPELT])
def test_a_misspelt_command_is_told_in_one_line(args: list[str], said: str, command: str) -> None:
    line = fails(*args)
    assert said in line
    assert line.endswith(f" (hint: meshaudit {command}{' ' if command else ''}--help)\n")
    assert not set(line) & set("\x1b\r\u202e")


def test_as_a_module_it_says_the_same() -> None:
    done = subprocess.run([*PROGRAM, "bogus"], env=environment(), capture_output=True, text=True)
    assert_one_line(done)
    assert done.stderr == fails("bogus") == fails("bogus", env={"MESHAUDIT_DEBUG": "1"})


def test_debug_shows_where() -> None:
    done = run("logs", "--from", "noonish", env={"MESHAUDIT_DEBUG": "1"})
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("BadArgument: --from: 'noonish' is not a time")
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("args", [[], ["hold"]], ids=["program", "group"])
def test_without_a_command_there_is_help(args: list[str]) -> None:
    done = run(*args)
    assert (done.returncode, done.stderr) == (2, "")
    assert "Usage: meshaudit" in done.stdout
    assert "Usage: meshaudit" in ok(*args, "--help")


def test_help_on_a_full_disk_is_no_success() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "--version"], env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: No space left on device (hint: ")
