"""What verbs print: tables for people, JSON for programs, progress and hints on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """Standard output as a terminal (colours only there, and not with NO_COLOR)."""
    return Console(highlight=False, soft_wrap=False)


def errors() -> Console:
    """Standard error as a terminal."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON value on standard output, UTF-8 without escapes."""
    print(json.dumps(value, ensure_ascii=False, indent=indent))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    title: str | None = None,
) -> None:
    """A plain table; columns whose numbers are in `right` are right-aligned.

    Into a pipe it is not cut.
    """
    out = console()
    if not out.is_terminal:
        out = Console(width=max(out.width, 200), highlight=False)
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        grid.add_column(
            Text(name, style="bold"),
            justify="right" if index in right else "left",
            overflow="fold",
            no_wrap=index in right or index == 0,
        )
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    _print_trimmed(out, grid)


def pairs(items: Sequence[tuple[str, str]]) -> None:
    """Names and values, one a line, long values wrapped."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in items:
        grid.add_row(Text(name, style="bold"), Text(value))
    _print_trimmed(console(), grid)


def _print_trimmed(out: Console, grid: Table) -> None:
    """Without the blanks that rich leaves at the ends of lines."""
    with out.capture() as drawn:
        out.print(grid)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def say(text: str) -> None:
    """A remark of the program, apart from the model's words."""
    errors().print(Text(text, style="dim"), soft_wrap=True)


def complain(error: Exception, advice: str = "") -> None:
    """An error that does not end the program."""
    errors().print(Text("error: ", style="red") + Text(f"{error}{advice}"), soft_wrap=True)


def hint(text: str) -> None:
    """Name the next useful verb, for people: only when standard error is a terminal."""
    if sys.stderr.isatty():
        errors().print(Text(f"next: {text}", style="dim"))


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner on standard error while something takes its time, in a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with errors().status(text):
        yield


@contextmanager
def download_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Bars of files that arrive, on standard error; gives `progress(file, done, total)`."""
    out = errors()
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=out,
        disable=not out.is_terminal,
    )
    known: dict[str, Any] = {}

    def progress(file: str, done: int, total: int) -> None:
        if file not in known:
            known[file] = bars.add_task(file, total=total)
            if not out.is_terminal:
                print(f"fetching {file} ({total} bytes)", file=sys.stderr)
        bars.update(known[file], completed=done, total=total)

    with bars:
        yield progress
