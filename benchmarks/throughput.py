"""Times many records from the call to the file: how fast the embedded writer is."""

import csv
import json
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from benchmarks.latency import PAYLOAD
from ingest import Settings, TrainingDataStore
from ingest.calls import BlockingCalls
from ingest.pipeline.spool import Spool
from ingest.pipeline.writer import drain

COLUMNS = 15
OURS, ALONE = "calls and embedded writer in one process", "the embedded writer alone"


def store(folder: Path, records: int) -> float:
    """Seconds from the first call until `flush` says that all rows are in the day file, fsynced."""
    target = TrainingDataStore(Settings(data_dir=folder))
    started = time.perf_counter()
    for _ in range(records):
        target.sync.store_agent_event("step", "agent-1", session_id="s-1", payload=PAYLOAD)
    target.sync.flush(timeout=120)
    took = time.perf_counter() - started
    target.sync.close()
    return took


def writer_alone(folder: Path, records: int) -> float:
    """Seconds that the embedded writer takes for a full spool, such as agents in other processes fill."""
    settings = Settings(data_dir=folder)
    spool = Spool(settings, "events")
    calls = BlockingCalls(settings, lambda _kind, line, coerced: bool(spool.append(line, coerced=coerced)))
    for _ in range(records):
        calls.store_agent_event("step", "agent-1", session_id="s-1", payload=PAYLOAD)
    spool.close()
    started = time.perf_counter()
    drain(settings, ["events"])
    return time.perf_counter() - started


def row() -> list[object]:
    """What the peers store: the same columns, id and time made for each row as well."""
    now = datetime.now(UTC).isoformat()
    return [
        str(uuid4()),
        "step",
        "agent-1",
        None,
        "s-1",
        None,
        "info",
        now,
        json.dumps(PAYLOAD),
        *[None] * (COLUMNS - 9),
    ]


def csv_writer(folder: Path, records: int) -> float:
    """csv.writer with the file's own buffer, and one fsync at the end."""
    started = time.perf_counter()
    with (folder / "events.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        for _ in range(records):
            writer.writerow(row())
        out.flush()
        os.fsync(out.fileno())
    return time.perf_counter() - started


def sqlite(folder: Path, records: int) -> float:
    """SQLite, WAL and synchronous=FULL, 500 rows a commit."""
    db = sqlite3.connect(folder / "events.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute(f"CREATE TABLE events ({', '.join(f'c{number}' for number in range(COLUMNS))})")
    statement = f"INSERT INTO events VALUES ({', '.join('?' * COLUMNS)})"
    started = time.perf_counter()
    for first in range(0, records, 500):
        db.execute("BEGIN")
        db.executemany(statement, [row() for _ in range(min(500, records - first))])
        db.execute("COMMIT")
    took = time.perf_counter() - started
    db.close()
    return took


WAYS: Mapping[str, Callable[[Path, int], float]] = {
    OURS: store,
    ALONE: writer_alone,
    "csv.writer, one fsync at the end": csv_writer,
    "sqlite3 WAL FULL, 500 rows a commit": sqlite,
}
