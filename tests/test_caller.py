"""Whose name and address an entry bears: a login's own word is a claim; a gateway's headers and claims
count; and nothing that anybody sends makes an access fail."""

import itertools
import json
from hashlib import sha256
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.support import Db

DEEP = "[" * 20_000 + "]" * 20_000
HUGE = json.dumps({"sub": "u", "padding": "x" * 3_000_000})
# What is no object, is no JSON, or holds what a text cannot.
GARBAGE = [
    "",
    " ",
    "null",
    "1",
    '"sub"',
    "[]",
    '["sub"]',
    "{",
    '{"sub"',
    "{'sub': 'x'}",
    '{"sub": "\\u0000"}',
    '{"sub": "x", "y": "\\ud800"}',
    '{"sub": null}',
    '{"sub": ""}',
    '{"sub": {}}',
    "\x01\x02\x7f",
    "\N{ZERO WIDTH SPACE}" * 1000,
    DEEP,
    f'{{"sub": {DEEP}}}',
    HUGE,
]


class Access:
    """A login, what it sets, and the entry that its read leaves."""

    def __init__(self, db: Db, role: str) -> None:
        self.db, self.role = db, role
        self.conn = db.connect(role)
        row = db.su.execute("select meshaudit.write_secret('key', 'value')").fetchone()
        assert row is not None
        self.id = row[0]

    def entry(self, columns: str, role: str = "", **settings: Any) -> Any:
        """Read as PostgREST does: settings first, for the transaction; then the entry's columns."""
        with self.conn.transaction():
            if role:
                self.conn.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
            for name, value in settings.items():
                text = value if isinstance(value, str) else json.dumps(value)
                name = name.replace("__", ".")
                self.conn.execute("select set_config(%s, %s, true)", [name, text])
            read = self.conn.execute("select meshaudit.read_secret(%s)", [self.id]).fetchone()
            assert read == (b"value",)
        query = f"select {columns} from meshaudit.audit_logs order by id desc limit 1"
        return self.db.su.execute(query.encode()).fetchone()


@pytest.fixture
def login(db: Db) -> Access:
    """A login that is no gateway."""
    return Access(db, db.role("app", "meshaudit_client"))


@pytest.fixture
def gateway(db: Db) -> Access:
    """A login that is one, and may act as a role of its users'."""
    access = Access(db, db.role("gateway", "meshaudit_client", inherit=False))
    db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [access.role])
    return access


@pytest.fixture
def user(gateway: Access) -> str:
    """The role that the gateway switches to, as authenticated is."""
    role = gateway.db.role("users", "meshaudit_client", login=False)
    gateway.db.pg.run(f"grant {role} to {gateway.role}")
    return role


WHO = "user_identity, identity_source, claimed_identity"
ADDRESS = "host(ip_address)"


def test_a_login_is_who_it_is(login: Access) -> None:
    assert login.entry(f"{WHO}, db_user, db_role") == (login.role, "database", None, login.role, login.role)
    assert login.entry("ip_address = inet_client_addr()") == (True,)


def test_what_a_login_says_is_a_claim(login: Access) -> None:
    forged: dict[str, Any] = {
        "request__jwt__claims": {"sub": "alice", "role": "service_role"},
        "request__headers": {"x-forwarded-for": "9.9.9.9", "cf-connecting-ip": "9.9.9.9", "user-agent": "x"},
    }
    mine = (login.role, "database")
    assert login.entry(WHO, **forged) == (*mine, "alice")
    assert login.entry(WHO, meshaudit__actor="bob", **forged) == (*mine, "bob")
    assert login.entry(WHO, meshaudit__actor="b" * 10_000) == (*mine, "b" * 256)
    assert login.entry(f"{ADDRESS}, user_agent, request_id", **forged) == ("127.0.0.1", None, None)
    # of a transaction that has ended, nothing stays
    assert login.entry(WHO) == (*mine, None)


def test_garbage_never_fails_an_access(login: Access) -> None:
    names = ("request__jwt__claims", "request__headers", "request__jwt__claim__sub", "meshaudit__actor")
    for name, text in itertools.product(names, GARBAGE):
        got = login.entry(f"user_identity, identity_source, {ADDRESS}", **{name: text})
        assert got == (login.role, "database", "127.0.0.1"), (name, text[:20])


