"""What is remembered of a row that was revealed lets nobody else off, and nobody whose snapshot does not know it."""

import psycopg
import pytest

from meshaudit import schema
from tests.protect.support import ID2, App
from tests.support import Db, unique

READ = f"select value from secrets where id = '{ID2}'"
CLAIMS = """set local request.jwt.claims = '{{"sub": "{}"}}';"""


@pytest.mark.parametrize("mode", ["ledger", "journal"])
@pytest.mark.parametrize("who", ["subject", "actor", "role"])
def test_each_caller_of_one_message_is_recorded(app: App, mode: str, who: str) -> None:
    """Statements that are sent as one have one time; who calls may differ."""
    other = app.db.role("other")
    app.db.su.execute(f"grant {other} to {app.user}; grant select on secrets, projects to {other}".encode())
    app.db.su.execute("select meshaudit.arm_journal()")
    app.protect(mode=mode)
    app.db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [app.user])
    switch = {
        "subject": (CLAIMS.format("carol"), CLAIMS.format("dave")),
        "actor": ("set local meshaudit.actor = 'carol';", "set local meshaudit.actor = 'dave';"),
        "role": ("", f"set local role {other};"),
    }[who]
    one, two = (f"{how} {READ};" for how in switch)
    # without parameters: one message
    app.conn.execute(f"begin; set local app.who = 'ann'; {one} {two} {two} commit".encode())
    app.db.su.execute("select meshaudit.seal()")
    rows = app.db.su.execute(
        "select user_identity, claimed_identity, db_role from meshaudit.audit_logs"
        " where secret_table = 'public.secrets' and operation = 'read' order by \"timestamp\""
    ).fetchall()
    assert len(rows) == 2
    assert rows[0] != rows[1]


def test_a_mark_that_is_brought_back_is_of_no_use_to_another(app: App) -> None:
    app.protect()
    app.db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [app.user])
    app.entries()
    keep = "select set_config('my.mark', current_setting('meshaudit.revealed'), false);"
    back = "select set_config('meshaudit.revealed', current_setting('my.mark'), true);"
    app.conn.execute(
        f"begin; set local app.who = 'ann'; {CLAIMS.format('alice')} {READ}; {keep} commit;"
        f" begin; set local app.who = 'ann'; {CLAIMS.format('bob')} {back} {READ}; commit".encode()
    )
    rows = app.db.su.execute(
        "select user_identity from meshaudit.audit_logs where secret_table = 'public.secrets' order by id"
    ).fetchall()
    assert rows == [("alice",), ("bob",)]


@pytest.mark.parametrize("armed", [True, False])
@pytest.mark.parametrize("mode", ["ledger", "journal"])
def test_a_snapshot_that_is_older_than_meshaudit_reads_nothing(db: Db, armed: bool, mode: str) -> None:
    if mode == "journal" and not armed:
        pytest.skip("journal mode takes an armed journal")
    name = unique("older")
    db.pg.create_database(name)
    older = Db(db.pg, name, "superuser", db.pg.superuser)
    try:
        reader = older.role("reader")
        older.su.execute(
            "create table s (id int primary key, value text); insert into s values (1, 'secret')"
        )
        older.su.execute(f"grant select on s to {reader}".encode())
        conn = older.connect(reader)
        conn.execute("begin isolation level repeatable read")
        conn.execute("select from pg_class limit 1")
        with psycopg.connect(older.dsn(), autocommit=True) as own:
            schema.install(own)
            if armed:
                own.execute("select meshaudit.arm_journal()")
            own.execute("select meshaudit.protect('s', array['value'], null, %s)", [mode])
        with pytest.raises(psycopg.errors.SerializationFailure):
            conn.execute("select * from s")
        conn.execute("rollback")
        assert conn.execute("select value from s").fetchall() == [("secret",)]
        if armed:
            older.su.execute("select meshaudit.seal()")
            assert older.su.execute("select meshaudit.disarm_journal()").fetchone() == (True,)
        told = "select operation from meshaudit.audit_logs where secret_table = 'public.s' and operation = 'read'"
        assert older.su.execute(told.encode()).fetchall() == [("read",)]
    finally:
        older.drop()
