"""Nobody changes an entry or makes one by hand: not on the view, the ledger or any leaf, not as superuser
or owner, not under session_replication_role = replica, not by a statement that would touch no row."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.support import Db

VIEW, LEDGER = "meshaudit.audit_logs", "meshaudit_private.ledger"
COLUMNS = (
    "id, secret_id, access_type, timestamp, user_identity, ip_address, operation, outcome, secret_table,"
    " scope, identity_source, claimed_identity, db_user, db_role, application_name, user_agent, request_id,"
    " access_id, lane, seq, prev_hash, hash"
)
# A row like any other, continuing a lane by hand; and one that claims to be of a batch.
FORGED = f"select {COLUMNS.replace(' seq', ' seq + 1 as seq')} from {LEDGER} where id = 1"
BATCH = f"select {COLUMNS.replace(' lane', ' -1 as lane')} from {LEDGER} where id = 1"
MERGED = ", ".join(f"s.{column}" for column in COLUMNS.split(", "))

CHANGES = {
    "update": "update {t} set secret_id = 'x'",
    "update of none": "update {t} set secret_id = 'x' where false",
    "update that moves": "update {t} set timestamp = timestamp + '1 month'",
    "delete": "delete from {t}",
    "delete of none": "delete from {t} where false",
    "merge update": "merge into {t} t using (select 1) s on t.id > 0 when matched then update set hash = ''",
    "merge delete": "merge into {t} t using (select 1) s on t.id > 0 when matched then delete",
    "merge of none": "merge into {t} t using (select 1) s on false when matched then delete",
}
INSERTS = {
    "insert": f"insert into {{t}} ({COLUMNS}) {FORGED}",
    "insert of a batch": f"insert into {{t}} ({COLUMNS}) {BATCH}",
    "insert on conflict": f"insert into {{t}} ({COLUMNS}) {FORGED} on conflict do nothing",
    "merge insert": (
        f"merge into {{t}} t using ({FORGED}) s on false"
        f" when not matched then insert ({COLUMNS}) values ({MERGED})"
    ),
}
TRUNCATES = {
    "truncate": "truncate {t}",
    "truncate cascade": "truncate {t} restart identity cascade",
}


@pytest.fixture
def ledger(db: Db) -> Db:
    """A ledger with one entry in this month's leaf."""
    db.su.execute("select meshaudit.write_secret('k', 'v')")
    assert entries(db) == [1]
    return db


def entries(db: Db) -> list[int]:
    return [i for (i,) in db.su.execute("select id from meshaudit.audit_logs order by id")]


def leaves(db: Db) -> list[str]:
    rows = db.su.execute(
        "select inhrelid::regclass::text from pg_inherits"
        " where inhparent = 'meshaudit_private.ledger'::regclass"
    )
    return [name for (name,) in rows]


