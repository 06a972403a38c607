"""Turns `tds migrate` and `tds migrate code` into the move from the old tables, and into what became of each row."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import print_json, print_table, print_warning, progress

if TYPE_CHECKING:
    from ingest.agents.migration import Report
    from ingest.agents.old_table_uses import Use

EXAMPLE = "TDS_POSTGRES_URL=postgresql://localhost/app tds migrate --dry-run"
CODE_EXAMPLE = "tds migrate code src --sarif old-tables.sarif"


class FoundUses(msgspec.Struct, frozen=True):
    """What `tds migrate code --json` prints."""

    path: str
    uses: "list[Use]"


def migrate(
    ctx: typer.Context,
    *,
    schema: Annotated[str, typer.Option(metavar="NAME", help="The schema that the old tables are in.")] = "public",
    table: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this table; may be given again.")
    ] = None,
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="What the tables' times, which name no zone, are in.")
    ] = "UTC",
    configs: Annotated[
        Path, typer.Option(metavar="DIR", help="Where agents' configs and prompts become files.", file_okay=False)
    ] = Path("configs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and change nothing.")] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Drop the old tables when every row of theirs is accounted for.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take the rows of old tables in PostgreSQL over.

    Events, tasks, tool executions and workflows become records of the store, interactions become conversations,
    configs and prompts become files; instances and metrics are kept as JSON lines. The database is TDS_POSTGRES_URL.
    Killed, it goes on where it was; run again, it does nothing. A row of which nothing can be made is kept with its
    reason. `tds migrate code PATH` finds the code that uses the tables.
    """
    if ctx.invoked_subcommand is not None:
        return
    from ingest.agents.migration import Migration
    from ingest.agents.old_tables import OLD_TABLES
    from ingest.settings import read_settings

    began = time.monotonic()
    tables = table or list(OLD_TABLES)
    with Migration(read_settings(), schema=schema, configs=configs, timezone=timezone, tables=tables) as migration:
        if dry_run:
            report = migration.count()
        else:
            with progress() as advance:
                report = migration.run(advance)
            if drop:
                report = migration.drop()
    if as_json:
        print_json(report)
    else:
        _print(report, time.monotonic() - began, dry_run=dry_run)
    if not dry_run and not report.dropped and not all(each.is_whole for each in report.tables):
        raise SystemExit(1)


def _print(report: "Report", seconds: float, *, dry_run: bool) -> None:
    print_table(
        ["table", "rows", "migrated", "stored", "already there", "quarantined", "to"],
        [
            [each.table, "no such table" if each.rows is None else each.rows, each.migrated.rows, each.migrated.stored,
             each.migrated.known, each.migrated.quarantined, each.target]
            for each in report.tables
        ],
    )  # fmt: skip
    missing = sum(max(0, (each.rows or 0) - each.migrated.rows) for each in report.tables)
    if dry_run:
        typer.echo(f"{report.source}: {missing:,} rows are left to migrate; nothing was changed")
        return
    if report.quarantine is not None:
        print_warning(f"rows of which nothing could be made, with their reasons: {report.quarantine}")
    if report.dropped:
        typer.echo(f"dropped: {', '.join(report.dropped)}")
    if missing:
        print_warning(f"{missing:,} rows came meanwhile; run it again")
    else:
        typer.echo(f"{report.source}: every row is accounted for, in {seconds:.0f} s")
        if not report.dropped:
            typer.echo("next: `tds migrate code PATH` finds code that uses the tables, `tds migrate --drop` drops them")


def search_code(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file, or a folder of code.", exists=True)],
    *,
    sarif: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write it as SARIF 2.1.0, for code scanning.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find code that uses the old tables, and show the call to use instead.

    SQL in any text file and models of SQLAlchemy or Django in Python. Comments do not count. Exits with 1 if there is
    any use, so that it can stand in a CI.
    """
    from ingest.agents.old_table_uses import find_uses, sarif_log

    uses = find_uses(path)
    if sarif is not None:
        sarif.write_bytes(sarif_log(uses))
    if as_json:
        print_json(FoundUses(str(path), uses))
    elif uses:
        print_table(
            ["where", "table", "use", "instead"],
            [[f"{use.path}:{use.line}", use.table, use.operation, use.call] for use in uses],
        )
        typer.echo(f"\n{len(uses)} uses of old tables in {len({use.path for use in uses})} files")
    else:
        typer.echo(f"{path}: no use of an old table")
    if uses:
        raise SystemExit(1)
