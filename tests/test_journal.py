"""What becomes of an access, whatever becomes of its transaction: the table of docs/journal.md."""

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from tests.journal_support import READ, READ_MANY, Journal, Told, one
from tests.support import Db, unique

LEVELS = ("read committed", "repeatable read", "serializable")
CAUGHT = """
do $$
begin
  perform meshaudit.read_secret('{id}');
  raise exception 'oh';
exception when others then null;
end
$$"""


@pytest.fixture
def journal(any_db: Db) -> Journal:
    return Journal(any_db)


@pytest.fixture
def plain(db: Db) -> Journal:
    """On one flavour, where the others could not differ."""
    return Journal(db)


def test_committed(journal: Journal) -> None:
    assert one(journal.client(), READ, journal.secret) == b"first"
    assert journal.seal() == 0
    assert journal.told() == [Told("read", "granted", str(journal.secret))]


@pytest.mark.parametrize("level", LEVELS)
def test_rolled_back(plain: Journal, level: str) -> None:
    client = plain.client()
    client.execute(f"begin isolation level {level}".encode())
    assert one(client, READ, plain.secret) == b"first"
    client.execute("rollback")
    assert plain.told() == []
    assert plain.seal() == 1
    assert plain.told() == [Told("read", "rolled_back", str(plain.secret))]


def test_rolled_back_on_every_flavour(journal: Journal) -> None:
    client = journal.client()
    client.execute("begin")
    at = one(client, "select clock_timestamp()")
    one(client, READ, journal.secret)
    until = one(client, "select clock_timestamp()")
    client.execute("rollback")
    assert journal.seal() == 1
    entry = journal.entry()
    assert entry["outcome"] == "rolled_back"
    # the access's own time, not the sealer's
    assert at <= entry["timestamp"] <= until
    assert entry["user_identity"] == entry["db_user"] == entry["db_role"] == journal.role


def test_writes_rolled_back(plain: Journal) -> None:
    client = plain.client()
    client.execute("begin")
    new = one(client, "select meshaudit.write_secret('second', 'x')")
    one(client, "select meshaudit.write_secret('first', 'x')")
    one(client, "select meshaudit.delete_secret(%s)", plain.secret)
    client.execute("rollback")
    assert plain.seal() == 3
    assert plain.told() == [
        Told("create", "rolled_back", str(new)),
        Told("update", "rolled_back", str(plain.secret)),
        Told("delete", "rolled_back", str(plain.secret)),
    ]


def test_savepoint_rolled_back(plain: Journal) -> None:
    client = plain.client()
    client.execute("begin")
    one(client, READ, plain.secret)
    client.execute("savepoint a")
    one(client, READ, plain.secret)
    client.execute("rollback to a")
    one(client, READ, plain.secret)
    client.execute("commit")
    assert plain.seal() == 1
    assert plain.outcomes() == ["granted", "rolled_back", "granted"]


def test_caught_exception(plain: Journal) -> None:
    role = plain.role
    client = plain.client()
    client.execute(CAUGHT.format(id=plain.secret).encode())
    assert plain.seal() == 1
    assert plain.outcomes() == ["rolled_back"]
    assert plain.entry()["user_identity"] == role


