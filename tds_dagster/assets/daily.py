"""Turns the days that a run asks for into curated Parquet files and JSONL shards, and reports each day by itself.

One definition a kind holds both stages, as `build_days` does them day by day. It yields no outputs, but an
AssetMaterialization a day and asset: an output would give all days of a range one data version, and one changed
day would make thirty look new. A day that did not have to be built again is reported too, with the version that it
had: a backfill counts the days.

Dagster never decides what is rebuilt. It asks for days, `tds_dagster.curate` and `.export` compare versions.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import timedelta

import dagster as dg

from ingest.errors import EngineFailed, TdsError
from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS, Kind
from ingest.redaction.redactor import open_redactor
from ingest.settings import Settings
from tds_dagster import curate, export
from tds_dagster.assets.raw import OWNERS, column_lineage, column_schema
from tds_dagster.automation.checks import (
    CHECK,
    LEAK,
    accounting_result,
    accounting_spec,
    day_check_results,
    day_check_specs,
    leaking_days,
)
from tds_dagster.automation.conditions import when_its_source_changed
from tds_dagster.curate import CuratedDay
from tds_dagster.export import Shard, build_days, write_range
from tds_dagster.export.days import Stage
from tds_dagster.export.plot import lengths_plot, missing_plot, rows_plot
from tds_dagster.export.profile import line_lengths, missing_values
from tds_dagster.partitions import DAILY

# The schedule builds yesterday at 00:10 every day: a day later it is late, half a day after that something is broken.
FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36), warn_window=timedelta(hours=25))
Metadata = Mapping[str, dg.MetadataValue | int | str]
AUTOMATED = "dagster/from_automation_condition"


def daily_specs(kind: Kind) -> Sequence[dg.AssetSpec]:
    """`curated/<kind>` and `exports/<kind>`, each a partition a day; a run may ask for one without the other."""
    return [
        _spec(
            kind, "curated", "raw", curate.code_version(), {"parquet", "duckdb"},
            f"{kind.name} of a day as Parquet: typed, deduplicated, sorted by (timestamp, record_id). "
            "Rows that do not parse are in quarantine, each with its reason. See docs/files.md.",
        ),
        _spec(
            kind, "exports", "curated", export.code_version(), {"json"},
            f"{kind.name} of a day as JSONL. A run over more than one day also writes them as one range file "
            f"and refreshes training/{kind.name}_training.jsonl. Days are curated first where that is needed. "
            "See docs/exports.md.",
        ),
    ]  # fmt: skip


def _spec(kind: Kind, group: str, source: str, code_version: str, kinds: set[str], description: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        [group, kind.name],
        deps=[[source, kind.name]],
        skippable=True,
        group_name=group,
        description=description,
        metadata={
            "dagster/column_schema": column_schema(kind),
            # No stage of a day joins or computes columns: each comes from the one of its name.
            "dagster/column_lineage": column_lineage(source, {name: [f"{kind.name}.{name}"] for name in kind.types}),
        },
        code_version=code_version,
        automation_condition=when_its_source_changed(),
        freshness_policy=FRESH,
        owners=OWNERS,
        kinds=kinds,
        tags={"kind": kind.name},
        partitions_def=DAILY,
    )


def daily_assets(kind: Kind) -> dg.AssetsDefinition:
    """Both stages of one kind; a range of days is one run."""

    @dg.multi_asset(
        name=f"daily_{kind.name}",
        specs=daily_specs(kind),
        check_specs=[accounting_spec(kind.name), *day_check_specs(kind.name)],
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run(),
        # For a full disk or a locked database; what a stage refuses is not tried again (_refusal).
        retry_policy=dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL),
    )
    def daily(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]
    ) -> Iterator[dg.AssetMaterialization | dg.AssetCheckResult]:
        groups = {key.path[0] for key in context.selected_asset_keys}
        # Who asks for exports gets them from raw, as from `tds export`: what is curated already costs next to nothing.
        stages: Sequence[Stage] = ("curated", "exports") if "exports" in groups else ("curated",)
        refused = (yield from _build(context, settings, kind.name, stages)) if groups else {}
        checks = {key.name for key in context.selected_asset_check_keys}
        if CHECK in checks:
            yield accounting_result(DataPaths(settings.data_dir), kind.name)
        leaking = leaking_days(context.instance, kind.name) if LEAK in checks else []
        names = sorted(checks - {CHECK})
        yield from day_check_results(settings, kind.name, names, refused if groups else None, leaking)
        if refused:
            raise _refusal(kind.name, refused)

    return daily


def daily_definitions() -> Sequence[dg.AssetsDefinition]:
    """`daily_assets` of every kind."""
    return [daily_assets(kind) for kind in KINDS.values()]


def _build(
    context: dg.AssetExecutionContext, settings: Settings, kind: str, stages: Sequence[Stage]
) -> Generator[dg.AssetMaterialization, None, dict[str, TdsError]]:
    """Build the run's days and report each; returns the days that a stage refused, with its error.

    Shards are reported after the range file, so that each of them can name it.
    """
    raw_events = _latest_events(context, "raw", kind, dg.DagsterEventType.ASSET_OBSERVATION)
    shards: list[Shard] = []
    refused: dict[str, TdsError] = {}
    redactor = open_redactor(settings, settings.redaction)
    for day, curated, shard, error in build_days(
        DataPaths(settings.data_dir), kind, context.partition_keys, stages=stages, redactor=redactor
    ):
        if curated is not None:
            yield _curated(curated, raw_events.get(day))
        if shard is not None:
            shards.append(shard)
        if error is not None:
            refused[day] = error
            context.log.error("%s %s is not built: %s", kind, day, error)
    # Automation asks for the days that changed. That is no range which anybody wants, and its file would push out
    # one that somebody does want.
    is_range = len(shards) > 1 and not refused and AUTOMATED not in context.run.tags
    ranged = _write_range(context, settings, shards) if is_range else {}
    curated_events = _latest_events(context, "curated", kind, dg.DagsterEventType.ASSET_MATERIALIZATION)
    for shard in shards:
        is_last = is_range and shard is shards[-1]  # the UI shows the last report of an asset
        plots = _plots(DataPaths(settings.data_dir), shards) if is_last else {}
        yield _exported(shard, curated_events.get(shard.day), {**ranged, **plots})
    return refused


def _latest_events(
    context: dg.AssetExecutionContext, group: str, kind: str, event: dg.DagsterEventType
) -> Mapping[str, int]:
    """The storage id of the latest such event of each day: staleness looks for changes after it."""
    ids: dict[str, int] = context.instance.get_latest_storage_id_by_partition(dg.AssetKey([group, kind]), event)
    return ids


def _write_range(context: dg.AssetExecutionContext, settings: Settings, shards: Sequence[Shard]) -> Metadata:
    """Join the shards to the range file; gives its part of their metadata."""
    paths, kind, start, end = DataPaths(settings.data_dir), shards[0].kind, shards[0].day, shards[-1].day
    redactor = open_redactor(settings, settings.redaction)
    made = write_range(paths, kind, shards, start, end, keep_ranges=settings.keep_ranges, redactor=redactor)
    context.log.info("range file: %s (%d rows, %d bytes, sha256 %s)", made.path, made.rows, made.bytes, made.sha256)
    if made.rows == 0:
        context.log.warning("%s has no records from %s to %s: the range file is empty", kind, start, end)
    return {
        "range_path": dg.MetadataValue.path(made.path),
        "range_latest": dg.MetadataValue.path(paths.latest_export(kind)),
        "range_rows": made.rows,
        "range_bytes": made.bytes,
        "range_sha256": made.sha256,
    }


def _plots(paths: DataPaths, shards: Sequence[Shard]) -> Metadata:
    """The range in pictures: rows a day, missing values, lengths."""
    missing, rows = missing_values(paths.curated(shard.kind, shard.day) for shard in shards)
    return {
        "rows_a_day": dg.MetadataValue.md(rows_plot({shard.day: shard.rows for shard in shards})),
        "missing_values": dg.MetadataValue.md(missing_plot(missing, rows)),
        "record_lengths": dg.MetadataValue.md(lengths_plot(line_lengths(shard.path for shard in shards))),
    }


def _curated(day: CuratedDay, raw_event: int | None) -> dg.AssetMaterialization:
    counts: Metadata = {
        "quarantined": day.quarantined + day.source_rejects,
        "duplicates": day.duplicates,
    }
    return _materialization("curated", day, counts, _provenance("raw", day.kind, day.source_version, raw_event))


def _exported(shard: Shard, curated_event: int | None, ranged: Metadata) -> dg.AssetMaterialization:
    provenance = _provenance("curated", shard.kind, shard.source_sha256, curated_event)
    counts: Metadata = {
        "quarantined": shard.account.quarantined,
        "duplicates": shard.account.duplicates,
        "redaction": shard.redaction,
        "redacted": sum(shard.redacted.values()),
    }
    return _materialization("exports", shard, {**counts, **ranged}, provenance)


def _materialization(
    group: str, made: CuratedDay | Shard, metadata: Metadata, provenance: Mapping[str, str]
) -> dg.AssetMaterialization:
    """One day of one asset. The tags are those that Dagster sets on an output, where a range has one value for all."""
    return dg.AssetMaterialization(
        asset_key=[group, made.kind],
        partition=made.day,
        description=f"{group}/{made.kind} {made.day}: {made.rows} rows",  # the event's line in the run's log
        metadata={
            "dagster/row_count": made.rows,
            "bytes": made.bytes,
            "path": dg.MetadataValue.path(made.path),
            "built_at": made.made_at,
            **metadata,
        },
        tags={
            "dagster/data_version": made.sha256,
            "dagster/data_version_is_user_provided": "true",
            "dagster/code_version": made.code_version,
            **provenance,
        },
    )


def _provenance(group: str, kind: str, version: str, event: int | None) -> Mapping[str, str]:
    """Which version of its source a day was made from, and the event that had reported it (NULL: none has yet)."""
    return {
        f"dagster/input_data_version/{group}/{kind}": version,
        f"dagster/input_event_pointer/{group}/{kind}": "NULL" if event is None else str(event),
    }


def _refusal(kind: str, refused: Mapping[str, TdsError]) -> dg.Failure:
    """The end of a step in which days were not built: it names them. It is tried again if that can help."""
    return dg.Failure(
        f"{len(refused)} day(s) of {kind} could not be built: {', '.join(refused)}; the others were, and no range file "
        f"was replaced. The first reason: {next(iter(refused.values()))}",
        metadata={"days_not_built": dg.MetadataValue.json({day: str(error) for day, error in refused.items()})},
        allow_retries=any(isinstance(error, EngineFailed) for error in refused.values()),
    )
