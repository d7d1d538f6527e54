"""migrate: apply, show or take back migrations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from meshaudit import output
from meshaudit.commands.options import Dsn, Json, dsn, wants_json
from meshaudit.errors import BadArgument

if TYPE_CHECKING:
    from meshaudit.migrate import MigrationState


def migrate(
    context: typer.Context,
    to: Annotated[str | None, typer.Option("--to", metavar="NAME", help="Up to this migration.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Only show which are applied.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Take back all, or all after --to.")] = False,
    destroy: Annotated[
        bool, typer.Option("--destroy-audit-log", help="With --down: drop a log that holds entries.")
    ] = False,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Bring the database's schema up to this program's."""
    if status and (down or to is not None):
        raise BadArgument("--status goes with neither --down nor --to", "it only shows")
    if destroy and not down:
        raise BadArgument("--destroy-audit-log without --down", "it says that --down may drop entries")
    # Imported late: yoyo is slow to import, and most commands do not need it.
    from meshaudit import migrate as migrations

    where, json = dsn(context, database), wants_json(context, as_json)
    if status:
        _status(migrations.status(where), json)
    elif down:
        _done(migrations.down(where, to=to, destroy_audit_log=destroy), "taken back", json)
    else:
        # Each name as its migration begins: the first thing to know if one takes long, or fails.
        told = None if json else lambda name: output.note(f"applying {name}")
        _done(migrations.migrate(where, to=to, progress=told), "applied", json)


def _done(names: list[str], verb: str, as_json: bool) -> None:
    if as_json:
        output.dump({verb.replace(" ", "_"): names})
    else:
        print(f"{verb}: {', '.join(names)}" if names else f"nothing to do: no migration {verb}")


def _status(states: Sequence["MigrationState"], as_json: bool) -> None:
    times = [output.stamp(s.applied_at) if s.applied_at else None for s in states]
    if as_json:
        output.dump(
            [
                {"name": state.name, "applied": state.applied, "applied_at": time}
                for state, time in zip(states, times, strict=True)
            ]
        )
        return
    rows = [
        (state.name, "yes" if state.applied else "no", time or "")
        for state, time in zip(states, times, strict=True)
    ]
    output.table(("migration", "applied", "at"), rows)
