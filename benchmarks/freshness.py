"""Times from the call until the record is fsynced in its CSV file, at 10,000 records a second.

An agent's process stores ten records each millisecond, sleeping in its event loop in between, and notes when each call
began. Another process looks at the ledger each millisecond: the mark there covers a record only when its row has been
fsynced. So what is measured ends up to a millisecond late, and never early.
"""

import array
import asyncio
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import ours
from benchmarks.processes import SPAWN, running_redis, running_writer
from benchmarks.tools import REDIS
from benchmarks.turns import Job, LostRecords, Way
from benchmarks.workload import events_of_line
from ingest import Settings
from ingest.pipeline.partitions import DataPaths

RATE = 10_000
EMBEDDED, THROUGH_REDIS = "embedded", "through Redis"


class Freshness(NamedTuple):
    """How long records of one run took to the disk, in milliseconds."""

    p50: float
    p99: float
    longest: float

    def __str__(self) -> str:
        return f"{self.p50:.1f} / {self.p99:.1f} / {self.longest:.1f} ms"


def embedded(job: Job) -> Freshness:
    """The agent's own process writes."""
    return measure(Settings(data_dir=job.folder / "data"), job)


def through_redis(job: Job) -> Freshness:
    """The agent's process ships to Redis, `tds writer` writes."""
    with running_redis(job.tools.path(REDIS), job.folder) as redis:
        settings = Settings(data_dir=job.folder / "data", redis_url=redis.url)
        with running_writer(settings):
            return measure(settings, job)


def measure(settings: Settings, job: Job) -> Freshness:
    """Run the agent in a process of its own and watch the ledger meanwhile."""
    calls = job.folder / "calls"
    agent = SPAWN.Process(target=_agent, args=(settings, job.seed, job.records, calls))
    agent.start()
    seen = _watch(DataPaths(settings.data_dir).ledger("events"), job.records + 1)
    agent.join()
    began = array.array("q", calls.read_bytes())
    took, look = [], iter(seen)
    mark, looked_ns = next(look)
    for number, began_ns in enumerate(began):
        while mark < number + 2:  # the warm-up has number 1
            mark, looked_ns = next(look)
        took.append((looked_ns - began_ns) / 1e6)
    ours.check_stored(settings, job.records + 1)
    took.sort()
    return Freshness(took[len(took) // 2], took[int(len(took) * 0.99)], took[-1])


def _watch(ledger: Path, last: int) -> list[tuple[int, int]]:
    """Each new mark and when it was seen, until the mark is `last`; there is one producer, and so one mark."""
    seen, mark, deadline = [], 0, time.monotonic() + ours.LONG_S
    while not ledger.exists():
        time.sleep(0.001)
    with sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True, isolation_level=None) as db:
        while mark < last:
            now = db.execute("SELECT max(seq) FROM marks").fetchone()[0] or 0
            if now > mark:
                mark = now
                seen.append((mark, time.monotonic_ns()))
            if time.monotonic() > deadline:
                raise LostRecords(f"the ledger's mark stands at {mark}: expected {last}")
            time.sleep(0.001)
    db.close()
    return seen


def _agent(settings: Settings, seed: int, records: int, calls: Path) -> None:
    calls.write_bytes(asyncio.run(store_at_rate(settings, seed, records)).tobytes())


async def store_at_rate(settings: Settings, seed: int, records: int) -> "array.array[int]":
    """Store the records at 10,000 a second; gives when each call began, by the clock that all processes share."""
    store = await ours.warmed_up(settings)
    events, began = events_of_line(seed, records), array.array("q")
    start = time.monotonic()
    for number, (event_type, agent_id, session_id, payload) in enumerate(events):
        if number % 10 == 0:
            while (left := start + number / RATE - time.monotonic()) > 0:  # noqa: ASYNC110 - the pace is a time
                await asyncio.sleep(left)
        began.append(time.monotonic_ns())
        await store.store_agent_event(event_type, agent_id, session_id=session_id, payload=payload)
    await store.flush(ours.LONG_S)
    await store.close()
    return began


WAYS = (
    Way(EMBEDDED, embedded, is_ours=True),
    Way(THROUGH_REDIS, through_redis, is_ours=True),
)
