"""Turns what the store counts anyway, and what agents count by themselves, into Prometheus metrics at `/metrics`.

The store's figures are read at each scrape from the producers' counters, the ledgers and the spool, which survive every
process: no process has figures of its own, so any of them may be asked, and a restart loses nothing. What agents count
(`Metrics`) is in files that all processes of a host share, by prometheus_client's multi-process mode; its folder is
`<spool>/metrics` unless PROMETHEUS_MULTIPROC_DIR names another one.

Names are those of https://prometheus.io/docs/practices/naming/: base units, `_total` for counters.
"""

import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.errors import InvalidSetting, MissingExtra
from ingest.pipeline.accounting import account, oldest_waiting_s
from ingest.pipeline.partitions import folder_bytes, make_folder, nearest_folder
from ingest.records import KINDS
from ingest.settings import Settings, read_settings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

    from ingest.store import TrainingDataStore

FOLDER = "metrics"
MEASURED_CALLS = (
    "store_agent_event",
    "store_agent_task",
    "store_tool_execution",
    "store_workflow_data",
    "store_feedback",
)
SAMPLED = 64  # one call of so many is measured: a measured one takes 3 microseconds more
CALL_BUCKETS_S = (2e-6, 4e-6, 8e-6, 16e-6, 32e-6, 64e-6, 128e-6, 256e-6, 1e-3, 4e-3, 16e-3, 64e-3, 0.25, 1.0)
_COUNTERS = {
    "accepted": "Records that calls put into the spool.",
    "dropped": "Records that calls could not put into the spool: it was full, or they were too large.",
    "imported": "Rows read from day files that the store did not write.",
    "stored": "Records that the writer took out of the spool: in a CSV file, a duplicate, or in quarantine.",
    "duplicates": "Records left out, for their idempotency key was there.",
    "quarantined": "Records that the writer could not turn into rows; quarantine/<kind> has them.",
    "coerced": "Records in which a value was changed to fit JSON.",
}

logger = logging.getLogger(__name__)


class StoreCollector:
    """The figures of all kinds, read when they are asked for. 2 ms for the demo."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterator["Metric"]:
        """The metrics of the store, as prometheus_client's registries call it."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        accounts = {kind: account(self._settings, kind) for kind in KINDS}
        for name, text in _COUNTERS.items():
            family = CounterMetricFamily(f"tds_records_{name}", text, labels=["kind"])
            for kind, found in accounts.items():
                family.add_metric([kind], getattr(found, name))
            yield family
        waiting = GaugeMetricFamily(
            "tds_records_waiting", "Records in a spool and in no CSV file yet.", labels=["kind"]
        )
        lag = GaugeMetricFamily("tds_lag_seconds", "Age of the oldest record that waits on this host.", labels=["kind"])
        writer = GaugeMetricFamily("tds_writer_up", "1 if a process holds the writer's lock.", labels=["kind"])
        for kind, found in accounts.items():
            waiting.add_metric([kind], found.waiting)
            lag.add_metric([kind], (oldest_waiting_s(self._settings, kind) or 0.0) if found.waiting else 0.0)
            writer.add_metric([kind], float(found.writer_alive))
        yield from (waiting, lag, writer)
        spool = GaugeMetricFamily("tds_spool_bytes", "What the spool takes on this host's disk.")
        spool.add_metric([], folder_bytes(self._settings.spool))
        limit = GaugeMetricFamily(
            "tds_spool_limit_bytes", "What one process may have in its spool: TDS_SPOOL_MAX_BYTES."
        )
        limit.add_metric([], self._settings.spool_max_bytes)
        free = GaugeMetricFamily("tds_disk_free_bytes", "Free on the data folder's disk.")
        free.add_metric([], shutil.disk_usage(nearest_folder(self._settings.data_dir)).free)
        yield from (spool, limit, free)


class Metrics:
    """An agent's own metrics: `Metrics().counter("tools_called", "Calls of tools.", ["tool"]).labels("search").inc()`.

    Make it before anything else imports prometheus_client: then all processes of the host count together.
    """

    def __init__(self, settings: Settings | None = None, *, namespace: str = "agent") -> None:
        """`namespace` is the beginning of each name. Raises MissingExtra without prometheus_client."""
        self._settings = read_settings() if settings is None else settings
        self._namespace = namespace
        self._registry = _own_registry(self._settings)

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> "Counter":
        """Something that only grows: `.inc()`, with labels `.labels("search").inc()`."""
        from prometheus_client import Counter

        return Counter(name, documentation, labels, namespace=self._namespace, registry=self._registry)

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> "Gauge":
        """Something that goes up and down: `.set(3)`. Over processes that live it is the sum."""
        from prometheus_client import Gauge

        return Gauge(
            name, documentation, labels, namespace=self._namespace, registry=self._registry,
            multiprocess_mode="livesum",
        )  # fmt: skip

    def histogram(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, buckets: Sequence[float] | None = None
    ) -> "Histogram":
        """Durations or sizes: `.observe(0.2)`, `with histogram.time():`. `buckets` are upper bounds, ascending."""
        from prometheus_client import Histogram

        chosen = Histogram.DEFAULT_BUCKETS if buckets is None else buckets
        return Histogram(
            name, documentation, labels, namespace=self._namespace, registry=self._registry, buckets=chosen
        )