def test_garbage_behind_a_gateway(gateway: Access, user: str) -> None:
    good = {"request__headers": {"x-forwarded-for": "9.9.9.9"}, "request__jwt__claims": {"sub": "alice"}}
    for text in GARBAGE:
        got = gateway.entry(f"user_identity, {ADDRESS}", user, **(good | {"request__headers": text}))
        assert got == ("alice", "127.0.0.1"), text[:20]
        name, source, address = gateway.entry(
            f"user_identity, identity_source, {ADDRESS}", user, **(good | {"request__jwt__claims": text})
        )
        assert address == "9.9.9.9", text[:20]
        believed = ("u", "jwt") if text == HUGE else (gateway.role, "database")
        assert (name, source) == believed, text[:20]


def test_bytes_that_are_no_text(login: Access) -> None:
    """The server does not check the encoding of what comes with the connection itself."""
    names = ("meshaudit.actor", "request.jwt.claims", "request.headers", "request.jwt.claim.sub")
    values = (b"\xff\xfe", b'{"sub":"\xff"}', b"\xf0\x9f", b'{"sub":"\xed\xa0\x80"}')
    for name, value in itertools.product((*names, "application_name"), values):
        options = name.encode() + b"=" + value.replace(b'"', b'\\"')
        conn = psycopg.pq.PGconn.connect(
            login.db.dsn(login.role).encode() + b" options='-c " + options + b"'"
        )
        try:
            result = conn.exec_(f"select meshaudit.read_secret('{login.id}')".encode())
            message = result.error_message.decode(errors="replace")
            assert result.status == psycopg.pq.ExecStatus.TUPLES_OK, (name, value, message)
        finally:
            conn.finish()
        # whoever reads the log must be able to
        row = login.db.su.execute("select * from meshaudit.audit_logs order by id desc").fetchone()
        assert row is not None
    assert login.db.su.execute("select * from meshaudit.verify()").fetchall() == []


SUBJECTS: list[tuple[Any, tuple[str, str]]] = [
    ({"sub": "alice", "role": "authenticated"}, ("alice", "jwt")),
    ({"sub": "5f1c9f0e-6a3b-4c64-8c1c-0b9d2f6f3a11"}, ("5f1c9f0e-6a3b-4c64-8c1c-0b9d2f6f3a11", "jwt")),
    # keys of Supabase have no subject
    ({"role": "service_role", "iss": "supabase"}, ("service_role", "jwt")),
    ({"role": "anon"}, ("anon", "jwt")),
    ({"sub": "", "role": "anon"}, ("anon", "jwt")),
    # users edit this themselves
    ({"role": "anon", "user_metadata": {"sub": "admin"}}, ("anon", "jwt")),
    ({"sub": "ü😀'\"\\"}, ("ü😀'\"\\", "jwt")),
    ({"sub": "s" * 256}, ("s" * 256, "jwt")),
    # longer than what is stored: its digest tells it from others that begin alike
    ({"sub": "s" * 1000}, (f"{'s' * 180} sha256:{sha256(b's' * 1000).hexdigest()}", "jwt")),
]


def test_identity_behind_a_gateway(gateway: Access, user: str) -> None:
    for claims, who in SUBJECTS:
        got = gateway.entry(f"{WHO}, db_user, db_role", user, request__jwt__claims=claims)
        assert got == (*who, None, gateway.role, user)
        got = gateway.entry(WHO, user, request__jwt__claims=claims, meshaudit__actor="mallory")
        assert got == (*who, "mallory")


UNUSABLE: list[tuple[Any, str]] = [
    ({}, ""),
    ({"sub": None}, ", sub null"),
    ({"sub": ""}, ', sub ""'),
    ({"user_metadata": {"sub": "admin"}}, ""),
    # a subject that is no text is nobody's, whatever the role is: "7" may be somebody else
    ({"sub": 7, "role": "authenticated"}, ", sub 7"),
    ({"sub": True}, ", sub true"),
    ({"sub": ["alice"], "role": "authenticated"}, ', sub ["alice"]'),
    ({"sub": {"sub": "alice"}}, ', sub {"sub": "alice"}'),
    ({"role": 7}, ""),
    ({"role": ["service_role"]}, ""),
    ("[]", ""),
    ('"alice"', ""),
    ("{", ""),
    ('{"sub": "\\u0000"}', ""),
    (DEEP, ""),
]


def test_unusable_tokens_never_pass_for_the_gateway_itself(gateway: Access, user: str) -> None:
    for claims, why in UNUSABLE:
        mine = (gateway.role, "database")
        got = gateway.entry(WHO, user, request__jwt__claims=claims)
        assert got == (*mine, f"unusable token{why}"), str(claims)[:40]
        # what the client says about itself does not take that away
        got = gateway.entry(WHO, user, request__jwt__claims=claims, meshaudit__actor="x" * 300)
        assert got[:2] == mine
        assert got[2].startswith(f"unusable token{why}; xxx")
        assert len(got[2]) == 256
    long = {"sub": ["s" * 1000]}
    assert len(gateway.entry(WHO, user, request__jwt__claims=long)[2]) < 130


