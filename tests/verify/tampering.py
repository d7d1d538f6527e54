"""A small ledger made by real calls, and a superuser's power to falsify it and put it back.

Two verifiers look at it, the database's own and the outside one, and must say the same.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg

from meshaudit.checkpoint import Checkpoint, parse_checkpoint, take_checkpoint
from meshaudit.faults import order
from meshaudit.verify import Problem, verify
from tests.support import Db

# (lane, seq, id, problem)
Found = tuple[int | None, int | None, int | None, str]

CONTENT = (
    "secret_id",
    "access_type",
    "timestamp",
    "user_identity",
    "ip_address",
    "operation",
    "outcome",
    "secret_table",
    "scope",
    "identity_source",
    "claimed_identity",
    "db_user",
    "db_role",
    "application_name",
    "user_agent",
    "request_id",
    "access_id",
)

# Another value for each column than the entries have.
VALUES: dict[str, Any] = {
    "secret_id": "other",
    "access_type": "write",
    "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
    "user_identity": "somebody",
    "ip_address": "203.0.113.9",
    "operation": "delete",
    "outcome": "denied",
    "secret_table": "public.other",
    "scope": "elsewhere",
    "identity_source": "jwt",
    "claimed_identity": "somebody",
    "db_user": "somebody",
    "db_role": "somebody",
    "application_name": None,
    "user_agent": "curl",
    "request_id": "r",
    "access_id": "00000000-0000-0000-0000-000000000000",
    "prev_hash": bytes(32),
    "hash": bytes(32),
}
# A place in the middle of a lane.
AT = 5

# Makes entries sound again, one after the other, from p_from on; the lane's head too, if asked.
_REWRITE = """
create function pg_temp.rehash(l meshaudit_private.ledger, p_prev bytea) returns bytea language sql as $$
  select meshaudit_private.entry_hash(p_prev, l.lane, l.seq, meshaudit_private.entry_tail(
    l.id, l.secret_id, l.access_type, l."timestamp", l.user_identity, l.ip_address, l.operation, l.outcome,
    l.secret_table, l.scope, l.identity_source, l.claimed_identity, l.db_user, l.db_role, l.application_name,
    l.user_agent, l.request_id, l.access_id))
$$;
create function pg_temp.rewrite(p_lane int, p_from bigint, p_head bool) returns void language plpgsql as $$
declare
  v_prev bytea := (select prev_hash from meshaudit_private.ledger where lane = p_lane and seq = p_from);
  l meshaudit_private.ledger;
begin
  for l in select * from meshaudit_private.ledger where lane = p_lane and seq >= p_from order by seq loop
    update meshaudit_private.ledger set prev_hash = v_prev, hash = pg_temp.rehash(l, v_prev)
      where lane = l.lane and seq = l.seq returning hash into v_prev;
  end loop;
  if p_head then
    update meshaudit_private.lane_heads h set hash = v_prev, seq = (
      select max(seq) from meshaudit_private.ledger where lane = p_lane) where lane = p_lane;
  end if;
