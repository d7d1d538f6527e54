"""The vault's contract: write, read, replace, delete; limits; what an entry says, and what is never in it."""

import base64
import functools
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support import Db

# Name and type, in order: programs rely on it.
COLUMNS = {
    "id": "bigint",
    "secret_id": "text",
    "access_type": "text",
    "timestamp": "timestamp with time zone",
    "user_identity": "text",
    "ip_address": "inet",
    "operation": "text",
    "outcome": "text",
    "secret_table": "text",
    "scope": "text",
    "identity_source": "text",
    "claimed_identity": "text",
    "db_user": "text",
    "db_role": "text",
    "application_name": "text",
    "user_agent": "text",
    "request_id": "text",
    "access_id": "uuid",
    "lane": "integer",
    "seq": "bigint",
    "prev_hash": "bytea",
    "hash": "bytea",
}
Conn = psycopg.Connection[Any]


@pytest.fixture
def client(db: Db) -> Conn:
    return db.connect(db.role("client", "meshaudit_client"))


def newest(db: Db, columns: str, count: int = 1) -> list[Any]:
    """Columns of the newest entries, newest first."""
    query = f"select {columns} from meshaudit.audit_logs order by id desc limit {count}"
    return db.su.execute(query.encode()).fetchall()


@pytest.fixture
def log(db: Db) -> Iterator[Any]:
    """newest() of this database, which verifies in the end."""
    yield functools.partial(newest, db)
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []


def write(conn: Conn, key: str | None, value: bytes | None, *scope: str | None) -> UUID:
    args = ", ".join(["%s"] * (2 + len(scope)))
    row = conn.execute(f"select meshaudit.write_secret({args})".encode(), [key, value, *scope]).fetchone()
    assert row is not None
    assert isinstance(row[0], UUID)
    return row[0]


def read(conn: Conn, secret: UUID | None) -> Any:
    row = conn.execute("select meshaudit.read_secret(%s)", [secret]).fetchone()
    assert row is not None
    return row[0]


def by_key(conn: Conn, *args: str | None) -> Any:
    call = f"select meshaudit.read_secret_by_key({', '.join(['%s'] * len(args))})"
    row = conn.execute(call.encode(), args).fetchone()
    assert row is not None
    return row[0]


def refused(code: str, call: Any, *args: Any) -> None:
    with pytest.raises(psycopg.Error) as caught:
        call(*args)
    assert caught.value.sqlstate == code, caught.value
    assert caught.value.diag.message_hint


def test_the_columns_of_the_log(any_db: Db) -> None:
    rows = any_db.su.execute(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = 'meshaudit.audit_logs'::regclass and attnum > 0 order by attnum"
    ).fetchall()
    assert rows == list(COLUMNS.items())
    # one row, one set of columns: search gives the same
    empty = any_db.su.execute("select * from meshaudit.search_audit_logs()")
    assert [c.name for c in empty.description or ()] == list(COLUMNS)


def test_a_secrets_life(any_db: Db) -> None:
    client = any_db.connect(any_db.role("client", "meshaudit_client"))
    log = functools.partial(newest, any_db)
    what = "secret_id, access_type, operation, outcome, secret_table, scope"
    secret = write(client, "stripe", b"\x00\x01\xff")
    assert log(what) == [(str(secret), "write", "create", "granted", "meshaudit.secrets", "")]
    assert read(client, secret) == b"\x00\x01\xff"
    assert log(what) == [(str(secret), "read", "read", "granted", "meshaudit.secrets", "")]
    assert write(client, "stripe", b"new") == secret
    assert log(what) == [(str(secret), "write", "update", "granted", "meshaudit.secrets", "")]
    assert by_key(client, "stripe") == b"new"
    assert log(what) == [(str(secret), "read", "read", "granted", "meshaudit.secrets", "")]
    assert client.execute("select meshaudit.delete_secret(%s)", [secret]).fetchone() == (True,)
    assert log(what) == [(str(secret), "write", "delete", "granted", "meshaudit.secrets", "")]
    # its identity stays in the log; another secret of that name is another
    assert write(client, "stripe", b"again") != secret
    assert len(log(what, 99)) == 6
    times = [t for (t,) in log("timestamp", 99)]
    assert times == sorted(times, reverse=True)
    assert len({a for (a,) in log("access_id", 99)}) == 6


