"""Stores the same records in other ways: what people use today, and the store that ours replaces.

Each way makes an id and a time for every record, as ours does. Where the record's form is ours to choose, the peer
gets the fastest that Python has (uuid-utils, msgspec) and as few steps as it allows, so that what is compared is the
way to the disk. A function is given an `append` that stores one record; what wraps it counts or times the calls.
"""

import csv
import importlib
import io
import json
import logging
import logging.handlers
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import uuid_utils

from benchmarks.processes import running_redis, stop, wait_until
from benchmarks.tools import OLD_STORE, PEERS_PYTHON, PROJECT, REDIS, RSYSLOG
from benchmarks.turns import Job
from benchmarks.workload import Event

if TYPE_CHECKING:
    import redis.asyncio

GROUP = 500  # records to a pipeline, a commit, an fsync, a send
COLUMNS = (
    "event_id", "event_type", "agent_id", "workflow_id", "session_id", "source", "severity", "timestamp", "payload",
)  # fmt: skip
encode = msgspec.json.Encoder().encode

Append = Callable[[Event], object]
Found = TypeVar("Found")
AwaitableAppend = Callable[[Event], Awaitable[object]]


def line_of(event: Event) -> bytes:
    """A record as one JSON line without its end."""
    return encode(
        {
            "record_id": str(uuid_utils.uuid7()),
            "timestamp": now_text(),
            **event._asdict(),
            "severity": "info",
        }
    )


def row_of(event: Event) -> tuple[str | None, ...]:
    """A record as the old store's nine columns, the payload as JSON text."""
    event_type, agent_id, session_id, payload = event
    document = encode(payload).decode()
    return str(uuid_utils.uuid7()), event_type, agent_id, None, session_id, None, "info", now_text(), document


def now_text() -> str:
    """The time now, RFC 3339."""
    return datetime.now(UTC).isoformat()


