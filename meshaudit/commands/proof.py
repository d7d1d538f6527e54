"""verify and checkpoint: is the log what was recorded?"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meshaudit import db, extra, filters, output
from meshaudit import verify as verifier
from meshaudit.commands.options import Dsn, Json, dsn, names_database, wants_json
from meshaudit.errors import BadArgument
from meshaudit.verifications import Recorder
from meshaudit.version import require_current

if TYPE_CHECKING:
    from meshaudit.archive_faults import Fault
    from meshaudit.archive_verify import Archives, Manifest

ALTERED = 1
_HINT = "connect as an auditor of all scopes: select meshaudit.grant_auditor('your role')"


def verify(
    context: typer.Context,
    from_time: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="At this time or later.")
    ] = None,
    to_time: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Before this time.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="A checkpoint that was kept outside the database.")
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option("--archive", metavar="DIR|URL", help="Where meshaudit archive wrote to."),
    ] = None,
    record: Annotated[
        bool | None,
        typer.Option(
            "--record/--no-record",
            help="Keep the result in the database, for status and alerts. By default where that can be done.",
        ),
    ] = None,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Recompute every hash. Exit code 0: intact, 1: altered, 2: could not check.

    With a checkpoint: also that nothing recorded before it has gone or changed. With an archive: its files,
    and, if a database is named, that both are one history.
    """
    if record and (from_time or to_time):
        raise BadArgument("--record is for the whole log", "leave --from and --to out")
    alone = archive is not None and not names_database(dsn(context, database))
    if alone and record:
        raise BadArgument("--record takes a database", "give --dsn")
    if alone and checkpoint is not None:
        raise BadArgument("a checkpoint is of a database", "name it with --dsn")
    start, end = filters.time("--from", from_time), filters.time("--to", to_time)
    # Before the database is asked: a bad file should not cost a long run.
    held = _held(checkpoint) if checkpoint is not None else None
    archives, expired = None, list["Manifest"]()
    if archive is not None:
        if start or end:
            raise BadArgument("--archive verifies whole archives", "leave --from and --to out")
        archives = _archives(archive, held)
    if archives is not None and alone:
        archives, expired = extra.load("meshaudit.expired").judged(archives, archive)
        _tell_archives(archives, expired, wants_json(context, as_json))
        return
    where = dsn(context, database)
    whole = record is not False and start is None and end is None
    with (
        db.connect(where) as conn,
        db.errors(_HINT),
        Recorder(where, required=bool(record)) as recorder,
    ):
        require_current(conn)
        with _progress() as bar:

            def progress(done: int, total: int) -> None:
                if bar is not None:
                    bar(done, total)
                if whole:
                    recorder.progress(done, total)

            report = verifier.verify(
                conn,
                from_time=start,
                to_time=end,
                checkpoint=held,
                archives=archives.outside() if archives is not None else None,
                progress=progress,
            )
        if archives is not None:
            # After the files: what expired meanwhile is known, too.
            expiry = extra.load("meshaudit.expired")
            archives, expired = expiry.judged(archives, archive, expiry.read_log(conn))
        problems = report.problems
        faults = [*(archives.faults if archives is not None else ()), *report.archive_faults]
        if whole:
            first = next(
                (_described(p) for p in problems), next((f"{f.file}: {f.problem}" for f in faults), None)
            )
            recorder.end(conn, report.entries, len(problems) + len(faults), first)
    _tell(report, archives, expired, faults, held, wants_json(context, as_json))
    if problems or faults:
        sys.stdout.flush()  # before the exit code says that it was told
        raise typer.Exit(ALTERED)


def checkpoint(
    context: typer.Context,
    to_file: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write here instead of to stdout.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Even if the file is there: it may be evidence.")
    ] = False,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Print the lanes' heads and counts as JSON. Keep them outside the database."""
    del as_json  # it is JSON in any case
    if to_file is not None and to_file.exists() and not overwrite:
        raise BadArgument(f"{to_file} exists", "choose another name, or --overwrite")
    if to_file is not None and to_file.exists() and not to_file.is_file():
        # A device would be replaced by a file of its name.
        raise BadArgument(f"{to_file} is not a file", "without --output it goes to stdout")
    with db.connect(dsn(context, database)) as conn, db.errors(_HINT):
        require_current(conn)
        text = json.dumps(verifier.take_checkpoint(conn), indent=2)
    if to_file is None:
        print(text)
    else:
        _write(to_file, text + "\n")
        output.note(f"written to {to_file}")


