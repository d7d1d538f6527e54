"""Guards that only a rare case tells from their absence: each test here fails when one condition is left out."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from meshaudit.api.app import create
from meshaudit.api.settings import Settings
from tests.api_support import SECRET, bearer, gateway, problem, record
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
    "in somebody's name": (
        "select meshaudit.read_secret({id}), set_config('meshaudit.actor', '', true)",
        "ledger",
    ),
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


# -- the sealer


def test_sent_again_before_it_was_sealed(db: Db) -> None:
    """A record and its copies in one run: no run before it could know of them."""
    journal = Journal(db)
    client = journal.client()
    client.execute("begin read only")
    one(client, READ, journal.secret)
    client.execute("rollback")
    db.su.execute("create table flushes_the_log ()")
    slot = one(db.su, "select slot_name from meshaudit_private.journal")
    db.su.execute(
        "select pg_logical_emit_message(false, 'meshaudit', substr(data, 25)) from pg_logical_slot_peek_binary_changes("
        "%s, null, null, 'proto_version', '1', 'publication_names', 'meshaudit_journal', 'messages', 'true')"
        " where get_byte(data, 0) = 77 and get_byte(data, 1) = 0 order by lsn desc limit 1",
        [slot],
    )
    db.su.execute("create table flushes_the_log_again ()")
    assert one(journal.operator, "select meshaudit.seal()") == 1
    assert journal.outcomes() == ["granted"]
    assert journal.refused() == (0, 0, 1)


def test_the_bound_on_denials_is_of_a_minute_not_of_a_run(db: Db) -> None:
    journal = Journal(db)
    minute, before = "select date_trunc('minute', clock_timestamp())", None
    while before != one(db.su, minute):  # once more if a minute has ended meanwhile
        before = one(db.su, minute)
        client = db.connect(db.role("client", "meshaudit_client"))
        for count in (50, 20):
            for _ in range(count):
                assert _refused(client, "select meshaudit.read_secret_by_key('none')") == "MA004"
            journal.seal()
        entries = len(_log(db, f"outcome = 'denied' and db_user = '{client.info.user}'"))
    assert entries == 60


@pytest.mark.parametrize("batch", [False, True])
def test_a_claim_that_is_rolled_back_is_told_by_one_pseudonym(db: Db, batch: bool) -> None:
    """The journal has it plain: a pseudonym there would get a pseudonym of its own, and nobody could look behind it."""
    db.su.execute("select meshaudit.set_setting('erasable_identities', 'on')")
    journal = Journal(db)
    ids = [journal.secret, journal.write("second"), journal.write("third")]
    client = journal.client()
    client.execute("select set_config('meshaudit.actor', 'carol', false)")
    client.execute("begin")
    for _ in [None] if batch else ids:
        client.execute(READ_MANY if batch else READ, [ids if batch else ids[0]])
    client.execute("rollback")
    journal.seal()
    claims = db.su.execute(
        "select claimed_identity, meshaudit.identity_of(claimed_identity) from meshaudit.audit_logs"
        " where outcome = 'rolled_back'"
    ).fetchall()
    assert [behind for _, behind in claims] == ["carol"] * 3
    assert all(claim.startswith("erasable:") for claim, _ in claims)


def test_a_hold_on_anything_may_be_on_anybody(db: Db) -> None:
    db.su.execute("select meshaudit.set_setting('erasable_identities', 'on')")
    db.su.execute("select set_config('meshaudit.actor', 'carol', false)")
    db.su.execute("select meshaudit.write_secret('k', 'v', 'red')")
    erase = "select meshaudit.erase_identity('carol', 'request 1')"
    for condition in ("scope => 'red'", "secret_id => 'k'", "from_time => now()", "user_identity => 'carol'"):
        hold = one(db.su, f"select meshaudit.place_hold('case', {condition})")
        assert _refused(db.su, erase) == "MA005", condition
        db.su.execute("select meshaudit.lift_hold(%s, 'over')", [hold])
    db.su.execute("select meshaudit.place_hold('case', user_identity => 'dave')")
    assert one(db.su, erase) >= 1


# -- the API


def test_exports_are_few_and_end_in_time(db: Db) -> None:
    """One waits for the log until its time is over; meanwhile there is no other, neither the same caller's nor another's."""
    record(db, "k")
    settings = Settings(dsn=db.dsn(gateway(db)), jwt_secret=SECRET, export_seconds=1, pool_size=2)
    db.su.execute("select meshaudit.grant_auditor('ann'), meshaudit.grant_auditor('ben')")
    asgi, app = create(settings)
    waiting = (
        "select exists (select from pg_locks l join pg_database d on d.oid = l.database"
        " where d.datname = current_database() and not l.granted)"
    )

    async def ask() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(asgi, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=8) as client,
        ):

            def export(who: str) -> Coroutine[Any, Any, httpx.Response]:
                return client.get("/api/audit-logs/export", headers=bearer(who))

            first = asyncio.create_task(export("ann"))
            while not (first.done() or one(db.su, waiting)):
                await asyncio.sleep(0.01)
            others = await asyncio.gather(export("ann"), export("ben"))
            return await first, *others

    # A partition that no entry of now goes to: only who reads the log waits for it.
    last = one(db.su, "select partition from meshaudit.partitions() order by from_time desc limit 1")
    with db.su.transaction():
        db.su.execute("set local idle_in_transaction_session_timeout = '9s'")
        db.su.execute(f"lock table meshaudit_private.{last} in access exclusive mode".encode())
        late, again, other = asyncio.run(ask())
    assert problem(late, 503)["type"].endswith(":timeout")
    assert problem(again, 429)["type"].endswith(":too-many")
    assert problem(other, 503)["type"].endswith(":busy")
