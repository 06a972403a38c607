"""Times single calls: what an agent waits for while a record is stored."""

import asyncio
import csv
import json
import os
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from ingest import Settings, TrainingDataStore
from ingest.pipeline.spool import Spool

CALLS = 20_000
PACE_S = 0.0001  # 10,000 calls a second
PAYLOAD = {"model": "llama3:8b", "prompt": "book a flight " * 16, "tokens": 211, "temperature": 0.2}
PAYLOAD_BYTES = len(json.dumps(PAYLOAD))
LINE = json.dumps(PAYLOAD).encode()

Figures = tuple[float, float, float]  # p50, p99, p99.9 in microseconds


def percentiles(took_ns: list[int]) -> Figures:
    """p50, p99 and p99.9 of durations, in microseconds."""
    ordered = sorted(took_ns)
    return tuple(ordered[int(len(ordered) * share)] / 1000 for share in (0.5, 0.99, 0.999))  # type: ignore[return-value]


def timed(call: Callable[[int], object], pace_s: float = 0) -> Figures:
    """Time `CALLS` calls, one after the other or at a pace."""
    took, clock = [], time.perf_counter_ns
    begin = time.perf_counter()
    for number in range(CALLS):
        while time.perf_counter() < begin + number * pace_s:
            pass
        started = clock()
        call(number)
        took.append(clock() - started)
    return percentiles(took)


def blocking(folder: Path, pace_s: float = 0) -> Figures:
    """`store.sync.store_agent_event`, with the embedded writer at work beside it."""
    store = TrainingDataStore(Settings(data_dir=folder))
    figures = timed(lambda _: store.sync.store_agent_event("step", "agent-1", payload=PAYLOAD), pace_s)
    store.sync.flush()
    store.sync.close()
    return figures


def paced(folder: Path) -> Figures:
    """The same at 10,000 calls a second."""
    return blocking(folder, PACE_S)


def awaited(folder: Path) -> Figures:
    """`await store.store_agent_event`."""

    async def run() -> Figures:
        store = TrainingDataStore(Settings(data_dir=folder))
        took = []
        for _ in range(CALLS):
            started = time.perf_counter_ns()
            await store.store_agent_event("step", "agent-1", payload=PAYLOAD)
            took.append(time.perf_counter_ns() - started)
        await store.close()
        return percentiles(took)

    return asyncio.run(run())


def mapped_frame(folder: Path) -> Figures:
    """The spool alone: ready bytes as a frame into its mapping."""
    spool = Spool(Settings(data_dir=folder), "events")
    figures = timed(lambda _: spool.append(LINE), PACE_S)
    spool.close()
    return figures


def written_frame(folder: Path) -> Figures:
    """The same frame, lock and CRC with one os.write to a plain file: the spool that ours was weighed against."""
    descriptor = os.open(folder / "spool", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    lock, frame = threading.Lock(), struct.Struct("<IIQ")

    def append(number: int) -> None:
        with lock:
            os.write(descriptor, frame.pack(len(LINE), zlib.crc32(LINE, number), number) + LINE)

    figures = timed(append, PACE_S)
    os.close(descriptor)
    return figures


def csv_writer(folder: Path) -> Figures:
    """The standard library's csv.writer and json, a flush to the kernel a row, no fsync."""
    with (folder / "events.csv").open("w", newline="") as out:
        writer = csv.writer(out)

        def call(number: int) -> None:
            writer.writerow((number, "step", "agent-1", "info", time.time(), json.dumps(PAYLOAD)))
            out.flush()

        return timed(call)


def sqlite_commit(folder: Path) -> Figures:
    """SQLite, WAL and synchronous=FULL, a commit a row."""
    db = sqlite3.connect(folder / "events.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE events (id, event_type, agent_id, severity, timestamp, payload)")
    statement = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)"
    figures = timed(
        lambda number: db.execute(statement, (number, "step", "agent-1", "info", time.time(), json.dumps(PAYLOAD)))
    )
    db.close()
    return figures


WAYS: Mapping[str, Callable[[Path], Figures]] = {
    "store.sync.store_agent_event, tight loop": blocking,
    "store.sync.store_agent_event, 10,000/s": paced,
    "await store.store_agent_event, tight loop": awaited,
    "its spool alone, a mapped frame, 10,000/s": mapped_frame,
    "the same frame by os.write, 10,000/s": written_frame,
    "csv.writer, flushed to the kernel": csv_writer,
    "sqlite3 WAL FULL, a commit a row": sqlite_commit,
}