def test_a_gateway_without_claims_is_itself(gateway: Access, user: str) -> None:
    assert gateway.entry(WHO, user) == (gateway.role, "database", None)
    headers = {"x-forwarded-for": "9.9.9.9"}
    assert gateway.entry(WHO, user, request__headers=headers) == (gateway.role, "database", None)


def test_subjects_that_begin_alike_are_two(gateway: Access, user: str) -> None:
    """Neither in the log, nor for what an auditor may see."""
    one, other = "s" * 300 + "1", "s" * 300 + "2"
    names = {gateway.entry("user_identity", user, request__jwt__claims={"sub": s}) for s in (one, other)}
    assert len(names) == 2


ADDRESSES: list[tuple[Any, str]] = [
    ({"cf-connecting-ip": "8.8.8.8", "x-forwarded-for": "1.1.1.1, 2.2.2.2"}, "8.8.8.8"),
    # the last one was added by the nearest proxy; the others are the client's word
    ({"x-forwarded-for": "1.1.1.1, 2.2.2.2"}, "2.2.2.2"),
    ({"x-forwarded-for": "1.1.1.1,2.2.2.2 "}, "2.2.2.2"),
    ({"x-forwarded-for": "3.3.3.3"}, "3.3.3.3"),
    ({"x-forwarded-for": "2001:db8::1"}, "2001:db8::1"),
    ({"x-forwarded-for": "1.1.1.1,"}, "127.0.0.1"),
    ({"x-forwarded-for": "1.1.1.1, unknown"}, "127.0.0.1"),
    ({"x-forwarded-for": "10.0.0.0/8"}, "127.0.0.1"),
    ({"x-forwarded-for": "999.1.1.1"}, "127.0.0.1"),
    ({"x-forwarded-for": "1.1.1.1:443"}, "127.0.0.1"),
    ({"x-forwarded-for": ["1.1.1.1"]}, "127.0.0.1"),
    ({"x-forwarded-for": 7}, "127.0.0.1"),
    ({"cf-connecting-ip": "junk", "x-forwarded-for": "2.2.2.2"}, "2.2.2.2"),
    ({"forwarded": "for=9.9.9.9", "x-real-ip": "9.9.9.9"}, "127.0.0.1"),
    ({}, "127.0.0.1"),
]


def test_address_behind_a_gateway(gateway: Access, user: str) -> None:
    for headers, address in ADDRESSES:
        got = gateway.entry(ADDRESS, user, request__headers=headers, request__jwt__claims={"sub": "alice"})
        assert got == (address,), headers


@pytest.mark.parametrize("padding", [0, 1])
def test_a_long_header_does_not_choose_the_address(gateway: Access, user: str, padding: int) -> None:
    """However much a client sends, what the nearest proxy added at the end is what counts."""
    forged = " " * padding + "6.6.6.6," * 2000
    got = gateway.entry(ADDRESS, user, request__headers={"x-forwarded-for": forged + "9.9.9.9"})
    assert got == ("9.9.9.9",)


def test_other_headers_are_bounded(gateway: Access, user: str) -> None:
    headers = {"user-agent": "a" * 5000, "x-request-id": "r" * 5000, "authorization": "Bearer secret"}
    got = gateway.entry("length(user_agent), length(request_id)", user, request__headers=headers)
    assert got == (256, 128)
    row = gateway.db.su.execute("select l::text from meshaudit.audit_logs l order by id desc").fetchone()
    assert row is not None
    assert "Bearer" not in row[0]


def test_address_headers_are_a_setting(gateway: Access, user: str) -> None:
    gateway.db.su.execute("select meshaudit.set_setting('address_headers', 'X-Real-IP')")
    headers = {"cf-connecting-ip": "8.8.8.8", "x-real-ip": "4.4.4.4"}
    assert gateway.entry(ADDRESS, user, request__headers=headers) == ("4.4.4.4",)


def test_only_the_login_makes_a_gateway(login: Access) -> None:
    """Being a member of the gateway's role, or acting as it, is not enough."""
    role = login.db.role("gateway", "meshaudit_client")
    login.db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [role])
    login.db.pg.run(f"grant {role} to {login.role}")
    got = login.entry(f"{WHO}, db_role", role, request__jwt__claims={"sub": "alice"})
    assert got == (login.role, "database", "alice", role)
