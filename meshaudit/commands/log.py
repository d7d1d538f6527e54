"""logs: search the audit log."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

import typer

from meshaudit import db, extra, filters, follow, output, queries
from meshaudit.commands.options import Dsn, Json, dsn, names_database, stands, wants_json
from meshaudit.errors import BadArgument
from meshaudit.version import require_current


def _option(name: str, text: str, metavar: str = "TEXT") -> Any:
    return typer.Option(name, help=text, metavar=metavar)


def logs(
    context: typer.Context,
    secret_id: Annotated[str | None, _option("--secret-id", "Accesses to this secret.")] = None,
    from_time: Annotated[str | None, _option("--from", "At this time or later.", "TIME")] = None,
    to_time: Annotated[str | None, _option("--to", "Before this time.", "TIME")] = None,
    since: Annotated[str | None, _option("--since", "In the last 90s, 15m, 2h, 3d or 1w.", "SPAN")] = None,
    user_identity: Annotated[str | None, _option("--user-identity", "By this login or JWT subject.")] = None,
    access_type: Annotated[str | None, _option("--access-type", "read or write.")] = None,
    operation: Annotated[str | None, _option("--operation", "read, create, update or delete.")] = None,
    outcome: Annotated[str | None, _option("--outcome", "granted, denied or rolled_back.")] = None,
    scope: Annotated[str | None, _option("--scope", "In this tenant or project.")] = None,
    ip: Annotated[str | None, _option("--ip", "From this address or network.", "ADDRESS")] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="So many at most; 0 is all.")] = 100,
    after: Annotated[str | None, _option("--after", "Go on behind this cursor.", "CURSOR")] = None,
    archive: Annotated[
        str | None,
        typer.Option("--archive", metavar="DIR|URL", help="In these archives; with --dsn, in both."),
    ] = None,
    form: Annotated[str | None, _option("--format", "table (default), json, csv or ocsf.", "FORMAT")] = None,
    follows: Annotated[bool, typer.Option("--follow", "-f", help="Print new entries as they come.")] = False,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Search the audit log, newest first. All filters are optional and combined.

    Times are ISO 8601, or now, today, yesterday. Without an offset they are UTC, whatever this machine's
    zone is, as all printed times are. Each page that is read is itself recorded.

    With --follow: entries from now on, in the order in which they become visible, each once; JSON is then an
    object a line. They come from meshaudit.audit_feed, which meshaudit seal --follow fills.
    """
    if follows and after is not None:
        raise BadArgument("--follow and --after exclude each other", "following starts now")
    if follows:
        given_too = {
            "--archive": archive is not None,
            "--to": to_time is not None,
            "--limit": stands(context, "limit"),
        }
        for option in (name for name, there in given_too.items() if there):
            raise BadArgument(
                f"--follow and {option} exclude each other", "following starts now and has no end"
            )
    if wants_json(context, as_json):
        if form not in (None, "json"):
            raise BadArgument(f"--json and --format {form} exclude each other", "give one of them")
        form = "json"
    writer = output.writer(form or "table", sys.stdout, endless=follows)
    if since is not None and from_time is not None:
        raise BadArgument("--since and --from exclude each other", "give one of them")
    ago = filters.span("--since", since) if since is not None else None
    start, end = filters.time("--from", from_time), filters.time("--to", to_time)
    texts = {
        "secret_id": filters.plain("--secret-id", secret_id),
        "user_identity": filters.plain("--user-identity", user_identity),
        "access_type": filters.plain("--access-type", access_type),
        "operation": filters.plain("--operation", operation),
        "outcome": filters.plain("--outcome", outcome),
        "scope": filters.plain("--scope", scope),
        "ip": filters.address("--ip", ip),
    }
    after = filters.cursor("--after", after)
    given = dsn(context, database)
    if archive is not None and not names_database(given):
        if ago is not None:
            raise BadArgument("--since counts from a server's clock", "give --from, or name a database")
        wanted = queries.Filters(from_time=start, to_time=end, **texts)
        pages = partial(extra.load("meshaudit.archive_logs").search, archive, wanted)
        _print(pages, after, limit or None, writer)
        return
    with db.connect(given) as conn:
        require_current(conn)
        if ago is not None:
            # Entries carry the server's time; this machine's may differ.
            start = queries.server_time(conn, ago)
        wanted = queries.Filters(from_time=start, to_time=end, **texts)
        if not follows:
            pages = partial(queries.search, conn, wanted)
            if archive is not None:
                pages = partial(_both, extra.load("meshaudit.archive_logs"), pages, archive, wanted)
            if not _print(pages, after, limit or None, writer) and not queries.sees_everything(conn):
                # An empty log and a log that is hidden would look the same.
                output.note(
                    "you may see only the scopes that you were granted, and none of their entries fits"
                )

    if follows:
        _follow(given, wanted, writer)


def _both(
    archives: Any,
    database: Any,
    place: str,
    wanted: queries.Filters,
    *,
    after: str | None,
    limit: int | None,
) -> Iterator[list[queries.Entry]]:
    found: Iterator[list[queries.Entry]] = archives.merged(
        database(after=after, limit=limit),
        archives.search(place, wanted, after=after, limit=limit),
        limit=limit,
    )
    return found


def _follow(database: str, wanted: queries.Filters, writer: output.Writer) -> None:
    stop = threading.Event()

    def show(entries: list[queries.Entry]) -> None:
        writer.page(entries)
        sys.stdout.flush()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    follow.follow(lambda: db.connect(database), wanted, show, output.note, stop)


def _print(
    pages: Callable[..., Iterator[list[queries.Entry]]],
    after: str | None,
    limit: int | None,
    writer: output.Writer,
) -> int:
    printed, last = 0, after
    for page in pages(after=after, limit=limit):
        writer.page(page)
        printed, last = printed + len(page), page[-1].cursor
    writer.end()
    sys.stdout.flush()
    if printed == limit and next(iter(pages(after=last, limit=1)), None):
        output.note(f"there are more: --after {last}, or --limit 0 for all")
    return printed
