"""Lets the platform's own automation live through a month of records: `python -m benchmarks.simulated_month`.

Schedule, conditions and sensors are asked as the daemon asks them, at moments of a clock that is passed in, and what
they ask for is run in this process: exports, datasets, trainings, checks. It tells how many runs came of it, how many
of them changed something, and how long Dagster's event log got. Thirty days take three minutes.
"""

import argparse
import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import dagster as dg

from benchmarks.report import table
from benchmarks.tools import tell, working_folder
from ingest import Settings, TrainingDataStore
from ingest.pipeline.partitions import today
from ingest.records import KINDS
from tds_dagster.assets.daily import daily_definitions
from tds_dagster.assets.datasets import dataset_definitions
from tds_dagster.assets.models import champion_checks, model_assets
from tds_dagster.assets.raw import raw_specs
from tds_dagster.automation.retention import delete_old_runs
from tds_dagster.automation.retraining import SENTENCE, tick
from tds_dagster.automation.schedules import BUILT, export_yesterday
from tds_dagster.automation.sensors import report_changed_days
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.definitions import defs

SESSIONS, TASKS = 40, 20  # a day; a session has four events, a task two rows
LATE_EVERY, LATE_DAYS, LATE_SESSIONS = 7, 5, 3  # each week a few sessions of five days ago
MOST_ROUNDS, TICK = 8, dt.timedelta(seconds=15)  # of ticks, until there is nothing left to do
# UTC: midnight is over, the schedule, the checks, and twice in the day when records have come.
MOMENTS = (dt.time(0, 1), dt.time(0, 10), dt.time(0, 40, 5), dt.time(9), dt.time(17))
EXPORTS: Sequence[dg.AssetsDefinition | dg.AssetSpec] = [*raw_specs(), *daily_definitions()]
MODELS_OF_THEM: Sequence[dg.AssetsDefinition] = [*dataset_definitions(), *model_assets(), *champion_checks()]
PLATFORM: Sequence[dg.AssetsDefinition | dg.AssetSpec] = [*EXPORTS, *MODELS_OF_THEM]
ALL_BUILT = [dg.AssetKey([group, kind]) for group in ("curated", "exports") for kind in KINDS]
DATA_VERSION = "dagster/data_version"


class Run(NamedTuple):
    """One run, and what came of it."""

    moment: dt.datetime
    what: str  # export, schedule, check or train
    assets: str
    why: str
    is_new: bool  # whether anything has another version than before
    has_failed: bool


class Month(NamedTuple):
    """What the platform did."""

    runs: list[Run]
    events: dict[int, int]  # rows of the event log after so many days
    kept: int  # of these what stays when all runs are old enough to be forgotten


def simulate(settings: Settings, instance: dg.DagsterInstance, days: Sequence[dt.date]) -> Month:
    """Live through the days. Raises what a run raises."""
    return _Life(settings, instance).through(days)