end
$$;
"""


class Ledger:
    """The ledger of a database whose protection has been switched off."""

    def __init__(self, db: Db) -> None:
        self.db = db
        self.su = db.connect(db.pg.superuser)
        self.su.execute(_REWRITE.encode())
        leaves = self.all(
            "select inhrelid::regclass::text from pg_inherits where inhparent = %s::regclass", _L
        )
        for (table,) in [(_L,), *leaves]:
            self.su.execute(f"alter table {table} disable trigger user".encode())
        self.keep()

    def keep(self) -> None:
        """What is there now is what reset() brings back."""
        self.su.execute(
            f"""
            drop table if exists pg_temp.kept, pg_temp.kept_heads;
            create temp table kept as table {_L};
            create temp table kept_heads as table {_H};
            """.encode()
        )
        self.lanes: list[int] = [
            lane for (lane,) in self.all(f"select lane from {_H} where seq > 0 order by lane")
        ]
        self.lengths: dict[int, int] = dict(self.all(f"select lane, seq from {_H} where seq > 0"))
        self.ids: dict[tuple[int, int], int] = {
            (lane, seq): number for lane, seq, number in self.all(f"select lane, seq, id from {_L}")
        }
        self.checkpoint: Checkpoint = parse_checkpoint(take_checkpoint(self.su))

    def reset(self) -> None:
        """Undo every tampering."""
        self.su.execute(
            f"truncate {_L}, {_H};"
            f"insert into {_L} table pg_temp.kept; insert into {_H} table pg_temp.kept_heads;"
            f"alter table {_L} alter hash set not null, alter prev_hash set not null".encode()
        )

    def all(self, query: str, *params: Any) -> list[Any]:
        """The rows of a query, as superuser."""
        return self.su.execute(query.encode(), params).fetchall()

    def do(self, statement: str, *params: Any, rows: int | None = 1) -> None:
        """A falsification; `rows` is how many rows it must change."""
        done = self.su.execute(statement.format(L=_L, H=_H).encode(), params)
        assert rows is None or done.rowcount == rows, (statement, done.rowcount)

    def edit(self, lane: int, seq: int, /, **changes: Any) -> None:
        """Set columns of an entry, leaving its chain fields as they are."""
        sets = ", ".join(f'"{name}" = %s' for name in changes)
        self.do(f"update {{L}} set {sets} where lane = %s and seq = %s", *changes.values(), lane, seq)

    def copy(self, lane: int, seq: int, /, **changes: str) -> int:
        """Add a copy of an entry with some columns given as SQL; returns its id."""
        columns = [
            name
            for (name,) in self.all(
                "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
                " order by attnum",
                _L,
            )
        ]
        changes = {
            "id": "nextval('meshaudit_private.ledger_id')",
            "timestamp": "\"timestamp\" + '1 us'",
        } | changes
        values = ", ".join(changes.get(name, f'"{name}"') for name in columns)
        (row,) = self.all(
            f"insert into {_L} select {values} from {_L} where lane = %s and seq = %s returning id", lane, seq
        )
        number: int = row[0]
        return number

    def rehash(self, number: int) -> None:
        """Make one entry sound, by id, on the prev_hash that it has."""
        self.do("update {L} l set hash = pg_temp.rehash(l, l.prev_hash) where id = %s", number)

    def rewrite(self, lane: int, seq: int, *, head: bool) -> None:
        """Make a lane from that entry on sound and linked again, and its head if so wanted."""
        self.do("select pg_temp.rewrite(%s, %s, %s)", lane, seq, head)

    def entry(self, lane: int, seq: int, problem: str) -> Found:
        """What is to be found at an original entry."""
        return lane, seq, self.ids[lane, seq], problem

    def found(
        self,
        from_time: datetime | None = None,
        to_time: datetime | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> list[Found]:
        """What both verifiers find; they must agree, but for what only a checkpoint shows."""
        query = "select * from meshaudit.verify(%s, %s)"
        inside = sorted((Problem(*row) for row in self.all(query, from_time, to_time)), key=order)
        report = verify(self.su, from_time=from_time, to_time=to_time, checkpoint=checkpoint)
        outside = [p for p in report.problems if p.found_by == "chain"]
        only = [(p[:4], "outside") for p in outside if p not in inside] + [
            (p[:4], "inside") for p in inside if p not in outside
        ]
        assert outside == inside, f"one verifier finds what the other does not: {only}"
        return [p[:4] for p in report.problems]

    def expect(self, *expected: Found, **kw: Any) -> None:
        """These and no other problems, by both verifiers."""
        found, wanted = self.found(**kw), sorted(expected, key=lambda found: order(Problem(*found)))
        assert found == wanted, f"found {found}, expected {wanted}"


_L = "meshaudit_private.ledger"
_H = "meshaudit_private.lane_heads"


def real_ledger(db: Db, lanes: int = 3, rounds: int = 2) -> Ledger:
    """Secrets written and read by several sessions, one entry a call and many a call."""
    services = [db.role("service", "meshaudit_client") for _ in range(2)]
    sessions: list[psycopg.Connection[Any]] = []
    count = "select count(*) from meshaudit_private.lane_heads where seq > 0"
    while (db.su.execute(count.encode()).fetchone() or (0,))[0] < lanes:
        # Which lane a session takes follows from its pid: another session, most likely another lane.
        sessions.append(conn := db.connect(services[len(sessions) % 2], application_name="svc"))
        _use(conn, f"first-{len(sessions)}")
    for round in range(rounds):
        for number, conn in enumerate(sessions):
            _use(conn, f"{round}-{number}")
    return Ledger(db)


def _use(conn: psycopg.Connection[Any], key: str) -> None:
    ids = [
        conn.execute(
            "select meshaudit.write_secret(%s, '\\x00', %s)", (f"{key}-{n}", f"scope-{n}")
        ).fetchone()
        for n in range(2)
    ]
    conn.execute("select meshaudit.read_secrets(%s)", ([row[0] for row in ids if row],))
    for row in ids[:1]:
        conn.execute("select meshaudit.read_secret(%s)", row)


def deleted(lane: int, first: int, last: int | None = None) -> Found:
    """What is to be found where entries are missing."""
    gone = "deleted" if last in (None, first) else f"deleted (entries {first} to {last})"
    return lane, first, None, gone


def times(ledger: Ledger) -> Sequence[datetime]:
    """The timestamps of all entries, ascending."""
    return [at for (at,) in ledger.all(f'select "timestamp" from {_L} order by 1')]
