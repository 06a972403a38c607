"""Turns an order into a process that stores records and says, outside of the store, which of them were accepted.

The log has a line a call, written with one write(2) after the call has returned, so that it survives the process as
the record does: `+ <kind> <record id> <name>` for an accepted record, `- <kind> <name>` for a dropped one, and `=` when
the process came to its own end. A name is `<worker>.<thread>.<number>`, numbers from 1 without gaps, and a record's
content follows from its name: so a row of the CSV files can be checked with nothing but the name at hand.
"""

import asyncio
import os
import random
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ingest import FlushTimeout, NotAccepted, get_training_data_store
from tests.chaos.child import STUCK

if TYPE_CHECKING:
    from ingest import TrainingDataStore

_PACE = 16  # calls between two looks at the clock and at the stop file
_KEYS = 400  # so many idempotency keys are used again and again


class Content(NamedTuple):
    """Where the name and the made-up content of a record of one kind stand."""

    call: str  # of the store
    name: str  # column
    document: str  # column


KINDS = {
    "events": Content("store_agent_event", "event_type", "payload"),
    "tasks": Content("store_agent_task", "task_id", "input_data"),
    "tool_executions": Content("store_tool_execution", "execution_id", "input_params"),
    "workflows": Content("store_workflow_data", "workflow_id", "state_data"),
    "feedback": Content("store_feedback", "target_id", "corrected_output"),
}


class Order(msgspec.Struct, frozen=True):
    """What one worker does."""

    name: str
    seed: int
    kinds: list[str]
    threads: int
    rate: int  # calls a second of each thread
    forks: bool  # into a child that stores as well, while the threads are at work
    keyed: float  # share of records with an idempotency key
    log: str  # folder
    stop: str  # a file: while it exists nothing more is stored
    flush_s: float  # how long the flush at the end may take


def document(name: str) -> dict[str, str]:
    """The content of the record of that name: up to 700 characters, one in fifty up to 6,000."""
    number = zlib.crc32(name.encode())
    length = number % (6000 if number % 50 == 0 else 700)
    return {"name": name, "fill": ('é"\\\n,x' * (length // 6 + 1))[:length]}


def work(order_text: str) -> None:
    """Store until the stop file is there, then wait until all of it is written. Exit code STUCK if it is not."""
    order = msgspec.json.decode(order_text, type=Order)
    store = get_training_data_store()
    run_threads(order, store, float("inf"), forks=order.forks)
    try:
        store.sync.flush(order.flush_s)
    except FlushTimeout as err:
        print(err, file=sys.stderr, flush=True)
        os._exit(STUCK)
    store.sync.close()


def run_threads(order: Order, store: "TrainingDataStore", until: float, *, forks: bool) -> None:
    """Store from all threads; with `forks` a child does the same under its own name for a second or two."""
    log = os.open(Path(order.log) / f"{order.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    threads = [
        threading.Thread(target=store_records, args=(order, store, log, number, until))
        for number in range(order.threads)
    ]
    for thread in threads:
        thread.start()
    if forks:
        fork_in_between(order, store)
    for thread in threads:
        thread.join()
    os.write(log, b"=\n")


def fork_in_between(order: Order, store: "TrainingDataStore") -> None:
    """Fork while the threads are in the middle of their calls."""
    rng = random.Random(order.seed)
    time.sleep(rng.uniform(0.05, 0.5))
    child = os.fork()
    if child == 0:
        try:
            named = msgspec.structs.replace(order, name=f"{order.name}c", seed=order.seed + 1)
            run_threads(named, store, time.monotonic() + rng.uniform(0.2, 2.0), forks=False)
            if rng.random() < 0.5:
                store.sync.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def store_records(order: Order, store: "TrainingDataStore", log: int, thread: int, until: float) -> None:
    """One thread's calls: the first thread awaits them in an event loop, the others block."""
    rng = random.Random(order.seed * 100 + thread)
    calls = awaited(store) if thread == 0 else {kind: getattr(store.sync, KINDS[kind].call) for kind in order.kinds}
    began, number = time.monotonic(), 0
    while number % _PACE or (time.monotonic() < until and not Path(order.stop).exists()):
        number += 1
        kind, name = rng.choice(order.kinds), f"{order.name}.{thread}.{number}"
        key = f"key {rng.randrange(_KEYS)}" if rng.random() < order.keyed else None
        try:
            record_id = store_one(calls[kind], kind, name, key)
        except NotAccepted:
            record_id = None
        os.write(log, (f"- {kind} {name}\n" if record_id is None else f"+ {kind} {record_id} {name}\n").encode())
        if number % _PACE == 0:
            time.sleep(max(0.0, began + number / order.rate - time.monotonic()))


def store_one(call: Callable[..., str | None], kind: str, name: str, key: str | None) -> str | None:
    """Store the record of that name; gives its id, or None if it was dropped."""
    content = {KINDS[kind].document: document(name)}
    if kind == "feedback":
        return call("record", name, "score", 0.5, idempotency_key=key, **content)
    return call(name, idempotency_key=key, **content)


def awaited(store: "TrainingDataStore") -> dict[str, Callable[..., str | None]]:
    """The store's awaitable calls, each run to its end in an event loop of this thread."""
    loop = asyncio.new_event_loop()

    def run(call: str) -> Callable[..., str | None]:
        coroutine = getattr(store, call)

        def running(*arguments: object, **named: object) -> str | None:
            done: str | None = loop.run_until_complete(coroutine(*arguments, **named))
            return done

        return running

    return {kind: run(content.call) for kind, content in KINDS.items()}
