"""Who may do what: every role, every object, every verb, against one table of expectations. A new object
without a decision here fails."""

from typing import NamedTuple

import psycopg
import pytest

from tests.support import Db

CLIENT, AUDITOR, OPERATOR = "meshaudit_client", "meshaudit_auditor", "meshaudit_operator"


OWNER, ADMIN, READ_ALL = "meshaudit_owner", "admin", "pg_read_all_data"


# Schema meshaudit. ADMIN is the installer, for what is nobody else's.
FUNCTIONS = {
    "write_secret": {CLIENT},
    **{f"{verb}_vault_secret": {CLIENT} for verb in ("read", "create", "update")},
    **{f"{verb}_supabase_vault": {OPERATOR} for verb in ("open", "close")},
    "read_secret": {CLIENT},
    "read_secret_by_key": {CLIENT},
    "read_secrets": {CLIENT},
    "delete_secret": {CLIENT},
    "protect": {CLIENT, OPERATOR},
    "unprotect": {CLIENT, OPERATOR},
    "protection_plan": {CLIENT, OPERATOR},
    "search_audit_logs": {AUDITOR},
    "partitions": {AUDITOR, OPERATOR},
    "retirements": {AUDITOR, OPERATOR},
    "retire_partition": {OPERATOR},
    "begin_archiving": {OPERATOR},
    "restore_entries": {OPERATOR},
    "restore_partition": {OPERATOR},
    "place_hold": {AUDITOR},
    "lift_hold": {AUDITOR},
    "holds": {AUDITOR, OPERATOR},
    "set_retention": {ADMIN},
    "remove_retention": {ADMIN},
    "retention_policies": {AUDITOR, OPERATOR},
    "retention_plan": {AUDITOR, OPERATOR},
    "expire_archive": {OPERATOR},
    "expiries": {AUDITOR, OPERATOR},
    "identity_of": {AUDITOR},
    "erase_identity": {ADMIN},
    "log_cursor": {AUDITOR},
    "audit_log": {AUDITOR},
    "note_reading": {AUDITOR},
    "begin_reading": {AUDITOR},
    "reading_names": {AUDITOR},
    "feed_is_behind": {AUDITOR},
    "record_verification": {AUDITOR, OPERATOR},
    "sees_everything": {AUDITOR},
    "verify": {AUDITOR, OPERATOR},
    "checkpoint": {AUDITOR, OPERATOR},
    "status": {AUDITOR, OPERATOR},
    "get_setting": {AUDITOR, OPERATOR},
    "is_gateway": {AUDITOR, OPERATOR},
    "metrics": {AUDITOR, OPERATOR},
    "schema_version": {CLIENT, AUDITOR, OPERATOR},
    "maintain": {OPERATOR},
    "arm_journal": {OPERATOR},
    "disarm_journal": {OPERATOR},
    "seal": {OPERATOR},
    "feed": {OPERATOR},
    "feed_range": {AUDITOR},
    "publish_feed": {ADMIN},
    "acknowledge_alert": {AUDITOR},
    "test_alert": {OPERATOR},
    "set_alert_rule": {ADMIN},
    "add_webhook": {ADMIN},
    "remove_webhook": {ADMIN},
    "webhooks": {OPERATOR},
    "take_deliveries": {OPERATOR},
    "end_delivery": {OPERATOR},
    "set_setting": {ADMIN},
    "grant_auditor": {ADMIN},
    "revoke_auditor": {ADMIN},
}


RELATIONS = {"audit_logs": {AUDITOR}, "audit_feed": {AUDITOR}, "alerts": {AUDITOR}, "alert_rules": {AUDITOR}}


OF_THE_SEALER = (
    *(
        "seal",
        "begin_seal",
        "seal_messages",
        "shorten_reading",
        "slot_works",
        "slot_goes_on",
        "schedule_sealing",
    ),
    *("feed", "feed_after_seal"),
    *("arm", "make_slot", "slot_to_make", "note_armed", "disarm", "begin_disarm", "note_disarmed"),
)


OF_PROTECT = (
    *("protection_plan", "run_statements", "begin_protect", "go_on_protect", "finish_protect"),
    *("begin_unprotect", "finish_unprotect"),
)