def test_the_same_key_in_other_scopes(client: Conn, log: Any) -> None:
    scopes = ["", "a", "A", "a ", "*", "ä", "x" * 200]
    ids = [write(client, "key", scope.encode(), scope) for scope in scopes]
    assert len(set(ids)) == len(scopes)
    for scope, secret in zip(scopes, ids, strict=True):
        assert by_key(client, "key", scope) == scope.encode()
        assert log("secret_id, scope") == [(str(secret), scope)]
    # scope and key are two things, wherever one puts the seam
    assert write(client, "bc", b"1", "a") != write(client, "c", b"2", "ab")


@pytest.mark.parametrize(
    "key", ["k", "k" * 512, "ü😀" * 256, "'; drop table x; --", 'a"b\\c', "\n\t", " k ", "%s {} $1", "null"]
)
def test_names_are_exact(client: Conn, log: Any, key: str) -> None:
    secret = write(client, key, b"v", "scope'\"\\")
    assert by_key(client, key, "scope'\"\\") == b"v"
    assert read(client, secret) == b"v"
    if key.strip() != key:
        refused("MA004", by_key, client, key.strip() or "x", "scope'\"\\")


def test_the_longest_names_at_once(client: Conn, log: Any) -> None:
    """Four bytes a character, and nothing in it repeats, so that no index can compress it."""
    letters = [chr(0x1F300 + i) for i in range(512)]
    key, scope = "".join(letters), "".join(reversed(letters[:255]))
    secret = write(client, key, b"v", scope)
    assert by_key(client, key, scope) == b"v"
    assert write(client, key, b"w", scope) == secret


@pytest.mark.parametrize("size", [0, 1, 2047, 1048576])
def test_values_of_every_size(client: Conn, log: Any, size: int) -> None:
    value = bytes(i * 7 % 256 for i in range(size))
    assert read(client, write(client, "k", value)) == value


def test_bad_arguments(client: Conn, log: Any) -> None:
    secret = write(client, "k", b"v")
    for key, value, scope in (
        ("", b"v", ""),
        (None, b"v", ""),
        ("k" * 513, b"v", ""),
        ("k", None, ""),
        ("k", b"v" * 1048577, ""),
        ("k", b"v", None),
        ("k", b"v", "s" * 513),
    ):
        refused("MA005", write, client, key, value, scope)
    refused("MA005", by_key, client, "")
    refused("MA005", by_key, client, None)
    refused("MA005", by_key, client, "k", None)
    refused("MA005", client.execute, "select * from meshaudit.read_secrets(null)")
    assert read(client, secret) == b"v"
    assert len(log("id", 99)) == 2  # nothing of it was recorded


def test_no_such_secret(client: Conn, log: Any) -> None:
    write(client, "k", b"v", "scope")
    refused("MA004", read, client, uuid4())
    refused("MA004", read, client, None)
    refused("MA004", by_key, client, "k")
    refused("MA004", by_key, client, "K", "scope")
    assert client.execute("select meshaudit.delete_secret(%s)", [uuid4()]).fetchone() == (False,)
    assert client.execute("select meshaudit.delete_secret(null)").fetchone() == (False,)
    assert len(log("id", 99)) == 1


def test_many_at_once(client: Conn, log: Any) -> None:
    ids = [write(client, f"k{i}", f"v{i}".encode(), f"s{i % 2}") for i in range(5)]
    call = "select id, value from meshaudit.read_secrets(%s)"
    wanted: list[Any] = [*ids, ids[0], ids[0], uuid4(), None]
    got = client.execute(call, [wanted]).fetchall()
    assert sorted(got) == sorted((secret, f"v{i}".encode()) for i, secret in enumerate(ids))
    entries = log("secret_id, scope, operation", 6)
    assert sorted(entries[:5]) == sorted((str(secret), f"s{i % 2}", "read") for i, secret in enumerate(ids))
    assert entries[5][2] == "create"  # each once
    assert client.execute(call, [[]]).fetchall() == []
    assert client.execute(call, [[uuid4(), None]]).fetchall() == []
    assert log("secret_id", 1)[0] == entries[0][:1]  # no entry for nothing
    nested = client.execute(
        "select count(*) from meshaudit.read_secrets(array[%s::uuid[], %s])", [ids[:2], ids[2:4]]
    )
    assert nested.fetchone() == (4,)


