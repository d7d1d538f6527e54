"""protect and unprotect: existing tables under audit, and out of it."""

from typing import Annotated

import typer

from meshaudit import db, filters, output, queries
from meshaudit.commands.options import Dsn, Json, dsn, wants_json
from meshaudit.version import require_current

Table = Annotated[
    str, typer.Argument(help='The table, as SQL names it: secrets, app.secrets, app."Secrets".')
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be executed; change nothing.")]


def protect(
    context: typer.Context,
    table: Table,
    secret_columns: Annotated[
        list[str], typer.Option("--secret-column", help="A column whose reads are recorded. Repeat for more.")
    ],
    scope_column: Annotated[
        str | None, typer.Option("--scope-column", help="The column that tells the tenant or project.")
    ] = None,
    mode: Annotated[str, typer.Option("--mode", help="ledger or journal.")] = "ledger",
    dry_run: DryRun = False,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Put an existing table under audit, in place: its users notice nothing."""
    target = filters.plain("TABLE", table) or ""
    columns = [filters.plain("--secret-column", column) or "" for column in secret_columns]
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        plan = queries.protection_plan(conn, target, columns, scope_column, mode)
        done = None if dry_run else queries.protect(conn, target, columns, scope_column, mode)
    if wants_json(context, as_json):
        output.dump({"statements": plan, "done": done})
        return
    for statement in plan:
        print(output.printable(statement) + ";")
    print("nothing was changed (--dry-run)" if done is None else output.printable(done))


def unprotect(
    context: typer.Context,
    table: Table,
    dry_run: DryRun = False,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Take a protected table back out, as it came."""
    target = filters.plain("TABLE", table) or ""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        done = queries.unprotect(conn, target, dry_run=dry_run)
    if wants_json(context, as_json):
        output.dump({"done": None if dry_run else done})
    else:
        print(output.printable(f"{done}; nothing was changed (--dry-run)" if dry_run else done))
