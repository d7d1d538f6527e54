"""Nobody gets a protected value without an entry, nor another's at all: direct SQL with the app's own grants.

tests/protect/attempts.py lists the attempts. All of a session run in one database, each under an application_name of
its own, which its entries carry; then they are judged one by one.
"""

import ctypes
import ctypes.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.journal_support import seal
from tests.meshhook import ALICE, ALICES, BOBS_KEY, GITHUB, STRIPE, MeshHook
from tests.protect.attempts import ATTACKS, LAB, Attack
from tests.support import Db, wait_until

VALUES = {STRIPE: "sk_live_a", GITHUB: "ghp_b", BOBS_KEY: "sk_live_c"}
Conn = psycopg.Connection[Any]


@dataclass
class Told:
    """What one way of an attack gave away, and what the log says of it."""

    attack: Attack
    way: str
    output: str = ""
    failed: bool = False
    entries: set[str] = field(default_factory=set)

    @property
    def values(self) -> set[str]:
        """The rows whose value is in the output, as text or as hex."""
        return {i for i, v in VALUES.items() if v in self.output or v.encode().hex() in self.output}


class Lab:
    """The reference user's table, protected, and an armed journal; a login with one of its roles."""

    def __init__(self, db: Db, role: str) -> None:
        self.db = db
        self.app = MeshHook(db)
        with db.connect() as conn:
            # a guess at what a planner could give away
            conn.execute("create statistics public.s (mcv) on key, value_encrypted from public.secrets")
            conn.execute("analyze public.secrets")
        self.user = db.role("eve", role, bypassrls=role == "service_role")
        self.visible = set(VALUES) if role == "service_role" else {STRIPE, GITHUB}
        self.schema = self.user
        db.su.execute(sql.SQL("create schema {0} authorization {0}").format(sql.Identifier(self.user)))
        self.before = self.session()
        self.before.execute("prepare early as select value_encrypted from public.secrets")
        self.before.execute("prepare early_where as select id from public.secrets where value_encrypted > ''")
        self.before.execute(
            "create function early() returns setof bytea language plpgsql as"
            " 'begin return query select value_encrypted from public.secrets; end'"
        )
        self.before.execute("select * from early()").fetchall()
        with db.connect() as conn:
            conn.execute("select meshaudit.protect('public.secrets', '{value_encrypted}', 'project_id')")
            conn.execute("analyze meshaudit_protected.secrets")
            conn.execute("select meshaudit.arm_journal()")
        conn = self.session()
        conn.execute(LAB.replace("@LAB@", self.user).encode())

    def session(self) -> Conn:
        """A direct connection that says it is Alice."""
        conn = self.db.connect(self.user)
        conn.execute(f"set search_path = {self.user}, public".encode())
        conn.execute("select set_config('request.jwt.claims', %s, false)", [f'{{"sub": "{ALICE}"}}'])
        return conn

    def entries(self) -> dict[str, set[str]]:
        """The rows that this login's entries name, by application_name."""
        with self.db.connect() as conn:
            seal(conn)
        rows = self.db.su.execute(
            "select application_name, secret_id from meshaudit.audit_logs"
            " where secret_table = 'public.secrets' and operation = 'read' and db_user = %s"
            " and outcome in ('granted', 'rolled_back')",
            [self.user],
        ).fetchall()
        found: dict[str, set[str]] = {}
        for name, secret in rows:
            found.setdefault(name, set()).add(secret)
        return found

    def watched(self, conn: Conn, name: str) -> list[str]:
        """Give its entries that name; returns where its messages go."""
        heard: list[str] = []
        conn.add_notice_handler(lambda d: heard.append(f"{d.message_primary} {d.message_detail}"))
        conn.execute("select set_config('application_name', %s, false)", [name])
        return heard

    def run(self, name: str, told: Told) -> None:
        """One way, rolled back at its end."""
        conn = self.session()
        heard = self.watched(conn, name)
        text = told.way.replace("{mine}", STRIPE).replace("{others}", BOBS_KEY).replace("{project}", ALICES)
        text = text.replace("{lab}", self.user).replace("{{}}", "{}")
        conn.execute("begin")
        try:
            with conn.cursor() as cursor:
                if text.startswith("copy") and "program" not in text:
                    with cursor.copy(text.encode()) as copy:
                        heard.extend(str(bytes(chunk)) for chunk in copy)
                else:
                    cursor.execute(text.encode())
                    while True:
                        if cursor.description:
                            heard.extend(str(row) for row in cursor.fetchall())
                        if not cursor.nextset():
                            break
        except psycopg.Error as e:
            told.failed = True
            d = e.diag
            heard.append(f"{e} {d.message_detail} {d.message_hint} {d.context} {d.internal_query}")
        conn.rollback()
        conn.close()
        told.output = "\n".join(heard)


