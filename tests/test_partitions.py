"""Partitions: whole periods of UTC, of any interval; an access never needs one; status() tells."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.support import Db

Conn = psycopg.Connection[Any]
BOUNDS = """
select c.relname, m[1]::timestamptz, m[2]::timestamptz
from pg_inherits i join pg_class c on c.oid = i.inhrelid
left join lateral regexp_match(
  pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''(.+)''\\) TO \\(''(.+)''\\)') m on true
where i.inhparent = 'meshaudit_private.ledger'::regclass
order by 2 nulls last
"""


def bounds(db: Db) -> list[tuple[datetime, datetime]]:
    """Of each leaf but the default one, which must be there."""
    db.su.execute("set timezone = 'UTC'; set datestyle = iso")
    rows = db.su.execute(BOUNDS.replace("%", "%%").encode()).fetchall()
    assert rows.pop() == ("ledger_default", None, None)
    return [(start.astimezone(UTC), end.astimezone(UTC)) for _, start, end in rows]


def health(db: Db, check: str) -> tuple[bool, str]:
    row = db.su.execute('select ok, detail from meshaudit.status() where "check" = %s', [check]).fetchone()
    assert row is not None
    return bool(row[0]), str(row[1])


def without_partitions(db: Db, keep: int = 0) -> None:
    """As if nobody had ever run maintain(): all but the first `keep` and the default one are gone."""
    rows = db.su.execute(BOUNDS.encode()).fetchall()
    for name, *_ in rows[keep:-1]:
        db.su.execute(f"drop table meshaudit_private.{name}".encode())


def begins_period(at: datetime, interval: str) -> bool:
    midnight = at == at.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight and {"day": True, "week": at.weekday() == 0, "month": at.day == 1}[interval]


def follow(interval: str, start: datetime) -> datetime:
    if interval == "month":
        return (start.replace(day=1) + timedelta(days=32)).replace(day=1)
    return start + timedelta(days={"day": 1, "week": 7}[interval])


@pytest.mark.parametrize(
    ("zone", "style"),
    [("UTC", "iso"), ("America/St_Johns", "sql, dmy"), ("Pacific/Kiritimati", "postgres, mdy")],
)
@pytest.mark.parametrize("interval", ["month", "week", "day"])
def test_whole_periods_of_utc(db: Db, interval: str, zone: str, style: str) -> None:
    """Whatever the time zone and date style of whoever runs maintain()."""
    without_partitions(db)
    operator = db.connect(db.role("operator", "meshaudit_operator"))
    operator.execute(
        "select set_config('timezone', %s, false), set_config('datestyle', %s, false)", [zone, style]
    )
    # the entry of this change itself goes to the default partition
    db.su.execute(
        "update meshaudit_private.settings set partition_interval = %s, partitions_ahead = 14", [interval]
    )
    operator.execute("select meshaudit.maintain()")
    found = bounds(db)
    assert len(found) == 15
    for start, end in found:
        assert begins_period(start, interval), start
        assert end == follow(interval, start)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert found[0][0] <= datetime.now(UTC) < found[0][1]
    assert health(db, "partitions ahead") == (True, "14 partitions ahead of now")
    operator.execute("select meshaudit.maintain()")
    assert bounds(db) == found
    db.su.execute("select meshaudit.write_secret('k', 'v')")
    assert db.su.execute("select from meshaudit_private.ledger_default").rowcount == 0


def test_an_access_needs_no_partition(db: Db) -> None:
    without_partitions(db)
    ok, detail = health(db, "partitions ahead")
    assert (ok, "maintain()" in detail) == (False, True)
    client = db.connect(db.role("client", "meshaudit_client"))
    for number in range(5):
        client.execute("select meshaudit.write_secret(%s, 'v')", [f"k{number}"])
    client.execute("select * from meshaudit.read_secrets(array(select gen_random_uuid()))")
    assert db.su.execute("select from meshaudit_private.ledger_default").rowcount == 5
    assert health(db, "default partition")[0] is False
    # maintain() then makes what it can, moves nothing, and the rest goes on as it was
    db.connect(db.role("operator", "meshaudit_operator")).execute("select meshaudit.maintain()")
    assert health(db, "partitions ahead")[0] is True
    assert db.su.execute("select from meshaudit_private.ledger_default").rowcount == 5
    assert all(start > datetime.now(UTC) for start, _ in bounds(db))
    client.execute("select meshaudit.write_secret('again', 'v')")
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []
    assert db.su.execute("select count(*) from meshaudit.audit_logs").fetchone() == (6,)


@pytest.mark.parametrize("change", [("month", "day"), ("day", "month"), ("week", "month"), ("day", "week")])
def test_changing_the_interval(db: Db, change: tuple[str, str]) -> None:
    """What is there stays; what overlaps it is not made; accesses go on, and maintain() does not fail."""
    without_partitions(db)
    update = "update meshaudit_private.settings set partition_interval = %s"
    for interval in change:
        db.su.execute(update.encode(), [interval])
        db.su.execute("select meshaudit.maintain()")
        db.su.execute("select meshaudit.write_secret(%s, 'v')", [interval])
    found = bounds(db)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
    assert found[0][0] <= datetime.now(UTC) < found[0][1]
    # no day between now and the last partition is left out
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found)), found
    assert db.su.execute("select from meshaudit_private.ledger_default").rowcount == 0
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []


def test_maintenance_that_has_not_run_shows(db: Db) -> None:
    assert health(db, "maintenance")[0] is True
    db.su.execute("update meshaudit_private.settings set maintained_at = now() - interval '9 days'")
    ok, detail = health(db, "maintenance")
    assert (ok, "maintain()" in detail) == (False, True)
    db.su.execute("update meshaudit_private.settings set maintained_at = null")
    assert health(db, "maintenance")[0] is not True
    db.su.execute("select meshaudit.maintain()")
    assert health(db, "maintenance")[0] is True


def test_bad_settings(db: Db) -> None:
    for name, value in (
        ("partition_interval", "year"),
        ("partition_interval", None),
        ("partitions_ahead", "0"),
        ("partitions_ahead", "401"),
        ("partitions_ahead", "x"),
        ("partitions_ahead", None),
        ("ledger_id", "x"),
        ("nothing", "x"),
        (None, "x"),
    ):
        with pytest.raises(psycopg.Error) as caught:
            db.su.execute("select meshaudit.set_setting(%s, %s)", [name, value])
        assert caught.value.sqlstate == "MA005", (name, value)
        assert caught.value.diag.message_hint, (name, value)
    assert db.su.execute("select count(*) from meshaudit.audit_logs").fetchone() == (0,)


def test_settings_are_recorded(db: Db) -> None:
    for name, value in {
        "gateway_roles": "one,two",
        "api_roles": "one",
        "address_headers": "x-real-ip",
        "partition_interval": "week",
        "partitions_ahead": "7",
    }.items():
        db.su.execute("select meshaudit.set_setting(%s, %s)", [name, value])
        assert db.su.execute("select meshaudit.get_setting(%s)", [name]).fetchone() == (value,)
        entry = db.su.execute(
            "select secret_id, secret_table, operation from meshaudit.audit_logs order by id desc limit 1"
        )
        assert entry.fetchone() == (name, "meshaudit.settings", "update")
    assert db.su.execute("select meshaudit.get_setting('nothing')").fetchone() == (None,)
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []
