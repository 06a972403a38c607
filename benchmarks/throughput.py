"""Times many records, from the first call until all of them are where the way puts them, and counts what arrived.

A record is 500 bytes as one JSON line, its id and time included. Before the clock starts each way has stored a record
or two, so that imports are done and files and connections are open. A way that promises every record is checked for
it after each run; the one that promises less is shown with what it dropped.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import ours, peers
from benchmarks.processes import SPAWN, wait_until
from benchmarks.turns import Job, LostRecords, Way
from benchmarks.workload import events_of_line

if TYPE_CHECKING:
    import io
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

    import redis.asyncio

EMBEDDED, WRITER_ALONE = "ours, embedded, one process", "ours, the writer alone over a full spool"
WITH_WRITER, TWO_AGENTS = "ours, agent and `tds writer`", "ours, two agents and `tds writer`"
THROUGH_REDIS = "ours, agent → Redis → `tds writer`"
TWO_THROUGH_REDIS = "ours, two agents → Redis → `tds writer`"
OLD_STORE = "the old store"


class Throughput(NamedTuple):
    """What one run of a way did."""

    offered: int
    stored: int
    seconds: float

    @property
    def rate(self) -> float:
        """Stored records a second."""
        return self.stored / self.seconds

    def __str__(self) -> str:
        return f"{self.rate:,.0f} records/s" + (f", {self.stored} of {self.offered}" * (self.stored != self.offered))


def all_of(job: Job, stored: int, seconds: float) -> Throughput:
    """The figures of a way that promises all records. Raises LostRecords if some are not there, or too many are."""
    if stored != job.records:
        raise LostRecords(f"{stored} records are stored: expected {job.records}")
    return Throughput(job.records, stored, seconds)


def of_ours(measure: Callable[[Job], float], job: Job) -> Throughput:
    """A way of ours, which checks its records itself."""
    return Throughput(job.records, job.records, measure(job))


def embedded(job: Job) -> Throughput:
    """One process."""
    return of_ours(ours.embedded, job)


def with_writer(job: Job) -> Throughput:
    """An agent, and a writer in a process of its own."""
    return of_ours(ours.with_writer, job)


def two_agents(job: Job) -> Throughput:
    """Two agents, and a writer in a process of its own."""
    return of_ours(ours.two_agents, job)


def through_redis(job: Job) -> Throughput:
    """Agent, Redis, writer."""
    return of_ours(ours.through_redis, job)


def two_agents_through_redis(job: Job) -> Throughput:
    """Two agents, Redis, writer."""
    return of_ours(ours.two_agents_through_redis, job)


def writer_alone(job: Job) -> Throughput:
    """No calls in the measured time."""
    return of_ours(ours.writer_alone, job)


def old_store(job: Job) -> Throughput:
    """The old store's `await store.store_agent_event`."""
    events = events_of_line(job.seed, job.records)

    async def store_all(append: peers.AwaitableAppend) -> float:
        await append(events[0])
        began = time.perf_counter()
        for event in events:
            await append(event)
        return time.perf_counter() - began

    with peers.old_store(job) as append:
        seconds = asyncio.run(store_all(append))
    return all_of(job, peers.old_store_rows(job.folder) - 1, seconds)


def awaited_xadd(job: Job) -> Throughput:
    """redis-py, `await client.xadd(...)` for each record."""
    return asyncio.run(peers.with_redis(job, lambda client: _xadd(client, job, 1)))


def pipelined_xadd(job: Job) -> Throughput:
    """redis-py, 500 XADDs to a pipeline."""
    return asyncio.run(peers.with_redis(job, lambda client: _xadd(client, job, peers.GROUP)))


async def _xadd(client: "redis.asyncio.Redis", job: Job, group: int) -> Throughput:
    events = events_of_line(job.seed, job.records)
    await client.xadd("events", {"record": peers.line_of(events[0])})
    began = time.perf_counter()
    if group == 1:
        for event in events:
            await client.xadd("events", {"record": peers.line_of(event)})
    else:
        for part in peers.groups(events):
            pipeline = client.pipeline(transaction=False)
            for event in part:
                _ = pipeline.xadd("events", {"record": peers.line_of(event)})
            await pipeline.execute()
    seconds = time.perf_counter() - began
    return all_of(job, int(await client.xlen("events")) - 1, seconds)


def csv_flushed(job: Job) -> Throughput:
    """csv.writer, a flush to the kernel after each row."""
    return _csv(job, lambda _n, out: out.flush(), at_end=lambda out: out.flush())


def csv_synced(job: Job) -> Throughput:
    """csv.writer, an fsync after each 500 rows."""
    return _csv(job, lambda n, out: None if n % peers.GROUP else peers.sync(out))


def csv_synced_once(job: Job) -> Throughput:
    """csv.writer, the file's own buffer, one fsync at the end."""
    return _csv(job, lambda _n, _out: None)


def _csv(
    job: Job,
    after_row: "Callable[[int, io.TextIOWrapper], None]",
    at_end: "Callable[[io.TextIOWrapper], None]" = peers.sync,
) -> Throughput:
    events = events_of_line(job.seed, job.records)
    with peers.csv_file(job.folder) as (append, out):
        append(events[0])
        peers.sync(out)
        began = time.perf_counter()
        for n, event in enumerate(events, 1):
            append(event)
            after_row(n, out)
        at_end(out)
        seconds = time.perf_counter() - began
    return all_of(job, peers.csv_rows(job.folder / "events.csv") - 1, seconds)


