"""Turns two versions of a dataset into a table of what was added, removed and changed, and why."""

from typing import Annotated

import typer

from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import Cell, print_json, print_table

EXAMPLE = "tds diff event_prediction/6da27e97a552 event_prediction"


def show_difference(
    old: Annotated[str, typer.Argument(metavar="V1", help="A dataset's folder, its version, or MODEL/VERSION.")],
    new: Annotated[str, typer.Argument(metavar="V2", help="The other one; MODEL alone is its latest version.")],
    *,
    rows: Annotated[int, typer.Option(metavar="N", min=0, help="Name so many of the rows that differ.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions of a dataset: what differs, and why.

    Rows are matched by the record that they are about. It exits with 0 whether the two differ or not.
    """
    from ingest.errors import InvalidRange
    from ingest.pipeline.partitions import DataPaths
    from ingest.settings import read_settings
    from tds_dagster.datasets.diff import compare_datasets
    from tds_dagster.datasets.manifest import find_dataset

    paths = DataPaths(read_settings().data_dir)
    former, later = find_dataset(paths, old), find_dataset(paths, new)
    if former.model != later.model:
        raise InvalidRange(
            f"{former.model} and {later.model}: expected two versions of one model's dataset; pass two of the same"
        )
    difference = compare_datasets(former, later, limit=rows)
    if as_json:
        print_json(difference)
        return
    table: list[list[Cell]] = [
        [change, n, reason] for change, reasons in difference.changes.items() for reason, n in reasons.items()
    ]
    print_table(["rows", "number", "why"], [*table, ["unchanged", difference.unchanged, ""]])
    typer.echo("")
    for name, (before, after) in difference.recipe.items():
        typer.echo(f"recipe: {name} was {before!r}, is {after!r}")
    for day, change in difference.days.items():
        typer.echo(f"source: {day} {change}")
    for what, both in (("redaction", difference.redaction), ("code", difference.code)):
        if both:
            typer.echo(f"{what}: was {both[0]}, is {both[1]}")
    for row in difference.rows:
        places = " -> ".join(
            f"{split}.jsonl line {line}"
            for split, line in ((row.split, row.line), (row.new_split, row.new_line))
            if split is not None
        )
        typer.echo(f"{row.change}: {row.record_id} ({places}): {row.reason}")
