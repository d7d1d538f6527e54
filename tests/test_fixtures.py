"""The test harness itself: flavours are what they claim, databases and roles come and go."""

import psycopg
import pytest

from tests.flavours import FLAVOURS, Templates
from tests.support import Db, wait_until


def test_each_flavour_has_its_installer(any_db: Db) -> None:
    who = any_db.connect().execute(
        "select current_user, rolsuper, pg_get_userbyid(datdba) = current_user"
        " from pg_roles, pg_database where rolname = current_user and datname = current_database()"
    )
    superuser = any_db.flavour == "superuser"
    assert who.fetchone() == (any_db.installer, superuser, True)
    assert any_db.su.info.user == any_db.pg.superuser


@pytest.mark.parametrize("flavour", FLAVOURS[1:])
def test_the_two_regimes_of_default_privileges(template: Templates, flavour: str) -> None:
    db = template.clone_empty(flavour)
    try:
        db.connect().execute("create table public.t (); create function public.f() returns int return 1")
        granted = db.su.execute(
            "select has_table_privilege('anon', 't', 'select'),"
            " has_table_privilege('anon', 't', 'truncate'), auth.uid() is null"
        )
        assert granted.fetchone() == (flavour == "supabase_old", True, True)
    finally:
        db.drop()


def test_roles_log_in_and_databases_are_separate(template: Templates) -> None:
    first, second = template.clone("superuser"), template.clone("superuser")
    try:
        first.su.execute("create table only_here ()")
        with pytest.raises(psycopg.errors.UndefinedTable):
            second.su.execute("select from only_here")
        role = first.role("app", "pg_monitor", bypassrls=True)
        me = first.connect(role).execute(
            "select session_user::text, rolbypassrls, pg_has_role('pg_monitor', 'member')"
            " from pg_roles where rolname = session_user"
        )
        assert me.fetchone() == (role, True, True)
    finally:
        first.drop()
        second.drop()
    gone = first.pg.run("select count(*) from pg_roles where rolname = %s", role)
    assert gone.fetchone() == (0,)


def test_waiting_is_seen_in_the_server(db: Db) -> None:
    db.su.execute("create table t ()")
    holder, waiter = db.connect(autocommit=False), db.connect()
    holder.execute("lock table t")
    waiter.pgconn.send_query(b"select from t")
    wait_until(lambda: db.waiting() == [waiter.info.backend_pid])
    holder.rollback()
    wait_until(lambda: not db.waiting())
