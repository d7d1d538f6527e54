"""The reference user's calls, the same before and after protect(), and what each leaves in the log."""

import subprocess
from collections import Counter
from dataclasses import replace

import pytest

from tests import servers
from tests.journal_support import seal
from tests.meshhook import ALICE, ALICES, BOB, BOBS_KEY, GITHUB, NEW, STRIPE, MeshHook
from tests.postgrest import Answer
from tests.support import Db

PROTECT = "select meshaudit.protect('public.secrets', '{value_encrypted}', 'project_id')"

COUNT = "select count(*) from meshaudit.audit_logs where secret_table = 'public.secrets'"
ROWS = "select id, project_id, key, value_encrypted, created_at from public.secrets order by id"

MINE = [("read", STRIPE), ("read", GITHUB)]
BOBS = [("read", BOBS_KEY)]
UPDATED = [("read", NEW), ("update", NEW)]
# What a call records, by who sees what; what is not named here records nothing. An update reads the row
# as it was: who writes through the view leaves that too.
WRITES = {
    "insert": [("create", NEW)],
    "see it": [("read", NEW)],
    "update": UPDATED,
    "rename": UPDATED,
    "update quietly": UPDATED,
    "take back": UPDATED,
    "delete with answer": [("delete", NEW)],
    "insert many": [("create", NEW), ("create", ALICE)],
    "delete many": [("delete", NEW), ("delete", ALICE)],
}
LISTS = ("list", "list with count", "with values", "left over")
ENTRIES: dict[str, dict[str, list[tuple[str, str]]]] = {
    "anon": {},
    "alice": {
        **dict.fromkeys(LISTS, MINE),
        **{call: [("read", STRIPE)] for call in ("some", "one", "by key")},
        # the row that OFFSET skips is computed too
        "page": MINE,
        **WRITES,
    },
    "bob": {call: [*BOBS] for call in (*LISTS, "page", "some", "by key")},
    "service_role": {
        **{call: [*MINE, *BOBS] for call in LISTS},
        **{call: [("read", STRIPE), *BOBS] for call in ("by key", "some")},
        "page": [("read", GITHUB), *BOBS],
        "one": [("read", STRIPE)],
        **WRITES,
        # under the old scope and under the new one
        "give away": [*UPDATED, ("update", NEW)],
        "take back": [*UPDATED, ("update", NEW)],
    },
}


@pytest.fixture(params=["supabase_old", "supabase_new"])
def two(request, template):
    """The same app in two databases of one flavour."""
    dbs = [template.clone(request.param) for _ in range(2)]
    try:
        yield [MeshHook(db) for db in dbs]
    finally:
        for db in dbs:
            db.drop()


def _protect(app: MeshHook, *, armed: bool = True) -> None:
    with app.db.connect() as conn:
        conn.execute(PROTECT)
        if armed:
            conn.execute("select meshaudit.arm_journal()")
    app.rest.reload()


def _recorded(db: Db) -> dict[str, dict[str, Counter[tuple[str, str]]]]:
    """operation and id of the entries, by caller and call; all of them are of the table and are granted or undone."""
    with db.connect() as conn:
        seal(conn)
    rows = db.su.execute(
        "select db_role, user_identity, request_id, operation, outcome, secret_id, scope, identity_source"
        " from meshaudit.audit_logs where secret_table = 'public.secrets' order by id"
    ).fetchall()
    found: dict[str, dict[str, Counter[tuple[str, str]]]] = {}
    for role, who, call, operation, outcome, secret, scope, source in rows:
        assert scope
        assert outcome in ("granted", "rolled_back")
        # who has no JWT subject goes by its login
        caller = {ALICE: "alice", BOB: "bob"}.get(who, role)
        assert (source, role) == (
            ("jwt", "authenticated") if caller in ("alice", "bob") else (source, caller)
        )
        if outcome == "granted":
            found.setdefault(caller, {}).setdefault(call, Counter())[(operation, secret)] += 1
    return found


def _dump(db: Db) -> list[str]:
    command = [str(servers.client("pg_dump")), "-d", db.dsn(db.pg.superuser), "-s", "-N", "meshaudit*"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # a random word, new in each dump
    return [line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def _different(calls: dict[str, Answer], expected: dict[str, Answer]) -> dict[str, Answer]:
    """What answers otherwise than expected. Of a row that fails, Postgres names the columns to whom it may not show all."""
    named = b"(id, project_id, key, value_encrypted, created_at, updated_at) = "
    return {
        k: v
        for k, v in calls.items()
        if v != expected[k]
        and replace(v, body=v.body.replace(b"contains " + named, b"contains ")) != expected[k]
    }


def test_the_same_answers_before_under_and_after(two):
    plain, audited = two
    before, rows = _dump(audited.db), audited.db.su.execute(ROWS).fetchall()
    expected = plain.calls()
    _protect(audited)
    calls = audited.calls()
    assert _different(calls, expected) == {}
    assert audited.advances()
    assert plain.advances()

    found = _recorded(audited.db)
    for who in ENTRIES:
        wanted = {call: Counter(entries) for call, entries in ENTRIES[who].items()}
        told = {k: v for k, v in found.get(who, {}).items() if k}
        assert told == wanted, who
    assert audited.db.su.execute("select * from meshaudit.verify()").fetchall() == []

    with audited.db.connect() as conn:
        conn.execute("select meshaudit.unprotect('public.secrets')")
    seen = audited.db.su.execute(COUNT).fetchone()
    assert audited.calls() == plain.calls()
    with audited.db.connect() as conn:
        seal(conn)
    assert audited.db.su.execute(COUNT).fetchone() == seen
    assert _dump(audited.db) == before
    assert audited.db.su.execute(ROWS).fetchall() == rows


def test_a_get_of_values_needs_a_journal(two):
    app = two[0]
    _protect(app, armed=False)
    alice = app.rest.as_user(ALICE)
    refused = alice.get("secrets", select="*")
    assert (refused.status, refused.json()["code"]) == (503, "MA002")
    assert refused.json()["hint"]
    assert len(alice.get("secrets", select="id,key,project:projects(name)", count=True).json()) == 2
    changed = alice.update("secrets", {"key": "K"}, select="*", id=f"eq.{STRIPE}", single=True)
    assert (changed.status, changed.json()["value_encrypted"]) == (200, "\\x736b5f6c6976655f61")


def test_upsert_says_why_not(two):
    app = two[0]
    _protect(app)
    alice = app.rest.as_user(ALICE)
    row = {"project_id": ALICES, "key": "STRIPE_KEY", "value_encrypted": "\\x01"}
    refused = alice.insert("secrets", row, resolution="merge-duplicates", on_conflict="project_id,key")
    assert (refused.status, refused.json()["code"]) == (400, "42P10")
