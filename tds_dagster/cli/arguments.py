"""Turns the words that several commands share, kinds and dates, into checked values."""

from datetime import date
from typing import Annotated

import typer

from ingest.records import KINDS, kind_named

KIND_NAMES = ", ".join(KINDS)


def checked_kind(name: str) -> str:
    """The name of a kind. Raises UnknownKind listing the known ones."""
    return kind_named(name).name


def checked_kinds(names: list[str] | None) -> list[str]:
    """The kinds named, each once, or all of them if none is. Raises UnknownKind listing the known ones."""
    return list(dict.fromkeys(checked_kind(name) for name in names or KINDS))


def checked_day(name: str, value: str | None) -> date | None:
    """A date given as `YYYY-MM-DD`. Raises InvalidRange naming the option if it is none."""
    from ingest.pipeline.partitions import parse_day

    return None if value is None else parse_day(name, value)


def _complete_kind(incomplete: str) -> list[str]:
    return [name for name in KINDS if name.startswith(incomplete)]


KindArgument = Annotated[
    str, typer.Argument(metavar="KIND", help=f"One of {KIND_NAMES}.", autocompletion=_complete_kind)
]
KindsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KIND]...", help=f"Some of {KIND_NAMES}; all of them if left out.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead, for programs.")]
