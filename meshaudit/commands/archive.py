"""archive and restore: whole partitions out to Parquet, proved, retired; and back."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from meshaudit import db, extra, filters, output
from meshaudit.commands.options import Dsn, Json, dsn, wants_json
from meshaudit.version import require_current

_HINT = "connect as a member of meshaudit_operator that is an auditor of scope '*'"


def archive(
    context: typer.Context,
    to: Annotated[str, typer.Option("--to", metavar="DIR|URL", help="A directory, or s3://, gs://, az://.")],
    before: Annotated[
        str, typer.Option("--before", metavar="TIME", help="Partitions that end at this time or earlier.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which partitions.")] = False,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Write whole partitions to Parquet, verify what was written, retire them. Safe to run again."""
    end = filters.time("--before", before)
    assert end is not None
    job = extra.load("meshaudit.archive.job")
    extra.load("meshaudit.archive.store").store(to)  # before the database is asked: is it a place at all?
    given = dsn(context, database)
    with db.connect(given) as conn, db.errors(_HINT):
        require_current(conn)
        found = job.candidates(conn, end)
        ready = [p for p in found if p.state != "kept"]
        for partition in found:
            if partition.state == "kept":
                output.note(f"{partition.name} stays: {partition.detail}")
        if dry_run:
            _tell(
                context, as_json, [{"partition": p.name, "state": p.state, "detail": p.detail} for p in found]
            )
            return
        done = []
        with progress() as tell:
            for one in job.archive(conn, given, to, ready, tell):
                done.append(one._asdict())
                output.note(
                    f"{one.partition}: {one.entries} entries, {one.bytes} bytes, verified and retired"
                )
    _tell(context, as_json, done)


def restore(
    context: typer.Context,
    place: Annotated[str, typer.Argument(metavar="DIR|URL", help="Where the archive is.")],
    partition: Annotated[str, typer.Option("--partition", metavar="NAME", help="Which partition.")],
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Bring an archived partition's entries back, verified. This is itself an entry in the log."""
    name = filters.plain("--partition", partition) or ""
    bring_back = extra.load("meshaudit.archive.restore").restore
    with db.connect(dsn(context, database)) as conn, db.errors("connect as a member of meshaudit_operator"):
        require_current(conn)
        with progress() as tell:
            entries = bring_back(conn, place, name, tell)
    if wants_json(context, as_json):
        output.dump({"partition": name, "entries": entries})
    else:
        print(f"{name}: {entries} entries are back, verified")


def _tell(context: typer.Context, as_json: bool, rows: list[dict[str, object]]) -> None:
    output.records(rows, as_json=wants_json(context, as_json), none="nothing to archive")


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, str, int], None]]:
    """What is being done, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda partition, step, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} entries"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(partition: str, step: str, done: int) -> None:
            # two at a time
            if partition not in tasks:
                tasks[partition] = bar.add_task("", total=None)
            bar.update(tasks[partition], description=f"{step} {partition}", completed=done)
            if step == "retired":
                bar.remove_task(tasks.pop(partition))

        yield show
