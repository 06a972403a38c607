"""Turns `tds dataset` into one call of the function that the Dagster assets use, and prints what it built."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import print_json, print_table, print_warning, progress, size_text

EXAMPLE = 'tds dataset tool_selection --start 2024-05-15 --where "feedback.reward >= 1"'
_MOST_CLASSES = 10  # in the table; the manifest has them all


class BuiltSplit(msgspec.Struct, frozen=True):
    path: str  # the JSONL file
    rows: int
    bytes: int
    sha256: str  # hex, of the file
    entities: int  # how many different ones are in it
    classes: dict[str, int]  # rows of each class


class BuiltDataset(msgspec.Struct, frozen=True):
    """What `tds dataset --json` prints."""

    model: str
    version: str
    path: str  # the folder
    manifest: str
    start: str  # first day, YYYY-MM-DD, UTC
    end: str  # last day, included
    reused: bool  # it had been built before
    splits: dict[str, BuiltSplit]
    no_example: dict[str, int]  # records that no example was made of, by reason
    left_out: dict[str, int]  # examples that are in no split, by reason
    duplicates_removed: int
    redacted: dict[str, int]  # values replaced, by detector
    warnings: list[str]


def build_model_dataset(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="event_prediction, task_completion, tool_selection or workflow_orchestration."
        ),
    ],
    *,
    start: Annotated[
        str | None, typer.Option(metavar="DAY", help="First day (UTC, YYYY-MM-DD); default: the first with data.")
    ] = None,
    end: Annotated[
        str | None, typer.Option(metavar="DAY", help="Last day, included; default: the last with data before today.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help='Which records are predicted, such as "feedback.reward >= 1".'),
    ] = None,
    include_ids: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Predict only records with one of these ids, one a line.", dir_okay=False),
    ] = None,
    exclude_ids: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Do not predict records with one of these ids.", dir_okay=False),
    ] = None,
    window: Annotated[int | None, typer.Option(metavar="N", help="The most history that an example has (20).")] = None,
    minimum_history: Annotated[
        int | None, typer.Option(metavar="N", help="Leave out examples with less history (0).")
    ] = None,
    balance: Annotated[
        str | None, typer.Option(metavar="HOW", help="none, or downsample: classes of train get one size.")
    ] = None,
    split_by: Annotated[str | None, typer.Option(metavar="HOW", help="entity (default) or time.")] = None,
    entity: Annotated[
        str | None, typer.Option(metavar="WHAT", help="What is never in two splits: session, agent, task or workflow.")
    ] = None,
    fractions: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Shares of train, validation and test (0.8,0.1,0.1).")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Another number gives another split (0).")] = None,
    redaction: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="none, secrets or full; default: TDS_DATASET_REDACTION.")
    ] = None,
    allow_empty_splits: Annotated[
        bool, typer.Option("--allow-empty-splits", help="Go on where a split has no row, instead of failing.")
    ] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take these from a TOML or JSON file; options come on top.", dir_okay=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a model's dataset: train, validation and test.

    The folder also has a card and a manifest. It is made of the exports, which are brought up to date first. Its
    version is a hash of its content and its recipe: the same again gives the same folder, whose path is the last line
    printed. docs/datasets.md has what is in a row, and the rules of splits, duplicates and redaction.
    """
    from ingest.settings import read_settings
    from tds_dagster.cli.leftovers import write_leftovers
    from tds_dagster.datasets.recipe import read_recipe, read_recipe_file

    options = {
        "start": start, "end": end, "where": where, "window": window, "minimum_history": minimum_history,
        "balance": balance, "split_by": split_by, "entity": entity, "seed": seed, "redaction": redaction,
        "include": _ids(include_ids), "exclude": _ids(exclude_ids), "fractions": _fractions(fractions),
        "allow_empty_splits": True if allow_empty_splits else None,
    }  # fmt: skip
    fields = {} if recipe is None else read_recipe_file(recipe, model)
    asked = read_recipe(model, fields | {name: value for name, value in options.items() if value is not None})
    settings = read_settings()
    from ingest.pipeline.partitions import DataPaths
    from ingest.records import KINDS
    from tds_dagster.datasets.build import build_dataset
    from tds_dagster.training.pruning import prune_datasets

    write_leftovers(settings, KINDS)
    with progress() as advance:
        built = build_dataset(settings, asked, progress=advance)
    prune_datasets(DataPaths(settings.data_dir), model, settings.keep_versions)
    for warning in built.warnings:
        print_warning(warning)
    result = BuiltDataset(
        model=built.model, version=built.version, path=str(built.folder), manifest=str(built.folder / "manifest.json"),
        start=str(built.recipe.start), end=str(built.recipe.end), reused=built.reused,
        splits={
            name: BuiltSplit(
                path=str(built.folder / f"{name}.jsonl"), rows=split.rows, bytes=split.bytes, sha256=split.sha256,
                entities=split.entities, classes=split.classes,
            )
            for name, split in built.splits.items()
        },
        no_example=built.no_example, left_out=built.left_out, duplicates_removed=built.duplicates.removed,
        redacted=built.redacted, warnings=built.warnings,
    )  # fmt: skip
    if as_json:
        print_json(result)
    else:
        _print(result, built.recipe.entity or "entity")


def _ids(path: Path | None) -> list[str] | None:
    """The lines of a file of ids. Raises InvalidRecipe if it cannot be read or has none."""
    if path is None:
        return None
    from ingest.errors import InvalidRecipe

    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidRecipe(f"{path}: {err}: expected a text file with one id a line; check the path") from err
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise InvalidRecipe(f"{path}: holds no id: expected one a line, for none would be all; leave the option out")
    return ids


def _fractions(text: str | None) -> list[float] | None:
    """`0.8,0.1,0.1` as numbers. Raises InvalidRecipe if it is not three of them."""
    if text is None:
        return None
    from ingest.errors import InvalidRecipe

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as err:
        raise InvalidRecipe(
            f"fractions={text!r}: expected three numbers with commas; pass some such as 0.8,0.1,0.1"
        ) from err


def _print(result: BuiltDataset, entity: str) -> None:
    print_table(
        ["split", "rows", f"{entity}s", "size", "classes"],
        [
            [name, split.rows, split.entities, size_text(split.bytes), _classes(split.classes)]
            for name, split in result.splits.items()
        ],
    )
    typer.echo("")
    for reason, n in {**result.no_example, **result.left_out}.items():
        typer.echo(f"left out: {n:,} ({reason})")
    redacted = ", ".join(f"{n:,} {detector}" for detector, n in result.redacted.items()) or "nothing"
    typer.echo(f"redacted: {redacted}")
    typer.echo(f"{result.model} {result.version}, {result.start} to {result.end}{', as built before' * result.reused}")
    typer.echo(result.path)


def _classes(classes: dict[str, int]) -> str:
    named = [f"{label} {n:,}" for label, n in list(classes.items())[:_MOST_CLASSES]]
    more = len(classes) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