def refused(conn: psycopg.Connection[Any], statement: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(statement.encode())
    assert caught.value.sqlstate == "MA003", (statement, caught.value)
    assert caught.value.diag.message_hint, statement


@contextmanager
def acting(db: Db, how: str) -> Iterator[psycopg.Connection[Any]]:
    """Those who hold every privilege on the ledger, and what they might try first."""
    conn = db.connect(db.pg.superuser)
    for part in how.split(", "):
        conn.execute(
            {
                "superuser": "reset all",
                "replica": "set session_replication_role = replica",
                "set role": "set role meshaudit_owner",
                "session authorization": "set session authorization meshaudit_owner",
                "no row security": "set row_security = off",
                # what the chaining trigger goes by
                "forged batch": "set meshaudit.batch = '0 1 00'; set meshaudit.lane_at = '(0,1)'",
            }[part].encode()
        )
    yield conn


POWERFUL = (
    "superuser",
    "superuser, replica",
    "replica, set role",
    "replica, session authorization",
    "superuser, forged batch, no row security",
    "replica, forged batch, set role",
)


@pytest.mark.parametrize("how", POWERFUL)
def test_no_power_is_enough(ledger: Db, how: str) -> None:
    tables = [LEDGER, *leaves(ledger)]
    assert len(tables) == 6
    with acting(ledger, how) as conn:
        for table in tables:
            for change in (CHANGES | INSERTS | TRUNCATES).values():
                refused(conn, change.format(t=table))
        for name, change in (CHANGES | INSERTS).items():
            # views take MERGE from 17 on
            if ledger.pg.version >= 17 or not name.startswith("merge"):
                refused(conn, change.format(t=VIEW))
    assert entries(ledger) == [1]
    assert ledger.su.execute("select * from meshaudit.verify()").fetchall() == []


@pytest.mark.parametrize("how", POWERFUL)
def test_copy_is_refused(ledger: Db, how: str) -> None:
    row = ledger.su.execute(f"select {COLUMNS} from {LEDGER}".encode()).fetchone() or ()
    line = "\t".join("\\N" if v is None else "x" if isinstance(v, bytes) else str(v) for v in row)
    targets = [LEDGER, next(name for name in leaves(ledger) if holds_the_entry(ledger, name))]
    with acting(ledger, how) as conn:
        for table in targets:
            copy_in = f"copy {table} ({COLUMNS}) from stdin".encode()
            with pytest.raises(psycopg.Error) as caught, conn.cursor().copy(copy_in) as copy:
                copy.write(line + "\n")
            assert caught.value.sqlstate == "MA003", (table, caught.value)
    assert entries(ledger) == [1]


def holds_the_entry(db: Db, leaf: str) -> bool:
    return bool(db.su.execute(f"select from {leaf}".encode()).rowcount)


def test_a_function_of_the_owners_is_no_way_in(ledger: Db) -> None:
    """Becoming the owner shows; even inside a function that belongs to it, changes are refused."""
    ledger.su.execute(
        "create function public.change() returns void language sql security definer"
        " as $$ delete from meshaudit_private.ledger $$;"
        "alter function public.change() owner to meshaudit_owner"
    )
    refused(ledger.su, "select public.change()")
    refused(
        ledger.su, "do $$ begin set local role meshaudit_owner; delete from meshaudit_private.ledger; end $$"
    )
    assert entries(ledger) == [1]


def test_without_privilege_it_is_42501(any_db: Db) -> None:
    """Nothing of it comes near the triggers for those who were given nothing."""
    any_db.su.execute("select meshaudit.write_secret('k', 'v')")
    groups: list[tuple[str, ...]] = [
        (),
        ("meshaudit_client",),
        ("meshaudit_operator",),
        ("meshaudit_auditor", "meshaudit_client", "meshaudit_operator"),
    ]
    if any_db.flavour != "superuser":
        groups += [("anon",), ("authenticated",), ("service_role",)]
    for group in groups:
        conn = any_db.connect(any_db.role("user", *group))
        for table in (VIEW, LEDGER, *leaves(any_db)):
            for name, change in (CHANGES | INSERTS | TRUNCATES).items():
                if table == VIEW and name.startswith(("truncate", "merge")):
                    continue
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(change.format(t=table).encode())
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(f"copy {table} from stdin".encode())
    assert entries(any_db) == [1]


def test_the_installer_cannot_either(any_db: Db) -> None:
    """Supabase's postgres has BYPASSRLS and pg_read_all_data, and created the roles."""
    any_db.su.execute("select meshaudit.write_secret('k', 'v')")
    conn = any_db.connect()
    for table in (VIEW, LEDGER, *leaves(any_db)):
        for name, change in (CHANGES | TRUNCATES).items():
            if table == VIEW and name.startswith(("truncate", "merge")):
                continue
            with pytest.raises(psycopg.Error) as caught:
                conn.execute(change.format(t=table).encode())
            assert caught.value.sqlstate == ("MA003" if any_db.flavour == "superuser" else "42501")
    assert entries(any_db) == [1]


@pytest.mark.parametrize("interval", ["week", "month"])
def test_later_partitions_are_guarded_too(ledger: Db, interval: str) -> None:
    before = leaves(ledger)
    ledger.su.execute("select meshaudit.set_setting('partition_interval', %s)", [interval])
    ledger.su.execute("select meshaudit.set_setting('partitions_ahead', '20')")
    ledger.su.execute("select meshaudit.maintain()")
    new = sorted(set(leaves(ledger)) - set(before))
    assert len(new) > 3
    with acting(ledger, "superuser, replica") as conn:
        for leaf in (new[0], new[-1]):
            for change in (CHANGES | INSERTS | TRUNCATES).values():
                refused(conn, change.format(t=leaf))


def test_detached_partitions_stay_guarded(ledger: Db) -> None:
    """A superuser may detach; that alone opens nothing."""
    leaf = next(name for name in leaves(ledger) if holds_the_entry(ledger, name))
    ledger.su.execute(f"alter table {LEDGER} detach partition {leaf}".encode())
    for change in (CHANGES | TRUNCATES).values():
        refused(ledger.su, change.format(t=leaf))
    problems = ledger.su.execute("select problem from meshaudit.verify()").fetchall()
    assert problems == [("deleted",)]


def test_accesses_go_on_and_chain_under_replica(ledger: Db) -> None:
    all_ids = "array(select id from meshaudit_private.secrets)"
    with acting(ledger, "superuser, replica") as conn:
        secret = conn.execute("select meshaudit.write_secret('other', 'v')").fetchone()
        assert secret is not None
        assert conn.execute("select meshaudit.read_secret(%s)", secret).fetchone() == (b"v",)
        many = conn.execute(f"select count(*) from meshaudit.read_secrets({all_ids})".encode())
        assert many.fetchone() == (2,)
        assert conn.execute("select meshaudit.delete_secret(%s)", secret).fetchone() == (True,)
    rows = ledger.su.execute("select operation from meshaudit.audit_logs order by id").fetchall()
    assert [op for (op,) in rows] == ["create", "create", "read", "read", "read", "delete"]
    assert ledger.su.execute("select * from meshaudit.verify()").fetchall() == []


def test_dropping_the_guard_shows(ledger: Db) -> None:
    """Whoever can drop the protection is told by status(), and, having used it, by verify()."""

    def healthy() -> bool:
        row = ledger.su.execute(
            "select ok from meshaudit.status() where \"check\" = 'append-only'"
        ).fetchone()
        assert row is not None
        return bool(row[0])

    assert healthy()
    leaf = next(name for name in leaves(ledger) if holds_the_entry(ledger, name))
    for trigger in ("append_only", "chain_entry"):
        name = sql.SQL(leaf), sql.Identifier(trigger)
        ledger.su.execute(sql.SQL("alter table {} disable trigger {}").format(*name))
        assert not healthy(), trigger
        ledger.su.execute(sql.SQL("alter table {} enable trigger {}").format(*name))
        # enabled, but silent under session_replication_role = replica
        assert not healthy(), trigger
        ledger.su.execute(sql.SQL("alter table {} enable always trigger {}").format(*name))
        assert healthy(), trigger
    ledger.su.execute(f"alter table {leaf} disable trigger append_only".encode())
    ledger.su.execute(f"update {leaf} set user_identity = 'somebody else'".encode())
    ledger.su.execute(f"alter table {leaf} enable always trigger append_only".encode())
    problems = ledger.su.execute("select id, problem from meshaudit.verify()").fetchall()
    assert problems == [(1, "edited")]