def _archives(place: str, held: verifier.Checkpoint | None) -> "Archives":
    verify_archives = extra.load("meshaudit.archive_verify").verify
    wanted = {lane: head.seq for lane, head in held.lanes.items()} if held is not None else {}
    with _progress() as progress:
        found: Archives = verify_archives(place, wanted, progress or (lambda done, total: None))
    return found


def _tell(
    report: verifier.Report,
    archives: "Archives | None",
    expired: "list[Manifest]",
    faults: "list[Fault]",
    held: verifier.Checkpoint | None,
    as_json: bool,
) -> None:
    """What the database says, and archives beside it."""
    problems = report.problems
    if as_json:
        found = {
            "intact": not problems and not faults,
            "entries": report.entries,
            "lanes": report.lanes,
            "problems": [problem._asdict() for problem in problems],
        }
        if report.retired or archives is not None:
            found |= {
                "retired": report.retired,
                "archived": archives.entries if archives is not None else None,
                "expired": sum(m.entries for m in expired) if archives is not None else None,
                "unproved": report.unproved,
                "archive_faults": [fault._asdict() for fault in faults],
            }
        output.dump(found)
    elif problems or faults:
        for fault in faults:
            print(output.printable(f"altered: {fault.file}: {fault.problem}"))
        if problems:
            print(f"altered: {_described(problems[0])}")
            print(f"{_count(len(problems), 'problem', 'problems')} in {_entries(report.entries)}")
    else:
        print(f"intact: {_entries(report.entries)}, every hash and every link")
        if archives is not None:
            count = len(archives.manifests) - len(expired)
            print(f"and {_entries(archives.entries)} in {count} archives: one history")
            _tell_expired(expired)
        elif report.retired:
            print(f"{_entries(report.retired)} more are retired; --archive verifies them too")
        if held is not None and report.unproved:
            where = "archives that have expired" if expired else "an archive; --archive compares them too"
            print(f"{report.unproved} of the checkpoint's lanes end in {where}")
        elif held is not None:
            print(f"of the checkpoint's {_entries(held.entries)} none has gone or changed")


def _tell_archives(archives: "Archives", expired: "list[Manifest]", as_json: bool) -> None:
    """What archives alone say."""
    if as_json:
        output.dump(
            {
                "intact": not archives.faults,
                "archives": len(archives.manifests),
                "archived": archives.entries,
                "expired": sum(m.entries for m in expired),
                "not_archived": archives.absent,
                "archive_faults": [fault._asdict() for fault in archives.faults],
            }
        )
    else:
        for fault in archives.faults:
            print(output.printable(f"altered: {fault.file}: {fault.problem}"))
        if not archives.faults:
            print(
                f"intact: {_entries(archives.entries)} in {len(archives.manifests) - len(expired)} archives,"
                " every hash and every link"
            )
            _tell_expired(expired)
            if archives.absent:
                print(
                    f"{_entries(archives.absent)} between them are elsewhere; with --dsn they are looked for"
                )
    if archives.faults:
        sys.stdout.flush()
        raise typer.Exit(ALTERED)


def _tell_expired(expired: "list[Manifest]") -> None:
    if expired:
        entries = _entries(sum(m.entries for m in expired))
        print(f"{entries} of {_count(len(expired), 'archive', 'archives')} have expired, as the log says")


def _held(path: Path) -> verifier.Checkpoint:
    try:
        return verifier.read_checkpoint(path)
    except BadArgument as error:
        error.hint = error.hint or "give a file that `meshaudit checkpoint` wrote"
        raise


def _write(path: Path, text: str) -> None:
    """The whole file or none: half a checkpoint proves nothing."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as exc:
        # Of the file that was asked for: nobody knows of the other one.
        raise BadArgument(f"cannot write {path}: {exc.strerror}", "choose another place") from exc
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    # Imported late: a quarter of the program's start.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _described(problem: verifier.Problem) -> str:
    places = {"lane": problem.lane, "seq": problem.seq, "id": problem.id}
    where = ", ".join(f"{name} {number}" for name, number in places.items() if number is not None)
    contradicts = " (contradicts the checkpoint)" if problem.found_by == "checkpoint" else ""
    return f"{where}{': ' if where else ''}{problem.problem}{contradicts}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _entries(number: int) -> str:
    return _count(number, "entry", "entries")