def measure_calls(store: "TrainingDataStore", metrics: Metrics | None = None) -> "TrainingDataStore":
    """Measure one call of 64 of a store, as `tds_call_seconds`; gives the store.

    What is not measured costs 0.15 microseconds more. Raises MissingExtra.
    """
    own = Metrics(store.settings, namespace="tds") if metrics is None else metrics
    seconds = own.histogram("call_seconds", "What a call of the store took.", ["call"], buckets=CALL_BUCKETS_S)
    for name in MEASURED_CALLS:
        setattr(store, name, _measured(getattr(store, name), seconds.labels(name).observe))
    return store


def _measured(call: Callable[..., Any], observe: Callable[[float], None]) -> Callable[..., Any]:
    random_number, clock = random.random, time.perf_counter  # noqa: S311 - which calls are measured is no secret
    share = 1 / SAMPLED

    @wraps(call)
    async def measured(*given: object, **named: object) -> object:
        if random_number() >= share:
            return await call(*given, **named)
        began = clock()
        try:
            return await call(*given, **named)
        finally:
            observe(clock() - began)

    return measured


def registry_of(settings: Settings, *collectors: Any) -> "CollectorRegistry":  # noqa: ANN401 - prometheus_client's protocol
    """What `/metrics` shows: the store's figures, those that the host's agents count, and more `collectors`."""
    prometheus = _prometheus()
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = prometheus.CollectorRegistry()
    registry.register(StoreCollector(settings))
    folder = multiprocess_folder(settings)
    if folder.is_dir():
        MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    for collector in collectors:
        registry.register(collector)
    return registry  # type: ignore[no-any-return]


def serve_metrics(registry: "CollectorRegistry", port: int, host: str = "127.0.0.1") -> Callable[[], None]:
    """Serve `/metrics` beside this thread; gives what ends it. Raises InvalidSetting if the port is taken."""
    try:
        server, thread = _prometheus().start_http_server(port, addr=host, registry=registry)
    except OSError as err:
        raise InvalidSetting(
            f"TDS_METRICS_PORT={port}: {err.strerror}: expected a free port of {host}; set another one"
        ) from err

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def influx_lines(registry: "CollectorRegistry", *, now_ns: int | None = None) -> str:
    """The same in InfluxDB's line protocol, for those who have that: a line a sample, `value` its field.

    https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
    """
    moment = time.time_ns() if now_ns is None else now_ns
    return "".join(
        f"{_escaped(sample.name, ', ')}{_tags(sample.labels)} value={float(sample.value)!r} {moment}\n"
        for family in registry.collect()
        for sample in family.samples
        if sample.value == sample.value and abs(sample.value) != float("inf")  # it has no NaN and no infinity
    )


def multiprocess_folder(settings: Settings) -> Path:
    """Where the host's processes keep what they count."""
    return Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR") or settings.spool / FOLDER)


def _own_registry(settings: Settings) -> Any:  # noqa: ANN401 - prometheus_client is imported where it is used
    """A registry for metrics that write into the shared folder."""
    folder = multiprocess_folder(settings)
    make_folder(folder)
    if "prometheus_client" in sys.modules and not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        logger.warning(
            "prometheus_client was imported before ingest.agents.metrics: metrics of this process are its own; make "
            "Metrics() first, or set PROMETHEUS_MULTIPROC_DIR=%s",
            folder,
        )
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(folder))
    return _prometheus().CollectorRegistry()


def _prometheus() -> Any:  # noqa: ANN401 - the module
    try:
        import prometheus_client
    except ModuleNotFoundError as err:
        raise MissingExtra(err.name) from err
    return prometheus_client


def _tags(labels: dict[str, str]) -> str:
    return "".join(
        f",{_escaped(name, ',= ')}={_escaped(value, ',= ')}" for name, value in sorted(labels.items()) if value
    )


def _escaped(text: str, special: str) -> str:
    text = text.replace("\\", "\\\\").replace("\n", " ")
    for char in special:
        text = text.replace(char, f"\\{char}")
    return text