def groups(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """The events in groups of `GROUP`."""
    for first in range(0, len(events), GROUP):
        yield events[first : first + GROUP]


# ---- csv


@contextmanager
def csv_file(folder: Path) -> Iterator[tuple[Append, io.TextIOWrapper]]:
    """csv.writer on a new file: what appends a row, and the file."""
    with (folder / "events.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        yield lambda event: writer.writerow(row_of(event)), out


def csv_rows(file: Path) -> int:
    """Rows of a CSV file, its header left out."""
    with file.open(newline="") as rows:
        return sum(1 for _ in csv.reader(rows)) - 1


def sync(out: io.TextIOWrapper) -> None:
    """Bring a file to the disk."""
    out.flush()
    os.fsync(out.fileno())


# ---- SQLite


@contextmanager
def sqlite_table(folder: Path) -> Iterator[sqlite3.Connection]:
    """A table of the nine columns, WAL and synchronous=FULL: a commit is fsynced."""
    db = sqlite3.connect(folder / "events.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute(f"CREATE TABLE events ({', '.join(COLUMNS)})")
    try:
        yield db
    finally:
        db.close()


INSERT = f"INSERT INTO events VALUES ({', '.join('?' * len(COLUMNS))})"


def sqlite_rows(folder: Path) -> int:
    """Rows that another connection finds."""
    with sqlite_table_again(folder) as db:
        return int(db.execute("SELECT count(*) FROM events").fetchone()[0])


@contextmanager
def sqlite_table_again(folder: Path) -> Iterator[sqlite3.Connection]:
    """A new connection to the table."""
    db = sqlite3.connect(folder / "events.sqlite")
    try:
        yield db
    finally:
        db.close()


# ---- logging


@contextmanager
def rotating_log(folder: Path) -> Iterator[Append]:
    """The standard library's logging into files of 64 MiB, none of which is deleted; a record is a JSON line."""
    handler = logging.handlers.RotatingFileHandler(folder / "events.jsonl", maxBytes=64 << 20, backupCount=10_000)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("benchmarks.events")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield lambda event: logger.info("%s", line_of(event).decode())
    finally:
        logger.removeHandler(handler)
        handler.close()


def lines_in(folder: Path, pattern: str = "events.jsonl*") -> int:
    """Lines of all files of that name."""
    return sum(file.read_bytes().count(b"\n") for file in folder.glob(pattern))


# ---- Redis


async def with_redis(job: Job, use: "Callable[[redis.asyncio.Redis], Awaitable[Found]]") -> Found:
    """Start a Redis, give a connected redis-py client to `use`, and return what that gives."""
    import redis.asyncio  # a quarter of a second: not for the other peers

    with running_redis(job.tools.path(REDIS), job.folder) as server:
        client = redis.asyncio.Redis.from_url(server.url)
        await client.ping()
        try:
            return await use(client)
        finally:
            await client.aclose()


# ---- the old store


@contextmanager
def old_store(job: Job) -> Iterator[AwaitableAppend]:
    """The old store, whose file needs two neighbours: a logger, and a broker that may be absent, as it is here.

    So it does less than at its home: it publishes nothing to Redis.
    """
    source = Path(job.tools.path(OLD_STORE)).read_text()
    package = job.folder / "app"
    (package / "core").mkdir(parents=True)
    for folder in (package, package / "core"):
        (folder / "__init__.py").touch()
    (package / "logging_config.py").write_text("from logging import getLogger as get_logger\n")
    (package / "core" / "training_data_store.py").write_text(source)
    sys.path.insert(0, str(job.folder))
    module: Any = importlib.import_module("app.core.training_data_store")
    store = module.TrainingDataStore(job.folder / "training")

    def append(event: Event) -> Awaitable[object]:
        event_type, agent_id, session_id, payload = event
        call: Awaitable[object] = store.store_agent_event(event_type, agent_id, session_id=session_id, payload=payload)
        return call

    try:
        yield append
    finally:
        sys.path.remove(str(job.folder))


def old_store_rows(folder: Path) -> int:
    """Rows in the old store's day files."""
    return sum(csv_rows(file) for file in (folder / "training" / "events").glob("*.csv"))


# ---- rsyslog

# It syncs whenever its buffer is written: with the 4 KiB of its default every eight records (19,000/s), with one that
# holds a batch once a batch (120,000/s). Batches of 256 to 1,024 were its fastest.
_RSYSLOG = """\
global(workDirectory="{folder}" maxMessageSize="64k")
module(load="imptcp")
main_queue(queue.type="LinkedList" queue.size="2000000" queue.timeoutEnqueue="600000"
    queue.dequeueBatchSize="1024" queue.workerThreads="1")
template(name="line" type="string" string="%rawmsg%\\n")
input(type="imptcp" path="{entrance}/in.sock" fileCreateMode="0600")
action(type="omfile" file="{folder}/events.jsonl" template="line" sync="on" flushOnTXEnd="on" asyncWriting="off"
    ioBufferSize="4m")
"""


@contextmanager
def running_rsyslog(job: Job) -> Iterator[str]:
    """An rsyslogd with a configuration of its own, which syncs its file after each batch; gives its socket's path.

    Its queue holds all records of a run, and it waits rather than discards.
    """
    binary = job.tools.path(RSYSLOG)
    folder = job.folder / "rsyslog"
    folder.mkdir()
    with ExitStack() as stack:
        entrance = stack.enter_context(tempfile.TemporaryDirectory())  # a socket's path may have no more than 107 bytes
        (folder / "rsyslog.conf").write_text(_RSYSLOG.format(folder=folder, entrance=entrance))
        command = [binary, "-n", "-f", str(folder / "rsyslog.conf"), "-i", str(folder / "pid")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(stop, process)
        with socket.socket(socket.AF_UNIX) as client:
            wait_until(lambda: client.connect_ex(f"{entrance}/in.sock") == 0, "rsyslogd listens")
        yield f"{entrance}/in.sock"


def send_to_rsyslog(path: str, events: Sequence[Event]) -> int:
    """Send events as lines, 500 at a time, over a connection of its own; gives the bytes."""
    size = 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        for part in groups(events):
            lines = b"".join(line_of(event) + b"\n" for event in part)
            client.sendall(lines)
            size += len(lines)
    return size


# ---- what lives in an environment of its own


def outside(job: Job, module: str, mode: str) -> dict[str, Any]:
    """Run a module of ours with the peers' own Python and read the JSON object that it prints at its end."""
    python = job.tools.path(PEERS_PYTHON)
    command = [python, "-m", module, mode, str(job.folder), str(job.seed), str(job.records)]
    environment = {**os.environ, "RUNTIME__DLTHUB_TELEMETRY": "false", "OTEL_SDK_DISABLED": "false"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {mode}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
