"""Turns Dagster's runs into Prometheus metrics: how many ended how, how long they took, and how many wait.

A run is of days (`curated`, `exports`), of training (`datasets`, `models`), or of checks alone. Each is counted once,
when it has ended: runs are asked for by when they changed, so that a scrape reads what is new since the last one.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

BUCKETS_S = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_WAITING = [dg.DagsterRunStatus.QUEUED]
_STARTED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_OVERLAP = timedelta(minutes=1)  # clocks and commits: what changed shortly before the last look is looked at again


class RunCollector:
    """The metrics of an instance's runs. The first scrape reads all runs that are kept."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._lock = threading.Lock()  # two scrapes at once
        self._since = datetime.fromtimestamp(0, UTC)
        self._seen: dict[str, datetime] = {}  # runs that ended within the overlap
        self._ended: Counter[tuple[str, str]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._within: dict[str, list[int]] = {}  # how many runs took at most so long, by bucket, the last one any

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus_client's registries call it."""
        with self._lock:
            self._count_new()
            runs = CounterMetricFamily("tds_runs", "Runs of Dagster that have ended.", labels=["of", "status"])
            for (what, status), number in sorted(self._ended.items()):
                runs.add_metric([what, status], number)
            seconds = HistogramMetricFamily("tds_run_seconds", "How long runs took.", labels=["of"])
            for what, counts in sorted(self._within.items()):
                buckets = [*zip(map(str, BUCKETS_S), counts, strict=False), ("+Inf", counts[-1])]
                seconds.add_metric([what], buckets, self._seconds[what])
        under_way = GaugeMetricFamily("tds_runs_under_way", "Runs that wait or are at work.", labels=["status"])
        for status, statuses in (("waiting", _WAITING), ("started", _STARTED)):
            under_way.add_metric([status], self._instance.get_runs_count(dg.RunsFilter(statuses=statuses)))
        yield from (runs, seconds, under_way)

    def _count_new(self) -> None:
        latest = self._since
        wanted = dg.RunsFilter(statuses=_ENDED, updated_after=self._since - _OVERLAP if self._seen else None)
        for record in self._instance.get_run_records(wanted):
            run = record.dagster_run
            latest = max(latest, _aware(record.update_timestamp))
            if run.run_id in self._seen:
                continue
            self._seen[run.run_id] = _aware(record.update_timestamp)
            what = _what(run)
            self._ended[what, run.status.value.lower()] += 1
            took = max(0.0, (record.end_time or 0.0) - (record.start_time or record.end_time or 0.0))
            self._seconds[what] += took  # type: ignore[assignment]  # a Counter adds up floats too
            counts = self._within.setdefault(what, [0] * (len(BUCKETS_S) + 1))
            for place, bound in enumerate((*BUCKETS_S, float("inf"))):
                counts[place] += took <= bound
        self._since = latest
        self._seen = {run: at for run, at in self._seen.items() if at >= latest - 2 * _OVERLAP}


def _what(run: dg.DagsterRun) -> str:
    groups = {key.path[0] for key in run.asset_selection or ()}
    if groups & {"datasets", "models"}:
        return "training"
    if groups & {"curated", "exports"}:
        return "days"
    return "checks" if run.asset_check_selection else "other"


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
