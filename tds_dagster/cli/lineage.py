"""Turns `tds lineage` into a look at the manifests between a model and its days, and shows the path."""

from typing import TYPE_CHECKING, Annotated

import typer

from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import print_json, print_table

if TYPE_CHECKING:
    from tds_dagster.training.lineage import Lineage

EXAMPLE = "tds lineage tool_selection"


def show_lineage(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model (its champion), a version, a folder, or a dataset's version."),
    ],
    *,
    every_day: Annotated[bool, typer.Option("--all", help="A line a day, with its files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Follow a model to the days that it learned from.

    On the way are its dataset, the days' shards, curated files and CSV. Each day is unchanged, changed since, erased in
    part, or missing. `tds verify` reads the files themselves.
    """
    from ingest.pipeline.partitions import DataPaths
    from ingest.settings import read_settings
    from tds_dagster.training.lineage import trace

    found = trace(DataPaths(read_settings().data_dir), model)
    if as_json:
        print_json(found)
        return
    _print(found, every_day=every_day)


def _print(found: "Lineage", *, every_day: bool) -> None:
    from tds_dagster.training.lineage import spans

    if found.version is not None:
        marks = [", the champion"] * found.is_champion + [
            ", trained on records that are erased since"
        ] * found.is_tainted
        typer.echo(f"model    {found.model} {found.version}{''.join(marks)}")
        typer.echo(f"         {found.path}")
    typer.echo(f"dataset  {found.model} {found.dataset}{', which is gone' if found.dataset_path is None else ''}")
    if found.dataset_path is None:
        return
    typer.echo(f"         {found.dataset_path}\n")
    if every_day:
        for day in found.days:
            typer.echo(f"{day.kind} {day.day}: {day.rows:,} rows, {day.state}{': ' * bool(day.reason)}{day.reason}")
            for name, stage in (("shard", day.shard), ("curated", day.curated), ("raw", day.raw)):
                version = "gone" if stage.version is None else stage.version[:12]
                typer.echo(f"  {name:8} {version:12}  {stage.path}")
    else:
        print_table(
            ["kind", "from", "to", "days", "rows", "state", "why"],
            [[span.kind, span.start, span.end, span.days, span.rows, span.state, span.reason]
             for span in spans(found.days)],
        )  # fmt: skip
    counts = ", ".join(f"{n:,} {state}" for state, n in found.states.items() if n)
    typer.echo(f"\n{len(found.days):,} days: {counts or 'none'}")
