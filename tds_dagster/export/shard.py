"""Turns one curated day into its JSONL shard, the artifact of one partition."""

import hashlib
from contextlib import ExitStack

import msgspec

import ingest.records
from ingest.errors import SourceMissing, Unbalanced
from ingest.pipeline.partitions import DataPaths, parse_day, replacing
from ingest.records import SCHEMA_VERSION, kind_named
from ingest.redaction.redactor import Redactor
from tds_dagster.curate.artifacts import (
    code_version_of,
    drop_manifest,
    is_intact,
    locked,
    made_now,
    read_manifest,
    require_unchanged,
    write_manifest,
)
from tds_dagster.curate.day import CuratedDay, read_curated
from tds_dagster.curate.engine import Engine, engine_errors, open_engine
from tds_dagster.curate.raw import RawDays, line_feeds, open_raw
from tds_dagster.export import lines
from tds_dagster.export.accounting import account_of
from tds_dagster.export.lines import counting_anew, default_redactor, json_lines
from tds_dagster.export.manifest import Shard


def code_version() -> str:
    """The version of the code that decides a shard's bytes."""
    return code_version_of([__file__, str(lines.__file__), str(ingest.records.__file__)])


def export_day(
    paths: DataPaths,
    kind: str,
    day: str,
    *,
    redactor: Redactor | None = None,
    raw_days: RawDays | None = None,
    engine: Engine | None = None,
) -> Shard:
    """Bring a day's JSONL shard up to date with its curated Parquet file.

    One object a line, every column in schema order, redacted by `redactor` (None: as where nothing is set). Whoever
    builds many days passes `raw_days` and `engine`, opened once.

    Raises UnknownKind or InvalidRange for what is no kind or no day, SourceMissing if the day is not curated,
    DamagedFile if its Parquet file is not what its manifest says,
    Unbalanced if its records do not add up, RedactionLeak if something is left that its level promises to be gone
    (then the old shard stays), EngineFailed if DuckDB lacks disk or memory.
    """
    parse_day("day", day)
    kind_named(kind)
    redactor = redactor or default_redactor(paths)
    with ExitStack() as stack:
        current = current_shard(paths, _curated(paths, kind, day), redactor)
        if current is not None:
            return current
        stack.enter_context(locked(paths, f"{kind}_{day}"))
        curated = _curated(paths, kind, day)
        current = current_shard(paths, curated, redactor)  # another process may have built it in the meantime
        if current is not None:
            return current
        if raw_days is None:
            raw_days = stack.enter_context(open_raw(paths, kind))
        else:
            raw_days.refresh()  # another process may have curated it from rows that came after our look at the ledger
        return _build(raw_days, curated, engine or stack.enter_context(open_engine(paths)), counting_anew(redactor))


def current_shard(paths: DataPaths, curated: CuratedDay, redactor: Redactor | None = None) -> Shard | None:
    """The shard if it was made from this curated day by this code and policy; None if it has to be made (again)."""
    built = read_manifest(paths.shard(curated.kind, curated.day), Shard)
    if built is None or not is_intact(built):
        return None
    redactor = redactor or default_redactor(paths)
    is_same = (built.source_sha256, built.source_version) == (curated.sha256, curated.source_version)
    if not is_same or (built.code_version, built.redaction_version) != (code_version(), redactor.version):
        return None
    return msgspec.structs.replace(built, reused=True)


def _curated(paths: DataPaths, kind: str, day: str) -> CuratedDay:
    built = read_curated(paths, kind, day)
    if built is None:
        raise SourceMissing(
            f"{paths.curated(kind, day)}: expected the curated day with its manifest; "
            f"materialize curated/{kind} for {day} first"
        )
    return built


def _build(raw_days: RawDays, curated: CuratedDay, engine: Engine, redactor: Redactor) -> Shard:
    require_unchanged(curated)
    kind, day = kind_named(curated.kind), curated.day
    target = raw_days.paths.shard(kind.name, day)
    digest, rows, size = hashlib.sha256(), 0, 0
    with replacing(target) as out:
        with engine_errors(f"{kind.name} {day}"):
            for text in json_lines(engine, kind, curated.path, redactor):
                out.write(text)
                digest.update(text)
                rows += line_feeds(text)
                size += len(text)
        account = account_of(raw_days, curated, rows)
        if not account.balanced:
            raise Unbalanced(
                f"{kind.name} {day}: {account}; the shard was not replaced. Remove {curated.path} to have the day "
                f"built again; if it stays like that, report it with {raw_days.paths.ledger(kind.name)}"
            )
        drop_manifest(target)
    shard = Shard(
        kind=kind.name,
        day=day,
        path=target,
        rows=rows,
        bytes=size,
        sha256=digest.hexdigest(),
        source_sha256=curated.sha256,
        source_version=curated.source_version,
        source_rows=curated.source_rows,
        source_rejects=curated.source_rejects,
        source_foreign=curated.source_foreign,
        duplicates=curated.duplicates,
        schema_version=SCHEMA_VERSION,
        code_version=code_version(),
        redaction=redactor.level,
        redaction_version=redactor.version,
        redacted=dict(sorted(redactor.counts.items())),
        account=account,
        made_at=made_now(),
    )
    write_manifest(shard)
    return shard
