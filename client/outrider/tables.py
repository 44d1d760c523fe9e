"""Tables of which nothing is cut off, however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NO_LIMIT = 100_000  # columns


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, is_framed: bool = True) -> None:
    """To standard output. Where a terminal is too narrow for the table, each row is a block: a line for each value."""
    screen = _screen()
    table = Table(*columns, title=title, title_justify="left", box=HEAVY_HEAD if is_framed else None)
    for row in rows:
        table.add_row(*map(Text, row))
    if screen.measure(table, options=screen.options.update(max_width=_NO_LIMIT)).maximum <= screen.width:
        screen.print(table)
        return
    screen.print(Text(title, style="table.title"))
    for row in rows:
        screen.print(_folded({column: value for column, value in zip(columns, row, strict=True) if value}))


def print_pairs(title: str, pairs: Mapping[str, str]) -> None:
    """Names and their values, to standard output. A value that is too long for the terminal is folded."""
    _screen().print(_folded(pairs, title=title))


def _screen() -> Console:
    """A file or a pipe has no width."""
    screen = Console()
    if not screen.is_terminal:
        screen.width = _NO_LIMIT
    return screen


def _folded(pairs: Mapping[str, str], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name, Text(value))
    return table
