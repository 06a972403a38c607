"""Stores records through the store's public calls, and checks that each stands in the CSV files exactly once."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from benchmarks.processes import SPAWN, running_redis, running_writer, wait_until
from benchmarks.tools import REDIS
from benchmarks.turns import Job, LostRecords
from benchmarks.workload import Event, events_of_line
from ingest import Settings, TrainingDataStore
from ingest.pipeline.accounting import account
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.writer import drain
from ingest.records import DUCKDB_CSV_OPTIONS, KINDS

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

LONG_S = 300.0  # more than any flush here takes
START_S = 30.0  # more than it takes until a first record is written
_OPTIONS = ", ".join(f"{name} = {value!r}" for name, value in DUCKDB_CSV_OPTIONS.items() if name != "new_line")


def embedded(job: Job) -> float:
    """Seconds in one process: an event loop that awaits each call, the writer in a thread beside it."""
    settings = Settings(data_dir=job.folder / "data")
    began, ended = asyncio.run(_store_all(settings, events_of_line(job.seed, job.records)))
    check_stored(settings, job.records + 1)
    return ended - began


def with_writer(job: Job) -> float:
    """Seconds for one agent process, and `tds writer` beside it that reads its spool."""
    return _beside_a_writer(job, Settings(data_dir=job.folder / "data"), 1)


def two_agents(job: Job) -> float:
    """Seconds for two agent processes with half of the records each, and `tds writer`: two cores' full load."""
    return _beside_a_writer(job, Settings(data_dir=job.folder / "data"), 2)


def through_redis(job: Job) -> float:
    """Seconds for one agent process that ships to Redis, and `tds writer` in a process of its own."""
    with running_redis(job.tools.path(REDIS), job.folder) as redis:
        return _beside_a_writer(job, Settings(data_dir=job.folder / "data", redis_url=redis.url), 1)


def two_agents_through_redis(job: Job) -> float:
    """The same with two agent processes."""
    with running_redis(job.tools.path(REDIS), job.folder) as redis:
        return _beside_a_writer(job, Settings(data_dir=job.folder / "data", redis_url=redis.url), 2)


def _beside_a_writer(job: Job, settings: Settings, agents: int) -> float:
    """Seconds from the first call of any agent until all records are in the CSV files, fsynced."""
    events = events_of_line(job.seed, job.records)
    ready, times = SPAWN.Barrier(agents), SPAWN.Queue()
    with running_writer(settings):
        lock = FileLock(DataPaths(settings.data_dir).lock("events"))
        wait_until(lambda: not _acquired(lock), "`tds writer` holds its lock")
        processes = [
            SPAWN.Process(target=_agent, args=(settings, events[first::agents], ready, times))
            for first in range(agents)
        ]
        for process in processes:
            process.start()
        spans = [times.get(timeout=LONG_S) for _ in processes]
        for process in processes:
            process.join()
    check_stored(settings, job.records + agents)
    return float(max(ended for _, ended in spans) - min(began for began, _ in spans))


def _acquired(lock: FileLock) -> bool:
    """Whether a lock was free; it is let go at once."""
    free = lock.acquire()
    if free:
        lock.release()
    return free


def writer_alone(job: Job) -> float:
    """Seconds that the embedded writer takes for what an agent's process left in the spool."""
    settings = Settings(data_dir=job.folder / "data")
    lock = FileLock(DataPaths(settings.data_dir).lock("events"))
    lock.acquire()  # so that nothing is written while the spool is filled
    asyncio.run(fill(settings, events_of_line(job.seed, job.records)))
    lock.release()
    began = time.perf_counter()
    drain(settings, ["events"])
    seconds = time.perf_counter() - began
    check_stored(settings, job.records)
    return seconds


async def fill(settings: Settings, events: Sequence[Event]) -> None:
    """Store all events and leave them to whoever writes."""
    store = TrainingDataStore(settings)
    for event_type, agent_id, session_id, payload in events:
        await store.store_agent_event(event_type, agent_id, session_id=session_id, payload=payload)
    await store.close()


async def warmed_up(settings: Settings) -> TrainingDataStore:
    """A store whose first record is in the CSV file: imports are done, files and connections are open."""
    store = TrainingDataStore(settings)
    await store.store_agent_event("warm_up")
    await store.flush(START_S)
    return store


async def _store_all(
    settings: Settings, events: Sequence[Event], ready: "Barrier | None" = None
) -> tuple[float, float]:
    """From when until when it took to have all events in the CSV files, fsynced."""
    store = await warmed_up(settings)
    if ready is not None:
        ready.wait(LONG_S)
    began = time.perf_counter()
    for event_type, agent_id, session_id, payload in events:
        await store.store_agent_event(event_type, agent_id, session_id=session_id, payload=payload)
    await store.flush(LONG_S)
    ended = time.perf_counter()
    await store.close()
    return began, ended


def _agent(settings: Settings, events: Sequence[Event], ready: "Barrier", times: "Queue[tuple[float, float]]") -> None:
    times.put(asyncio.run(_store_all(settings, events, ready)))


def check_stored(settings: Settings, expected: int) -> None:
    """Count rows and distinct ids in the CSV files, and add up the account. Raises LostRecords if anything is off."""
    rows, distinct = rows_and_ids(settings.data_dir)
    counted = account(settings, "events")
    if not (rows == distinct == counted.rows == counted.accepted == expected and counted.balanced):
        raise LostRecords(f"{rows} rows with {distinct} ids: expected {expected} of both; the account is {counted}")


def rows_and_ids(data_dir: Path) -> tuple[int, int]:
    """How many events the day files hold, and how many distinct ids these have."""
    files = str(data_dir / "training" / "events" / "*.csv")
    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        columns = "SELECT count(*), count(DISTINCT event_id)"
        found = connection.execute(f"{columns} FROM read_csv('{files}', {_OPTIONS}, columns = {_columns()})").fetchone()
    assert found is not None
    return found[0], found[1]


def _columns() -> dict[str, str]:
    return {column.name: "VARCHAR" for column in KINDS["events"].columns}
