"""demo, up and down: Postgres servers on this machine."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from meshaudit import db, output
from meshaudit.commands.options import Json, wants_json
from meshaudit.errors import BadArgument
from meshaudit.server import Server, default_data_dir

# A text: an empty path would be the current directory.
Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DIR", help="The server's directory.", show_default=str(default_data_dir())
    ),
]
# What later parts of meshaudit need is on from the start, as it takes a restart to change.
_SETTINGS = {"wal_level": "logical", "cluster_name": "meshaudit"}


def demo() -> None:
    """The whole story on an embedded Postgres, in under a minute."""
    # Imported late, as are the migrations below: most commands need neither, and start sooner.
    from meshaudit.demo import run

    raise typer.Exit(run())


def up(context: typer.Context, data: Data = None, as_json: Json = False) -> None:
    """Start a Postgres for development, migrated, and print its DSN. It runs until `down`."""
    from meshaudit import migrate

    db.forget_other_servers()
    where = _directory(data)
    server = Server.create(where, settings=_SETTINGS, password=secrets.token_urlsafe(18))
    was_running = server.running()
    server.start()
    applied = migrate.migrate(server.dsn())
    if wants_json(context, as_json):
        output.dump({"dsn": server.dsn(), "data": str(where), "started": not was_running})
        return
    output.note(f"{'already running' if was_running else 'started'} in {where}")
    if applied:
        output.note(f"migrations applied: {len(applied)}")
    output.note("the DSN, which holds the superuser's password:")
    print(server.dsn())


def down(context: typer.Context, data: Data = None, as_json: Json = False) -> None:
    """Stop the server of `up`. Its data stay."""
    where = _directory(data)
    server = Server.open(where)
    was_running = server.running()
    server.stop()
    if wants_json(context, as_json):
        output.dump({"data": str(where), "stopped": was_running})
    else:
        output.note(f"{'stopped' if was_running else 'not running'}; the data stay in {where}")


def _directory(data: str | None) -> Path:
    if data is not None and not data.strip():
        raise BadArgument("--data is empty", "give a directory, or leave --data out")
    return (Path(data) if data is not None else default_data_dir()).absolute()
