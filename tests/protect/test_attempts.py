"""attempts.py says what it means: with every right at hand, none of its statements fails for a slip of its own.

test_hostile.py takes a refusal for a good answer. A statement of the wrong arity, or about a name that
there is not, is refused too, and would prove nothing.
"""

import psycopg
import pytest
from psycopg import sql

from tests.flavours import Templates
from tests.meshhook import ALICE, ALICES, BOBS_KEY, STRIPE, MeshHook
from tests.protect.attempts import ATTACKS, IMPOSSIBLE, LAB

# Syntax, names, types, arity; features; objects of another kind; bad literals; not inside a transaction.
SLIPS = ("42601", "42602", "42703", "42704", "42883", "42725", "42P", "42804", "42830", "42809", "42846", "0A000", "22P02", "22023", "25001")  # fmt: skip
# Their point is an error, of a value that was revealed first.
BY_ERROR = ("errors that print a value", "errors in every place")


@pytest.fixture
def conn(template: Templates):
    """A login with the app's role, and with every privilege on what it must not have."""
    db = template.clone("supabase_old")
    try:
        MeshHook(db)
        user = db.role("eve", "service_role", bypassrls=True)
        db.su.execute(sql.SQL("create schema {0} authorization {0}").format(sql.Identifier(user)))
        with db.connect() as installer:
            installer.execute("select meshaudit.protect('public.secrets', '{value_encrypted}', 'project_id')")
        for schema in ("meshaudit_private", "meshaudit_protected", "meshaudit"):
            db.su.execute(
                f"grant usage, create on schema {schema} to {user}; grant all on all tables in schema {schema} to {user};"
                f" grant all on all functions in schema {schema} to {user}".encode()
            )
        conn = db.connect(user)
        conn.execute(f"set search_path = {user}, public".encode())
        conn.execute("select set_config('request.jwt.claims', %s, false)", [f'{{"sub": "{ALICE}"}}'])
        conn.execute(LAB.replace("@LAB@", user).encode())
        yield conn
    finally:
        db.drop()


def _impossible(way: str, state: str) -> bool:
    return any(text in way for text in IMPOSSIBLE.get(state, ()))


def test_no_attack_fails_for_a_slip(conn: psycopg.Connection):
    version = conn.info.server_version // 10000
    slips = []
    for attack in (a for a in ATTACKS if a.needs <= version and a.name not in BY_ERROR):
        for way in attack.ways:
            text = way.replace("{mine}", STRIPE).replace("{others}", BOBS_KEY).replace("{project}", ALICES)
            text = text.replace("{lab}", str(conn.info.user)).replace("{{}}", "{}")
            conn.execute("begin")
            try:
                if text.startswith("copy") and "program" not in text:
                    with conn.cursor().copy(text.encode()) as copy:
                        assert [bytes(chunk) for chunk in copy], way
                else:
                    conn.execute(text.encode())
            except psycopg.Error as e:
                if (e.sqlstate or "").startswith(SLIPS) and not _impossible(way, str(e.sqlstate)):
                    slips.append((attack.name, way, e.sqlstate, str(e)))
            conn.execute("rollback")
    assert not slips
