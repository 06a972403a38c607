"""Measures a tick of a retraining sensor over a long event log: `python -m benchmarks.retraining`.

The peer is the plain way, which fetches the events after a cursor. A real instance on SQLite is filled with
materializations of exported days, each day many times. In each run every way takes its turn in a process of its own,
and all of them have to count the same. With the defaults it takes three minutes and 1 GB of disk; `--events 5000
--runs 1` twenty seconds.
"""

import argparse
import datetime as dt
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.machine import describe_machine, load_average
from benchmarks.processes import apart, resident_mib
from benchmarks.report import table
from benchmarks.tools import tell, working_folder
from ingest import Settings
from ingest.pipeline.partitions import DataPaths, day_range, make_folder
from ingest.records import KINDS

if TYPE_CHECKING:
    import dagster as dg

    from tds_dagster.datasets.recipe import Model
    from tds_dagster.training.retraining import Day

RESULTS = Path(__file__).with_name("RESULTS-retraining.md")
MODEL: "Model" = "event_prediction"
KIND = "events"
DAYS = day_range("2024-01-01", "2025-02-03")  # 400
ROWS = 100  # a day, at its last export
AT_A_TIME = 1000  # events that the plain way fetches, and rows that are stored
NOW = dt.datetime(2025, 6, 1, tzinfo=dt.UTC)
TICKS, PLAIN_TICKS = 100, 2
MARK, EARLY = "aaaa00000000", "2025-05-31T00:00:00Z"


class Counted(NamedTuple):
    """What a way has found to be new."""

    days: int
    rows: int


class Figures(NamedTuple):
    """What ticks of one way cost: the median of the first and of the others apart, for the first one warms up."""

    first_ms: float
    median_ms: float
    first_mib: float  # resident after the first tick
    growth_mib: float  # from there to the last one
    counted: Counted


# ---- the event log


def export(instance: "dg.DagsterInstance", kind: str, days: "Mapping[str, Day]") -> None:
    """Report days as the exports asset does."""
    import dagster as dg

    for name, day in days.items():
        event = dg.AssetMaterialization(
            ["exports", kind], partition=name, description=f"exports/{kind} {name}: {day.rows} rows",
            metadata={
                "dagster/row_count": day.rows, "bytes": 479 * day.rows, "built_at": EARLY,
                "path": dg.MetadataValue.path(f"data/exports/{kind}/days/{kind}_{name}.jsonl"),
                "quarantined": 0, "duplicates": 0, "redaction": "secrets", "redacted": 0,
            },
            tags={
                "dagster/data_version": day.version, "dagster/data_version_is_user_provided": "true",
                "dagster/code_version": "0123456789ab", f"dagster/input_data_version/curated/{kind}": day.version,
                f"dagster/input_event_pointer/curated/{kind}": "1",
            },
        )  # fmt: skip
        instance.report_runless_asset_event(event)


def leave_model(
    paths: DataPaths, days: "Mapping[str, Day]", *, version: str = MARK, made_at: str = EARLY, right: int = 8,
    promote: bool = True,
) -> None:  # fmt: skip
    """Put a model in place that learned from these days; of its ten test rows so many were right."""
    from tds_dagster.datasets.manifest import MANIFEST, Dataset, Duplicates, SourceDay
    from tds_dagster.datasets.manifest import manifest_bytes as dataset_bytes
    from tds_dagster.datasets.recipe import Recipe
    from tds_dagster.training.manifest import CHAMPION, LATEST
    from tds_dagster.training.manifest import Model as TrainedModel
    from tds_dagster.training.manifest import manifest_bytes as model_bytes
    from tds_dagster.training.metrics import measure

    dataset = Dataset(
        model=MODEL, version=f"d{version[1:]}", recipe=Recipe(model=MODEL, start=min(days), end=max(days)), rule="",
        splits={}, records=0, no_example={}, examples=0, left_out={},
        duplicates=Duplicates(groups=0, removed=0, kept=0), warnings=[], redaction="full", redaction_version="",
        redacted={}, schema_version=1, code_version="", inputs="", files=[],
        sources=[
            SourceDay(kind=kind, day=name, rows=day.rows, bytes=479 * day.rows, sha256=day.version)
            for kind in KINDS for name, day in days.items()
        ],
    )  # fmt: skip
    predicted = ["step"] * right + ["other"] * (10 - right)
    model = TrainedModel(
        model=MODEL, version=version, dataset=dataset.version, days="", train_rows=0, classes={}, trainer="default",
        code_version="", inputs="", files=[], made_at=made_at,
        metrics=measure(["step"] * 10, predicted, [str(row) for row in range(10)], {}),
    )  # fmt: skip
    home = paths.models(MODEL)
    for folder, content in (
        (paths.dataset(MODEL, dataset.version), dataset_bytes(dataset)),
        (paths.model(MODEL, version), model_bytes(model)),
    ):
        make_folder(folder)
        (folder / MANIFEST).write_bytes(content)
    (home / LATEST).write_bytes(json.dumps({"version": version}).encode())
    if promote:
        (home / CHAMPION).unlink(missing_ok=True)
        (home / CHAMPION).symlink_to(version)


