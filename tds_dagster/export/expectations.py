"""Turns the manifests of a kind's days into what is unusual about them: volume, duplicates, quarantine, schema.

A day is held against the four weeks before it. What is usual is told by the median and the median absolute deviation
(MAD), which a few odd days do not move; 1.4826 MAD is a standard deviation where values are normally distributed
(P. J. Rousseeuw and C. Croux, JASA 88, 1993). Days of the same weekday count as usual too: agents rest on Sundays.

Nothing here refuses anything: an unusual day may be right. What refuses is in `export.shard` and `curate.day`, before a
file is put in place.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta

import msgspec

from ingest.pipeline.partitions import DataPaths, day_of, is_day, today
from ingest.records import SCHEMA_VERSION
from tds_dagster.curate.artifacts import read_manifest
from tds_dagster.export.manifest import Shard

WINDOW_DAYS = 28  # that a day is held against
FEWEST_DAYS = 7  # with data among them: fewer say nothing of what is usual
JUDGED_DAYS = 7  # the last ones: older ones were judged when they were new
_DEVIATIONS = 4  # of 1.4826 MAD
_FREE = 0.5  # of the median, in any case: small numbers vary
_LEAST_ROWS = 20  # of duplicates, or of quarantined rows, that are worth a word
_SHARE = 0.01  # of the rows, likewise


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found over a kind's days."""

    passed: bool
    text: str  # a sentence
    days: list[str] = []  # that are unusual, oldest first
    rows: dict[str, int] = {}  # of the days that were looked at, for a picture


Shards = Mapping[str, Shard | None]  # by day; None where the manifest cannot be read, so that nothing is known


def read_shards(paths: DataPaths, kind: str) -> dict[str, Shard | None]:
    """The manifests of a kind's day shards, by day in order."""
    folder = paths.shard(kind, "2024-01-01").parent
    found = (day_of(path) for path in folder.glob(f"{kind}_*.jsonl"))
    return {day: read_manifest(paths.shard(kind, day), Shard) for day in sorted(found) if is_day(day)}


def judge_volume(shards: Shards, present: date | None = None) -> Verdict:
    """Whether the last days had about as many rows as the weeks before them. `present`: today (UTC) unless given.

    A day without a shard between others has 0 rows. The present day is not over, so it is not judged.
    """
    rows = {day: shard.rows for day, shard in _known(shards).items()}
    odd = {}
    for day in _judged_days(rows, present):
        if day in shards and day not in rows:
            continue
        usual = [rows.get(each, 0) for each in _days_before(day) if each >= min(rows)]
        same = [rows.get(each, 0) for each in _days_before(day)[6::7] if each >= min(rows)]
        if sum(map(bool, usual)) >= FEWEST_DAYS and not any(_is_near(rows.get(day, 0), of) for of in (usual, same)):
            odd[day] = f"{rows.get(day, 0):,} rows where {statistics.median(usual):,.0f} are usual"
    return verdict_of(odd, "rows of the last days are as many as usual", rows)


def judge_duplicates(shards: Shards, present: date | None = None) -> Verdict:
    """Whether the last days had no more rows left out as duplicates than the weeks before them."""
    counts = {day: shard.account.duplicates for day, shard in _known(shards).items()}
    return _judge_share(shards, counts, "duplicates", present)


def judge_quarantine(shards: Shards, present: date | None = None) -> Verdict:
    """Whether the last days had no more rows in quarantine than the weeks before them."""
    counts = {day: shard.account.quarantined for day, shard in _known(shards).items()}
    return _judge_share(shards, counts, "rows in quarantine", present)


def judge_schema(shards: Shards) -> Verdict:
    """Whether every day has the columns that this version of the program writes."""
    odd = {
        day: f"schema {shard.schema_version}, expected {SCHEMA_VERSION}: export it again"
        for day, shard in _known(shards).items()
        if shard.schema_version != SCHEMA_VERSION
    }
    odd |= {day: "its manifest cannot be read: export it again" for day, shard in shards.items() if shard is None}
    return verdict_of(odd, f"every day has schema {SCHEMA_VERSION}", {})


def _judge_share(shards: Shards, counts: Mapping[str, int], noun: str, present: date | None) -> Verdict:
    shares = {day: counts[day] / max(1, shard.account.stored) for day, shard in _known(shards).items()}
    odd = {}
    for day in _judged_days(counts, present):
        if counts.get(day, 0) < _LEAST_ROWS or shares[day] < _SHARE:
            continue
        usual = [shares[each] for each in _days_before(day) if each in shares]
        if not is_usual_share(shares[day], usual):
            odd[day] = f"{counts[day]:,} {noun}, {shares[day]:.1%} of what was stored"
    return verdict_of(odd, f"{noun} of the last days are no more than usual", {})


def _known(shards: Shards) -> dict[str, Shard]:
    return {day: shard for day, shard in shards.items() if shard is not None}


def _judged_days(days: Iterable[str], present: date | None) -> list[str]:
    """The last days before the present one, those without data among them."""
    end = min(date.fromisoformat(max(days, default="1970-01-01")), (present or today()) - timedelta(days=1))
    first = min(days, default="9999-12-31")
    return [day for n in range(JUDGED_DAYS - 1, -1, -1) if (day := (end - timedelta(days=n)).isoformat()) >= first]


def _days_before(day: str) -> list[str]:
    """The days of the window before a day, the latest first."""
    last = date.fromisoformat(day)
    return [(last - timedelta(days=n)).isoformat() for n in range(1, WINDOW_DAYS + 1)]


def _is_near(value: float, usual: Sequence[float]) -> bool:
    """Whether a value lies in the band around the median."""
    if not usual:
        return False
    middle = statistics.median(usual)
    deviation = statistics.median(abs(each - middle) for each in usual)
    return abs(value - middle) <= max(_DEVIATIONS * 1.4826 * deviation, _FREE * middle)


def is_usual_share(share: float, usual: Sequence[float]) -> bool:
    """Whether a share, 0 to 1, is not far above those of the days before; with too few of them nothing is unusual."""
    if len(usual) < FEWEST_DAYS:
        return True
    middle = statistics.median(usual)
    deviation = statistics.median(abs(each - middle) for each in usual)
    return share <= middle + max(_DEVIATIONS * 1.4826 * deviation, _FREE * middle)


def verdict_of(odd: Mapping[str, str], fine: str, rows: Mapping[str, int]) -> Verdict:
    """What a check found: the days of `odd` with what is odd about each, or that all is `fine`."""
    shown = dict(sorted(rows.items())[-WINDOW_DAYS - JUDGED_DAYS :])
    if not odd:
        return Verdict(passed=True, text=fine, rows=shown)
    named = [f"{day}: {why}" for day, why in sorted(odd.items())]
    more = f", and {len(named) - 20} days more" if len(named) > 20 else ""
    return Verdict(passed=False, text="; ".join(named[:20]) + more, days=sorted(odd), rows=shown)
