"""hold place, hold lift and hold list."""

from typing import Annotated

import typer

from meshaudit import db, filters, output, retention
from meshaudit.commands.options import Dsn, Json, between, dsn, wants_json
from meshaudit.errors import BadArgument
from meshaudit.version import require_current

app = typer.Typer(help="Legal holds: what they match stays.", no_args_is_help=True, callback=between)
Reason = Annotated[str, typer.Option("--reason", help="Why. It is recorded.")]


@app.command()
def place(
    context: typer.Context,
    reason: Reason,
    secret_id: Annotated[str | None, typer.Option("--secret-id", help="Only this secret's entries.")] = None,
    user_identity: Annotated[
        str | None, typer.Option("--user-identity", help="Only this actor's entries.")
    ] = None,
    scope: Annotated[str | None, typer.Option("--scope", help="Only this tenant's or project's.")] = None,
    from_time: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="At this time or later.")
    ] = None,
    to_time: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Before this time.")] = None,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Place a hold: what it matches is neither retired nor deleted. Not narrowed, it is on everything."""
    narrowed = {
        "secret_id": filters.plain("--secret-id", secret_id),
        "user_identity": filters.plain("--user-identity", user_identity),
        "scope": filters.plain("--scope", scope),
        "from_time": filters.time("--from", from_time),
        "to_time": filters.time("--to", to_time),
    }
    why = filters.plain("--reason", reason) or ""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        number = retention.place_hold(conn, why, **narrowed)
    if wants_json(context, as_json):
        output.dump({"hold": number})
    else:
        print(f"hold {number} is placed")


@app.command()
def lift(
    context: typer.Context,
    hold: Annotated[int, typer.Argument(metavar="NUMBER")],
    reason: Reason,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Lift a hold. This, too, is an entry in the log."""
    why = filters.plain("--reason", reason) or ""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        if not retention.lift_hold(conn, hold, why):
            raise BadArgument(f"no hold {hold}", "meshaudit hold list shows those that you may see")
    if wants_json(context, as_json):
        output.dump({"hold": hold, "lifted": True})
    else:
        print(f"hold {hold} is lifted")


@app.command(name="list")
def list_holds(context: typer.Context, database: Dsn = None, as_json: Json = False) -> None:
    """The holds that you may see."""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        found = retention.holds(conn)
    rows = [output.plain(hold._asdict()) for hold in found]
    output.records(rows, as_json=wants_json(context, as_json), none="no holds")