def fill(home: Path, events: int) -> None:
    """Store so many materializations of `DAYS`, in turns; run in a process of its own.

    One is reported, and its row in the storage is copied: to report a hundred thousand takes half an hour.
    """
    import sqlalchemy as sa

    with opened(home) as instance:
        export(instance, KIND, {DAYS[0]: day_at(DAYS[0], 0)})
        storage = instance.event_log_storage
        with storage.index_connection() as connection:  # type: ignore[attr-defined]  # of every SQL storage
            found = sa.MetaData()
            found.reflect(connection, only=["event_logs", "asset_event_tags"])
            events_table, tags_table = found.tables["event_logs"], found.tables["asset_event_tags"]
            event = connection.execute(sa.select(events_table)).mappings().one()
            tag = connection.execute(sa.select(tags_table)).mappings().one()
            for start in range(1, events, AT_A_TIME):
                numbers = range(start, min(start + AT_A_TIME, events))
                connection.execute(sa.insert(events_table), [_event(event, number) for number in numbers])
                connection.execute(sa.insert(tags_table), [_tag(tag, number) for number in numbers])


def _event(first: Mapping[str, object], number: int) -> dict[str, object]:
    name = DAYS[number % len(DAYS)]
    text = str(first["event"]).replace(DAYS[0], name).replace(day_at(DAYS[0], 0).version, day_at(name, number).version)
    return {**first, "id": int(str(first["id"])) + number, "event": text, "partition": name}


def _tag(first: Mapping[str, object], number: int) -> dict[str, object]:
    name, place = DAYS[number % len(DAYS)], int(str(first["event_id"])) + number
    return {**first, "id": place, "event_id": place, "value": day_at(name, number).version}


def day_at(name: str, number: int) -> "Day":
    """A day as one of its exports left it."""
    from tds_dagster.training.retraining import Day

    return Day(sha256(f"{name} {number}".encode()).hexdigest(), ROWS)


def last_days(events: int) -> "dict[str, Day]":
    """Each day as it was exported last."""
    last = {DAYS[number % len(DAYS)]: number for number in range(max(0, events - len(DAYS)), events)}
    return {name: day_at(name, number) for name, number in sorted(last.items())}


def opened(home: Path) -> "dg.DagsterInstance":
    """The instance that `tds up` would run on."""
    import dagster as dg

    from tds_dagster.cli.up import prepare_home

    return dg.DagsterInstance.from_config(str(prepare_home(Settings(data_dir=home))))


# ---- the ways; each runs in a process of its own


def ours(home: Path) -> Figures:
    """Ticks of the sensor, without the daemon around it."""
    from tds_dagster.automation.retraining import judge
    from tds_dagster.training.policy import ModelPolicy

    settings = Settings(data_dir=home)
    with opened(home) as instance:

        def look() -> Counted:
            figures = judge(instance, settings, MODEL, ModelPolicy(), NOW).figures
            return Counted(int(str(figures["days"])), int(str(figures["rows"])))

        return _timed(look, TICKS)


def plain(home: Path, cursor: int) -> Figures:
    """The events after a cursor, distinct days of them with their rows; 0: all, as when the cursor is lost."""
    import dagster as dg

    key = dg.AssetKey(["exports", KIND])
    with opened(home) as instance:

        def look() -> Counted:
            newest: dict[str, int] = {}
            after: str | None = None
            while True:
                found = instance.fetch_materializations(
                    dg.AssetRecordsFilter(key, after_storage_id=cursor), limit=AT_A_TIME, cursor=after, ascending=True
                )
                for record in found.records:
                    event = record.asset_materialization
                    if event is not None and event.partition is not None:
                        newest[event.partition] = int(str(event.metadata["dagster/row_count"].value))
                if not found.has_more:
                    return Counted(len(newest), sum(newest.values()))
                after = found.cursor

        return _timed(look, TICKS if cursor else PLAIN_TICKS)


def _timed(look: Callable[[], Counted], ticks: int) -> Figures:
    took, first_mib, counted = list[float](), 0.0, Counted(0, 0)
    for number in range(ticks):
        began = time.perf_counter()
        counted = look()
        took.append((time.perf_counter() - began) * 1000)
        if number == 0:
            first_mib = resident_mib()
    return Figures(took[0], statistics.median(took[1:]), first_mib, resident_mib() - first_mib, counted)


# ---- the measurement

QUIET, ONE_DAY, NO_MARK = "ours, nothing changed", "ours, one day changed", f"ours, all {len(DAYS)} days new"
PLAIN, PLAIN_QUIET = "plain, cursor lost: all events", "plain, cursor kept, nothing changed"
WAYS = (QUIET, ONE_DAY, NO_MARK, PLAIN_QUIET, PLAIN)


class WrongCount(Exception):
    """Raised when a way finds other days or rows than there are."""


