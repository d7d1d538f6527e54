"""What roles bring with them: BYPASSRLS, and memberships that end with the last grant."""

import psycopg
import pytest

from meshaudit import schema
from meshaudit.server import Server
from tests import servers
from tests.flavours import Templates
from tests.support import SETTINGS, Db, Pg
from tests.test_auditors import count, grant, ledger, nothing, revoke

__all__ = ["ledger"]  # the fixture


def bypassing(db: Db) -> tuple[bool, str]:
    query = """select ok, detail from meshaudit.status() where "check" = 'auditors'"""
    ((fine, detail),) = db.su.execute(query.encode()).fetchall()
    return fine, detail


def test_who_bypasses_row_security_is_granted_all_or_nothing(any_db: Db) -> None:
    role = any_db.role("bypassing", bypassrls=True)
    for identity in (role, any_db.pg.superuser):
        with pytest.raises(psycopg.Error) as caught:
            grant(any_db, identity, "a")
        assert caught.value.sqlstate == "MA005"
        assert "'*'" in (caught.value.diag.message_hint or "")
    conn = any_db.connect(role)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        count(conn)
    assert any_db.su.execute("select from meshaudit.audit_logs").rowcount == 0
    assert bypassing(any_db) == (True, "nobody sees more than was granted")
    grant(any_db, role)
    assert count(conn) == 1
    assert bypassing(any_db)[0]


def test_no_api_role_bypasses_row_security(ledger: Db) -> None:
    """A JWT's grant makes the API's roles members: whoever came as that one would see all."""
    role = ledger.role("service", bypassrls=True)
    ledger.su.execute("select meshaudit.set_setting('api_roles', %s)", [role])
    for scope in ("a", "*"):
        with pytest.raises(psycopg.Error) as caught:
            grant(ledger, "alice", scope)
        assert caught.value.sqlstate == "MA005"
        assert "api_roles" in (caught.value.diag.message_hint or "")
    grant(ledger, role)
    grant(ledger, "alice", "a")


def test_status_tells_who_sees_more_than_was_granted(ledger: Db) -> None:
    group = ledger.role("group", login=False)
    grant(ledger, group, "a")
    inside = ledger.role("inside", group, bypassrls=True)
    directly = ledger.role("directly", "meshaudit_auditor", bypassrls=True)
    ledger.role("harmless", group)
    ledger.role("outside", bypassrls=True)
    fine, detail = bypassing(ledger)
    assert not fine
    assert f": {directly}, {inside};" in detail
    grant(ledger, group)
    grant(ledger, directly)
    assert bypassing(ledger)[0]
    # later changes of a role are its owner's doing, and told
    later = ledger.role("later")
    grant(ledger, later, "a")
    assert bypassing(ledger)[0]
    ledger.pg.run(f"alter role {later} bypassrls")
    assert later in bypassing(ledger)[1]


def test_who_may_grant_is_not_told_as_an_auditor(any_db: Db) -> None:
    assert bypassing(any_db)[0]


def members(db: Db, role: str) -> bool:
    query = "select pg_has_role(%s, 'meshaudit_auditor', 'member')"
    ((found,),) = db.su.execute(query, [role]).fetchall()
    return bool(found)


@pytest.fixture
def alone(ledger: Db) -> Db:
    """As if no other database of the server, of which there are some, had meshaudit."""
    ledger.su.execute(
        "create or replace function meshaudit_private.is_the_only_one() returns boolean"
        " language sql stable set search_path = '' as 'select true'"
    )
    return ledger


def test_the_last_grant_ends_the_membership(alone: Db) -> None:
    role = alone.role("auditor")
    grant(alone, role, "a")
    grant(alone, role, "b")
    assert revoke(alone, role, "a")
    assert members(alone, role)
    assert revoke(alone, role, "b")
    assert not members(alone, role)
    # what somebody else has granted stays
    other = alone.role("other", "meshaudit_auditor")
    grant(alone, other, "a")
    assert revoke(alone, other, "a")
    assert members(alone, other)


def test_the_last_subject_ends_the_memberships_of_the_api(alone: Db) -> None:
    users, staff = alone.role("users", login=False), alone.role("staff", login=False)
    alone.su.execute("select meshaudit.set_setting('api_roles', %s)", [f"{users},{staff}"])
    grant(alone, "alice", "a")
    grant(alone, "bob", "b")
    grant(alone, staff, "c")
    assert revoke(alone, "alice", "a")
    assert members(alone, users)
    assert revoke(alone, "bob", "b")
    assert not members(alone, users)
    assert members(alone, staff)
    grant(alone, "bob", "b")
    assert revoke(alone, staff, "c")
    assert members(alone, staff)
    assert revoke(alone, "bob", "b")
    assert not members(alone, staff)


def test_an_identity_that_became_a_role(ledger: Db) -> None:
    """Granted as a subject, then as a role of that name: both are revoked."""
    role = ledger.role("auditor")
    ledger.pg.run(f"alter role {role} rename to {role}_hidden")
    ledger.su.execute("select meshaudit.set_setting('api_roles', %s)", [f"{role}_hidden"])
    grant(ledger, role, "a")
    ledger.pg.run(f"alter role {role}_hidden rename to {role}")
    grant(ledger, role, "a")
    assert revoke(ledger, role, "a")
    assert not revoke(ledger, role, "a")


def test_whether_another_database_has_it(pg: Pg) -> None:
    """On a server of its own, since the tests' has many."""
    if pg.server is None:
        pytest.skip("the server is not ours")
    with Server.temporary(bindir=pg.server.bindir, settings=SETTINGS, parent=servers.memory()) as server:
        own = Pg(server.dsn(), server)
        own.admin.execute("create role auditor login")
        with psycopg.connect(own.dsn("postgres"), autocommit=True) as first:
            schema.install(first)
            first.execute("select meshaudit.grant_auditor('auditor', 'a')")
            own.create_database("second")
            with psycopg.connect(own.dsn("second"), autocommit=True) as second:
                schema.install(second)
            asked = "select pg_has_role('auditor', 'meshaudit_auditor', 'member')"
            for expected in (True, False):
                first.execute("select meshaudit.revoke_auditor('auditor', 'a')")
                assert first.execute(asked).fetchone() == (expected,)
                own.drop_database("second")
                first.execute("select meshaudit.grant_auditor('auditor', 'a')")
        own.close()


def test_revoking_in_one_database_leaves_another_alone(template: Templates) -> None:
    """Roles belong to the server, grants to a database."""
    first, second = template.clone("superuser"), template.clone("superuser")
    try:
        role = first.role("auditor")
        for db in (first, second):
            db.su.execute("select meshaudit.write_secret('k', 'v', 'a')")
            grant(db, role, "a")
        assert revoke(second, role, "a")
        assert count(first.connect(role), "secret_table = 'meshaudit.secrets'") == 1
        assert nothing(second.connect(role))
    finally:
        second.drop()
        first.drop()
