"""How the demo speaks: headings, SQL as it was sent, answers as they came, tables.

Colour only adds: every line says in words or signs what it means.
"""

import textwrap
from collections.abc import Sequence
from datetime import time
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from meshaudit.output import printable

_WIDTH = 100  # of what is no terminal: files, pipes, the README


class Narrator:
    """Prints the story."""

    def __init__(self) -> None:
        console = Console(highlight=False)
        width = min(console.width, 110) if console.is_terminal else _WIDTH
        self._console = Console(highlight=False, width=width)
        self._steps = 0
        self.heading = "the beginning"

    def title(self, text: str) -> None:
        self._console.print(Text(text, "bold"))

    def step(self, text: str) -> None:
        """Begin the next step."""
        self._steps += 1
        self.heading = f"step {self._steps}, {text}"
        self._console.print()
        self._console.print(Text(f"{self._steps}. {text}", "bold cyan"))

    def say(self, text: str) -> None:
        self._indented(text, "", "")

    def good(self, text: str) -> None:
        self._indented(text, "✔ ", "green")

    def alarm(self, text: str) -> None:
        self._indented(text, "✘ ", "bold red")

    def prompt(self, who: str, statement: str) -> None:
        """What somebody typed. Never wrapped, so that it can be copied."""
        first, *rest = statement.splitlines()
        line = Text(f"   {who} ", "green").append(first, "default")
        for more in rest:
            line.append(f"\n   {' ' * len(who)} {more}", "default")
        self._raw(line)

    def answer(self, value: Any) -> None:
        self._raw(Text(f"      {printable(str(value))}", "cyan"))

    def refused(self, state: str, message: str) -> None:
        self._raw(Text(f"      ERROR {state}: {printable(message)}", "yellow"))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        table = Table(
            *header,
            box=box.SIMPLE_HEAD,
            header_style="bold",
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
        )
        for column in table.columns:
            column.overflow = "fold"
        for row in rows:
            table.add_row(*(Text(printable(_cell(value))) for value in row))
        with self._console.capture() as drawn:
            self._console.print(Padding(table, (0, 0, 0, 6)))
        for line in drawn.get().splitlines():
            self._raw(Text.from_ansi(line.rstrip()))

    def _indented(self, text: str, sign: str, style: str) -> None:
        lines = textwrap.wrap(sign + text, self._console.width - 3, subsequent_indent=" " * len(sign))
        self._raw(Text("\n".join(f"   {line}" for line in lines), style))

    def _raw(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def _cell(value: Any) -> str:
    if isinstance(value, time):
        return value.isoformat("milliseconds")
    return "" if value is None else str(value)
