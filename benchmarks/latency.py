"""Times single calls: what an agent waits for while a record is stored.

An event with a payload of 300 bytes, two clock readings around each call and nothing else; imports and connections are
warm. "Tight loop" is one call after the other. "10,000/s" is one call each 100 μs: in between the event loop turns
(`await asyncio.sleep(0)`), as it does under an agent with other things to do, and lets go of the GIL in each turn, so
that the thread that writes or ships works beside the calls and not inside of them. With 8 threads each call is timed
in its own thread, from before it to after it, waits for the GIL included.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import ours, peers
from benchmarks.processes import free_port, running_redis, running_writer
from benchmarks.tools import REDIS
from benchmarks.turns import Job, LostRecords, Way
from benchmarks.workload import Event, events_with_payload
from ingest import Settings, TrainingDataStore
from ingest.pipeline.accounting import account
from ingest.pipeline.writer import drain

if TYPE_CHECKING:
    import redis.asyncio

PACE_S = 0.0001  # 10,000 calls a second
THREADS = 8
WARM_UP = 1000  # calls before the clock: the interpreter specializes its code while it runs

TIGHT, PACED = "ours, `await`, tight loop, embedded", "ours, `await`, 10,000/s, embedded"
TIGHT_UP, PACED_UP = "ours, `await`, tight loop, through Redis", "ours, `await`, 10,000/s, through Redis"
TIGHT_DOWN, PACED_DOWN = "ours, `await`, tight loop, Redis down", "ours, `await`, 10,000/s, Redis down"
TIGHT_PAUSED, PACED_PAUSED = "ours, `await`, tight loop, Redis paused", "ours, `await`, 10,000/s, Redis paused"
SYNC, EIGHT_THREADS = "ours, `store.sync`, tight loop, one thread", f"ours, `store.sync`, {THREADS} threads at once"


class Latency(NamedTuple):
    """What a call of one way took in one run."""

    p50: float  # microseconds
    p99: float
    p999: float
    calls: int
    stored: int  # of these calls' records

    def __str__(self) -> str:
        lost = f", {self.stored} of {self.calls} stored" * (self.stored != self.calls)
        return f"{self.p50:.1f} / {self.p99:.1f} / {self.p999:.1f} μs{lost}"


def percentiles(took_ns: Sequence[int], stored: int) -> Latency:
    """p50, p99 and p99.9 of durations in nanoseconds."""
    ordered = sorted(took_ns)
    p50, p99, p999 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000 for share in (0.5, 0.99, 0.999))
    return Latency(p50, p99, p999, len(ordered), stored)


def timed(call: Callable[[Event], object], events: Sequence[Event]) -> list[int]:
    """How long each call took, one after the other."""
    took, clock = [], time.perf_counter_ns
    for event in events:
        started = clock()
        call(event)
        took.append(clock() - started)
    return took


async def timed_awaits(call: Callable[[Event], Awaitable[object]], events: Sequence[Event]) -> list[int]:
    """How long each awaited call took, one after the other."""
    took, clock = [], time.perf_counter_ns
    for event in events:
        started = clock()
        await call(event)
        took.append(clock() - started)
    return took


# ---- ours


async def timed_stores(store: TrainingDataStore, events: Sequence[Event], pace_s: float) -> list[int]:
    """How long each `await store.store_agent_event(...)` took, in a tight loop or at a pace."""
    for event_type, agent_id, session_id, payload in events[:WARM_UP]:
        await store.store_agent_event(event_type, agent_id, session_id=session_id, payload=payload)
    took, clock, began = [], time.perf_counter_ns, time.perf_counter()
    for n, (event_type, agent_id, session_id, payload) in enumerate(events):
        if pace_s:
            while time.perf_counter() < began + n * pace_s:  # noqa: ASYNC110 - the pace is a time
                await asyncio.sleep(0)
        started = clock()
        await store.store_agent_event(event_type, agent_id, session_id=session_id, payload=payload)
        took.append(clock() - started)
    return took


def embedded(job: Job, pace_s: float) -> Latency:
    """With the embedded writer at work in the same process."""
    settings = Settings(data_dir=job.folder / "data")

    async def measure() -> list[int]:
        store = await ours.warmed_up(settings)
        took = await timed_stores(store, events_with_payload(job.seed, job.records), pace_s)
        await store.flush(ours.LONG_S)
        await store.close()
        return took

    took = asyncio.run(measure())
    ours.check_stored(settings, expected(job))
    return percentiles(took, job.records)


def through_redis(job: Job, pace_s: float, *, pause: bool = False) -> Latency:
    """With the shipper at work in the same process, and Redis well or, with `pause`, stopped while calls are made."""
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis(job.tools.path(REDIS), job.folder))
        settings = Settings(data_dir=job.folder / "data", redis_url=redis.url)

        async def measure() -> list[int]:
            store = await ours.warmed_up(settings)
            if pause:
                redis.pause()
            took = await timed_stores(store, events_with_payload(job.seed, job.records), pace_s)
            redis.resume()
            await store.flush(ours.LONG_S)
            await store.close()
            return took

        with running_writer(settings):
            took = asyncio.run(measure())
        ours.check_stored(settings, expected(job))
    return percentiles(took, job.records)


def redis_down(job: Job, pace_s: float) -> Latency:
    """With nobody listening at Redis's address. That all is in the spool is seen by an embedded writer afterwards."""
    settings = Settings(data_dir=job.folder / "data", redis_url=f"redis://127.0.0.1:{free_port()}/0")

    async def measure() -> list[int]:
        store = TrainingDataStore(settings)
        await store.store_agent_event("warm_up")
        took = await timed_stores(store, events_with_payload(job.seed, job.records), pace_s)
        await store.close()
        return took

    took = asyncio.run(measure())
    if (waiting := account(settings, "events").waiting) != expected(job):
        raise LostRecords(f"{waiting} records wait in the spool: expected {expected(job)}")
    without_redis = Settings(data_dir=settings.data_dir)
    drain(without_redis, ["events"])
    ours.check_stored(without_redis, expected(job))
    return percentiles(took, job.records)


