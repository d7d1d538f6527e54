"""Options that many commands share. They may stand before the command's name, after it, or, where a command
has two names, between them. The one that stands last counts."""

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from meshaudit import filters


@dataclass
class Before:
    """What stood before the command's name."""

    dsn: str | None = None
    as_json: bool = False


Dsn = Annotated[
    str | None,
    typer.Option("--dsn", help="Which database. Without it: MESHAUDIT_DSN, or libpq's PG* variables."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def between(context: typer.Context, database: Dsn = None, as_json: Json = False) -> None:
    """The callback of a group: what stands before a subcommand's name is the subcommand's."""
    before: Before = context.obj
    context.obj = Before(before.dsn if database is None else database, as_json or before.as_json)


def dsn(context: typer.Context, after: str | None) -> str:
    """The DSN to use; empty leaves everything to libpq."""
    before: Before = context.obj
    given = next((d for d in (after, before.dsn) if d is not None), os.environ.get("MESHAUDIT_DSN", ""))
    return filters.plain("--dsn", given) or ""


def names_database(given: str) -> bool:
    """Whether anything says which database is meant, where a command can do without one."""
    return bool(given) or any(os.environ.get(name) for name in ("PGHOST", "PGDATABASE", "PGSERVICE"))


def wants_json(context: typer.Context, after: bool) -> bool:
    """Whether --json stood anywhere."""
    before: Before = context.obj
    return after or before.as_json


def stands(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given, be it with its default's value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
