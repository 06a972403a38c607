"""Turns `tds show` into one session or task as a person reads it: in the terminal, or as one static page."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import print_json, print_warning, progress
from tds_dagster.cli.screen import one_line, screen_width, visible

if TYPE_CHECKING:
    from rich.console import Console

    from ingest.settings import Settings
    from tds_dagster.cli.narration import Part
    from tds_dagster.export.run import Run, Step

EXAMPLE = "tds show --session-id session-42 --html session-42.html"

Level = Literal["none", "secrets", "full"]
_INDENT = 4
_SHOWN_LINES = 8  # of a value, unless all are asked for


def show_run(
    *,
    session_id: Annotated[str | None, typer.Option("--session-id", metavar="ID", help="The session to show.")] = None,
    task_id: Annotated[str | None, typer.Option("--task-id", metavar="ID", help="The task to show.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one static page instead.", dir_okay=False)
    ] = None,
    redaction: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL", help="none, secrets or full; default: none in the terminal, TDS_REDACTION in a page."
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show whole values and every column in the terminal.")] = False,
    width: Annotated[int | None, typer.Option(metavar="N", help="Columns to write in.", min=40, max=1000)] = None,
    as_json: JsonOption = False,
) -> None:
    """Show one session or task as a person reads it.

    Messages, tasks, tool calls, workflow states and feedback stand in order of time, each below what it belongs to.
    Records are curated first where that is needed. A page is one file without scripts or anything that is loaded from
    elsewhere; it is redacted like an export, as pages get passed on.
    """
    if (session_id is None) == (task_id is None):
        raise typer.BadParameter("expected either --session-id ID or --task-id ID; pass one of the two")
    if redaction is not None and redaction not in get_args(Level):
        raise typer.BadParameter(f"--redaction {redaction!r}: expected one of {', '.join(get_args(Level))}")
    from ingest.settings import read_settings

    settings = read_settings()
    level = redaction or ("none" if html is None else settings.redaction)
    run = _read(settings, session_id, task_id, cast("Level", level))
    for warning in run.warnings:
        print_warning(visible(warning))
    if html is not None:
        _write_page(run, html)
    elif as_json:
        print_json(run)
    else:
        _print_run(run, screen_width(width), full=full)


def _read(settings: "Settings", session_id: str | None, task_id: str | None, level: Level) -> "Run":
    from ingest.pipeline.partitions import DataPaths
    from ingest.records import KINDS
    from ingest.redaction.redactor import open_redactor
    from tds_dagster.cli.leftovers import write_leftovers
    from tds_dagster.export.run import read_run

    redactor = None if level == "none" else open_redactor(settings, level)
    write_leftovers(settings, KINDS)
    paths = DataPaths(settings.data_dir)
    with progress() as advance:
        if session_id is not None:
            return read_run(paths, "session", session_id, redactor=redactor, progress=advance)
        return read_run(paths, "task", str(task_id), redactor=redactor, progress=advance)


def _write_page(run: "Run", target: Path) -> None:
    from ingest.pipeline.partitions import replacing
    from tds_dagster.cli.page import page_of

    with replacing(target) as out:
        out.write(page_of(run).encode())
    typer.echo(str(target))


def _print_run(run: "Run", width: int, *, full: bool) -> None:
    from rich.console import Console

    from tds_dagster.cli.narration import summary_lines

    console = Console(width=width, highlight=False, markup=False, emoji=False)
    _write(console, f"{run.subject} {run.id}", 0, "bold")
    for line in summary_lines(run):
        _write(console, line, 0)
    for step in run.steps:
        console.print()
        _print_step(console, step, 0, full=full)


def _print_step(console: "Console", step: "Step", depth: int, *, full: bool) -> None:
    from rich.text import Text

    from tds_dagster.cli.narration import Part, clock_text, narrated, told_steps

    told = narrated(step)
    indent = depth * _INDENT
    heading = Text(" " * indent + clock_text(step.began) + "  ", style="dim")
    heading.append(one_line(told.title, 200), style=_STYLES.get(told.style, "bold"))
    for mark in told.marks:
        heading.append(" · ", style="dim")
        heading.append(one_line(mark, 80), style="bold red" if told.failed else "dim")
    console.print(heading, soft_wrap=True)
    parts = [*told.parts, Part("record", told.rest, is_prose=False)] if full and told.rest else told.parts
    for part in parts:
        _print_part(console, part, indent + _INDENT, full=full)
    for below in told_steps(step):
        _print_step(console, below, depth + 1, full=full)


_STYLES = {
    "user": "bold blue", "assistant": "bold magenta", "tool": "bold green", "call": "bold green",
    "task": "bold underline", "feedback": "bold yellow",
}  # fmt: skip


def _print_part(console: "Console", part: "Part", indent: int, *, full: bool) -> None:
    text = f"{part.label}: " if part.label else ""
    lines = list(_lines(part, max(20, console.width - indent - len(text))))
    shown = lines if full or len(lines) <= _SHOWN_LINES + 1 else lines[:_SHOWN_LINES]
    for number, line in enumerate(shown):
        _write(
            console, (text if not number else " " * len(text)) + line, indent, "red" if part.label == "error" else ""
        )
    if len(shown) < len(lines):
        _write(console, f"{' ' * len(text)}… {len(lines) - len(shown)} lines more (--full)", indent, "dim")


def _lines(part: "Part", width: int) -> Iterator[str]:
    """A value as the lines that it is shown in: prose as it is, a document on one line if it fits, else as a tree."""
    from tds_dagster.cli.narration import document_text

    if part.is_prose:
        yield from str(part.value).strip("\n").split("\n")
        return
    short = document_text(part.value)
    if len(short) <= width:
        yield short
        return
    yield from document_text(part.value, indent=2).split("\n")


def _write(console: "Console", line: str, indent: int, style: str = "") -> None:
    """Print a line, wrapped at words and indented, without spaces at its end and with nothing that a terminal obeys."""
    from rich.text import Text

    text = Text(visible(line).expandtabs(4), style=style)
    for piece in text.wrap(console, max(20, console.width - indent)) or [Text("")]:
        piece.rstrip()
        console.print(Text(" " * indent) + piece if piece else "", soft_wrap=True)
