"""Turns `tds export` into one call of the function that the Dagster assets use, and prints what it wrote."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from tds_dagster.cli.arguments import JsonOption, KindArgument, checked_day, checked_kind
from tds_dagster.cli.output import print_json, print_warning, progress, size_text

if TYPE_CHECKING:
    from tds_dagster.export import RangeExport

EXAMPLE = "tds export tasks --start 2024-05-15 --end 2024-05-21 --where 'feedback.reward >= 1'"


class Exported(msgspec.Struct, frozen=True):
    """What `tds export --json` prints."""

    kind: str
    start: str  # first day, YYYY-MM-DD, UTC
    end: str  # last day, included
    path: str  # the file
    manifest: str  # the manifest beside it
    rows: int  # records in the file
    bytes: int
    sha256: str  # hex, of the file
    rebuilt: list[str]  # days whose shard had to be built anew
    failed: dict[str, str]  # days left out (--allow-missing), each with its reason
    redaction: str  # level
    redacted: dict[str, int]  # values that were replaced, by detector


def export_kind(
    kind: KindArgument,
    *,
    start: Annotated[
        str | None, typer.Option(metavar="DAY", help="First day (UTC, YYYY-MM-DD); default: the first with data.")
    ] = None,
    end: Annotated[str | None, typer.Option(metavar="DAY", help="Last day, included; default: yesterday.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the export to this file.", dir_okay=False)
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION", help="Only records for which this holds: SQL over the columns and feedback.<name>."
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these columns, with commas between them.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most so many records, the first ones.")] = None,
    sample: Annotated[
        str | None, typer.Option(metavar="N|P%", help="So many records, or such a share of them, by chance.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of --sample: another one gives other records.")] = 0,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="records (JSONL), jsonl.zst or parquet.")
    ] = "records",
    redaction: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="none, secrets or full; default: TDS_REDACTION.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out days that cannot be exported, instead of failing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a range of days of one kind, or a selection.

    The file has a record a line, and a manifest beside it; its path is the last line printed. Days whose records did
    not change since the last export are taken as they are. A day that does not add up fails the command and keeps the
    former file; a range without records is an empty file and a warning. Whatever is selected, or written in another
    format, gets a file of its own; the same selection of the same records is the same bytes.
    """
    name = checked_kind(kind)
    checked_day("--start", start)
    checked_day("--end", end)
    from ingest.pipeline.partitions import DataPaths
    from ingest.settings import read_settings
    from tds_dagster.cli.leftovers import write_leftovers
    from tds_dagster.export import export_range, select

    selection = select(
        name, where=where, columns=columns, limit=limit, sample=sample, seed=seed, format=form, redaction=redaction
    )
    settings = read_settings()
    write_leftovers(settings, [name])
    with progress() as advance:
        result = export_range(
            DataPaths(settings.data_dir), name, start, end,
            output=out, allow_missing=allow_missing, keep_ranges=settings.keep_ranges, progress=advance,
            settings=settings, selection=selection,
        )  # fmt: skip
    for day, reason in result.failed.items():
        print_warning(f"{name} {day} is left out: {reason}")
    if result.rows == 0:
        print_warning(_nothing_found(result))
    if as_json:
        print_json(
            Exported(
                kind=result.kind, start=result.start, end=result.end, path=str(result.path),
                manifest=str(result.manifest_path), rows=result.rows, bytes=result.bytes, sha256=result.sha256,
                rebuilt=list(result.rebuilt), failed=dict(result.failed),
                redaction=result.redaction, redacted=dict(result.redacted),
            )
        )  # fmt: skip
        return
    typer.echo(
        f"{result.kind}, {result.start} to {result.end}: {result.rows:,} rows, {size_text(result.bytes)}, "
        f"{len(result.rebuilt)} days built anew"
    )
    typer.echo(str(result.path))


def _nothing_found(result: "RangeExport") -> str:
    """Why there are no rows, as far as it can be said."""
    stored = sum(part.rows for part in result.partitions)
    if stored:
        return f"none of {stored:,} {result.kind} from {result.start} to {result.end} is selected; the file is empty"
    return f"no {result.kind} from {result.start} to {result.end}; `tds status --json` has the first and last day"
