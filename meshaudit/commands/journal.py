"""journal arm, journal disarm and seal."""

import signal
from threading import Event
from typing import Annotated

import typer

from meshaudit import db, output, sealer
from meshaudit.commands.options import Dsn, Json, between, dsn, wants_json
from meshaudit.version import require_current

_HINT = "connect as a member of meshaudit_operator with the attribute REPLICATION"

app = typer.Typer(
    help="The journal: accesses that no ROLLBACK takes back.", no_args_is_help=True, callback=between
)


@app.command()
def arm(context: typer.Context, database: Dsn = None, as_json: Json = False) -> None:
    """Make the journal's slot. From then on somebody must seal: `meshaudit seal --follow`."""
    with db.connect(dsn(context, database)) as conn, db.errors(_HINT):
        require_current(conn)
        row = conn.execute("select meshaudit.arm_journal()").fetchone()
    done = row[0] if row else ""
    if wants_json(context, as_json):
        output.dump({"journal": done})
    else:
        print(f"journal: {done}")


@app.command()
def disarm(context: typer.Context, database: Dsn = None, as_json: Json = False) -> None:
    """Seal a last time and drop the journal's slot."""
    with db.connect(dsn(context, database)) as conn, db.errors(_HINT):
        require_current(conn)
        row = conn.execute("select meshaudit.disarm_journal()").fetchone()
    done = bool(row and row[0])
    if wants_json(context, as_json):
        output.dump({"disarmed": done})
    else:
        print("journal: disarmed" if done else "journal: was not armed")


def seal(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until SIGTERM or Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.01, max=60, help="Seconds between runs.")
    ] = sealer.INTERVAL,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Make entries of the journal's records that have none: rolled back, READ ONLY, denied.

    With --follow it logs JSON lines on stderr, reconnects when the server goes away, and fails only where
    somebody must act.
    """
    where = dsn(context, database)
    if follow:
        stop = Event()

        def leave(number: int, _: object) -> None:
            stop.set()
            # The second time as by default: a run that hangs must not keep us.
            signal.signal(number, signal.SIG_DFL)

        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGINT, leave)
        # A server that is not there yet is waited for, as one that goes away is.
        with db.errors(_HINT):
            sealer.follow(where, stop=stop, interval=interval)
        return
    with db.connect(where) as conn, db.errors(_HINT):
        require_current(conn)
        total = sealer.drain(conn)
    if wants_json(context, as_json):
        output.dump({"entries": total})
    else:
        print(f"sealed: {total} {'entry' if total == 1 else 'entries'}")
