"""Formats of meshaudit logs: OCSF by its schema, CSV that no spreadsheet executes; times as typed."""

import csv
import io
import itertools
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from uuid import uuid4

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from meshaudit import filters, ocsf, output
from meshaudit.queries import Entry
from tests.cli_support import ok
from tests.support import Db

ENTRY = Entry(
    id=7,
    secret_id="5d8ad6d2-0000-4000-8000-000000000000",
    access_type="read",
    timestamp=datetime(2026, 11, 24, 10, 30, 0, 123456, tzinfo=UTC),
    user_identity="alice",
    ip_address=ip_address("10.0.0.7"),
    operation="read",
    outcome="granted",
    secret_table="meshaudit.secrets",
    scope="a",
    identity_source="jwt",
    claimed_identity=None,
    db_user="authenticator",
    db_role="authenticated",
    application_name="app",
    user_agent="curl",
    request_id="r1",
    access_id=uuid4(),
    lane=1,
    seq=1,
    prev_hash=b"\0" * 32,
    hash=b"\1" * 32,
    cursor="",
)


def test_ocsf_is_as_published() -> None:
    schemas = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=ocsf.VERSION))
    schema = schemas.get_class_schema(schemas.lookup_class_name_from_uid(ocsf.CLASS))
    validator = jsonschema.Draft202012Validator(schema)
    operations = ("read", "create", "update", "delete", "tampered")
    outcomes = ("granted", "denied", "rolled_back", "tampered")
    for operation, outcome, address, rest in itertools.product(
        operations, outcomes, (None, ip_address("2001:db8::1")), (None, "x")
    ):
        entry = replace(
            ENTRY,
            operation=operation,
            outcome=outcome,
            ip_address=address,
            application_name=rest,
            user_agent=rest,
            request_id=None,
            claimed_identity=rest,
            prev_hash=None if rest is None else b"\0" * 32,
        )
        event = json.loads(json.dumps(ocsf.event(entry)))
        assert list(validator.iter_errors(event)) == []
    event = ocsf.event(ENTRY)
    assert (event["activity_id"], event["type_uid"], event["status_id"]) == (1, 600501, 1)
    assert datetime.fromtimestamp(event["time"] / 1000, UTC) == ENTRY.timestamp.replace(microsecond=123000)
    broken = event | {"activity_id": 17}
    assert not validator.is_valid(broken)


def test_ocsf_by_the_program(db: Db) -> None:
    db.su.execute("select meshaudit.write_secret('k', 'v')")
    (line,) = ok("logs", "--format", "ocsf", "--operation", "create", dsn=db.dsn()).splitlines()
    event = json.loads(line)
    assert (event["class_uid"], event["activity_name"], event["actor"]["user"]["uid"]) == (
        6005,
        "Create",
        db.pg.superuser,
    )


def test_no_cell_is_a_formula() -> None:
    for text in ("=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "'=1", "  =1"):
        out = io.StringIO()
        output.writer("csv", out).page([replace(ENTRY, user_identity=text, seq=-5)])
        _, row = csv.reader(io.StringIO(out.getvalue(), newline=""))
        assert row[4] == ("\\x0d=1" if text == "\r=1" else f"'{text}")
        assert row[19] == "-5"  # a number is one
    for text in ("a=1", "1-1", "", "normal"):
        assert output.harmless(text) == text


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\\x1b5cu202e\x1b\r\n\x9b\u202e")))
@example("\x1b]0;pwn\x07")
@example(r"\x1b \x5c \\x1b DOMAIN\user")
def test_csv_moves_no_cursor(text: str) -> None:
    out = io.StringIO()
    output.writer("csv", out).page([replace(ENTRY, user_agent=text)])
    _, row = csv.reader(io.StringIO(out.getvalue(), newline=""))
    told = (
        row[15].removeprefix("'")
        if output.harmless(output.escaped(text)) != output.escaped(text)
        else row[15]
    )
    assert output.printable(told.replace("\n", "").replace("\t", "")) == told.replace("\n", "").replace(
        "\t", ""
    )
    # and back
    assert re.sub(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4}))", lambda m: chr(int(m[1] or m[2], 16)), told) == text
    assert output.escaped(r"DOMAIN\user") == r"DOMAIN\user"


def test_days_by_name() -> None:
    now, today, yesterday = (filters.time("--from", word) for word in ("now", "today", " Yesterday "))
    assert now is not None
    assert today is not None
    assert now - today < timedelta(days=1, seconds=1)
    assert yesterday in (today - timedelta(days=1), today)
    assert today.tzinfo is UTC


@pytest.mark.parametrize("zone", ["America/St_Johns", "Pacific/Kiritimati"])
def test_the_local_zone_changes_nothing(db: Db, zone: str) -> None:
    db.su.execute("select meshaudit.write_secret('k', 'v')")
    env = {"TZ": zone, "PGTZ": zone}
    assert "no entries" in ok("logs", "--to", "2020-01-01", dsn=db.dsn(), env=env)
    line = ok("logs", "--format", "csv", "--since", "1h", dsn=db.dsn(), env=env).splitlines()[1]
    assert "Z," in line
