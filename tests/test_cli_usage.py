"""How commands are spelt: where --dsn and --json may stand, and what is said of a spelling that is none."""

import json

import pytest

from tests.cli_support import fails, ok
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
