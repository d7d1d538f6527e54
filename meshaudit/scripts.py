"""sqitch's scripts as yoyo runs them: the same files, without the BEGIN and COMMIT around them.

sqitch calls psql, which needs that envelope; yoyo has a transaction open already. It is cut off where
Postgres's own parser says it is: a COMMIT in a function's body or in a string is none.
"""

from collections.abc import Callable
from typing import Any

import psycopg
from pglast import ast, parse_sql
from pglast.enums import TransactionStmtKind

from meshaudit import version
from meshaudit.resources import migrations_dir

Step = Callable[[psycopg.Connection[Any]], None]


def read(kind: str, name: str) -> str:
    """A script's text: kind is deploy, revert or verify."""
    return (migrations_dir() / kind / f"{name}.sql").read_text("utf-8")


def without_envelope(text: str) -> str:
    """The script between its BEGIN and its COMMIT; ValueError if it is not exactly one such transaction."""
    statements = parse_sql(text)
    control = {
        number: statement.stmt.kind
        for number, statement in enumerate(statements)
        if isinstance(statement.stmt, ast.TransactionStmt)
    }
    expected = {
        0: TransactionStmtKind.TRANS_STMT_BEGIN,
        len(statements) - 1: TransactionStmtKind.TRANS_STMT_COMMIT,
    }
    if control != expected:
        raise ValueError("a migration must be one transaction: begin; … commit;")
    # After the ";" that ends BEGIN; a statement's text begins where the one before it ended.
    return text[statements[1].stmt_location : statements[-1].stmt_location]


def run(conn: psycopg.Connection[Any], kind: str, name: str) -> None:
    """Run a script in the transaction that is open."""
    # Bytes without parameters go by the simple protocol, which takes many statements.
    conn.execute(without_envelope(read(kind, name)).encode("utf-8"), prepare=False)


def steps(name: str) -> tuple[Step, Step]:
    """What yoyo's step() takes: apply and roll back.

    yoyo marks a migration in a transaction of its own, so a crash can leave one applied and unmarked, or
    gone and marked. Hence each looks at the schema first, and leaves alone what has been done.
    """
    place = version.known().index(name)

    def apply(conn: psycopg.Connection[Any]) -> None:
        if version.applied_count(conn) <= place:
            run(conn, "deploy", name)

    def roll_back(conn: psycopg.Connection[Any]) -> None:
        if version.applied_count(conn) > place:
            run(conn, "revert", name)

    return apply, roll_back
