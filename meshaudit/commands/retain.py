"""retain, the nightly job of retention; and retention: its policies."""

from typing import Annotated, Any

import typer

from meshaudit import db, extra, filters, output, queries, retention
from meshaudit.commands.archive import progress
from meshaudit.commands.options import Dsn, Json, between, dsn, wants_json
from meshaudit.errors import BadArgument
from meshaudit.version import require_current

_HINT = "connect as a member of meshaudit_operator that is an auditor of scope '*'"
_DONE = {"archive": "archived", "expire": "expired"}

app = typer.Typer(help="Retention policies, by scope.", invoke_without_command=True)


def retain(
    context: typer.Context,
    to: Annotated[str, typer.Option("--to", metavar="DIR|URL", help="A directory, or s3://, gs://, az://.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Nightly: maintain(), archive what the policies say, expire archives whose period is over.

    One line a partition. Safe to run again.
    """
    extra.load("meshaudit.archive.store").store(to)  # before the database is asked: is it a place at all?
    given = dsn(context, database)
    gone: list[str] = []
    elsewhere: list[str] = []
    with db.connect(given) as conn, db.errors(_HINT):
        require_current(conn)
        if not dry_run:
            output.note(f"maintain: {queries.maintain(conn)}")
        steps = retention.plan(conn)
        rows = [_row(step, step.action) for step in steps]
        if not dry_run:
            job, expire = extra.load("meshaudit.archive.job"), extra.load("meshaudit.archive.expire")
            for partition in expire.sweep(conn, to):
                output.note(f"{partition}: its file, expired in an earlier run, is deleted")
            ready = [
                job.Partition(s.partition, s.from_time, s.to_time, "ready", None)
                for s in steps
                if s.action == "archive"
            ]
            with progress() as tell:
                for one in job.archive(conn, given, to, ready, tell) if ready else ():
                    output.note(f"{one.partition}: {one.entries} entries, {one.bytes} bytes, archived")
            # Again: the newest archive never expires, and now another may be that.
            manifests = retention.manifests(conn)
            for step in retention.plan(conn):
                if step.action != "expire":
                    continue
                if expire.is_here(to, step.partition, manifests[step.partition]):
                    expire.expire(conn, to, step.partition)
                    gone.append(step.partition)
                else:
                    elsewhere.append(step.partition)
            rows = [_row(step, _outcome(step, gone, elsewhere)) for step in steps]
    output.records(rows, as_json=wants_json(context, as_json), none="nothing to retain")
    if elsewhere:
        raise BadArgument(
            f"expired, but not in {to}, and so not deleted: {', '.join(elsewhere)}",
            "give the place where they are",
        )


def _outcome(step: retention.Step, gone: list[str], elsewhere: list[str]) -> str:
    if step.partition in gone:
        return _DONE["expire"]
    if step.partition in elsewhere:
        return "keep archive"
    return _DONE.get(step.action, step.action)


def _row(step: retention.Step, action: str) -> dict[str, Any]:
    due = output.stamp(step.due) if step.due is not None else None
    done = action in _DONE.values()
    return {
        "partition": step.partition,
        "action": action,
        "due": due,
        "detail": None if done else step.detail,
    }


@app.callback(invoke_without_command=True)
def listing(context: typer.Context, database: Dsn = None, as_json: Json = False) -> None:
    """The policies that count."""
    if context.invoked_subcommand:
        between(context, database, as_json)
        return
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        found = retention.policies(conn)
    as_data = wants_json(context, as_json)
    rows = [output.plain(policy._asdict()) for policy in found]
    if not as_data:
        rows = [row | {"keep_in_archive": row["keep_in_archive"] or "for ever"} for row in rows]
    output.records(rows, as_json=as_data, none="no policies: everything stays")


@app.command(name="set")
def set_policy(
    context: typer.Context,
    scope: Annotated[str, typer.Argument(help="One tenant or project; '*' is the default of all.")],
    in_database: Annotated[
        str, typer.Option("--keep-in-database", metavar="PERIOD", help="Such as '90 days'.")
    ],
    in_archive: Annotated[
        str | None,
        typer.Option("--keep-in-archive", metavar="PERIOD", help="Such as '7 years'. Without it: for ever."),
    ] = None,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Set a policy. This is itself an entry in the log; a shorter period counts after a week."""
    where = filters.plain("SCOPE", scope) or ""
    periods = (
        filters.plain("--keep-in-database", in_database) or "",
        filters.plain("--keep-in-archive", in_archive),
    )
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        retention.set_policy(conn, where, *periods)
    if wants_json(context, as_json):
        output.dump({"scope": where, "keep_in_database": periods[0], "keep_in_archive": periods[1]})
    else:
        print(
            output.printable(
                f"scope {where!r}: {periods[0]} in the database, {periods[1] or 'for ever'} in the archive"
            )
        )


@app.command()
def remove(
    context: typer.Context,
    scope: Annotated[str, typer.Argument(help="The policy's scope.")],
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Remove a policy, which goes on counting for a week. This is itself an entry in the log."""
    where = filters.plain("SCOPE", scope) or ""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        if not retention.remove_policy(conn, where):
            raise BadArgument(f"no policy for scope {where!r}", "meshaudit retention lists them")
    if wants_json(context, as_json):
        output.dump({"scope": where, "removed": True})
    else:
        print(output.printable(f"scope {where!r}: its policy is removed"))
