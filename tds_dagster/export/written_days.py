"""Turns the files of a kind's last days into whether they are what the gates let pass, and what is unusual in them.

A gate looks at a day once, as it is written. This looks at what lies there now: columns, repeated ids, missing values
by the footers of the curated days, and what redaction promises to be gone by the text of the shards.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import cast

from ingest.pipeline.partitions import DataPaths, day_of, is_day, today
from ingest.records import ColumnType, Kind, kind_named
from ingest.redaction.redactor import Redactor, open_redactor
from ingest.settings import RedactionLevel, Settings
from tds_dagster.curate.artifacts import locked, read_manifest
from tds_dagster.curate.engine import engine_errors, open_engine
from tds_dagster.curate.sql import glob_escaped, literal
from tds_dagster.export.expectations import JUDGED_DAYS, WINDOW_DAYS, Verdict, is_usual_share, verdict_of
from tds_dagster.export.manifest import Shard
from tds_dagster.export.profile import missing_values

_ARROW: Mapping[ColumnType, str] = {
    "id": "string", "text": "string", "json": "string", "integer": "int64", "number": "double",
    "timestamp": "timestamp[us, tz=UTC]",
}  # fmt: skip
_LEAST_MISSING = 0.05  # more of a column's values than usual that are worth a word
_LINES_BYTES = 1 << 20  # looked at at a time


def judge_columns(paths: DataPaths, kind: str, present: date | None = None) -> Verdict:
    """Whether the last curated days have the kind's columns, by name and type. `present`: today (UTC) unless given."""
    odd = {}
    for day, path in _last_days(partial(paths.curated, kind), present).items():
        problem = _columns_problem(path, kind_named(kind))
        if problem is not None:
            odd[day] = f"{problem}: build it again"
    return verdict_of(odd, f"the last {JUDGED_DAYS} days have the columns of {kind}", {})


def judge_repeats(paths: DataPaths, kind: str, present: date | None = None) -> Verdict:
    """Whether a record_id is there twice in the last curated days, in one of them or in two.

    Raises EngineFailed if DuckDB lacks disk, DamagedFile for a file that it cannot read.
    """
    files = _last_days(partial(paths.curated, kind), present).values()
    if not files:
        return verdict_of({}, "no day is curated yet", {})
    listed = ", ".join(literal(glob_escaped(path)) for path in files)
    source = f"read_parquet([{listed}], hive_partitioning = false, filename = true)"
    query = (
        f"SELECT min(filename), count(*) FROM (SELECT record_id, min(filename) AS filename FROM {source} "
        "GROUP BY record_id HAVING count(*) > 1) GROUP BY filename ORDER BY filename"
    )
    with open_engine(paths) as engine, engine_errors(f"{kind}: the last days"):
        found = engine.connection.execute(query).fetchall()
    odd = {day_of(Path(name)): f"{rows:,} record_ids are there twice: build it again" for name, rows in found}
    return verdict_of(odd, f"each record of the last {JUDGED_DAYS} days is there once", {})


def judge_missing(paths: DataPaths, kind: str, present: date | None = None) -> Verdict:
    """Whether columns of the last days lack values more often than in the weeks before them."""
    files = _last_days(partial(paths.curated, kind), present, WINDOW_DAYS + JUDGED_DAYS)
    shares, odd = {day: _missing_shares(path) for day, path in files.items()}, {}
    for day in [*shares][-JUDGED_DAYS:]:
        before = [shares[each] for each in shares if _is_before(each, day)]
        columns = [
            f"{name} ({share:.0%}, usually {statistics.median(usual):.0%})"
            for name, share in shares[day].items()
            if (usual := [each[name] for each in before if name in each])
            and share - statistics.median(usual) >= _LEAST_MISSING
            and not is_usual_share(share, usual)
        ]
        if columns:
            odd[day] = f"no value in {', '.join(columns)}"
    return verdict_of(odd, "columns of the last days lack values as often as usual", {})


def judge_leaks(settings: Settings, kind: str, also: Iterable[str] = (), present: date | None = None) -> Verdict:
    """Whether the shards of the last days, and of those in `also`, hold what their level promises to be gone."""
    days = sorted({*_last_days(partial(DataPaths(settings.data_dir).shard, kind), present), *also})
    found = leaks_of(settings, kind, days)
    return verdict_of(found, f"nothing is left in the shards of the last {JUDGED_DAYS} days", {})


def leaks_of(settings: Settings, kind: str, days: Iterable[str]) -> dict[str, str]:
    """What is wrong with the shards of some days, by day: what is left in them, or that nobody can tell.

    No text that was found is in it: the detector's name, and where. A day without a shard has nothing wrong.
    """
    paths, odd = DataPaths(settings.data_dir), {}
    for day in days:
        with locked(paths, f"{kind}_{day}"):  # whoever builds it has put its manifest away
            shard, is_there = read_manifest(paths.shard(kind, day), Shard), paths.shard(kind, day).exists()
        if shard is not None:
            redactor = open_redactor(settings, cast("RedactionLevel", shard.redaction))
            if (leak := first_leak(redactor, shard.path)) is not None:
                odd[day] = f"{leak}, which level {shard.redaction} promises to be gone: export it again"
        elif is_there:
            odd[day] = "not looked at, for its manifest is missing or damaged: export it again"
    return odd


def first_leak(redactor: Redactor, path: Path) -> str | None:
    """What a redactor finds first in a file of JSON lines, and at which byte; None if there is nothing."""
    with path.open("rb") as file:
        start = 0
        while lines := file.readlines(_LINES_BYTES):
            text = b"".join(lines)
            leaks = redactor.find_leaks(text)
            if leaks:
                return f"{leaks[0].detector} finds something at byte {start + leaks[0].offset} of {path.name}"
            start += len(text)
    return None


def _columns_problem(path: Path, kind: Kind) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = {field.name: str(field.type) for field in pq.read_schema(path)}
    except (OSError, pa.ArrowInvalid) as err:
        return f"it cannot be read ({err})"
    expected = {name: _ARROW[column_type] for name, column_type in kind.types.items()}
    if found == expected:
        return None
    apart = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    name = apart[0]
    return f"column {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such column')}"


def _missing_shares(path: Path) -> dict[str, float]:
    """The share of rows without a value, by column; none of a file that cannot be read, which `judge_columns` tells."""
    import pyarrow as pa

    try:
        missing, rows = missing_values([path])
    except (OSError, pa.ArrowInvalid):
        return {}
    return {name: count / rows for name, count in missing.items()} if rows else {}


def _last_days(day_file: Callable[[str], Path], present: date | None, days: int = JUDGED_DAYS) -> dict[str, Path]:
    """The last files before the present day, which is not over, by day; oldest first."""
    last = (present or today()).isoformat()
    example = day_file(last)
    paths = example.parent.glob(f"*{example.suffix}")
    found = {day: path for path in paths if is_day(day := day_of(path)) and day < last}
    return dict(sorted(found.items())[-days:])


def _is_before(day: str, judged: str) -> bool:
    apart = (date.fromisoformat(judged) - date.fromisoformat(day)).days
    return 0 < apart <= WINDOW_DAYS
