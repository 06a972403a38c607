"""Measures what shows only over many records or days: backfills, memory, and the cost of a row in a long file."""

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from benchmarks import ours
from benchmarks.processes import free_port, resident_mib, running_redis, running_writer, wait_until
from benchmarks.throughput import Throughput
from benchmarks.tools import REDIS, tell
from benchmarks.turns import Job, LostRecords, Way
from benchmarks.workload import Event, events_of_line
from ingest import Settings, TrainingDataStore
from ingest.pipeline.accounting import account
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import DataPaths

DAYS = 365
YEAR = datetime(2025, 1, 1, 12, tzinfo=UTC)
ORDERED, SHUFFLED = "365 days in order", "365 days shuffled"
MEMORY_RECORDS = 5_000_000
BACKLOG_LIMIT = 100_000  # records: the agent waits for the writer after so many, so that it has what it works on
SETTLED = 500_000  # records after which the writer's memory counts: its buffers and caches are filled by then
FILES_OF = (100_000, 1_000_000, 10_000_000)  # rows
WINDOW = 200_000  # records timed at each of these


class Memory(NamedTuple):
    """Resident memory of a process, in MiB."""

    first: float
    least: float
    most: float
    records: int

    @property
    def growth(self) -> float:
        """From the first look to the most."""
        return self.most - self.first

    @property
    def swing(self) -> float:
        """The farthest from the first look, up or down."""
        return max(self.most - self.first, self.first - self.least)

    def __str__(self) -> str:
        return f"{self.first:.0f} MiB, then {self.least:.0f} to {self.most:.0f}, over {self.records:,} records"


class Costs(NamedTuple):
    """Microseconds a record, by the rows that the day file had before."""

    by_rows: dict[int, float]

    def __str__(self) -> str:
        return ", ".join(f"{cost:.2f} μs at {rows:,} rows" for rows, cost in self.by_rows.items())


# ---- a backfill of a year


def ordered(job: Job) -> Throughput:
    """Day by day."""
    return backfill(job, shuffled=False)


def shuffled(job: Job) -> Throughput:
    """The same records and times in a random order, so that all 365 days are open at once."""
    return backfill(job, shuffled=True)


