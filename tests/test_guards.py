"""Guards that only a rare case tells from their absence: each test here fails when one condition is left out."""

import psycopg
import pytest
from psycopg import sql

from tests.journal_support import READ, READ_MANY, Conn, Journal, one
from tests.support import Db, unique


def _log(db: Db, where: str = "true") -> list[tuple[str, str]]:
    query = f"select secret_id, outcome from meshaudit.audit_logs where {where} order by id"
    return db.su.execute(query.encode()).fetchall()


def _refused(conn: Conn, query: str, *params: object) -> str:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(query.encode(), params or None)
    conn.rollback()
    return str(caught.value.sqlstate)


# -- who may read the log


def test_a_range_is_not_verified_for_an_auditor_of_a_part(db: Db) -> None:
    """Of a range nothing is recorded, so that nothing else would refuse it."""
    auditor = db.connect(db.role("auditor"))
    db.su.execute("select meshaudit.grant_auditor(%s, 'a')", [auditor.info.user])
    for call in ("verify()", "verify(from_time => now() - interval '1 hour')", "verify(to_time => now())"):
        assert _refused(auditor, f"select * from meshaudit.{call}") == "MA001"


def test_a_role_that_is_named_like_a_subject_is_not_that_subject(db: Db) -> None:
    db.su.execute("select meshaudit.write_secret('k', 'v', 'a')")
    name = unique("subject")
    db.su.execute("select meshaudit.grant_auditor(%s, '*')", [name])
    later = db.role("subject", "meshaudit_auditor")
    db.su.execute(sql.SQL("alter role {} rename to {}").format(sql.Identifier(later), sql.Identifier(name)))
    db.su.execute(sql.SQL("alter role {} password 'test'").format(sql.Identifier(name)))
    db._roles.append(name)
    conn = db.connect(name)
    assert one(conn, "select count(*) from meshaudit.audit_logs") == 0
    assert one(conn, "select meshaudit.sees_everything()") is False


def test_what_is_not_inherited_shows_nothing(db: Db) -> None:
    """A role's scopes are those of the roles whose rights it has, not of those that it might become."""
    db.su.execute("select meshaudit.write_secret('k', 'v', 'a')")
    granted = db.role("granted", login=False)
    db.su.execute("select meshaudit.grant_auditor(%s, 'a')", [granted])
    between = db.role("between", granted, login=False, inherit=False)
    conn = db.connect(db.role("member", between, "meshaudit_auditor"))
    assert one(conn, "select count(*) from meshaudit.audit_logs") == 0
    conn.execute(sql.SQL("set role {}").format(sql.Identifier(granted)))
    assert one(conn, "select count(*) from meshaudit.audit_logs where scope = 'a'") > 0


TOKEN = "select b.token from meshaudit_private.begin_search(current_user, null) b"


def _auditor(db: Db, *groups: str) -> Conn:
    conn = db.connect(db.role("auditor", *groups))
    db.su.execute("select meshaudit.grant_auditor(%s)", [conn.info.user])
    return conn


def _recorded(db: Db, conn: Conn, token: str) -> list[str]:
    """What the log says of a query that shows this token."""
    conn.execute("select set_config('meshaudit.search', %s, false)", [token])
    before = len(_log(db))
    conn.execute("select * from meshaudit.audit_logs")
    return [what for what, _ in _log(db)[before:]]


def test_who_can_become_a_reader_of_all_data_hides_no_query(db: Db) -> None:
    """As pg_read_all_data one can name the function that makes a search's token, and call it as oneself."""
    conn = _auditor(db, db.role("between", "pg_read_all_data", login=False, inherit=False))
    conn.execute("set role pg_read_all_data")
    conn.execute(f"prepare token as {TOKEN}".encode())
    conn.execute("reset role")
    assert _recorded(db, conn, one(conn, "execute token")) == ["a query"]


def test_a_token_is_for_its_session_and_not_for_who_can_make_it(db: Db) -> None:
    maker, other = _auditor(db), _auditor(db)
    db.su.execute(
        sql.SQL("grant usage on schema meshaudit_private to {}").format(sql.Identifier(str(maker.info.user)))
    )
    token = one(maker, TOKEN)
    assert _recorded(db, other, token) == ["a query"]
    assert _recorded(db, maker, token) == ["a query"]


# -- protected tables


def test_a_mark_cannot_be_made_by_who_knows_all_but_the_key(db: Db) -> None:
    db.su.execute("create table guarded (id int primary key, v text); insert into guarded values (1, 'x')")
    role = db.role("reader")
    db.su.execute(f"grant select on guarded to {role}".encode())
    db.su.execute("select meshaudit.protect('guarded', '{v}')")
    query = "select xidsend(xmin), tidsend(ctid) from meshaudit_protected.guarded"
    xmin, ctid = db.su.execute(query).fetchall()[0]
    conn = db.connect(role)
    conn.execute(
        f"""do $$ declare x text; begin
          perform set_config('meshaudit.revealed', encode(sha256(timestamptz_send(transaction_timestamp())
            || timestamptz_send(statement_timestamp()) || int4send(pg_backend_pid())
            || '\\x{xmin.hex()}'::bytea || '\\x{ctid.hex()}'::bytea || convert_to('public.guarded 1', 'UTF8')), 'hex'), true);
          select v into x from guarded;
        end $$""".encode()
    )
    assert _log(db, "secret_table = 'public.guarded'") == [("1", "granted")]


# -- a record is on disk before the value is returned

WAYS = {
    "one": ("select meshaudit.read_secret({id})", "ledger"),
    "by key": ("select meshaudit.read_secret_by_key('first')", "ledger"),
    "many": ("select count(*) from meshaudit.read_secrets(array[{id}, {other}])", "ledger"),
    "one, in journal mode": ("select meshaudit.read_secret({id})", "journal"),
    "by key, in journal mode": ("select meshaudit.read_secret_by_key('first')", "journal"),
    "many, in journal mode": ("select count(*) from meshaudit.read_secrets(array[{id}, {other}])", "journal"),
    "a protected row": ("select v from guarded", "ledger"),
    "in somebody's name": ("select meshaudit.read_secret({id}), set_config('meshaudit.actor', '', true)", "ledger"),
}


@pytest.mark.parametrize("begin", ["begin", "begin read only"])
def test_every_read_is_flushed(db: Db, begin: str) -> None:
    if db.pg.version < 17:
        pytest.skip("before 17 a record is on disk when its transaction ends")
    journal = Journal(db)
    other = journal.write("second")
    db.su.execute("create table guarded (id int primary key, v text); insert into guarded values (1, 'x')")
    db.su.execute(sql.SQL("grant select on guarded to {}").format(sql.Identifier(journal.role)))
    db.su.execute("select meshaudit.protect('guarded', '{v}')")
    client = journal.client()
    late = []
    for name, (way, mode) in WAYS.items():
        journal.operator.execute("select meshaudit.set_setting('vault_mode', %s)", [mode])
        client.execute(f"set meshaudit.actor = '{'x' if 'name' in name else ''}'".encode())
        query = way.format(id=f"'{journal.secret}'::uuid", other=f"'{other}'::uuid")
        client.execute(begin.encode())
        start = one(client, "select pg_current_wal_insert_lsn()")
        client.execute(query.encode()).fetchall()
        if not one(client, "select pg_current_wal_flush_lsn() > %s::pg_lsn", start):
            late.append(name)
        client.execute("rollback")
    assert not late