def test_only_what_is_fetched_is_revealed(client: Conn, log: Any) -> None:
    """A row that is looked at is recorded, and no other."""
    for i in range(10):
        write(client, f"k{i}", b"v")
    with client.transaction():
        client.execute(
            "declare c cursor for select meshaudit.read_secret_by_key('k' || i) from generate_series(0, 9) i"
        )
        assert len(client.execute("fetch 3 from c").fetchall()) == 3
    assert [op for (op,) in log("operation", 99)].count("read") == 3


@pytest.mark.parametrize(
    "statement",
    [
        "select meshaudit.read_secret(%(id)s)",
        "do $$ begin perform meshaudit.read_secret('%(id)s'); end $$",
        "copy (select meshaudit.read_secret('%(id)s')) to stdout",
        "create temporary table t as select meshaudit.read_secret('%(id)s')",
        "explain (analyze, costs off) select meshaudit.read_secret('%(id)s')",
        "with r as materialized (select meshaudit.read_secret('%(id)s') v) select v is null from r",
        "select 1 where meshaudit.read_secret('%(id)s') > ''",
        "select 1 from (values (1)) v (x) order by meshaudit.read_secret('%(id)s')",
        "prepare p as select meshaudit.read_secret('%(id)s'); execute p; deallocate p",
    ],
)
def test_every_way_to_call_it_is_recorded_once(client: Conn, log: Any, statement: str) -> None:
    secret = write(client, "k", b"v")
    if statement.startswith("copy"):
        with client.cursor().copy(statement.replace("%(id)s", str(secret)).encode()) as copy:
            assert b"".join(copy) == b"\\\\x76\n"
    else:
        client.execute(statement.replace("'%(id)s'", "%(id)s").replace("%(id)s", f"'{secret}'").encode())
    assert log("secret_id, operation", 2) == [(str(secret), "read"), (str(secret), "create")]


def test_no_entry_no_value(client: Conn, log: Any) -> None:
    """Where nothing can be recorded, in a READ ONLY transaction, nothing is revealed."""
    secret = write(client, "k", b"v")
    for call in ("read_secret(%s)", "read_secrets(array[%s]::uuid[])"):
        client.execute("begin read only")
        with pytest.raises(psycopg.Error) as caught:
            client.execute(f"select meshaudit.{call}".encode(), [secret])
        assert caught.value.sqlstate == "MA002"
        client.execute("rollback")
    assert len(log("id", 99)) == 1


def test_nothing_secret_is_in_the_log(client: Conn, db: Db, log: Any) -> None:
    """Neither value nor key nor a statement's text, in no encoding, anywhere in the schema but the vault."""
    value, key = b"S3cr3tValue\xf0\x9f\x98\x80~", "VeryPrivateKeyName"
    marker = "QueryTextMarker"
    with client.transaction():
        secret = write(client, key, value, "scope")
        client.execute(f"select /* {marker} */ meshaudit.read_secret('{secret}')".encode())
        by_key(client, key, "scope")
        client.execute(f"select '{marker}', * from meshaudit.read_secrets(array['{secret}'::uuid])".encode())
        client.execute("select meshaudit.delete_secret(%s)", [secret])
    leaves = db.su.execute(
        "select oid::regclass::text from pg_class where relkind in ('r', 'p', 'v')"
        " and relnamespace in ('meshaudit'::regnamespace, 'meshaudit_private'::regnamespace)"
        " and oid <> 'meshaudit_private.secrets'::regclass"
    ).fetchall()
    text = ""
    for output in ("hex", "escape"):
        db.su.execute(f"set bytea_output = {output}".encode())
        for (name,) in leaves:
            text += "".join(r for (r,) in db.su.execute(f"select t::text from {name} t".encode()))
    assert str(secret) in text
    for needle in (value[:11], value, key.encode(), marker.encode()):
        encoded = [needle.hex(), base64.b64encode(needle).decode().rstrip("=")[:-1], repr(needle)[2:-1]]
        assert not [e for e in (*encoded, needle.decode(errors="ignore")) if e.lower() in text.lower()]
