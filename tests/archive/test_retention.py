"""Policies and `meshaudit retain`: what is given up was due."""

import json
from pathlib import Path
from typing import Any

import pytest

from meshaudit.archive import job
from tests.archive.history import partitions
from tests.archive.support import (
    a_week_later,
    actions,
    archive,
    entries,
    plan,
    policy,
    refused,
)
from tests.cli_support import ok_json, run
from tests.support import Db


def test_a_policy_is_an_entry(any_db: Db) -> None:
    admin = any_db.connect()
    admin.execute("set intervalstyle = 'iso_8601'")
    admin.execute("select meshaudit.set_retention('*', '90 days')")
    admin.execute("select meshaudit.set_retention('Zoë''s', '1 year', keep_in_archive => '7 years')")
    admin.execute("select meshaudit.set_retention('*', '30 days', '1 year')")
    assert admin.execute("select meshaudit.remove_retention('*')").fetchone() == (True,)
    assert admin.execute("select meshaudit.remove_retention('*')").fetchone() == (False,)
    assert entries(any_db, "meshaudit.retention") == [
        ("create", "*: 90 days in the database, for ever in the archive", "*"),
        ("create", "Zoë's: 1 year in the database, 7 years in the archive", "Zoë's"),
        ("update", "*: 30 days in the database, 1 year in the archive", "*"),
        ("delete", "*", "*"),
    ]
    set_it = "select meshaudit.set_retention(%s, %s::interval, %s::interval)"
    for bad in (
        (None, "1 day", None),
        ("x" * 256, "1 day", None),
        ("x", None, None),
        ("x", "23 hours", None),
        ("x", "1 month -29 days", None),
        ("x", "-1 day", None),
        ("x", "1001 years", None),
        ("x", "1 day", "0 days"),
    ):
        assert "policy" in refused(admin, "MA005", set_it, *bad)
    for value in ("1 month -29 days", "200000 years"):
        refused(admin, "MA005", "select meshaudit.set_setting('keep_in_database', %s)", value)
    # who retires does not say when, nor does who reads
    for group in ("meshaudit_operator", "meshaudit_auditor", "meshaudit_client"):
        conn = any_db.connect(any_db.role("role", group))
        refused(conn, "42501", set_it, "*", "1 day", None)
        refused(conn, "42501", "select meshaudit.remove_retention('*')")
    auditor = any_db.role("auditor")
    admin.execute("select meshaudit.grant_auditor(%s, 'Zoë''s')".encode(), [auditor])
    conn = any_db.connect(auditor)
    seen = conn.execute("select scope, keep_in_archive::text from meshaudit.retention_policies()").fetchall()
    assert seen == [("Zoë's", "7 years")]
    refused(conn, "MA001", "select * from meshaudit.retention_plan()")
    refused(conn, "MA001", "select * from meshaudit.expiries()")


def test_the_longest_scope_counts(four_months: Db) -> None:
    assert set(actions(four_months)) == {"keep"}, "without a policy nothing is archived by itself"
    policy(four_months, "project7", "1 day")
    assert {detail for _, detail in plan(four_months).values()} > {"no policy for scope *"}
    policy(four_months, "*", "1 day")
    assert actions(four_months)[:3] == ["archive"] * 3
    policy(four_months, "project7", "50 years")
    kept = [detail or "" for action, detail in plan(four_months).values() if action == "keep"]
    assert kept[0].startswith("scope project7 is kept in the database until 20")
    with_it = {
        name
        for name in partitions(four_months.su, "ready", "kept")
        if four_months.su.execute(
            f"select from meshaudit_private.{name} where scope = 'project7' limit 1".encode()
        ).rowcount
    }
    assert with_it
    assert {name for name, (action, _) in plan(four_months).items() if action == "archive"}.isdisjoint(
        with_it
    )
    policy(four_months, "*", "50 years")
    policy(four_months, "project7", "1 day")
    assert set(actions(four_months)) == {"keep"}, "there are entries of other scopes"
    # a scope that is nowhere holds nothing
    policy(four_months, "*", "1 day")
    policy(four_months, "nowhere", "50 years")
    assert actions(four_months)[:3] == ["archive"] * 3


def test_sql_itself_refuses(four_months: Db, tmp_path: Path) -> None:
    """Not only the program: with the right manifest, an operator is refused what a policy keeps."""
    texts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_retire", lambda *given: texts.append(given[2]))
        archive(four_months, tmp_path, partitions(four_months.su, "ready")[0])
    name = json.loads(texts[0])["partition"]
    operator = four_months.connect(four_months.role("op", "meshaudit_operator"))
    policy(four_months, "*", "50 years", settled=False)
    assert "scope * is kept" in refused(
        operator, "MA005", "select meshaudit.retire_partition(%s, %s)", name, texts[0]
    )
    policy(four_months, "*", "1 day", settled=False)
    # shortened: for a week it counts as it was
    assert "scope * is kept" in refused(
        operator, "MA005", "select meshaudit.retire_partition(%s, %s)", name, texts[0]
    )
    a_week_later(four_months)
    operator.execute("select meshaudit.retire_partition(%s, %s)", [name, texts[0]])
    scopes = four_months.su.execute("select scopes from meshaudit_private.retirements").fetchone()
    assert scopes is not None
    assert len(scopes[0]) > 20