def measure(events: int, runs: int) -> dict[str, list[Figures]]:
    """All ways, in turns. Raises WrongCount."""
    measured: dict[str, list[Figures]] = {way: [] for way in WAYS}
    with working_folder() as folder:
        homes = {way: Path(folder, str(number)) for number, way in enumerate((QUIET, ONE_DAY, NO_MARK))}
        tell(f"storing {events:,} materializations of {len(DAYS)} days, three times")
        for home in homes.values():
            apart(fill, home, events)
        days = last_days(events)
        leave_model(DataPaths(homes[QUIET]), days)
        leave_model(DataPaths(homes[ONE_DAY]), days | {DAYS[0]: day_at(DAYS[0], -1)})
        due = {QUIET: Counted(0, 0), ONE_DAY: Counted(1, 1), NO_MARK: Counted(len(days), ROWS * len(days)),
               PLAIN_QUIET: Counted(0, 0), PLAIN: Counted(len(days), ROWS * len(days))}  # fmt: skip
        for run in range(runs):
            for way in WAYS:
                if way in homes:
                    figures = apart(ours, homes[way])
                else:
                    figures = apart(plain, homes[NO_MARK], 0 if way == PLAIN else events)
                if figures.counted != due[way]:
                    raise WrongCount(f"{way}: {figures.counted}: expected {due[way]}")
                measured[way].append(figures)
                tell(f"run {run + 1} of {runs}: {way}: {figures.median_ms:,.1f} ms, +{figures.growth_mib:.1f} MiB")
    return measured


# ---- the page


class Goal(NamedTuple):
    """A goal, what was measured, and the most that it may be."""

    name: str
    most: float
    found: float
    unit: str

    @property
    def is_met(self) -> bool:
        """Whether it was reached."""
        return self.found <= self.most


def goals(measured: Mapping[str, Sequence[Figures]]) -> list[Goal]:
    """The goals of a tick."""
    ticks = {way: _median(found, "median_ms") for way, found in measured.items()}
    growth = max(_median(measured[way], "growth_mib") for way in (QUIET, ONE_DAY, NO_MARK))
    return [
        Goal("a tick when nothing changed", 250, ticks[QUIET], "ms"),
        Goal("a tick when all days are new", 1000, ticks[NO_MARK], "ms"),
        Goal("a tick, times the plain way whose cursor is lost", 0.1, ticks[NO_MARK] / ticks[PLAIN], "x"),
        Goal(f"growth of memory over {TICKS} ticks", 16, growth, "MiB"),
    ]


def _median(found: Sequence[Figures], name: str) -> float:
    return float(statistics.median(getattr(figures, name) for figures in found))


def page(measured: Mapping[str, Sequence[Figures]], machine: Sequence[str], *, events: int, runs: int) -> str:
    """The results as Markdown."""
    versions = f"Python {sys.version.split()[0]}, Dagster {version('dagster')}"
    rows = [
        (way, *(f"{_median(found, name):,.1f}" for name in ("first_ms", "median_ms", "first_mib", "growth_mib")))
        for way, found in measured.items()
    ]
    met = [
        (goal.name, f"{goal.most:,.1f} {goal.unit}", f"{goal.found:,.2f} {goal.unit}", "yes" if goal.is_met else "no")
        for goal in goals(measured)
    ]
    made = (
        f"Written by `python -m benchmarks.retraining --events {events} --runs {runs}` on "
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}: medians of {runs} runs of {TICKS} ticks ({PLAIN_TICKS} of the plain way "
        f"over all events), each in a process of its own, over {events:,} materializations of {len(DAYS)} days in "
        f"Dagster's SQLite storage; the last dataset's manifest names {len(DAYS) * len(KINDS):,} shards."
    )
    fairness = (
        "The plain way is `fetch_materializations` after the storage id of a cursor, as Dagster's documentation has "
        "it. With its cursor it is quicker than ours, which looks at the whole index each time; without, it reads all "
        "that there is, and a day that was exported twice counts by its last event only. Ours has no cursor to lose."
    )
    return "\n".join(
        [
            "# Benchmark of retraining", "", made, "",
            *(f"- {line}" for line in [*machine, f"Versions: {versions}"]), "", fairness, "",
            table(("goal", "at most", "measured", "met"), met), "",
            table(("a tick", "first, ms", "the others, ms", "MiB after the first", "MiB more at the end"), rows), "",
        ]
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.retraining", description=__doc__)
    made.add_argument("--events", type=int, default=100_000, help="materializations in the log (default 100000)")
    made.add_argument("--runs", type=int, default=3, help="how often each way is measured (default 3)")
    made.add_argument("--write", action="store_true", help=f"write the page to benchmarks/{RESULTS.name} as well")
    return made


def main() -> None:
    """Measure, print the page, write it if asked to."""
    warnings.simplefilter("ignore")
    arguments = parser().parse_args()
    machine = [*describe_machine(), f"Load average before the first run: {load_average()}"]
    measured = measure(arguments.events, arguments.runs)
    text = page(measured, machine, events=arguments.events, runs=arguments.runs)
    print(text)
    if arguments.write:
        RESULTS.write_text(text)
        tell(f"written to benchmarks/{RESULTS.name}")


if __name__ == "__main__":
    main()
