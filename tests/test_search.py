"""search_audit_logs(): every filter and their combinations against a plain loop, pages by cursor, errors."""

import itertools
import json
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.support import Db

FILTERS = (
    "secret_id",
    "user_identity",
    "access_type",
    "operation",
    "outcome",
    "scope",
    "ip",
    "from_time",
    "to_time",
)


@pytest.fixture
def auditor(db: Db) -> psycopg.Connection[Any]:
    """Who may see all of some sixty entries, by three subjects from three addresses."""
    login = db.role("gateway", "meshaudit_client")
    db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [login])
    conn = db.connect(login)
    for number, (subject, scope) in enumerate(itertools.product(("alice", "bob", "carol"), ("a", "b"))):
        address = ("10.0.0.1", "10.0.1.2", "2001:db8::1")[number % 3]
        with conn.transaction():
            conn.execute(
                "select set_config('request.jwt.claims', %s, true), set_config('request.headers', %s, true)",
                [json.dumps({"sub": subject}), json.dumps({"x-forwarded-for": address})],
            )
            for key in ("x", "y"):
                made = conn.execute("select meshaudit.write_secret(%s, 'v', %s)", [subject + key, scope])
                secret = next(made)[0]
                conn.execute("select meshaudit.read_secret(%s)", [secret])
                conn.execute("select meshaudit.write_secret(%s, 'w', %s)", [subject + key, scope])
                conn.execute("select * from meshaudit.read_secrets(array[%s])", [secret])
            conn.execute("select meshaudit.delete_secret(%s)", [secret])
    role = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s)", [role])
    conn = db.connect(role)
    # Without a journal, what is READ ONLY records nothing: searches do not find one another.
    conn.execute("set default_transaction_read_only = on")
    return conn


def search(conn: psycopg.Connection[Any], **filters: Any) -> list[dict[str, Any]]:
    named = ", ".join(f"{name} => %({name})s" for name in filters)
    query = (
        "select s.*, meshaudit.log_cursor(s.timestamp, s.id) as cursor"
        f" from meshaudit.search_audit_logs({named}) s"
    )
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), filters).fetchall()


def matches(row: dict[str, Any], name: str, value: Any) -> bool:
    if name == "from_time":
        return bool(row["timestamp"] >= value)
    if name == "to_time":
        return bool(row["timestamp"] < value)
    if name == "ip":
        return str(row["ip_address"]).startswith(value.split(".0/")[0])
    return bool(row[name] == value)


def test_filters_and_their_combinations(auditor: psycopg.Connection[Any]) -> None:
    rows = search(auditor, page_size=1000)
    assert len(rows) == 6 * 9 + 2
    assert rows == sorted(rows, key=lambda r: (r["timestamp"], r["id"]), reverse=True)
    sample = rows[len(rows) // 2]
    values: dict[str, list[Any]] = {
        "secret_id": [sample["secret_id"], "nothing"],
        "user_identity": ["alice", "Alice"],
        "access_type": ["read", "write"],
        "operation": ["read", "create", "delete"],
        "outcome": ["granted", "denied"],
        "scope": ["a", ""],
        "ip": ["10.0.0.1", "10.0.0.0/24", "2001:db8::1"],
        "from_time": [sample["timestamp"]],
        "to_time": [sample["timestamp"]],
    }
    assert set(values) == set(FILTERS)
    found = 0
    for one, two in itertools.combinations_with_replacement(FILTERS, 2):
        if {one, two} == {"from_time", "to_time"}:
            continue
        for first, second in itertools.product(values[one], values[two]):
            wanted = {one: first} | {two: second}
            expected = [r for r in rows if all(matches(r, name, v) for name, v in wanted.items())]
            assert search(auditor, **wanted, page_size=1000) == expected, wanted
            found += bool(expected)
    assert found > 40
    # half-open: the end is out, the start is in
    start, end = sample["timestamp"], sample["timestamp"] + timedelta(microseconds=1)
    assert sample in search(auditor, from_time=start, to_time=end)
    assert search(auditor, **dict.fromkeys(FILTERS), page_size=1000) == rows


def test_pages(auditor: psycopg.Connection[Any]) -> None:
    for zone, size in itertools.product(("UTC", "America/St_Johns"), (1, 7, 55, 56, 57)):
        auditor.execute("select set_config('TimeZone', %s, false)", [zone])
        everything = search(auditor, page_size=1000)
        pages, after = [], None
        while page := search(auditor, after=after, page_size=size):
            assert len(page) <= size
            pages += page
            after = page[-1]["cursor"]
        assert pages == everything
        assert search(auditor) == everything[:100]


def test_a_batch_of_one_timestamp_is_paged_too(db: Db, auditor: psycopg.Connection[Any]) -> None:
    """The clock may give many entries one time; the cursor goes on by id."""
    db.su.execute(
        "alter table meshaudit_private.ledger alter column timestamp set default '2026-01-01 00:00+00'"
    )
    for number in range(9):
        db.su.execute("select meshaudit.write_secret(%s, 'v')", [f"same {number}"])
    same = search(auditor, to_time="2026-01-02 00:00+00")
    assert len(same) == 9
    pages, after = [], None
    while page := search(auditor, to_time="2026-01-02 00:00+00", after=after, page_size=2):
        pages += page
        after = page[-1]["cursor"]
    assert pages == same


BAD: tuple[dict[str, Any], ...] = (
    {"page_size": 0},
    {"page_size": 1001},
    {"page_size": None},
    {"page_size": -1},
    {"access_type": "Read"},
    {"operation": "select"},
    {"outcome": ""},
    {"after": ""},
    {"after": "x"},
    {"after": "0" * 31 + "g"},
    {"after": "0" * 33},
    {"after": "0" * 40},
    {"after": "f" * 40},
    {"from_time": "2026-01-02", "to_time": "2026-01-01"},
    {"from_time": "2026-01-01", "to_time": "2026-01-01"},
)


def test_errors(auditor: psycopg.Connection[Any]) -> None:
    for filters in BAD:
        with pytest.raises(psycopg.Error) as caught:
            search(auditor, **filters)
        assert caught.value.sqlstate == "MA005", filters
        assert caught.value.diag.message_hint, filters


def test_a_cursor_is_safe_to_tamper_with(db: Db, auditor: psycopg.Connection[Any]) -> None:
    """Any change is told; a cursor of another search, or of another time, is a place like any other."""
    good = search(auditor, page_size=1)[0]["cursor"]
    for number, digit in enumerate(good):
        bad = good[:number] + ("0" if digit != "0" else "1") + good[number + 1 :]
        with pytest.raises(psycopg.Error) as caught:
            search(auditor, after=bad)
        assert caught.value.sqlstate == "MA005"
        assert caught.value.diag.message_primary == "after is not a cursor"
    for moment, number in itertools.product(
        ("1900-01-01 00:00+00", "2200-01-01 00:00+00", "-infinity", "infinity", "4713-01-01 00:00+00 BC"),
        (-(2**63), 0, 2**63 - 1),
    ):
        cursor = db.su.execute("select meshaudit.log_cursor(%s, %s)", [moment, number]).fetchall()[0][0]
        try:
            assert len(search(auditor, after=cursor)) in (0, 56)
        except psycopg.Error as exc:
            assert exc.sqlstate == "MA005", exc  # noqa: PT017


def test_filters_are_values(auditor: psycopg.Connection[Any]) -> None:
    for text in ("'; drop table x; --", "%", "a' or true --", "$1", "\\"):
        for name in ("secret_id", "user_identity", "scope"):
            assert search(auditor, **{name: text}) == []
