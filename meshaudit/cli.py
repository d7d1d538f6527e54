"""The command line: which commands there are, and what becomes of their errors.

Exit codes: 0 done, 1 the log was altered (verify) or the demo did not go as told, 2 an error, 130 Ctrl-C.
An error is one line on stderr, with a hint, never a traceback (MESHAUDIT_DEBUG=1 gives one).
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from typer.core import TyperGroup

from meshaudit import __version__
from meshaudit.commands import (
    admin,
    alerts,
    archive,
    hold,
    identity,
    journal,
    local,
    log,
    migrations,
    options,
    proof,
    protect,
    retain,
    serve,
)
from meshaudit.errors import BadArgument, MeshauditError, translate
from meshaudit.output import one_line

PROGRAM = "meshaudit"
FILES = "check the path, its permissions and the space left"
BUG = "this is a bug; MESHAUDIT_DEBUG=1 shows where"


class Guarded(TyperGroup):
    """Runs a command; whatever it raises ends in one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run it with these arguments, or the program's; ends in SystemExit."""
        with _told():
            # However it was started: the name that is in every hint.
            kwargs |= {"standalone_mode": False, "prog_name": kwargs.get("prog_name") or PROGRAM}
            code = super().main(*args, **kwargs)
            sys.stdout.flush()
        raise SystemExit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        # Here and not in main alone, as Typer has an end of its own for a broken pipe.
        with _told(ctx):
            result = super().invoke(ctx)
            # Here, while a full disk or a closed pipe can still be told from success.
            sys.stdout.flush()
        return result


@contextlib.contextmanager
def _told(context: Any = None) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None
    except BrokenPipeError:
        _discard_stdout()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except MeshauditError as error:
        raise SystemExit(_fail(error)) from None
    except psycopg.Error as exc:
        raise SystemExit(_fail(translate(exc))) from None
    except OSError as exc:
        name = f"{exc.filename}: " if exc.filename else ""
        raise SystemExit(_fail(MeshauditError(f"{name}{exc.strerror or exc}", FILES))) from None
    except typer.Exit:
        raise
    except Exception as exc:
        # By what it has: Typer's own name for its class depends on its version.
        if hasattr(exc, "format_message"):
            raise SystemExit(_misspelt(exc, context)) from None
        raise SystemExit(_fail(MeshauditError(f"{type(exc).__name__}: {exc}", BUG))) from None


def _misspelt(exc: Any, context: Any) -> int:
    """Say how a command line is wrong."""
    if type(exc).__name__ == "NoArgsIsHelpError":
        # No error but the help, which is printed already where rich prints it.
        if text := exc.format_message():
            print(text)
        sys.stdout.flush()
        return 2
    where = PROGRAM
    if getattr(exc, "ctx", None):
        where = exc.ctx.command_path
    elif context is not None and context.invoked_subcommand:
        # Of an option without its value Typer does not tell the command.
        where = f"{PROGRAM} {context.invoked_subcommand}"
    # Not _fail: of a misspelt command no traceback would say more.
    return _say(BadArgument(exc.format_message(), f"{where} --help"))


def _fail(error: MeshauditError) -> int:
    if os.environ.get("MESHAUDIT_DEBUG"):
        raise error
    return _say(error)


def _say(error: MeshauditError) -> int:
    # What a failed command has printed so far is let go first, so that the error comes last.
    try:
        sys.stdout.flush()
    except OSError:
        _discard_stdout()
    print(one_line(error), file=sys.stderr)
    return 2


def _discard_stdout() -> None:
    """Let the interpreter's own last flush go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


app = typer.Typer(
    cls=Guarded,
    name=PROGRAM,
    help="A Postgres-native, tamper-evident audit log for secrets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"meshaudit {__version__}")
        raise typer.Exit


@app.callback()
def _before(
    context: typer.Context,
    database: options.Dsn = None,
    as_json: options.Json = False,
    _: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = options.Before(database, as_json)


for command in (
    local.demo,
    local.up,
    local.down,
    migrations.migrate,
    protect.protect,
    protect.unprotect,
    log.logs,
    proof.verify,
    proof.checkpoint,
    admin.status,
    admin.maintain,
    admin.grant_auditor,
    admin.revoke_auditor,
    journal.seal,
    archive.archive,
    archive.restore,
    retain.retain,
    serve.serve,
):
    app.command()(command)
app.add_typer(journal.app, name="journal")
app.add_typer(alerts.app, name="alerts")
app.add_typer(hold.app, name="hold")
app.add_typer(identity.app, name="identity")
app.add_typer(retain.app, name="retention")


def _terminate(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """The entry point of the program."""
    # As exceptions, so that servers that were started get stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Under nohup a hangup stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
    # psycopg's warnings (a query cut short by Ctrl-C) would be lines beside ours.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    logging.getLogger("psycopg").propagate = False
    # Python leaves these None where the caller has closed them.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name that the terminal's encoding lacks is shown escaped instead of ending the program.
            stream.reconfigure(errors="backslashreplace")
    app()
