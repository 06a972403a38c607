"""Holds what the writer counted for a day against what its files hold: every stored record has to be somewhere.

    stored = exported + pending + duplicates + quarantined + erased + expired

| term | where it comes from |
|---|---|
| stored | the ledger: the day file's committed rows, and what was counted as duplicates, as quarantined, as erased |
| exported | lines of the shard |
| pending | committed rows and writer's rejects that came after the curated day and its shard were built |
| duplicates | what the writer dropped for its idempotency key, and what curation dropped for its record_id |
| quarantined | lines of the quarantine file, without those that other programs appended to the day file |
| erased | rows and writer's rejects that each erasure notes to have taken, in the transaction that took them |

A shard's lines are counted as they are written; afterwards its manifest's figure stands for them as long as the file
has the manifest's size, and else they are counted again. Rejects are counted in the ledger's table and not taken from
its counters. A day without a shard is pending as a whole.
"""

from collections.abc import Iterable, Sequence

from ingest.pipeline.partitions import DataPaths, day_of, manifest_of
from ingest.records import kind_named
from tds_dagster.curate.artifacts import is_intact, read_manifest
from tds_dagster.curate.day import CuratedDay
from tds_dagster.curate.quarantine import count_quarantined
from tds_dagster.curate.raw import RawDay, RawDays, count_lines, open_raw
from tds_dagster.export.manifest import DayAccount, Shard


def day_account(paths: DataPaths, kind: str, day: str) -> DayAccount:
    """A day's account as its files stand now. Raises UnknownKind."""
    with open_raw(paths, kind_named(kind).name) as raw_days:
        return _account(raw_days, day)


def day_accounts(paths: DataPaths, kind: str, days: Iterable[str] | None = None) -> list[DayAccount]:
    """The accounts of the given days, or of all that have rows or a shard, in order. Raises UnknownKind."""
    with open_raw(paths, kind_named(kind).name) as raw_days:
        return [_account(raw_days, day) for day in (_known_days(raw_days) if days is None else days)]


def accounts(paths: DataPaths, kind: str) -> DayAccount:
    """The account of all days together; its `day` is empty. Raises UnknownKind."""
    return total_account(kind, day_accounts(paths, kind))


def unbalanced_days(paths: DataPaths, kind: str, days: Iterable[str] | None = None) -> list[str]:
    """Those days, of the given ones or of all, whose account does not add up. Raises UnknownKind."""
    return [account.day for account in day_accounts(paths, kind, days) if not account.balanced]


def total_account(kind: str, parts: Sequence[DayAccount]) -> DayAccount:
    """The sum of several days' accounts; its `day` is empty."""
    names = [name for name in DayAccount.__struct_fields__ if name not in {"kind", "day"}]
    return DayAccount(kind=kind, day="", **{name: sum(getattr(part, name) for part in parts) for name in names})


def account_of(raw_days: RawDays, curated: CuratedDay, exported: int) -> DayAccount:
    """The account of a day whose curated file is built and whose shard has `exported` lines."""
    source, rejects = _consistent(raw_days, curated.day)
    quarantined = count_quarantined(raw_days.paths.quarantine(raw_days.kind, curated.day)) - curated.source_foreign
    return _settled(raw_days, source, rejects, exported, curated, quarantined)


def _account(raw_days: RawDays, day: str) -> DayAccount:
    paths, kind = raw_days.paths, raw_days.kind
    source, rejects = _consistent(raw_days, day)
    shard = read_manifest(paths.shard(kind, day), Shard)
    # Rows only grow in number, but for an edit: then nothing that was built says anything of the rows there now.
    if shard is None or (source.file is not None and source.rows < shard.source_rows):
        return DayAccount(
            kind=kind,
            day=day,
            stored=_stored(source),
            exported=0,
            pending=source.rows + rejects - source.foreign,
            duplicates=source.duplicates,
            quarantined=0,
            erased=raw_days.found_erased(day),
        )
    exported = shard.rows if is_intact(shard) else _lines(shard)
    curated = read_manifest(paths.curated(kind, day), CuratedDay)
    if curated is not None and curated.source_version == shard.source_version:
        quarantined = count_quarantined(paths.quarantine(kind, day)) - shard.source_foreign
    else:  # curated anew, the quarantine file too; the shard still covers what it was made from
        quarantined = shard.account.quarantined
    return _settled(raw_days, source, rejects, exported, shard, quarantined)


def _settled(
    raw_days: RawDays, source: RawDay, rejects: int, exported: int, built: CuratedDay | Shard, quarantined: int
) -> DayAccount:
    """What was built, with everything that came after it as pending."""
    late_rejects = (rejects - built.source_rejects) - (source.foreign - built.source_foreign)
    return DayAccount(
        kind=built.kind,
        day=built.day,
        stored=_stored(source),
        exported=exported,
        pending=max(0, source.rows - built.source_rows) + late_rejects,
        duplicates=source.duplicates + built.duplicates,
        quarantined=quarantined,
        erased=raw_days.found_erased(built.day),
    )


def _stored(source: RawDay) -> int:
    return source.rows + source.duplicates + source.quarantined + source.erased


def _consistent(raw_days: RawDays, day: str) -> tuple[RawDay, int]:
    """A day in the ledger, and its rejects counted in their table, both of one moment."""
    while True:
        source = raw_days.day(day)
        rejects = len(raw_days.rejects(day))
        if rejects == source.rejects:
            return source, rejects
        raw_days.refresh()
        if raw_days.day(day) == source:
            return source, rejects


def _lines(shard: Shard) -> int:
    try:
        return count_lines(shard.path)
    except FileNotFoundError:
        return 0


def _known_days(raw_days: RawDays) -> list[str]:
    """Days of the ledger, and days that have a shard."""
    folder = raw_days.paths.shard(raw_days.kind, "").parent
    suffix = manifest_of(raw_days.paths.shard(raw_days.kind, "")).name.partition(".")[2]
    shards = {day_of(path.with_name(path.name.partition(".")[0])) for path in folder.glob(f"*.{suffix}")}
    return sorted({*raw_days.days(), *shards})