def sqlite(job: Job) -> Throughput:
    """sqlite3, WAL and synchronous=FULL, 500 rows a commit."""
    events = events_of_line(job.seed, job.records)
    with peers.sqlite_table(job.folder) as db:
        db.execute(peers.INSERT, peers.row_of(events[0]))
        began = time.perf_counter()
        for part in peers.groups(events):
            db.execute("BEGIN")
            db.executemany(peers.INSERT, map(peers.row_of, part))
            db.execute("COMMIT")
        seconds = time.perf_counter() - began
    return all_of(job, peers.sqlite_rows(job.folder) - 1, seconds)


def rotating_log(job: Job) -> Throughput:
    """`logging` with a RotatingFileHandler, which flushes each record to the kernel."""
    events = events_of_line(job.seed, job.records)
    with peers.rotating_log(job.folder) as append:
        append(events[0])
        began = time.perf_counter()
        for event in events:
            append(event)
        seconds = time.perf_counter() - began
    return all_of(job, peers.lines_in(job.folder) - 1, seconds)


def rsyslog(job: Job) -> Throughput:
    """rsyslogd, 500 lines a send into its unix socket, until its file, synced batch by batch, has them all."""
    return _rsyslog(job, 1)


def rsyslog_of_two(job: Job) -> Throughput:
    """The same with two sending processes."""
    return _rsyslog(job, 2)


def _rsyslog(job: Job, senders: int) -> Throughput:
    target = job.folder / "rsyslog" / "events.jsonl"
    with peers.running_rsyslog(job) as path:
        size = peers.send_to_rsyslog(path, events_of_line(job.seed, 1))
        wait_until(lambda: target.exists() and target.stat().st_size == size, "rsyslogd has written a line")
        ready, sent = SPAWN.Barrier(senders), SPAWN.Queue()
        processes = [
            SPAWN.Process(target=_send, args=(path, job.seed, job.records, part, senders, ready, sent))
            for part in range(senders)
        ]
        for process in processes:
            process.start()
        told = [sent.get(timeout=ours.LONG_S) for _ in processes]
        size += sum(sent_bytes for sent_bytes, _ in told)
        wait_until(lambda: target.stat().st_size >= size, "rsyslogd has written all lines", ours.LONG_S)
        with target.open("rb") as written:
            os.fsync(written.fileno())  # of its last batch, if its own is not through
        seconds = time.perf_counter() - min(began for _, began in told)
        for process in processes:
            process.join()
    return all_of(job, peers.lines_in(target.parent) - 1, seconds)


def _send(
    path: str, seed: int, records: int, part: int, parts: int, ready: "Barrier", sent: "Queue[tuple[int, float]]"
) -> None:
    events = events_of_line(seed, records)[part::parts]
    ready.wait(ours.LONG_S)
    began = time.perf_counter()
    sent.put((peers.send_to_rsyslog(path, events), began))


def dlt(job: Job) -> Throughput:
    """dlt: one pipeline run from a Python generator into JSONL files of its filesystem destination."""
    found = peers.outside(job, "benchmarks.outside_dlt", "load")
    return all_of(job, found["stored"], found["seconds"])


def opentelemetry(job: Job) -> Throughput:
    """OpenTelemetry's SDK: spans through its batch exporter into a JSONL file; counts what it kept."""
    found = peers.outside(job, "benchmarks.outside_opentelemetry", "burst")
    return Throughput(job.records, found["stored"], found["seconds"])


WAYS = (
    Way(EMBEDDED, embedded, synced="yes", is_ours=True),
    Way(WITH_WRITER, with_writer, synced="yes", is_ours=True),
    Way(TWO_AGENTS, two_agents, synced="yes", is_ours=True),
    Way(THROUGH_REDIS, through_redis, synced="yes", is_ours=True),
    Way(TWO_THROUGH_REDIS, two_agents_through_redis, synced="yes", is_ours=True),
    Way(WRITER_ALONE, writer_alone, synced="yes", is_ours=True),
    Way(OLD_STORE, old_store, share=0.25),
    Way("sqlite3, WAL FULL, 500 rows a commit", sqlite, synced="each commit"),
    Way("csv.writer, fsync each 500 rows", csv_synced, synced="each 500"),
    Way("csv.writer, one fsync at the end", csv_synced_once, synced="at the end"),
    Way("csv.writer, a flush a row", csv_flushed),
    Way("rsyslog, unix socket, omfile with sync", rsyslog, synced="each batch"),
    Way("rsyslog, the same, two processes that send", rsyslog_of_two, synced="each batch"),
    Way("redis-py, pipelined XADD, 500 at once", pipelined_xadd),
    Way("redis-py, `await xadd` a record", awaited_xadd, share=0.1),
    Way("logging, RotatingFileHandler", rotating_log, share=0.5),
    Way("dlt, filesystem destination, JSONL", dlt, share=0.25),
    Way("OpenTelemetry SDK, batch exporter, JSONL", opentelemetry, share=0.1),
)