@pytest.fixture(scope="module", params=["authenticated", "service_role"])
def lab(request, template) -> Iterator[Lab]:
    db = template.clone("supabase_old")
    try:
        yield Lab(db, request.param)
    finally:
        db.drop()


@pytest.fixture(scope="module")
def told(lab) -> dict[str, list[Told]]:
    """All attacks that this server knows, run."""
    all_told: dict[str, list[Told]] = {}
    for a, attack in enumerate(ATTACKS):
        if attack.needs > lab.db.pg.version:
            continue
        for w, way in enumerate(attack.ways):
            one = Told(attack, way)
            all_told.setdefault(attack.name, []).append(one)
            lab.run(f"{a}.{w}", one)
    found = lab.entries()
    for a, attack in enumerate(ATTACKS):
        for w, one in enumerate(all_told.get(attack.name, [])):
            one.entries = found.get(f"{a}.{w}", set())
    return all_told


@pytest.mark.parametrize("name", [a.name for a in ATTACKS])
def test_no_value_without_an_entry(lab, told, name):
    if name not in told:
        pytest.skip("this version of Postgres has no such syntax")
    sees_all = lab.visible == set(VALUES)
    exact = {"mine": {STRIPE}, "all": lab.visible}
    for one in told[name]:
        assert one.values <= one.entries <= lab.visible, one
        if one.attack.reads == "none":
            assert (one.values, one.entries) == (set(), set()), one
        elif one.attack.reads in exact and not one.failed:
            assert one.entries >= exact[one.attack.reads], one
        elif one.attack.reads in ("off", "others") and not sees_all:
            # (to BYPASSRLS that setting means nothing)
            assert one.values == set(), one
            assert BOBS_KEY not in one.entries, one


def test_the_attempts_are_what_they_say(told):
    """Most of what should reveal does: the suite is not refused at the door."""
    for name in (
        "select in every place",
        "functions, operators, casts, aggregates",
        "copy",
        "explain",
        "bits of it",
    ):
        assert [o.way for o in told[name] if o.failed] == [], name
    for name in ("the table by name", "making things on it", "powers"):
        assert [o.way for o in told[name] if not o.failed] == [], name


@pytest.mark.parametrize("way", ["execute early", "execute early_where", "select * from early()"])
def test_prepared_before_protect_and_executed_after(lab, way):
    lab.watched(lab.before, way)
    assert len(lab.before.execute(way.encode()).fetchall()) == len(lab.visible)
    assert lab.entries()[way] == lab.visible


