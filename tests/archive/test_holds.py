"""Legal holds: who may place and lift them, and that nothing gets past one."""

import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from meshaudit.archive import job
from tests.archive.history import load, partitions
from tests.archive.support import a_week_later, archive, entries, plan, policy, refused
from tests.cli_support import fails, ok, ok_json
from tests.support import Db, wait_until

PLACE = "select meshaudit.place_hold(%s, scope => %s)"
LIFT = "select meshaudit.lift_hold(%s, %s)"


def auditor(db: Db, *scopes: str, groups: tuple[str, ...] = ()) -> psycopg.Connection[Any]:
    role = db.role("auditor", *groups)
    for scope in scopes:
        db.su.execute("select meshaudit.grant_auditor(%s, %s)", [role, scope])
    return db.connect(role)


def one(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query.encode(), params).fetchone()
    assert row is not None
    return row[0]


def test_an_auditor_holds_its_scopes(any_db: Db) -> None:
    red = auditor(any_db, "red", "it's Zoë's")
    # an operator besides, which must not widen it
    blue = auditor(any_db, "blue", groups=("meshaudit_operator",))
    every = auditor(any_db, "*")
    nobody = any_db.connect(any_db.role("nobody", "meshaudit_auditor", "meshaudit_operator"))
    of_red, odd = one(red, PLACE, "case 1", "red"), one(red, PLACE, "Ärger; 'drop'\n--", "it's Zoë's")
    of_blue, of_all = one(blue, PLACE, "case 2", "blue"), one(every, PLACE, "case 3", "*")
    for conn, scope in ((red, "blue"), (red, None), (red, "*"), (blue, "red"), (blue, None), (nobody, "red")):
        refused(conn, "MA001", PLACE, "reason", scope)
    for conn, hold in ((red, of_blue), (red, of_all), (blue, of_red), (blue, of_all), (nobody, of_red)):
        refused(conn, "MA001", LIFT, hold, "reason")
    for group in ("meshaudit_operator", "meshaudit_client"):
        conn = any_db.connect(any_db.role("other", group))
        refused(conn, "42501", PLACE, "reason", None)
        refused(conn, "42501", LIFT, of_red, "reason")
    for bad in ("", "  ", None, "x" * 401):
        refused(every, "MA005", PLACE, bad, "red")
        refused(every, "MA005", LIFT, of_red, bad)
    refused(every, "MA005", "select meshaudit.place_hold('x', from_time => now(), to_time => now())")

    def seen(conn: psycopg.Connection[Any]) -> list[int]:
        return [row[0] for row in conn.execute("select hold from meshaudit.holds()").fetchall()]

    everything = [of_red, odd, of_blue, of_all]
    assert seen(red) == [of_red, odd]
    assert seen(every) == seen(blue) == everything  # blue is an operator too
    assert seen(any_db.connect(any_db.role("op", "meshaudit_operator"))) == everything
    assert one(red, "select placed_by from meshaudit.holds() where hold = %s", odd) == red.info.user
    assert one(red, LIFT, odd, "over")
    assert one(every, LIFT, of_red, "over") is True
    assert one(every, LIFT, of_red, "over") is False
    assert one(every, LIFT, None, "over") is False
    # who appoints auditors could appoint itself
    assert one(any_db.connect(), LIFT, of_all, "ov\ner")
    assert entries(any_db, "meshaudit.holds") == [
        ("create", f"{of_red}: case 1", "red"),
        ("create", f"{odd}: Ärger; 'drop'\n--", "it's Zoë's"),
        ("create", f"{of_blue}: case 2", "blue"),
        ("create", f"{of_all}: case 3", "*"),
        ("delete", f"{odd}: over", "it's Zoë's"),
        ("delete", f"{of_red}: over", "red"),
        ("delete", f"{of_all}: ov\ner", "*"),
    ]