def expected(job: Job) -> int:
    """Records that `timed_stores` leaves behind a warmed up store."""
    return job.records + min(WARM_UP, job.records) + 1


def threads_at_once(job: Job, threads: int) -> Latency:
    """`store.sync.store_agent_event` in so many threads, which begin together and share the records."""
    settings = Settings(data_dir=job.folder / "data")
    store = TrainingDataStore(settings)
    store.sync.store_agent_event("warm_up")
    store.sync.flush(ours.START_S)
    events, took = events_with_payload(job.seed, job.records), list[int]()
    together = threading.Barrier(threads)

    def work(part: Sequence[Event]) -> None:
        own, clock, call = [], time.perf_counter_ns, store.sync.store_agent_event
        together.wait(ours.START_S)
        for event_type, agent_id, session_id, payload in part:
            started = clock()
            call(event_type, agent_id, session_id=session_id, payload=payload)
            own.append(clock() - started)
        took.extend(own)

    workers = [threading.Thread(target=work, args=(events[first::threads],)) for first in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    store.sync.flush(ours.LONG_S)
    store.sync.close()
    ours.check_stored(settings, job.records + 1)
    return percentiles(took, job.records)


def tight(job: Job) -> Latency:
    """Embedded, one call after the other."""
    return embedded(job, 0)


def paced(job: Job) -> Latency:
    """Embedded, 10,000 calls a second."""
    return embedded(job, PACE_S)


def tight_through_redis(job: Job) -> Latency:
    """Redis and `tds writer` at work, one call after the other."""
    return through_redis(job, 0)


def paced_through_redis(job: Job) -> Latency:
    """Redis and `tds writer` at work, 10,000 calls a second."""
    return through_redis(job, PACE_S)


def tight_redis_down(job: Job) -> Latency:
    """Redis down, one call after the other."""
    return redis_down(job, 0)


def paced_redis_down(job: Job) -> Latency:
    """Redis down, 10,000 calls a second."""
    return redis_down(job, PACE_S)


def tight_redis_paused(job: Job) -> Latency:
    """Redis stopped by SIGSTOP, one call after the other."""
    return through_redis(job, 0, pause=True)


def paced_redis_paused(job: Job) -> Latency:
    """Redis stopped by SIGSTOP, 10,000 calls a second."""
    return through_redis(job, PACE_S, pause=True)


def one_thread(job: Job) -> Latency:
    """`store.sync` alone."""
    return threads_at_once(job, 1)


def eight_threads(job: Job) -> Latency:
    """`store.sync` in 8 threads."""
    return threads_at_once(job, THREADS)


# ---- peers


def of_peer(took_ns: Sequence[int], stored: int) -> Latency:
    """A peer's figures. Raises LostRecords unless each call's record is stored."""
    if stored != len(took_ns):
        raise LostRecords(f"{stored} records are stored: expected {len(took_ns)}")
    return percentiles(took_ns, stored)


def old_store(job: Job) -> Latency:
    """The old store's `await store.store_agent_event`."""
    events = events_with_payload(job.seed, job.records)

    async def measure(append: peers.AwaitableAppend) -> list[int]:
        await append(events[0])
        return await timed_awaits(append, events)

    with peers.old_store(job) as append:
        took = asyncio.run(measure(append))
    return of_peer(took, peers.old_store_rows(job.folder) - 1)


def awaited_xadd(job: Job) -> Latency:
    """redis-py's `await client.xadd(...)`."""
    return asyncio.run(peers.with_redis(job, lambda client: _awaited_xadd(client, job)))


async def _awaited_xadd(client: "redis.asyncio.Redis", job: Job) -> Latency:
    events = events_with_payload(job.seed, job.records)
    await client.xadd("events", {"record": peers.line_of(events[0])})
    took = await timed_awaits(lambda event: client.xadd("events", {"record": peers.line_of(event)}), events)
    return of_peer(took, int(await client.xlen("events")) - 1)


def csv_flushed(job: Job) -> Latency:
    """csv.writer, each row flushed to the kernel."""
    events = events_with_payload(job.seed, job.records)
    with peers.csv_file(job.folder) as (append, out):

        def call(event: Event) -> None:
            append(event)
            out.flush()

        took = timed(call, events)
    return of_peer(took, peers.csv_rows(job.folder / "events.csv"))


def sqlite_commit(job: Job) -> Latency:
    """sqlite3, WAL and synchronous=FULL, a commit a row."""
    events = events_with_payload(job.seed, job.records)
    with peers.sqlite_table(job.folder) as db:
        took = timed(lambda event: db.execute(peers.INSERT, peers.row_of(event)), events)
    return of_peer(took, peers.sqlite_rows(job.folder))


def rotating_log(job: Job) -> Latency:
    """`logging` with a RotatingFileHandler."""
    with peers.rotating_log(job.folder) as append:
        took = timed(append, events_with_payload(job.seed, job.records))
    return of_peer(took, peers.lines_in(job.folder))


def opentelemetry(job: Job) -> Latency:
    """A span of OpenTelemetry's SDK, started and ended; counts what its batch exporter kept."""
    found = peers.outside(job, "benchmarks.outside_opentelemetry", "calls")
    return percentiles(found["took_ns"], found["stored"])


WAYS = (
    Way(TIGHT, tight, is_ours=True),
    Way(PACED, paced, share=0.4, is_ours=True),
    Way(TIGHT_UP, tight_through_redis, is_ours=True),
    Way(PACED_UP, paced_through_redis, share=0.4, is_ours=True),
    Way(TIGHT_DOWN, tight_redis_down, is_ours=True),
    Way(PACED_DOWN, paced_redis_down, share=0.4, is_ours=True),
    Way(TIGHT_PAUSED, tight_redis_paused, is_ours=True),
    Way(PACED_PAUSED, paced_redis_paused, share=0.4, is_ours=True),
    Way(SYNC, one_thread, is_ours=True),
    Way(EIGHT_THREADS, eight_threads, is_ours=True),
    Way("the old store, `await`", old_store, share=0.4),
    Way("redis-py, `await xadd`", awaited_xadd, share=0.1),
    Way("csv.writer, a flush a row", csv_flushed, share=0.4),
    Way("sqlite3, WAL FULL, a commit a row", sqlite_commit, share=0.04, synced="each commit"),
    Way("logging, RotatingFileHandler", rotating_log, share=0.4),
    Way("OpenTelemetry SDK, a span", opentelemetry, share=0.4),
)
