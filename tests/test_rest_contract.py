"""What a caller through PostgREST meets where schema meshaudit is exposed: functions, log, errors."""

import pytest

from tests.meshhook import ALICE, BOB
from tests.postgrest import Rest

NOBODYS = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def rest(supabase_db):
    with supabase_db.connect() as conn:
        conn.execute("grant meshaudit_client to authenticated")
    return Rest(supabase_db, "meshaudit")


@pytest.fixture
def armed(rest, supabase_db):
    with supabase_db.connect() as conn:
        conn.execute("select meshaudit.arm_journal()")
        yield rest
        conn.execute("select meshaudit.disarm_journal()")


def _write(caller, scope="p1", value="\\x01ff"):
    answer = caller.rpc("write_secret", {"key": "STRIPE_KEY", "value": value, "scope": scope})
    assert answer.status == 200
    return answer.json()


def test_a_secret_is_written_and_read(rest):
    alice = rest.as_user(ALICE)
    secret = _write(alice)
    assert alice.rpc("read_secret", {"id": secret}).json() == "\\x01ff"
    assert alice.rpc("read_secret_by_key", {"key": "STRIPE_KEY", "scope": "p1"}).json() == "\\x01ff"
    assert alice.rpc("read_secrets", {"ids": [secret]}).json() == [{"id": secret, "value": "\\x01ff"}]
    assert alice.rpc("delete_secret", {"id": secret}).json() is True


def test_an_auditor_reads_the_log_of_its_scope(rest, supabase_db):
    alice, bob = rest.as_user(ALICE), rest.as_user(BOB)
    secret, other = _write(alice), _write(alice, "p2")
    alice.rpc("read_secret", {"id": secret})
    alice.rpc("read_secret", {"id": other})
    with supabase_db.connect() as conn:
        conn.execute("select meshaudit.grant_auditor(%s, 'p1')", [BOB])
    found = bob.get(
        "audit_logs",
        secret_id=f"eq.{secret}",
        access_type="eq.read",
        timestamp="gte.2020-01-01T00:00:00Z",
        order="timestamp.desc",
        limit="10",
    )
    assert found.status == 200
    (entry,) = found.json()
    assert (entry["user_identity"], entry["identity_source"], entry["ip_address"]) == (
        ALICE,
        "jwt",
        "203.0.113.7",
    )
    assert bob.get("audit_logs", secret_id=f"eq.{other}").json() == []
    assert alice.get("audit_logs").json() == []
    searched = bob.rpc("search_audit_logs", {"secret_id": secret, "access_type": "read"}).json()
    assert searched == [entry]
    assert bob.rpc("search_audit_logs", {"secret_id": secret, "access_type": "read"}, get=True).json() == [
        entry
    ]
    answer = bob.rpc("search_audit_logs", {"access_type": "readd"})
    assert (answer.status, answer.json()["code"]) == (400, "MA005")


def test_refusals_are_http(rest, supabase_db):
    alice, bob = rest.as_user(ALICE), rest.as_user(BOB)
    secret = _write(alice)
    missing = alice.rpc("read_secret", {"id": NOBODYS})
    assert (missing.status, missing.json()["code"]) == (404, "MA004")
    assert missing.json()["message"] == f"no such secret: {NOBODYS}"
    assert missing.json()["hint"]
    odd = alice.rpc("read_secret_by_key", {"key": 'é" \\ {', "scope": ""})
    assert (odd.status, odd.json()["message"]) == (404, 'no such secret: é" \\ {')
    assert alice.rpc("read_secret", {"id": None}).status == 404
    bad = alice.rpc("write_secret", {"key": "", "value": "\\x01"})
    assert (bad.status, bad.json()["code"]) == (400, "MA005")
    # by GET the transaction is READ ONLY, and nothing is armed that could record it
    unrecorded = alice.rpc("read_secret", {"id": secret}, get=True)
    assert (unrecorded.status, unrecorded.json()["code"]) == (503, "MA002")
    assert rest.as_anon().rpc("read_secret", {"id": secret}).status == 401
    assert rest.as_service().rpc("read_secret", {"id": secret}).status == 403
    with supabase_db.connect() as conn:
        conn.execute("select meshaudit.grant_auditor(%s, 'p1')", [BOB])
    partial = bob.rpc("status")
    assert (partial.status, partial.json()["code"]) == (403, "MA001")


def test_a_get_is_recorded_by_the_journal_and_so_is_a_denial(armed, supabase_db):
    alice = armed.as_user(ALICE)
    secret = _write(alice)
    assert alice.rpc("read_secret", {"id": secret}, get=True).json() == "\\x01ff"
    assert alice.rpc("read_secret", {"id": NOBODYS}).status == 404
    with supabase_db.connect() as conn:
        conn.execute("select meshaudit.seal()")
    entries = supabase_db.su.execute(
        "select secret_id, outcome, user_identity from meshaudit.audit_logs"
        " where operation = 'read' order by id"
    ).fetchall()
    assert entries == [(secret, "granted", ALICE), (NOBODYS, "denied", ALICE)]


def test_a_direct_session_gets_our_sqlstate(rest, supabase_db):
    conn = supabase_db.su
    raised = f"""do $$ begin perform meshaudit.read_secret('{NOBODYS}');
      exception when sqlstate 'MA004' then raise notice 'plain'; end $$"""
    conn.execute(raised)
    conn.execute("select set_config('request.method', 'POST', false)")
    shaped = raised.replace("MA004", "PGRST")
    conn.execute(shaped)