def test_killed_backend(journal: Journal) -> None:
    client = journal.client()
    client.execute("begin")
    one(client, READ, journal.secret)
    journal.terminate(client)
    assert journal.seal() == 1
    assert journal.outcomes() == ["rolled_back"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_prepared(plain: Journal, end: str) -> None:
    client, gid = plain.client(), unique("gid")
    client.execute("begin")
    one(client, READ, plain.secret)
    client.execute(sql.SQL("prepare transaction {}").format(gid))
    assert plain.seal() == 0
    assert plain.outcomes() == []
    client.execute(sql.SQL("{} prepared {}").format(sql.SQL(end), gid))
    assert plain.seal() == (0 if end == "commit" else 1)
    assert plain.outcomes() == ["granted" if end == "commit" else "rolled_back"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("level", LEVELS)
def test_read_only(plain: Journal, level: str, end: str) -> None:
    client = plain.client()
    client.execute(f"begin isolation level {level} read only".encode())
    assert one(client, READ, plain.secret) == b"first"
    assert one(client, "select meshaudit.read_secret_by_key('first')") == b"first"
    client.execute(end.encode())
    assert plain.seal() == 2
    # it wrote nothing that could be undone
    assert plain.told() == [Told("read", "granted", str(plain.secret))] * 2


def test_read_only_on_every_flavour(journal: Journal) -> None:
    client = journal.client()
    client.execute("begin read only")
    assert one(client, READ, journal.secret) == b"first"
    client.execute("commit")
    assert journal.seal() == 1
    assert journal.outcomes() == ["granted"]


def test_cursor(plain: Journal) -> None:
    ids = plain.many(10)
    client = plain.client()
    client.execute("begin")
    client.execute("create temp table wanted (id uuid) on commit drop")
    client.execute("insert into wanted select unnest(%s::uuid[])", [ids])
    client.execute("declare c cursor for select meshaudit.read_secret(id) from wanted")
    assert len(client.execute("fetch 4 from c").fetchall()) == 4
    client.execute("rollback")
    assert plain.seal() == 4
    assert plain.outcomes() == ["rolled_back"] * 4


def test_copy(plain: Journal) -> None:
    client = plain.client()
    query = sql.SQL("copy (select meshaudit.read_secret({})) to stdout").format(str(plain.secret))
    client.execute("begin read only")
    with client.cursor().copy(query) as copy:
        assert b"".join(bytes(chunk) for chunk in copy)
    client.execute("rollback")
    assert plain.seal() == 1


@pytest.mark.parametrize("begin", ["begin", "begin read only"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_bulk(plain: Journal, begin: str, end: str) -> None:
    ids = plain.many(1203)  # more than two records hold
    client = plain.client()
    client.execute(begin.encode())
    assert len(client.execute(READ_MANY, [ids]).fetchall()) == 1203
    client.execute(end.encode())
    outcome = "rolled_back" if (begin, end) == ("begin", "rollback") else "granted"
    assert plain.seal() == (0 if (begin, end) == ("begin", "commit") else 1203)
    assert sorted(plain.told()) == sorted(Told("read", outcome, str(i)) for i in ids)


def test_bulk_partly_rolled_back(plain: Journal) -> None:
    ids = plain.many(1203)
    client = plain.client()
    client.execute("begin")
    client.execute(READ_MANY, [ids[:1]])
    client.execute("savepoint a")
    client.execute(READ_MANY, [ids[1:700]])
    client.execute("rollback to a")
    client.execute(READ_MANY, [ids[700:]])
    client.execute("commit")
    assert plain.seal() == 699
    gone = {str(i) for i in ids[1:700]}
    assert {e.secret_id for e in plain.told() if e.outcome == "rolled_back"} == gone
    assert len(plain.told()) == 1203


def test_bulk_entries_are_as_others(plain: Journal) -> None:
    ids = plain.many(3)
    client = plain.client(application_name='app, "quoted" \\ {}')
    client.execute("set meshaudit.actor = 'worker {1,2} \"x\" \\ ü'")
    client.execute("begin read only")
    client.execute(READ_MANY, [ids])
    client.execute("commit")
    plain.seal()
    entry = plain.entry()
    assert entry["claimed_identity"] == 'worker {1,2} "x" \\ ü'
    assert entry["application_name"] == 'app, "quoted" \\ {}'
    assert (entry["scope"], entry["secret_table"], entry["access_type"]) == ("", "meshaudit.secrets", "read")


def test_awkward_scopes(plain: Journal) -> None:
    scopes = ["", "null", "NULL", '"', "\\", ",{}()", "ü\n\t ", "a" * 255]
    client = plain.client()
    client.execute("begin")
    for scope in scopes:
        one(client, "select meshaudit.write_secret('k', 'v', %s)", scope)
    client.execute("rollback")
    assert plain.seal() == len(scopes)
    told = plain.db.su.execute(
        "select scope from meshaudit.audit_logs where outcome = 'rolled_back' order by \"timestamp\""
    )
    assert [row[0] for row in told] == scopes


def test_the_role_that_is_none(plain: Journal) -> None:
    """Who can name the inner schema can give it, and make the sealer stop for it no more than anybody."""
    reader = plain.db.connect(plain.db.role("reader", "meshaudit_client", "pg_read_all_data"))
    reader.execute("begin read only")
    one(reader, "select meshaudit_private.read_secret(%s, null)", plain.secret)
    reader.execute("commit")
    assert plain.seal() == 1
    entry = plain.entry()
    assert (entry["db_user"], entry["db_role"], entry["outcome"]) == (reader.info.user, "<NULL>", "granted")


def test_an_application_without_a_name(plain: Journal) -> None:
    """By whatever way its accesses come to the log, its name is null."""
    client = plain.client()
    client.execute("set application_name = ''")
    one(client, READ, plain.secret)
    for actor in ("", "somebody"):
        client.execute("select set_config('meshaudit.actor', %s, false)", [actor])
        client.execute("begin read only")
        one(client, READ, plain.secret)
        client.execute(READ_MANY, [[plain.secret]])
        client.execute("commit")
    assert plain.seal() == 4
    names = "select application_name from meshaudit.audit_logs where id > %s"
    assert plain.db.su.execute(names, [plain.start]).fetchall() == [(None,)] * 5


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_open_while_sealed(plain: Journal, end: str) -> None:
    client, other = plain.client(), plain.client()
    client.execute("begin")
    one(client, READ, plain.secret)
    other.execute("begin")
    one(other, READ, plain.secret)
    other.execute("rollback")
    # the open one does not hold the other back
    assert plain.seal() == 1
    assert plain.outcomes() == ["rolled_back"]
    one(client, READ, plain.secret)
    assert plain.seal() == 0
    client.execute(end.encode())
    assert plain.seal() == (0 if end == "commit" else 2)
    assert sorted(plain.outcomes()) == sorted(
        ["granted"] * 2 + ["rolled_back"] if end == "commit" else ["rolled_back"] * 3
    )


def test_rolled_back_setting(plain: Journal) -> None:
    plain.operator.execute("begin")
    plain.operator.execute("select meshaudit.set_setting('partitions_ahead', '4')")
    plain.operator.execute("rollback")
    assert plain.seal() == 1
    entry = plain.entry()
    assert (entry["secret_id"], entry["secret_table"]) == ("partitions_ahead", "meshaudit.settings")


def gateway(db: Db) -> psycopg.Connection[Any]:
    """PostgREST's login, with the right to use the vault for its users."""
    db.pg.create_role("authenticator", "login noinherit")
    db.pg.create_role("authenticated", "nologin")
    db.pg.run("grant authenticated to authenticator")
    db.su.execute("grant meshaudit_client to authenticated")
    return db.connect("authenticator", autocommit=True)


def test_behind_a_gateway_in_a_get(journal: Journal) -> None:
    """A GET as PostgREST sends it."""
    conn = gateway(journal.db)
    headers = {"cf-connecting-ip": "203.0.113.9", "user-agent": "supabase-js", "x-request-id": "r1"}
    conn.execute("begin isolation level read committed read only")
    conn.execute(
        "select set_config('role', 'authenticated', true), set_config('request.jwt.claims', %s, true),"
        " set_config('request.method', 'GET', true), set_config('request.headers', %s, true)",
        [json.dumps({"sub": "3f1c", "role": "authenticated"}), json.dumps(headers)],
    )
    assert one(conn, READ, journal.secret) == b"first"
    conn.execute("commit")
    # the sealing session's own settings are nobody's
    journal.operator.execute(
        "select set_config('meshaudit.actor', 'sealer', false),"
        " set_config('request.jwt.claims', '{\"sub\": \"sealer\"}', false),"
        " set_config('request.headers', '{\"x-request-id\": \"sealer\"}', false),"
        " set_config('application_name', 'sealer', false)"
    )
    assert journal.seal() == 1
    entry = journal.entry()
    assert (entry["user_identity"], entry["identity_source"]) == ("3f1c", "jwt")
    assert (entry["db_user"], entry["db_role"]) == ("authenticator", "authenticated")
    assert str(entry["ip_address"]) == "203.0.113.9"
    assert (entry["user_agent"], entry["request_id"]) == ("supabase-js", "r1")
    assert entry["claimed_identity"] is None
    assert entry["application_name"] != "sealer"
    assert entry["outcome"] == "granted"


def test_each_access_has_its_own_entry_and_id(plain: Journal) -> None:
    client = plain.client()
    client.execute("begin read only")
    for _ in range(5):
        one(client, READ, plain.secret)
    client.execute("rollback")
    plain.seal()
    ids: list[UUID] = [
        row[0]
        for row in plain.db.su.execute(
            "select access_id from meshaudit.audit_logs where id > %s", [plain.start]
        )
    ]
    assert len(set(ids)) == 5
