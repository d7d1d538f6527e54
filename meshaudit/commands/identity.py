"""identity of and identity erase."""

from typing import Annotated

import typer

from meshaudit import db, filters, output, queries
from meshaudit.commands.options import Dsn, Json, between, dsn, wants_json
from meshaudit.errors import BadArgument
from meshaudit.version import require_current

app = typer.Typer(
    help="Pseudonyms in the log (setting erasable_identities), and whose they are.",
    no_args_is_help=True,
    callback=between,
)


@app.command()
def of(
    context: typer.Context,
    pseudonym: Annotated[str, typer.Argument(metavar="PSEUDONYM", help="As it stands in entries.")],
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Who is behind a pseudonym. That you asked is an entry in the log."""
    wanted = filters.plain("PSEUDONYM", pseudonym) or ""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        identity = queries.identity_of(conn, wanted)
    if identity is None:
        raise BadArgument(
            f"nobody is known behind {output.printable(wanted)!r}",
            "it was erased, is no pseudonym, or stands in no entry of a scope that you see",
        )
    if wants_json(context, as_json):
        output.dump({"pseudonym": wanted, "identity": identity})
    else:
        print(output.printable(identity))


@app.command()
def erase(
    context: typer.Context,
    identity: Annotated[
        str, typer.Argument(metavar="IDENTITY", help="The JWT's subject, or as it was claimed.")
    ],
    reason: Annotated[
        str, typer.Option("--reason", help="Why: the request's number, not the name. It is recorded.")
    ],
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Destroy what joins an identity with its pseudonyms, for good. Every entry stays."""
    who = filters.plain("IDENTITY", identity) or ""
    why = filters.plain("--reason", reason) or ""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        erased = queries.erase_identity(conn, who, why)
    if wants_json(context, as_json):
        output.dump({"pseudonyms_erased": erased})
    elif erased:
        print(f"erased: {erased} pseudonym{'s' if erased != 1 else ''}")
    else:
        print("nothing to erase: the log knows no pseudonym of that identity")
