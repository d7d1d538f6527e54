"""How results look: tables for people; JSON and CSV for programs.

Invariants: entries are written as they come, one page in memory; names and headers that clients chose
never reach a terminal with control characters in them, nor a spreadsheet as formulas.
"""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

from meshaudit import ocsf
from meshaudit.errors import BadArgument, MeshauditError
from meshaudit.queries import COLUMNS, Entry

FORMATS = ("table", "json", "csv", "ocsf")
_SHOWN = (
    "timestamp",
    "user_identity",
    "ip_address",
    "operation",
    "outcome",
    "secret_id",
    "scope",
    "secret_table",
    "id",
)
# What a spreadsheet begins a formula with; an apostrophe too, so that ours can be told from theirs.
_FORMULA = tuple("=+-@\t\n'")
_BOLD, _RED, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[0m"
# C0, DEL, C1, and what reorders or hides text.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def printable(text: str) -> str:
    """`text` with everything that could move a cursor or reverse a line made visible."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# All of that but what CSV carries within quotes, tab and line feed; and a backslash that could pass for ours.
_UNSAFE_IN_CSV = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
    r"|\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})"
)


def escaped(text: str) -> str:
    r"""`text`, or a row of CSV, as CSV shows it: \x1b, \u202e. Who puts the characters back has `text`."""
    return _UNSAFE_IN_CSV.sub(_as_escape, text)


def _as_escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def one_line(error: MeshauditError) -> str:
    """An error as the one line that a user sees."""
    text = f"error: {error.message.rstrip('.')}"
    if error.hint:
        text += f" (hint: {error.hint.rstrip('.')})"
    return printable(" ".join(text.split()))


def stamp(moment: datetime) -> str:
    """A time in UTC, to the microsecond, as RFC 3339."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def record(entry: Entry) -> dict[str, Any]:
    """An entry as JSON and CSV show it."""
    return {name: _plain(getattr(entry, name)) for name in COLUMNS}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, int | str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    return stamp(value) if isinstance(value, datetime) else str(value)


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON shows it."""
    return {name: _plain(value) for name, value in row.items()}


def dump(value: Any) -> None:
    """Print as JSON."""
    print(json.dumps(value, indent=2))


class Writer(Protocol):
    """Takes pages of entries, then the end."""

    def page(self, entries: Sequence[Entry]) -> None: ...
    def end(self) -> None: ...


def writer(form: str, out: TextIO, *, endless: bool = False) -> Writer:
    """The writer of that name; `endless`: for what has no end, so that JSON is an object a line."""
    if form not in FORMATS:
        raise BadArgument(f"--format: {form!r} is not a format", f"one of: {', '.join(FORMATS)}")
    made: dict[str, Callable[[TextIO], Writer]] = {
        "table": TableWriter,
        "json": JsonWriter,
        "csv": CsvWriter,
        "ocsf": lambda out: LinesWriter(out, ocsf.event),
    }
    if endless and form == "json":
        return LinesWriter(out, record)
    return made[form](out)


class JsonWriter:
    """One array, an entry a line: good for a JSON parser, and for reading line by line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._before = "[\n"

    def page(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._out.write(self._before + json.dumps(record(entry)))
            self._before = ",\n"

    def end(self) -> None:
        self._out.write("[]\n" if self._before == "[\n" else "\n]\n")


class LinesWriter:
    """A JSON object a line."""

    def __init__(self, out: TextIO, make: Callable[[Entry], dict[str, Any]]) -> None:
        self._out, self._make = out, make

    def page(self, entries: Sequence[Entry]) -> None:
        self._out.writelines(json.dumps(self._make(entry)) + "\n" for entry in entries)

    def end(self) -> None:
        pass


def harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that could be one has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ")[:1] in _FORMULA else value


def cell(value: Any) -> Any:
    """A cell that neither a spreadsheet executes nor a terminal."""
    return harmless(escaped(value)) if isinstance(value, str) else value


class CsvWriter:
    """A header, then a row for each entry; NULL is empty."""

    def __init__(self, out: TextIO) -> None:
        self._csv = csv.writer(out, lineterminator="\n")
        self._begun = False

    def page(self, entries: Sequence[Entry]) -> None:
        self._begin()
        for entry in entries:
            self._csv.writerow(map(cell, record(entry).values()))

    def end(self) -> None:
        self._begin()

    def _begin(self) -> None:
        # Not before there is a result: a search that fails prints nothing on stdout.
        if not self._begun:
            self._csv.writerow(COLUMNS)
            self._begun = True


class TableWriter:
    """Columns as wide as the first page needs; nothing is ever cut."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colour = out.isatty() and not os.environ.get("NO_COLOR")
        self._widths: list[int] = []

    def page(self, entries: Sequence[Entry]) -> None:
        rows = [self._cells(entry) for entry in entries]
        if not self._widths:
            self._widths = [max(map(len, column)) for column in zip(_SHOWN, *rows, strict=True)]
            self._line(_SHOWN, _BOLD)
        for row in rows:
            self._line(row, "" if row[4] == "granted" else _RED)

    def end(self) -> None:
        if not self._widths:
            self._out.write("no entries\n")

    @staticmethod
    def _cells(entry: Entry) -> list[str]:
        values = record(entry) | {"timestamp": f"{entry.timestamp.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}Z"}
        return [printable("" if values[name] is None else str(values[name])) for name in _SHOWN]

    def _line(self, cells: Iterable[str], style: str) -> None:
        text = "  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)).rstrip()
        self._out.write(f"{style}{text}{_PLAIN}\n" if style and self._colour else f"{text}\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A small table on stdout."""
    lines = [tuple(header), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def records(rows: Sequence[Mapping[str, Any]], *, as_json: bool, none: str) -> None:
    """Rows of the same columns, as JSON or as a table; `none` is what is said of no rows."""
    if as_json:
        dump(rows)
    elif rows:
        table(tuple(rows[0]), [tuple("" if v is None else str(v) for v in row.values()) for row in rows])
    else:
        print(none)


def note(text: str) -> None:
    """A remark that is not the result: on stderr, so that stdout stays clean."""
    print(printable(text), file=sys.stderr)