def test_a_value_that_changes_while_a_statement_runs_is_another_read(lab):
    """One statement may last for hours, and read a row again when somebody else has changed it."""
    conn = lab.session()
    heard = lab.watched(conn, "watcher")
    su = lab.db.su
    su.execute("select pg_advisory_lock(4)")
    look = f"""select convert_from(value_encrypted, 'UTF8') into v from public.secrets where id = '{STRIPE}';
      raise notice '%', v;"""
    script = f"do $$ declare v text; begin {look} perform pg_advisory_lock(4); {look} end $$"
    thread = threading.Thread(target=lambda: conn.execute(script.encode()))
    thread.start()
    wait_until(lab.db.waiting, what="the statement's wait")
    try:
        rotate = "update meshaudit_protected.secrets set value_encrypted = %s where id = %s"
        su.execute(rotate, [b"rotated", STRIPE])
    finally:
        su.execute("select pg_advisory_unlock(4)")
        thread.join()
    su.execute(rotate, [VALUES[STRIPE].encode(), STRIPE])
    assert [h.split()[0] for h in heard] == ["sk_live_a", "rotated"]
    lab.entries()
    count = "select count(*) from meshaudit.audit_logs where application_name = 'watcher'"
    assert su.execute(count).fetchone() == (2,)


def test_partitions_by_name(template):
    db = template.clone("supabase_old")
    try:
        with db.connect() as conn:
            conn.execute(
                "create table public.parts (id int primary key, v text) partition by range (id);"
                "create table public.parts_1 partition of public.parts for values from (0) to (100);"
                "create table public.parts_2 partition of public.parts for values from (100) to (200);"
                "grant all on public.parts, public.parts_1, public.parts_2 to authenticated, service_role;"
                "insert into public.parts values (1, 'sk_live_a'), (101, 'ghp_b');"
                "select meshaudit.protect('public.parts', '{v}')"
            )
        for role in ("authenticated", "service_role"):
            conn = db.connect(db.role("eve", role, bypassrls=role == "service_role"))
            for name in ("parts", "parts_1", "parts_2"):
                for way in (
                    "select v from {}",
                    "table {}",
                    "select t::text from {} t",
                    "copy {} to stdout",
                    "update {} set id = id where v > 'a'",
                    "delete from {} returning v",
                    "truncate {}",
                ):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        conn.execute(way.format(f"meshaudit_protected.{name}").encode())
            assert conn.execute("select v from public.parts order by id").fetchall() == [
                ("sk_live_a",),
                ("ghp_b",),
            ]
    finally:
        db.drop()


def _libpq() -> Any:
    import psycopg_binary

    bundled = Path(psycopg_binary.__file__).parent.parent / "psycopg_binary.libs"
    found = [str(p) for p in bundled.glob("libpq-*.so*")] or [ctypes.util.find_library("pq") or ""]
    return ctypes.CDLL(found[0]) if found[0] else None


class _Arg(ctypes.Structure):
    _fields_ = (("len", ctypes.c_int), ("isint", ctypes.c_int), ("ptr", ctypes.c_char_p))


def test_the_fast_path_calls_no_function_of_ours(lab):
    libpq = _libpq()
    if libpq is None:
        pytest.skip("no libpq to call PQfn of")
    libpq.PQconnectdb.restype = libpq.PQfn.restype = ctypes.c_void_p
    libpq.PQerrorMessage.restype = ctypes.c_char_p
    row = lab.db.su.execute(
        "select uuid_send(id), tidsend(ctid) from meshaudit_protected.secrets where id = %s", [BOBS_KEY]
    ).fetchone()
    functions = lab.db.su.execute(
        "select oid::int, proname from pg_proc where pronamespace = 'meshaudit_private'::regnamespace"
        " and proname ~ '^(reveal|latest)_[0-9]'"
    ).fetchall()
    assert functions
    conn = ctypes.c_void_p(libpq.PQconnectdb(lab.db.dsn(lab.user).encode()))
    try:
        for oid, _ in functions:
            given = [row[0], row[1], lab.user.encode()]
            args = (_Arg * 3)(*[_Arg(len(g), 0, g) for g in given])
            buffer, length = ctypes.create_string_buffer(1 << 16), ctypes.c_int()
            result = libpq.PQfn(conn, oid, buffer, ctypes.byref(length), 0, args, 3)
            assert b"sk_live_c" not in buffer.raw
            assert b"permission denied for schema meshaudit_private" in libpq.PQerrorMessage(conn), result
    finally:
        libpq.PQfinish(conn)