# Schema meshaudit_private: its owner's, but for what a query on the view is checked against. Naming any of
# it takes USAGE on the schema, which nobody has.
PRIVATE_FUNCTIONS = {
    **{
        key: {AUDITOR}
        for key in (
            "visible_scopes",
            "reading",
            "begin_search",
            "search",
            "find",
            "note_reading",
            "begin_reading",
            "reading_names",
            "feed_is_behind",
            "identity_of",
        )
    },
    "record_verification": {AUDITOR, OPERATOR},
    "feed_scopes": {AUDITOR},
    "acknowledge_alert": {AUDITOR},
    "feed_range": {AUDITOR},
    # what the public ones, which run as their caller, pass its name on to
    "write_secret": {CLIENT},
    **{f"{verb}_vault_secret": {CLIENT} for verb in ("read", "create", "update")},
    **{f"{verb}_supabase_vault": {OPERATOR} for verb in ("grant", "note")},
    "read_secret": {CLIENT},
    "read_secret_by_key": {CLIENT},
    "read_secrets": {CLIENT},
    "delete_secret": {CLIENT},
    "verify": {AUDITOR, OPERATOR},
    "keep_partitions": {AUDITOR, OPERATOR},
    "checkpoint": {AUDITOR, OPERATOR},
    "status": {AUDITOR, OPERATOR},
    "partitions": {AUDITOR, OPERATOR},
    "retirements": {AUDITOR, OPERATOR},
    "place_hold": {AUDITOR},
    "lift_hold": {AUDITOR},
    **{key: {AUDITOR, OPERATOR} for key in ("holds", "retention_policies", "retention_plan", "expiries")},
    # the steps of protect() and unprotect()
    **{key: {CLIENT, OPERATOR} for key in OF_PROTECT},
    "metrics": {AUDITOR, OPERATOR},
    # what seal(), arm_journal() and disarm_journal(), which touch the slot as their caller, are made of
    **{key: {OPERATOR} for key in OF_THE_SEALER},
}


PRIVATE_RELATIONS = {
    name: {AUDITOR} for name in ("ledger", "alerts", "alert_repeats", "alert_acknowledgements", "alert_rules")
}


EVERYTHING = """
with objects (kind, schema, name, oid, verb) as (
  select 'relation', c.relnamespace::regnamespace::text, c.relname::text, c.oid, v
  from pg_class c, unnest(%(table_verbs)s::text[]) v
  where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relnamespace = any (%(schemas)s::regnamespace[])
  union all
  select 'sequence', c.relnamespace::regnamespace::text, c.relname, c.oid, v
  from pg_class c, unnest('{USAGE,SELECT,UPDATE}'::text[]) v
  where c.relkind = 'S' and c.relnamespace = any (%(schemas)s::regnamespace[])
  union all
  select 'function', p.pronamespace::regnamespace::text, p.proname, p.oid, 'EXECUTE'
  from pg_proc p where p.pronamespace = any (%(schemas)s::regnamespace[])
  union all
  select 'type', t.typnamespace::regnamespace::text, t.typname, t.oid, 'USAGE'
  from pg_type t where t.typnamespace = any (%(schemas)s::regnamespace[]) and t.typelem = 0
  union all
  select 'schema', n.nspname, n.nspname, n.oid, v
  from pg_namespace n, unnest('{USAGE,CREATE}'::text[]) v where n.oid = any (%(schemas)s::regnamespace[])
)
select r, o.kind, o.schema, o.name, o.verb,
  case o.kind
    when 'relation' then has_table_privilege(r, o.oid, o.verb)
      -- a grant on one column counts as one on the table
      or case when o.verb in ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
           then has_any_column_privilege(r, o.oid, o.verb) else false end
    when 'sequence' then has_sequence_privilege(r, o.oid, o.verb)
    when 'function' then has_function_privilege(r, o.oid, o.verb)
    when 'type' then has_type_privilege(r, o.oid, o.verb)
    when 'schema' then has_schema_privilege(r, o.oid, o.verb)
  end
from objects o, unnest(%(roles)s::text[]) r
"""


TABLE_VERBS = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"]


SCHEMAS = ["meshaudit", "meshaudit_private"]


class Object(NamedTuple):
    kind: str
    schema: str
    name: str
    verb: str


def expected(groups: set[str], o: Object) -> bool:
    """Whether a role in these groups may do that. KeyError: an object nobody has decided about."""
    if OWNER in groups or o.kind == "type":
        return True  # types: Postgres gives them to PUBLIC; the schema is the fence
    private = o.schema == "meshaudit_private"
    match o.kind:
        case "schema":
            wanted = {READ_ALL} if private else {CLIENT, AUDITOR, OPERATOR, ADMIN, READ_ALL}
            return o.verb == "USAGE" and bool(groups & wanted)
        case "function":
            decided = PRIVATE_FUNCTIONS.get(o.name, set()) if private else FUNCTIONS[o.name]
            return bool(groups & decided)
        case "relation":
            decided = PRIVATE_RELATIONS.get(o.name, set()) if private else RELATIONS[o.name]
            return o.verb == "SELECT" and bool(groups & (decided | {READ_ALL}))
        case "sequence":
            return o.verb == "SELECT" and READ_ALL in groups
    raise AssertionError(o.kind)


