"""Turns `tds inspect` into one look at an artifact, and shows it in a terminal."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import Cell, print_json, print_table, print_warning, progress, size_text
from tds_dagster.cli.screen import bar, columns_of, one_line, screen_width, sparkline

if TYPE_CHECKING:
    from tds_dagster.export.inspection import Inspection
    from tds_dagster.export.profile import ColumnProfile

EXAMPLE = "tds inspect data/curated/events --rows 1"

_BAR_WIDTH = 30
_ELSEWHERE = {"path", "splits", "checksums", "seal"}  # on the screen already, or for `tds verify` alone
_TOP_SHARE = 0.01  # a value that fewer rows have says less than the range


def inspect_artifact(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A CSV, Parquet or JSONL file, a manifest, or a folder of them.")
    ],
    *,
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="Show the first N rows.", min=0, max=1000)] = 3,
    as_json: JsonOption = False,
) -> None:
    """Look at an artifact: what is in it, and what it was made from.

    PATH is a raw day, a curated day, a shard or range, a quarantine file, a dataset's folder or one of its splits, a
    model's folder, a manifest, or a folder of days. From 32 MiB on distinct values are estimates, and so are all
    quantiles. Values are shown as they are: nothing is redacted that is not redacted in the file.
    """
    from tds_dagster.export.inspection import inspect_path

    with progress() as advance:
        found = inspect_path(path, rows=rows, advance=advance)
    if as_json:
        print_json(found)
        return
    _print_inspection(found)
    for warning in found.warnings:
        print_warning(one_line(warning, 2000))


def _print_inspection(found: "Inspection") -> None:
    width = screen_width()
    typer.echo(f"{one_line(found.path, 500)}: {found.what}")
    if found.what != "manifest":
        files = f" in {found.files} files" if found.files > 1 else ""
        typer.echo(f"{found.rows:,} rows, {len(found.columns)} columns, {size_text(found.bytes)}{files}")
    for title, lines in (
        ("", _part_lines(found)),
        ("", _class_lines(found)),
        ("its manifest", _manifest_lines(found.manifest, width)),
    ):
        _print_block(title if found.what != "manifest" else "it says", lines)
    if found.columns:
        typer.echo()
        _print_columns(found, width)
    for number, row in enumerate(found.first, 1):
        typer.echo(f"\nrow {number}")
        name_width = max(map(columns_of, row), default=0)
        for name, value in row.items():
            if value is not None:
                typer.echo(f"  {name.ljust(name_width)}  {one_line(_value(value), max(20, width - name_width - 4))}")


def _print_block(title: str, lines: Iterator[str]) -> None:
    for number, line in enumerate(lines):
        if not number:
            typer.echo(f"\n{title}" if title else "")
        typer.echo(line)


def _part_lines(found: "Inspection") -> Iterator[str]:
    """A bar a day or a split."""
    most, name_width = max(found.parts.values(), default=1), max(map(len, found.parts), default=0)
    if len(found.parts) > 62:  # two months
        yield f"rows a day, {next(iter(found.parts))} to {list(found.parts)[-1]}, at most {most:,}"
        yield sparkline(list(found.parts.values()))
        return
    for name, rows in found.parts.items():
        yield f"{name.ljust(name_width)}  {bar(rows / max(1, most), _BAR_WIDTH).ljust(_BAR_WIDTH)}  {rows:>10,}"


def _class_lines(found: "Inspection") -> Iterator[str]:
    """A dataset's classes, and their share of each split."""
    splits = found.manifest.get("splits")
    if not isinstance(splits, Mapping):
        return
    classes = {name: split.get("classes", {}) for name, split in splits.items() if isinstance(split, Mapping)}
    names = list(dict.fromkeys(name for split in classes.values() for name in split))
    width = max((columns_of(one_line(name, 40)) for name in names), default=0)
    if names:
        yield " " * width + "".join(f"  {split:>12}" for split in classes)
    for name in names[:30]:
        shares = [split.get(name, 0) / max(1, sum(split.values())) for split in classes.values()]
        yield one_line(name, 40).ljust(width) + "".join(f"  {share:>12.1%}" for share in shares)
    if len(names) > 30:
        yield f"and {len(names) - 30} classes more"


def _manifest_lines(manifest: Mapping[str, object], width: int) -> Iterator[str]:
    """What the manifest says, but for what stands elsewhere on the screen."""
    shown = {name: value for name, value in manifest.items() if name not in _ELSEWHERE and value not in ({}, [])}
    name_width = max(map(len, shown), default=0)
    for name, value in shown.items():
        text = (
            f"{len(value)}, first {_value(value[0])}" if isinstance(value, list) and len(value) > 1 else _value(value)
        )
        yield f"  {name.ljust(name_width)}  {one_line(text, max(20, width - name_width - 4))}"


def _print_columns(found: "Inspection", width: int) -> None:
    rows: list[list[Cell]] = [
        [
            one_line(column.name, 30),
            column.type,
            f"{column.nulls / max(1, found.rows):.1%}" if column.nulls else "",
            column.distinct,
        ]
        for column in found.columns
    ]
    headers = ["column", "type", "null", "distinct (about)" if found.estimated else "distinct"]
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    used = sum(2 + max(map(len, column)) for column in zip(headers, *texts, strict=True))
    for row, column in zip(rows, found.columns, strict=True):
        row.append(_values_text(column, found.rows, max(20, width - used)))
    print_table([*headers, "values"], rows)


def _values_text(column: "ColumnProfile", rows: int, width: int) -> str:
    """What a column holds, on one line: its most frequent values or its range, its shape, its lengths."""
    parts = []
    if column.shape:
        parts.append(sparkline(column.shape))
    if column.top and column.top[0].rows >= rows * _TOP_SHARE:
        shares = (f"{one_line(value.value, 24)} {value.rows / max(1, rows):.0%}" for value in column.top)
        parts.append(", ".join(shares))
    elif column.least is not None and column.greatest is not None:
        length = 19 if column.type == "timestamp" else 100  # to the second
        bounds = [column.least[:length], column.greatest[:length]]
        middle = [] if column.median is None else [f"{column.median:g}"]
        values = [bounds[0], *middle, bounds[1]] if bounds[0] != bounds[1] else bounds[:1]
        parts.append(" … ".join(one_line(value, 26) for value in values))
    if column.lengths is not None and column.lengths.longest > 40:
        lengths = column.lengths
        parts.append(
            f"{size_text(lengths.median)}, 95 % to {size_text(lengths.p95)}, at most {size_text(lengths.longest)}"
        )
    return one_line("  ".join(parts), width)


def _value(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