@pytest.fixture
def past(db: Db) -> Db:
    """A ledger with three months behind it."""
    load(db.su, months=3, rows=300)
    return db


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("reason => 'all'", True),
        ("reason => 'x', user_identity => 'service_0'", True),
        ("reason => 'x', user_identity => 'service_0', to_time => '2000-01-01'", False),
        ("reason => 'x', user_identity => 'O''Brien %s; ß'", False),
        ("reason => 'x', scope => 'project0', user_identity => 'nobody'", False),
        ("reason => 'x', secret_id => (select min(secret_id) from meshaudit_private.{})", True),
        ("reason => 'x', from_time => (select min(\"timestamp\") from meshaudit_private.{})", True),
        ("reason => 'x', from_time => '-infinity', to_time => 'infinity'", True),
        ("reason => 'x', scope => ''", False),
    ],
)
def test_what_a_hold_matches_is_not_retired(past: Db, condition: str, holds: bool) -> None:
    name = partitions(past.su, "ready")[0]
    number = one(past.su, f"select meshaudit.place_hold({condition.format(name)})".replace("%", "%%"))
    assert (name in partitions(past.su, "ready")) is not holds
    if holds:
        found = one(past.su, "select detail from meshaudit.partitions() where partition = %s", name)
        assert found == f"legal hold {number} is on entries of it"


def test_nothing_gets_past_a_hold_that_is_being_placed(past: Db, tmp_path: Path) -> None:
    """In a transaction that is still open; and a hold waits for what has begun before it."""
    policy(past, "*", "1 day", "1 day")
    texts: list[str] = []
    ready = partitions(past.su, "ready")
    archive(past, tmp_path, *ready[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_retire", lambda *given: texts.append(given[2]))
        archive(past, tmp_path, ready[2])
    operator = past.connect(past.role("op", "meshaudit_operator"))
    holder = past.connect(autocommit=False)
    retire, expire = "select meshaudit.retire_partition(%s, %s)", "select meshaudit.expire_archive(%s)"
    number = one(holder, PLACE, "case", None)
    refused(operator, "55P03", retire, ready[2], texts[0])
    refused(operator, "55P03", expire, ready[0])
    holder.commit()
    refused(operator, "MA005", retire, ready[2], texts[0])
    refused(operator, "MA005", expire, ready[0])
    # lifted, but not committed: it holds
    holder.execute(LIFT.encode(), [number, "over"])
    refused(operator, "55P03", expire, ready[0])
    holder.commit()
    # a policy likewise
    holder.execute("select meshaudit.set_retention('*', '9 years')")
    refused(operator, "55P03", retire, ready[2], texts[0])
    holder.rollback()

    operator.execute("begin")
    operator.execute(retire.encode(), [ready[2], texts[0]])
    late = past.connect(autocommit=False)
    waiter = threading.Thread(target=lambda: one(late, PLACE, "late", None))
    waiter.start()
    wait_until(past.waiting, what="a hold that waits")
    operator.execute("commit")
    waiter.join()
    late.commit()
    # placed after it was retired: its archive stays
    a_week_later(past)
    assert {action for action, _ in list(plan(past).values())[:3]} == {"keep archive"}
    refused(operator, "MA005", expire, ready[0])


def test_the_commands(db: Db) -> None:
    dsn = db.dsn()
    assert ok("hold", "list", dsn=dsn) == "no holds\n"
    narrowed = (
        "--secret-id",
        "s",
        "--user-identity",
        "u",
        "--scope",
        "red",
        "--from",
        "2024-01-01",
        "--to",
        "2025-01-01",
    )
    number = ok_json("hold", "place", "--reason", "Zoë's case", *narrowed, dsn=dsn)["hold"]
    (row,) = ok_json("hold", "list", dsn=dsn)
    assert {key: row[key] for key in row if not key.startswith("placed")} == {
        "hold": number,
        "secret_id": "s",
        "user_identity": "u",
        "scope": "red",
        "reason": "Zoë's case",
        "from_time": "2024-01-01T00:00:00.000000Z",
        "to_time": "2025-01-01T00:00:00.000000Z",
    }
    assert ok("hold", "lift", str(number), "--reason", "over", dsn=dsn) == f"hold {number} is lifted\n"
    assert "meshaudit_operator" in fails("retain", "--to", "/nowhere", "--dry-run", dsn=db.dsn(db.role("x")))
    ok("retention", "set", "red", "--keep-in-database", "90 days", "--keep-in-archive", "7 years", dsn=dsn)
    assert "90 days" in ok("retention", dsn=dsn)
    assert "is not" not in fails("retention", "set", "red", "--keep-in-database", "soon", dsn=dsn)
    ok("retention", "remove", "red", dsn=dsn)
    (policy,) = ok_json("retention", dsn=dsn)
    assert policy["ended_at"] is not None