def test_shortening_takes_a_week(four_months: Db) -> None:
    def due(column: str = "database_until") -> dict[str, str]:
        rows = four_months.su.execute(
            f"select scope, ({column})::date::text from meshaudit_private.retention_of('2030-01-01Z')".encode()
        )
        return dict(rows.fetchall())

    four_months.su.execute("set timezone = 'UTC'")
    assert due() == {"*": None}
    policy(four_months, "*", "10 days", "20 days", settled=False)
    assert due() == {"*": "2030-01-11"}
    assert due("archive_until") == {"*": "infinity"}, "there it was for ever until now"
    a_week_later(four_months)
    assert due("archive_until") == {"*": "2030-01-31"}
    policy(four_months, "*", "12 days", "20 days", settled=False)
    assert due() == {"*": "2030-01-13"}, "longer at once"
    policy(four_months, "a", "1 day", "1 day", settled=False)
    assert due()["a"] == "2030-01-13", "the default's goes on"
    a_week_later(four_months)
    assert due()["a"] == "2030-01-02"
    assert due("archive_until")["a"] == "2030-01-03"
    four_months.su.execute("select meshaudit.remove_retention('*')")
    assert due()["*"] == "2030-01-13"
    assert due("archive_until")["*"] == "infinity"
    a_week_later(four_months)
    assert due() == {"*": None, "a": "2030-01-02"}
    four_months.su.execute("select meshaudit.remove_retention('a')")
    policy(four_months, "*", "5 days", "1 day", settled=False)
    assert due()["a"] == "2030-01-06"
    assert due("archive_until")["a"] == "infinity"


def test_retain(four_months: Db, tmp_path: Path) -> None:
    place = tmp_path / "a"
    policy(four_months, "*", "1 day", "1 day")
    before = four_months.su.execute("select count(*) from meshaudit.audit_logs").fetchone()
    dry = ok_json("retain", "--to", str(place), "--dry-run", dsn=four_months.dsn())
    assert [row["action"] for row in dry][:3] == ["archive"] * 3
    assert not place.exists()
    assert four_months.su.execute("select count(*) from meshaudit.audit_logs").fetchone() == before
    done = {
        row["partition"]: row["action"]
        for row in ok_json("retain", "--to", str(place), dsn=four_months.dsn())
    }
    over = [name for name, action in done.items() if action == "expired"]
    assert over == [row["partition"] for row in dry if row["action"] == "archive"][: len(over)]
    assert len(over) >= 2
    there = {path.name for path in place.iterdir()}
    retired = partitions(four_months.su, "retired")
    assert there == {f"{n}.manifest.json" for n in retired} | {f"{n}.expiry.json" for n in over} | {
        f"{n}.parquet" for n in retired if n not in over
    }
    assert len([n for n in retired if n not in over]) >= 1, "the newest stays"
    both = ok_json("verify", "--archive", str(place), dsn=four_months.dsn())
    assert both["intact"], both
    assert both["archived"] + both["expired"] == both["retired"]
    assert four_months.su.execute("select * from meshaudit.verify()").fetchall() == []
    log = entries(four_months, "meshaudit.expiry")
    assert [secret.split(" ")[0] for _, secret, _ in log] == over
    # killed between the log and the file: the next run does the rest
    (place / f"{over[0]}.expiry.json").unlink()
    (place / f"{over[0]}.parquet").write_bytes(b"x")
    again = run("retain", "--to", str(place), dsn=four_months.dsn())
    assert again.returncode == 0, again.stderr
    assert "expired in an earlier run" in again.stderr
    assert {path.name for path in place.iterdir()} == there
    assert entries(four_months, "meshaudit.expiry") == log


def test_status(four_months: Db, tmp_path: Path) -> None:
    def check(name: str = "retention") -> Any:
        rows = four_months.su.execute('select "check", ok, detail from meshaudit.status()').fetchall()
        return {row[0]: row[1:] for row in rows}[name]

    assert check() == (True, "no policies: everything stays")
    assert check("legal holds") == (True, "none")
    assert check("empty partitions") == (True, "0 retired periods have left an empty table")
    ready = partitions(four_months.su, "ready")
    archive(four_months, tmp_path, ready[0])
    assert not check()[0]
    assert "no policy for scope *" in check()[1]
    policy(four_months, "*", "1 day", "1 day")
    assert not check()[0]
    assert f"should have been archived: {ready[1]}, {ready[2]}" in check()[1]
    archive(four_months, tmp_path, *ready[1:3])
    assert f"archives past their period: {ready[0]}, {ready[1]}" in check()[1]
    four_months.su.execute("select meshaudit.place_hold('case', from_time => '2000-01-01')")
    assert check("legal holds")[1].startswith("1, the oldest of 20")
    assert check("empty partitions")[1].startswith("3 ")