def roles_of(db: Db) -> dict[str, set[str]]:
    """Every kind of role that there is, with the groups it acts in."""
    roles: dict[str, set[str]] = {
        OWNER: {OWNER},
        db.pg.superuser: {OWNER},
        db.role("plain"): set(),
        db.role("reader", READ_ALL): {READ_ALL},
    }
    for group in (CLIENT, AUDITOR, OPERATOR):
        roles |= {group: {group}, db.role("member", group): {group}}
    if db.flavour != "superuser":
        roles |= {name: set() for name in ("anon", "authenticated", "service_role", "authenticator")}
        roles[db.installer] = {CLIENT, AUDITOR, OPERATOR, ADMIN, READ_ALL}
    return roles


def test_the_privilege_matrix(any_db: Db) -> None:
    roles = roles_of(any_db)
    verbs = [*TABLE_VERBS, *(["MAINTAIN"] if any_db.pg.version >= 17 else [])]
    rows = any_db.su.execute(
        EVERYTHING, {"table_verbs": verbs, "schemas": SCHEMAS, "roles": list(roles)}
    ).fetchall()
    assert {kind for _, kind, *_ in rows} == {"relation", "sequence", "function", "type", "schema"}
    wrong = [
        f"{role}: {verb} on {kind} {schema}.{name} is {'granted' if has else 'missing'}"
        for role, kind, schema, name, verb, has in rows
        if has != expected(roles[role], Object(kind, schema, name, verb))
    ]
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize("later", ["maintain", "restored function"])
def test_what_comes_later_is_closed_too(any_db: Db, later: str) -> None:
    """Default privileges act on new objects: a partition, or a function that an update makes."""
    if later == "maintain":
        any_db.su.execute("select meshaudit.set_setting('partitions_ahead', '6')")
        any_db.su.execute("select meshaudit.maintain()")
        assert leaf_count(any_db) == 8
    else:
        any_db.su.execute(
            "begin; set local role meshaudit_owner;"
            "create function meshaudit_private.later() returns int return 1; commit"
        )
    test_the_privilege_matrix(any_db)


def leaf_count(db: Db) -> int:
    row = db.su.execute(
        "select count(*) from pg_inherits where inhparent = 'meshaudit_private.ledger'::regclass"
    )
    found = row.fetchone()
    assert found is not None
    return int(found[0])


def tables(db: Db) -> list[str]:
    rows = db.su.execute(
        "select relname from pg_class where relkind in ('r', 'p')"
        " and relnamespace = 'meshaudit_private'::regnamespace order by 1"
    )
    return [name for (name,) in rows]


def test_those_who_may_read_all_tables_see_no_row(any_db: Db) -> None:
    """pg_read_all_data reaches every table by name; row security, on each leaf too, is what is left."""
    any_db.su.execute("select meshaudit.write_secret('k', 'v')")
    reader = any_db.connect(any_db.role("reader", READ_ALL))
    for name in tables(any_db):
        seen = reader.execute(f"select count(*) from meshaudit_private.{name}".encode()).fetchone()
        assert seen == (0,), name
    assert reader.execute("select count(*) from meshaudit.audit_logs").fetchone() == (0,)


def test_those_who_may_write_all_tables_change_no_row(any_db: Db) -> None:
    any_db.su.execute("select meshaudit.write_secret('k', 'v')")
    writer = any_db.connect(any_db.role("writer", READ_ALL, "pg_write_all_data"))
    for name in tables(any_db):
        try:
            done = writer.execute(f"delete from meshaudit_private.{name}".encode()).rowcount
        except psycopg.Error as exc:
            assert exc.sqlstate == "MA003", (name, exc)  # noqa: PT017
        else:
            assert done == 0, name
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute("insert into meshaudit_private.secrets (scope, key, value) values ('', 'x', 'x')")


def test_a_client_who_may_read_all_tables_cannot_hide(any_db: Db) -> None:
    """With USAGE on every schema it can name the functions that take db_role on trust; db_user stays true."""
    role = any_db.role("client", "meshaudit_client", READ_ALL)
    client = any_db.connect(role)
    secret = next(client.execute("select meshaudit.write_secret('k', 'v')"))[0]
    for forged in (any_db.pg.superuser, "nobody", "x" * 5000):
        try:
            client.execute("select meshaudit_private.read_secret(%s, %s)", [secret, forged])
        except psycopg.Error:
            pass  # best
        else:
            user, identity, length = next(
                any_db.su.execute(
                    "select db_user, user_identity, length(db_role)"
                    " from meshaudit.audit_logs order by id desc limit 1"
                )
            )
            assert (user, identity) == (role, role), forged[:20]
            assert length <= 63
