"""Turns results into what a person or a program reads: tables, one JSON object, progress on a terminal."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import typer

Cell = str | int | None


def print_json(result: msgspec.Struct) -> None:
    """Print a result as one JSON object on stdout; its fields are a contract."""
    typer.echo(msgspec.json.format(msgspec.json.encode(result), indent=2))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print rows in aligned columns: numbers with thousands' commas to the right, None as a dash."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *texts, strict=True)]
    right = [any(isinstance(row[n], int) for row in rows) for n in range(len(headers))]
    for cells in [list(headers), *texts]:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ]
        typer.echo("  ".join(padded).rstrip())


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:,}" if isinstance(cell, int) else cell


def print_warning(text: str) -> None:
    """Print a warning on stderr."""
    typer.echo(f"Warning: {text}", err=True)


def size_text(size_bytes: int) -> str:
    """A number of bytes for people: `1.4 MB`."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def duration_text(seconds: float) -> str:
    """A duration for people: `0.4 s`, `12 min`, `3 h`, `5 days`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 100:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 60 * 48 else f"{minutes / 60 / 24:.0f} days"


Advance = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is


@contextmanager
def progress() -> Iterator[Advance]:
    """A function that shows how far something is, on stderr and only if that is a terminal.

    Called with another description it goes on to the next bar. Nothing is left on the screen at the end.
    """
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console  # 60 ms to import, so only where it is seen
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance
