"""status, maintain, grant-auditor and revoke-auditor."""

from typing import Annotated

import typer

from meshaudit import db, filters, output, queries
from meshaudit.commands.options import Dsn, Json, dsn, wants_json
from meshaudit.errors import BadArgument
from meshaudit.version import require_current

Identity = Annotated[str, typer.Argument(help="A database role, or else a JWT subject.")]
Scope = Annotated[str, typer.Option("--scope", help="One tenant or project; '*' is all.")]


def status(context: typer.Context, database: Dsn = None, as_json: Json = False) -> None:
    """Health of the audit log: what is in order, and what to do about the rest."""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        checks = queries.status(conn)
    if wants_json(context, as_json):
        output.dump([{"check": c.check, "ok": c.ok, "detail": c.detail} for c in checks])
    else:
        output.table(
            ("check", "ok", "detail"), [(c.check, "yes" if c.ok else "NO", c.detail) for c in checks]
        )


def maintain(context: typer.Context, database: Dsn = None, as_json: Json = False) -> None:
    """The nightly job: makes partitions ahead. Safe at any time."""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        done = queries.maintain(conn)
    if wants_json(context, as_json):
        output.dump({"done": done})
    else:
        print(done)


def grant_auditor(
    context: typer.Context,
    identity: Identity,
    scope: Scope = "*",
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Let somebody read the log. This is itself an entry in it."""
    name, where = filters.plain("IDENTITY", identity) or "", filters.plain("--scope", scope) or ""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        queries.grant_auditor(conn, name, where)
        kind = "database" if queries.is_role(conn, name) else "jwt"
    if wants_json(context, as_json):
        output.dump({"identity": name, "identity_source": kind, "scope": where})
    else:
        # A mistyped role would silently become somebody's JWT subject: say which it was.
        what = "database role" if kind == "database" else "JWT subject (no role has this name)"
        print(output.printable(f"{name} may read {_scope(where)}: {what}"))


def revoke_auditor(
    context: typer.Context,
    identity: Identity,
    scope: Scope = "*",
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Take back a grant of grant-auditor. This is itself an entry in the log."""
    name, where = filters.plain("IDENTITY", identity) or "", filters.plain("--scope", scope) or ""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        if not queries.revoke_auditor(conn, name, where):
            raise BadArgument(
                f"{name} has no grant for {_scope(where)}", "grants are revoked by identity and scope"
            )
    if wants_json(context, as_json):
        output.dump({"identity": name, "scope": where, "revoked": True})
    else:
        print(output.printable(f"{name} may no longer read {_scope(where)}"))


def _scope(scope: str) -> str:
    return "all scopes" if scope == "*" else f"scope {scope!r}"
