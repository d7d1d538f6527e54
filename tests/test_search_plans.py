"""The plans that searches get, as auditors: an index for every filter, no partition that is not needed.

The plans are those of search_audit_logs() itself, told by auto_explain.
"""

import re
from typing import Any

import psycopg
import pytest

from tests.support import Db

Conn = psycopg.Connection[Any]
FILL = """
create function pg_temp.fill() returns void language plpgsql as $$
declare
  v_start timestamptz;
  v_name text;
begin
  for i in 0 .. 11 loop
    v_start := make_timestamptz(2025, i + 1, 1, 0, 0, 0, 'UTC');
    v_name := meshaudit_private.partition_name(v_start, 'month');
    set local role meshaudit_owner;
    perform meshaudit_private.add_partition(v_start, 'month');
    reset role;
    execute format('alter table meshaudit_private.%I disable trigger all', v_name);
    insert into meshaudit_private.ledger (id, secret_id, access_type, "timestamp", user_identity, ip_address,
        operation, outcome, secret_table, scope, db_user, lane, seq)
      select i * 4000 + n, 'secret ' || n % 97, case when n % 50 = 0 then 'write' else 'read' end,
        v_start + n * interval '5 minutes', 'user ' || n % 89, inet '10.0.0.0' + n % 500,
        case when n % 50 <> 0 then 'read' when n % 100 = 0 then 'create' else 'update' end,
        case n % 200 when 0 then 'denied' when 1 then 'rolled_back' else 'granted' end,
        't', 'scope ' || n % 83, 'u', 1, i * 4000 + n
      from generate_series(1, 4000) n;
  end loop;
end $$;
select pg_temp.fill();
analyze meshaudit_private.ledger;
"""

# A filter, and the indexes that may answer it to an auditor of all; to one of a scope, that on scope may too.
FILTERS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "timestamp_idx"),
    "secret": ({"secret_id": "secret 5"}, "secret_id_timestamp_user_identity_scope_idx"),
    "time": ({"from_time": "2025-03-10 00:00+00", "to_time": "2025-03-12 00:00+00"}, "timestamp_idx"),
    "identity": ({"user_identity": "user 5"}, "user_identity_timestamp_scope_idx"),
    "access read": ({"access_type": "read"}, "timestamp_idx"),
    "access write": ({"access_type": "write"}, "timestamp_scope_idx"),
    "operation read": ({"operation": "read"}, "timestamp_idx"),
    "operation": ({"operation": "create"}, "operation_timestamp_scope_idx"),
    "outcome granted": ({"outcome": "granted"}, "timestamp_idx"),
    "outcome": ({"outcome": "denied"}, "outcome_timestamp_scope_idx"),
    "scope": ({"scope": "scope 7"}, "scope_timestamp_idx"),
    "ip": ({"ip": "10.0.0.7"}, "ip_address_timestamp_idx"),
    "network": ({"ip": "10.0.1.192/30"}, "ip_address_timestamp_idx"),
    "secret, time": (
        {"secret_id": "secret 5", "from_time": "2025-03-10 00:00+00", "to_time": "2025-04-01 00:00+00"},
        "secret_id_timestamp_user_identity_scope_idx",
    ),
    "identity, time": (
        {"user_identity": "user 5", "from_time": "2025-03-10 00:00+00", "to_time": "2025-04-01 00:00+00"},
        "user_identity_timestamp_scope_idx",
    ),
    "secret, identity": (
        {"secret_id": "secret 5", "user_identity": "user 5"},
        "secret_id_timestamp_user_identity_scope_idx|user_identity_timestamp_scope_idx",
    ),
}


@pytest.fixture(scope="module")
def filled(template: Any) -> Any:
    """Entries in the twelve months of 2025."""
    db = template.clone("superuser")
    db.su.execute(FILL.encode())
    yield db
    db.drop()


def plans(db: Db, of: str, **filters: Any) -> list[str]:
    """The plans that a search's own queries got, and then did run."""
    role = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s, %s)", [role, of])
    notes: list[str] = []
    with psycopg.connect(db.dsn(db.pg.superuser), autocommit=True) as conn:
        conn.execute("load 'auto_explain'")
        conn.execute("set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on")
        conn.execute("set auto_explain.log_level = 'notice'; set auto_explain.log_analyze = on")
        conn.execute(f"set session authorization {role}".encode())
        conn.add_notice_handler(lambda note: notes.append(str(note.message_primary)))
        named = ", ".join(f"{name} => %({name})s" for name in filters)
        conn.execute(f"select id from meshaudit.search_audit_logs({named})".encode(), filters)
    return [note for note in notes if "select * from meshaudit.audit_logs l where" in note]


@pytest.mark.parametrize("scope", ["*", "scope 7"])
@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_has_an_index(filled: Db, name: str, scope: str) -> None:
    filters, wanted = FILTERS[name]
    if scope != "*":
        wanted += "|scope_timestamp_idx"
    found = plans(filled, scope, **filters)
    used = set(re.findall(r"ledger_2025_\d\d_(\w+_idx\d?)", "".join(found)))
    # With two filters the smaller index is taken; of those that are allowed, at least one.
    assert used
    assert used <= set(wanted.split("|")), (used, found)
    for plan in found:
        assert not re.search(r"Seq Scan on ledger_2025", plan), plan
        # row security is there, evaluated once
        assert "InitPlan" in plan


def test_only_the_partitions_that_are_needed(filled: Db) -> None:
    found = plans(filled, "*", from_time="2025-03-10 00:00+00", to_time="2025-03-12 00:00+00")
    touched = {name for plan in found for name in re.findall(r"on (ledger_2025_\d\d)", plan)}
    assert touched == {"ledger_2025_03"}
    found = plans(filled, "*", to_time="2025-09-01 00:00+00", page_size=10)
    touched = {name for plan in found for name in re.findall(r"on (ledger_2025_\d\d)", plan)}
    assert touched == {"ledger_2025_08"}
