"""The journal against a model: whatever several sessions and sealers do, each access has its one entry.

The model knows of each access who made it and in which transaction; from that follows its outcome. Each
access calls itself by a token of its own (meshaudit.actor), by which its entry is found again.
"""

import itertools
from dataclasses import dataclass, field
from typing import ClassVar
from uuid import UUID

import psycopg
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg import sql

from tests.journal_support import READ, READ_MANY, Conn, Journal, one, seal, stranger
from tests.support import Db, unique

SESSIONS = 3
LEVELS = ("read committed", "repeatable read", "serializable")
_tokens = itertools.count(1)

which = st.integers(0, SESSIONS - 1)
Access = tuple[str, str]  # token, secret


@dataclass
class Tx:
    """An open transaction: its accesses, level by level of its savepoints."""

    read_only: bool = False
    failed: bool = False
    levels: list[list[Access]] = field(default_factory=lambda: [[]])
    # by a savepoint or a caught error: the server tells of no subtransaction before its transaction ends
    undone: list[Access] = field(default_factory=list)


@dataclass
class Session:
    conn: Conn
    tx: Tx | None = None

    @property
    def usable(self) -> bool:
        return self.tx is None or not self.tx.failed


class Machine(RuleBasedStateMachine):
    journal: ClassVar[Journal]
    secrets: ClassVar[list[UUID]]

    @initialize()
    def connect(self) -> None:
        self.start = self.journal.last_id()
        self.sessions = [Session(self.journal.client()) for _ in range(SESSIONS)]
        self.prepared: dict[str, Tx] = {}
        self.expected: dict[Access, str] = {}
        self.sealer: Conn | None = None

    # ----- what became of accesses

    def accessed(self, session: Session, accesses: list[Access], undone: bool = False) -> None:
        """Note accesses; undone: their statement failed, or was caught in a block that rolled back."""
        tx = session.tx
        if tx is not None and tx.read_only:
            self.settle(accesses, "granted")
        elif tx is None:
            self.settle(accesses, "rolled_back" if undone else "granted")
        else:
            (tx.undone if undone else tx.levels[-1]).extend(accesses)

    def settle(self, accesses: list[Access], outcome: str) -> None:
        for access in accesses:
            assert access not in self.expected
            self.expected[access] = outcome

    def end(self, tx: Tx, outcome: str) -> None:
        self.settle(tx.undone, "rolled_back")
        for level in tx.levels:
            self.settle(level, outcome)

    def token(self, session: Session) -> str:
        token = f"access {next(_tokens)}"
        session.conn.execute("select set_config('meshaudit.actor', %s, false)", [token])
        return token

    def usable(self, number: int) -> Session | None:
        session = self.sessions[number]
        return session if session.usable else None

    # ----- transactions

    @rule(number=which, level=st.sampled_from(LEVELS), read_only=st.booleans())
    def begin(self, number: int, level: str, read_only: bool) -> None:
        session = self.sessions[number]
        if session.tx is None:
            mode = "read only" if read_only else "read write"
            session.conn.execute(f"begin isolation level {level} {mode}".encode())
            session.tx = Tx(read_only)

    @rule(number=which)
    def savepoint(self, number: int) -> None:
        session = self.usable(number)
        if session and session.tx:
            session.conn.execute(f"savepoint s{len(session.tx.levels)}".encode())
            session.tx.levels.append([])

    @rule(number=which, depth=st.integers(1, 3))
    def rollback_to(self, number: int, depth: int) -> None:
        session = self.sessions[number]
        if session.tx and len(session.tx.levels) > 1:
            to = max(1, len(session.tx.levels) - depth)
            session.conn.execute(f"rollback to s{to}".encode())
            for level in session.tx.levels[to:]:
                session.tx.undone += level
            session.tx.levels[to:] = [[]]
            session.tx.failed = False

    @rule(number=which)
    def release(self, number: int) -> None:
        session = self.usable(number)
        if session and session.tx and len(session.tx.levels) > 1:
            session.conn.execute(f"release s{len(session.tx.levels) - 1}".encode())
            last = session.tx.levels.pop()
            session.tx.levels[-1] += last

    @rule(number=which, how=st.sampled_from(["commit", "commit", "rollback"]))
    def finish(self, number: int, how: str) -> None:
        session = self.sessions[number]
        if session.tx:
            session.conn.execute(how.encode())
            committed = how == "commit" and not session.tx.failed
            self.end(session.tx, "granted" if committed else "rolled_back")
            session.tx = None

    @rule(number=which)
    def prepare(self, number: int) -> None:
        session = self.usable(number)
        if session and session.tx:
            gid = unique("gid")
            session.conn.execute(sql.SQL("prepare transaction {}").format(gid))
            self.prepared[gid] = session.tx
            session.tx = None

    @precondition(lambda self: self.prepared)
    @rule(committed=st.booleans())
    def finish_prepared(self, committed: bool) -> None:
        gid, tx = self.prepared.popitem()
        verb = sql.SQL("commit" if committed else "rollback")
        self.journal.db.su.execute(sql.SQL("{} prepared {}").format(verb, gid))
        self.end(tx, "granted" if committed else "rolled_back")

    @rule(number=which)
    def error(self, number: int) -> None:
        session = self.usable(number)
        if session and session.tx:
            self.fails(session, "select 1 / 0")

    @rule(number=which)
    def killed(self, number: int) -> None:
        session = self.sessions[number]
        self.journal.terminate(session.conn)
        if session.tx:
            self.end(session.tx, "rolled_back")
        self.sessions[number] = Session(self.journal.client())

    def fails(self, session: Session, query: str, *params: object) -> psycopg.Error:
        try:
            session.conn.execute(query.encode(), params or None)
        except psycopg.Error as error:
            if tx := session.tx:
                tx.failed = True
                if len(tx.levels) == 1:
                    # with no savepoint to go back to, the server has aborted it already
                    self.end(tx, "rolled_back")
                    tx.levels, tx.undone = [[]], []
            return error
        raise AssertionError(f"no error: {query}")

    # ----- accesses

    @rule(number=which, secret=st.integers(0, 9), by_key=st.booleans())
    def read(self, number: int, secret: int, by_key: bool) -> None:
        if session := self.usable(number):
            token = self.token(session)
            if by_key:
                value = one(session.conn, "select meshaudit.read_secret_by_key(%s)", f"many {secret + 1}")
            else:
                value = one(session.conn, READ, self.secrets[secret])
            assert value == b"value"
            self.accessed(session, [(token, str(self.secrets[secret]))])

    @rule(number=which, count=st.sampled_from([1, 2, 7, 600]), unknown=st.integers(0, 2))
    def read_many(self, number: int, count: int, unknown: int) -> None:
        if session := self.usable(number):
            token = self.token(session)
            strangers = [stranger() for _ in range(unknown)]
            found = session.conn.execute(READ_MANY, [self.secrets[:count] + strangers]).fetchall()
            assert len(found) == count
            self.accessed(session, [(token, str(secret)) for secret, _ in found])
            self.settle([(token, str(secret)) for secret in strangers], "denied")

    @rule(number=which, fetched=st.integers(0, 5))
    def cursor(self, number: int, fetched: int) -> None:
        session = self.usable(number)
        if session and session.tx:
            token = self.token(session)
            ids = sql.Literal(self.secrets[:5])
            declare = "declare c no scroll cursor for select i, meshaudit.read_secret(i) from unnest({}) i"
            session.conn.execute(sql.SQL(declare).format(ids))
            rows = session.conn.execute(sql.SQL("fetch {} from c").format(sql.Literal(fetched))).fetchall()
            session.conn.execute("close c")
            assert len(rows) == fetched
            self.accessed(session, [(token, str(secret)) for secret, _ in rows])

    @rule(number=which)
    def write(self, number: int) -> None:
        session = self.usable(number)
        if session and not (session.tx and session.tx.read_only):
            token = self.token(session)
            new = one(session.conn, "select meshaudit.write_secret(%s, 'new')", unique("key"))
            self.accessed(session, [(token, str(new))])

    @rule(number=which, secret=st.integers(0, 9))
    def read_in_a_failing_statement(self, number: int, secret: int) -> None:
        if session := self.usable(number):
            token = self.token(session)
            self.accessed(session, [(token, str(self.secrets[secret]))], undone=True)
            query = "select 1 / (length(meshaudit.read_secret(%s)) - 5)"
            assert self.fails(session, query, self.secrets[secret]).sqlstate == "22012"

    @rule(number=which, secret=st.integers(0, 9))
    def read_and_caught(self, number: int, secret: int) -> None:
        if session := self.usable(number):
            token = self.token(session)
            body = sql.SQL(
                "do $$ begin perform meshaudit.read_secret({}); raise exception 'oh';"
                " exception when others then null; end $$"
            )
            session.conn.execute(body.format(str(self.secrets[secret])))
            self.accessed(session, [(token, str(self.secrets[secret]))], undone=True)

    @rule(number=which, by_key=st.booleans())
    def denied(self, number: int, by_key: bool) -> None:
        if session := self.usable(number):
            token, what = self.token(session), str(stranger())
            query = "select meshaudit.read_secret_by_key(%s)" if by_key else READ
            assert self.fails(session, query, what).sqlstate == "MA004"
            self.settle([(token, what)], "denied")

    # ----- sealing

    @rule()
    def seal(self) -> None:
        made = one(self.journal.operator, "select meshaudit.seal()")
        assert made == 0 or self.sealer is None

    @rule()
    def begin_sealing(self) -> None:
        if self.sealer is None:
            self.sealer = self.journal.db.connect()
            self.sealer.execute("begin")
            one(self.sealer, "select meshaudit.seal()")

    @precondition(lambda self: self.sealer is not None)
    @rule(how=st.sampled_from(["commit", "rollback", "kill"]))
    def end_sealing(self, how: str) -> None:
        assert self.sealer is not None
        if how == "kill":
            self.journal.terminate(self.sealer)
        else:
            self.sealer.execute(how.encode())
        self.sealer.close()
        self.sealer = None

    @invariant()
    def nothing_is_told_twice(self) -> None:
        if hasattr(self, "start"):
            twice = (
                "select from meshaudit.audit_logs where id > %s group by access_id having count(*) > 1"
                " union all select from meshaudit.audit_logs where id > %s"
                " group by claimed_identity, secret_id having count(*) > 1"
            )
            assert self.journal.db.su.execute(twice, [self.start] * 2).rowcount == 0

    @precondition(lambda self: self.sealer is None)
    @rule()
    def all_is_told(self) -> None:
        """What is over has its entry, what is open has none."""
        seal(self.journal.operator)
        rows = self.journal.db.su.execute(
            "select claimed_identity, secret_id, outcome from meshaudit.audit_logs where id > %s",
            [self.start],
        ).fetchall()
        assert {(token, secret): outcome for token, secret, outcome in rows} == self.expected
        assert len(rows) == len(self.expected)

    def teardown(self) -> None:
        if not hasattr(self, "start"):
            return
        if self.sealer is not None:
            self.end_sealing("rollback")
        for number in range(SESSIONS):
            self.finish(number, "rollback")
        while self.prepared:
            self.finish_prepared(False)
        for session in self.sessions:
            session.conn.close()
        self.all_is_told()
        assert self.journal.db.su.execute("select * from meshaudit.verify()").fetchall() == []
        assert one(self.journal.db.su, "select count(*) from meshaudit_private.journal_pending") == 0


def test_every_access_has_its_entry(db: Db) -> None:
    class Bound(Machine):
        journal = Journal(db)
        secrets = journal.many(600)

    # the bound on denials is another test's business
    db.su.execute(
        "create or replace function meshaudit_private.bound_denials(p_entries meshaudit_private.ledger[])"
        " returns meshaudit_private.ledger[] language sql as 'select p_entries'"
    )
    run_state_machine_as_test(Bound, settings=settings(max_examples=15, stateful_step_count=40))