def backfill(job: Job, *, shuffled: bool) -> Throughput:
    """Embedded, one process: from the first call until all is fsynced, each record with its own `timestamp`."""
    texts = [(YEAR + timedelta(days=day)).isoformat() for day in range(DAYS)]
    times = [texts[n * DAYS // job.records] for n in range(job.records)]
    if shuffled:
        random.Random(job.seed).shuffle(times)
    settings = Settings(data_dir=job.folder / "data")
    events = events_of_line(job.seed, job.records)

    async def store_all() -> float:
        store = await ours.warmed_up(settings)
        began = time.perf_counter()
        for (event_type, agent_id, session_id, payload), at in zip(events, times, strict=True):
            await store.store_agent_event(event_type, agent_id, session_id=session_id, payload=payload, timestamp=at)
        await store.flush(ours.LONG_S)
        seconds = time.perf_counter() - began
        await store.close()
        return seconds

    seconds = asyncio.run(store_all())
    ours.check_stored(settings, job.records + 1)
    return Throughput(job.records, job.records, seconds)


BACKFILL = (Way(ORDERED, ordered, is_ours=True), Way(SHUFFLED, shuffled, is_ours=True))


# ---- memory


def client_memory(job: Job) -> Memory:
    """An agent's process that stores without a writer: Redis is down, and the backlog stays in the spool."""
    settings = Settings(data_dir=job.folder / "data", redis_url=f"redis://127.0.0.1:{free_port()}/0")
    events = events_of_line(job.seed, job.records)
    looks: list[float] = []

    async def store_all() -> None:
        store = TrainingDataStore(settings)
        await store_part(store, events[:1000])
        await asyncio.sleep(1.0)  # the shipper has imported redis-py and met with refusal: that is no backlog
        looks.append(resident_mib())
        for first in range(1000, job.records, 10_000):
            await store_part(store, events[first : first + 10_000])
            looks.append(resident_mib())
        await store.close()

    asyncio.run(store_all())
    if (waiting := account(settings, "events").waiting) != job.records:
        raise LostRecords(f"{waiting} records wait in the spool: expected {job.records}")
    return Memory(looks[0], min(looks), max(looks), job.records)


def writer_memory(job: Job, *, redis: bool) -> Memory:
    """`tds writer`, looked at each second while an agent's process stores, a bounded backlog ahead of it."""
    with ExitStack() as stack:
        settings = Settings(data_dir=job.folder / "data")
        if redis:
            server = stack.enter_context(running_redis(job.tools.path(REDIS), job.folder))
            # Without the hour that entries stay for subscribers: Redis would need gigabytes.
            settings = Settings(data_dir=settings.data_dir, redis_url=server.url, synapse_retention=0)
        else:
            settings.data_dir.mkdir(parents=True)
        writer = stack.enter_context(running_writer(settings))
        if not redis:
            lock = DataPaths(settings.data_dir).lock("events")  # before an agent's process can take it
            wait_until(lambda: FileLock.is_taken(lock), "tds writer holds the lock")
        looks, over = list[float](), threading.Event()
        sampler = threading.Thread(target=_sample, args=(writer.pid, looks, over))
        asyncio.run(_store_steadily(settings, job, sampler))
        over.set()
        sampler.join()
        ours.check_stored(settings, job.records + 1)
    return Memory(looks[0], min(looks), max(looks), job.records)


def _sample(pid: int, looks: list[float], over: threading.Event) -> None:
    looks.append(resident_mib(pid))
    while not over.wait(1.0):
        looks.append(resident_mib(pid))


async def _store_steadily(settings: Settings, job: Job, sampler: threading.Thread) -> None:
    store, events = await ours.warmed_up(settings), events_of_line(job.seed, BACKLOG_LIMIT)
    for first in range(0, job.records, BACKLOG_LIMIT):
        if sampler.ident is None and first >= min(SETTLED, job.records // 10):
            sampler.start()
        await store_part(store, events[: job.records - first])
        await store.flush(ours.LONG_S)
    await store.close()


def spool_writer_memory(job: Job) -> Memory:
    """The writer over the spool."""
    return writer_memory(job, redis=False)


def redis_writer_memory(job: Job) -> Memory:
    """The writer over Synapse."""
    return writer_memory(job, redis=True)


CLIENT = (Way("an agent's process without a writer", client_memory, is_ours=True),)
WRITERS = (
    Way("`tds writer` over the spool", spool_writer_memory, is_ours=True),
    Way("`tds writer` over Redis", redis_writer_memory, is_ours=True),
)


# ---- the cost of a row in a long file


def costs_in_a_long_file(job: Job) -> Costs:
    """Microseconds a record, durable end to end, into a day file that already has that many rows."""
    settings = Settings(data_dir=job.folder / "data")
    levels = [level for level in FILES_OF if level <= job.records]
    window = min(WINDOW, levels[0])
    events = events_of_line(job.seed, WINDOW)
    at = YEAR.isoformat()  # one day, also if this run meets midnight

    async def measure() -> tuple[dict[int, float], int]:
        store, costs, rows = await ours.warmed_up(settings), dict[int, float](), 0
        for level in levels:
            while rows < level:
                part = events[: level - rows]
                await store_part(store, part, at)
                await store.flush(ours.LONG_S)
                rows += len(part)
            began = time.perf_counter()
            await store_part(store, events[:window], at)
            await store.flush(ours.LONG_S)
            costs[level] = (time.perf_counter() - began) / window * 1e6
            rows += window
            tell(f"cost: {costs[level]:.2f} μs at {level:,} rows")
        await store.close()
        return costs, rows

    costs, rows = asyncio.run(measure())
    ours.check_stored(settings, rows + 1)
    return Costs(costs)


COSTS = (Way("embedded, one process", costs_in_a_long_file, is_ours=True),)


async def store_part(store: TrainingDataStore, events: Sequence[Event], timestamp: str | None = None) -> None:
    """Store some events, in a tight loop."""
    for event_type, agent_id, session_id, payload in events:
        await store.store_agent_event(event_type, agent_id, session_id=session_id, payload=payload, timestamp=timestamp)