class _Life:
    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings, self.instance = settings, instance
        self.store = TrainingDataStore(settings)
        self.resources = {"settings": settings, "pipes": dg.PipesSubprocessClient()}
        platform = dg.Definitions(assets=PLATFORM, resources=self.resources, executor=dg.in_process_executor)
        self.job = platform.resolve_implicit_global_asset_job_def()
        self.cursor: str | None = None
        self.automation: dg.AutomationConditionCursor | None = None
        self.runs: list[Run] = []

    def through(self, days: Sequence[dt.date]) -> Month:
        events: dict[int, int] = {}
        for number, day in enumerate(days, 1):
            for clock in MOMENTS:
                moment = dt.datetime.combine(day, clock, dt.UTC)
                with _clock_at(moment):
                    self._store(number, moment)
                    self._live(moment)
            events[number] = event_rows(self.instance)
            tell(f"day {number} of {len(days)}: {len(self.runs)} runs, {events[number]:,} events")
        self.store.sync.close()
        self._forget()
        return Month(self.runs, events, event_rows(self.instance))

    def _forget(self) -> None:
        """Let retention do its work, as if all this was long ago."""
        graph, left = defs.resolve_asset_graph(), 1
        while left:
            _, left = delete_old_runs(
                self.instance, graph.get_all_asset_keys(), graph.asset_check_keys,
                now=dt.datetime.now(dt.UTC) + dt.timedelta(days=1), keep_days=1,
            )  # fmt: skip

    def _store(self, number: int, moment: dt.datetime) -> None:
        """What agents did since the last look."""
        if moment.hour == MOMENTS[-2].hour:
            self._store_day(number, moment.date(), range(SESSIONS // 2), range(TASKS))
            if number % LATE_EVERY == 0:
                late = range(SESSIONS, SESSIONS + LATE_SESSIONS)
                self._store_day(number - LATE_DAYS, moment.date() - dt.timedelta(days=LATE_DAYS), late, range(0))
        elif moment.hour == MOMENTS[-1].hour:
            self._store_day(number, moment.date(), range(SESSIONS // 2, SESSIONS), range(0))
        self.store.sync.flush()

    def _store_day(self, number: int, day: dt.date, sessions: range, tasks: range) -> None:
        for session in sessions:
            topic = ("order", "flight", "refund")[session % 3]
            for place, step in enumerate(("request_noted", f"{topic}_checked", "answer_noted", "agent_stopped")):
                self.store.sync.store_agent_event(
                    step, f"agent-{session % 4}", session_id=f"s-{number}-{session}",
                    payload={"topic": topic, "request": f"{number} {session}"},
                    timestamp=f"{day}T{session % 24:02}:{session // 24:02}:{place:02}Z",
                )  # fmt: skip
        for task in tasks:
            ends = "failed" if task % 3 == 0 else "completed"
            for place, status in enumerate(("pending", ends)):
                self.store.sync.store_agent_task(
                    f"t-{number}-{task}", status=status, priority="low" if ends == "failed" else "high",
                    task_type="support", input_data={"request": f"{number} {task}"},
                    timestamp=f"{day}T{task:02}:30:{place:02}Z",
                )  # fmt: skip

    def _live(self, moment: dt.datetime) -> None:
        """Ticks of everything, until nothing is asked for."""
        if moment.time() == MOMENTS[1]:
            request = export_yesterday(dg.build_schedule_context(scheduled_execution_time=moment))
            if isinstance(request, dg.RunRequest):
                self._run(moment, "schedule", ALL_BUILT, "00:10", request.partition_key)
        for number in range(MOST_ROUNDS):
            before, now = len(self.runs), moment + number * TICK
            self._report()
            self._follow_conditions(now)
            self._retrain(now)
            if len(self.runs) == before:
                return
        raise RuntimeError(f"{moment}: after {MOST_ROUNDS} rounds there still is something to do: {self.runs[-3:]}")

    def _report(self) -> None:
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"settings": self.settings}
        )
        result = report_changed_days(context)
        if isinstance(result, dg.SensorResult):
            for event in result.asset_events:
                self.instance.report_runless_asset_event(event)
            self.cursor = result.cursor

    def _follow_conditions(self, moment: dt.datetime) -> None:
        result = dg.evaluate_automation_conditions(
            defs=defs, instance=self.instance, asset_selection=BUILT | dg.AssetSelection.all_asset_checks(),
            cursor=self.automation, evaluation_time=moment,
        )  # fmt: skip
        self.automation = result.cursor
        asked: dict[str, set[str]] = {}
        checks: list[dg.AssetCheckKey] = []
        for item in result.results:
            if isinstance(item.key, dg.AssetCheckKey):
                checks += [item.key] if not item.true_subset.is_empty else []
            elif not item.true_subset.is_empty:
                asked[item.key.to_user_string()] = set(item.true_subset.expensively_compute_partition_keys())
        for asset, days in asked.items():
            for day in sorted(days):
                self._run(moment, "export", [dg.AssetKey(asset.split("/"))], day, day)
        if checks:
            self._check(moment, checks)

    def _retrain(self, moment: dt.datetime) -> None:
        for model in MODELS:
            asked = tick(self.instance, self.settings, model, moment)
            if isinstance(asked, dg.RunRequest):
                self._run(
                    moment, "train", asked.asset_selection or [], asked.tags[SENTENCE],
                    config=asked.run_config, tags=asked.tags,
                )  # fmt: skip

    def _run(
        self, moment: dt.datetime, what: str, assets: Sequence[dg.AssetKey], why: str, day: str | None = None,
        config: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """What the daemon would launch. Not `dg.materialize`, whose runs do not say which assets they are of."""
        before = self._versions()
        done = self.job.execute_in_process(
            asset_selection=assets, instance=self.instance, partition_key=day, run_config=dict(config or {}),
            tags=dict(tags or {}), raise_on_error=False,
        )  # fmt: skip
        is_new = self._versions() != before
        names = ", ".join(key.to_user_string() for key in assets)
        self.runs.append(Run(moment, what, names, why, is_new=is_new, has_failed=not done.success))

    def _check(self, moment: dt.datetime, checks: Sequence[dg.AssetCheckKey]) -> None:
        selection = dg.AssetSelection.checks(*checks)
        done = dg.materialize(
            PLATFORM, selection=selection, instance=self.instance, resources=self.resources, raise_on_error=False
        )
        told = bool(done.get_asset_check_evaluations())
        self.runs.append(Run(moment, "check", "", "each morning", is_new=told, has_failed=not done.success))

    def _versions(self) -> dict[str, str]:
        """The version of everything that Dagster knows, by asset and day."""
        found: dict[str, str] = {}
        for key in sorted(self.instance.all_asset_keys()):
            if key.path[0] in {"curated", "exports"}:
                tags = self.instance.event_log_storage.get_latest_tags_by_partition(
                    key, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION]
                )
                found |= {f"{key.to_user_string()} {day}": of_day[DATA_VERSION] for day, of_day in tags.items()}
            else:
                event = self.instance.get_latest_materialization_event(key)
                if event is not None and event.asset_materialization is not None:
                    found[key.to_user_string()] = str((event.asset_materialization.tags or {}).get(DATA_VERSION))
        return found


@contextmanager
def _clock_at(moment: dt.datetime) -> Iterator[None]:
    """What the sensors, and the datasets, take for the present."""
    clock = SimpleNamespace(time=moment.timestamp)
    with (
        patch("tds_dagster.automation.sensors.today", moment.date),
        patch("tds_dagster.automation.sensors.time", clock),
        patch("tds_dagster.datasets.sources.today", moment.date),
    ):
        yield


def event_rows(instance: dg.DagsterInstance) -> int:
    """Rows of Dagster's event log."""
    import sqlalchemy as sa

    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]  # of SQL storages
        return int(connection.execute(sa.text("SELECT count(*) FROM event_logs")).scalar_one())


def page(month: Month) -> str:
    """What was done, as Markdown."""
    runs = Counter(run.what for run in month.runs)
    news = Counter(run.what for run in month.runs if run.is_new)
    failed = Counter(run.what for run in month.runs if run.has_failed)
    rows = [(name, f"{number}", f"{news[name]}", f"{failed[name]}") for name, number in runs.items()]
    shown = [day for day in month.events if day % 10 == 0 or day == len(month.events)]
    lengths = [(f"{day}", f"{month.events[day]:,}") for day in shown]
    trained = [f"- {run.moment:%Y-%m-%d %H:%M} {run.why}" for run in month.runs if run.what == "train"]
    return "\n".join(
        [
            table(("runs", "in all", "made something new", "failed"), rows),
            "",
            table(("after days", "rows of the event log"), [*lengths, ("all runs forgotten", f"{month.kept:,}")]),
            "",
            *trained,
        ]
    )  # fmt: skip


def main() -> None:
    """Live through a month and tell of it."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.simulated_month", description=__doc__)
    made.add_argument("--days", type=int, default=30, help="how many, up to yesterday (default 30)")
    count = made.parse_args().days
    with working_folder() as folder, dg.DagsterInstance.ephemeral() as instance:
        days = [today() - dt.timedelta(days=number) for number in range(count, 0, -1)]
        print(page(simulate(Settings(data_dir=Path(folder, "data")), instance, days)))


if __name__ == "__main__":
    main()
