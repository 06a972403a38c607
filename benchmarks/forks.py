"""Forks four processes with eight threads each after the store was made, and counts ids: `python -m benchmarks.forks`.

The parent makes the store and stores a record, so that its producer and its thread exist when it forks. Each child
stores its share from eight threads at once and notes every id that a call gave. In the end the children's ids must be
distinct, over all of them, and be the very ids that stand in the CSV files.
"""

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.ours import LONG_S, check_stored
from benchmarks.overload import events_status
from benchmarks.tools import working_folder
from benchmarks.turns import LostRecords
from benchmarks.workload import events_of_line
from ingest import Settings, TrainingDataStore

PROCESSES, THREADS = 4, 8


class Forked(NamedTuple):
    """What came of it."""

    records: int  # of the children
    seconds: float  # from the first fork until all is fsynced
    status: dict[str, object]  # of events, from `tds status --json`


def main() -> None:
    """Run it and print what was seen. Raises LostRecords if an id is missing, doubled or unknown."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.forks", description=__doc__)
    made.add_argument("--records", type=int, default=1_000_000, help="of all processes together (default 1000000)")
    records = made.parse_args().records
    with working_folder() as folder:
        forked = store_from_forks(Path(folder), records)
    print(
        f"{PROCESSES} processes of {THREADS} threads, forked after the store was made: {forked.records:,} records in "
        f"{forked.seconds:.1f} s, every id distinct, all of them in the CSV files"
    )
    print(f"tds status --json, events: {json.dumps(forked.status)}")


def store_from_forks(folder: Path, records: int) -> Forked:
    """Store about so many records (a multiple of the threads) from forked children. Raises LostRecords."""
    settings = Settings(data_dir=folder / "data")
    store = TrainingDataStore(settings)
    own = store.sync.store_agent_event("before_the_fork")
    share = max(1, records // (PROCESSES * THREADS))
    began = time.perf_counter()
    children = [_fork(store, number, share, folder / f"ids_{number}") for number in range(PROCESSES)]
    for child in children:
        _, status = os.waitpid(child, 0)
        if status:
            raise LostRecords(f"a child ended with status {status}: expected 0")
    store.sync.flush(LONG_S)
    seconds = time.perf_counter() - began
    store.sync.close()
    ids = [line for number in range(PROCESSES) for line in (folder / f"ids_{number}").read_text().split()]
    expected = PROCESSES * THREADS * share
    if len(ids) != expected or len(set(ids)) != expected or own in ids:
        raise LostRecords(f"{len(ids)} ids, {len(set(ids))} of them distinct: expected {expected} of both")
    check_stored(settings, expected + 1)
    if unknown := ids_in_csv(settings.data_dir) ^ {*ids, str(own)}:
        raise LostRecords(f"{len(unknown)} ids are only with the callers or only in the CSV, such as {min(unknown)}")
    return Forked(expected, seconds, events_status(settings))


def ids_in_csv(data_dir: Path) -> set[str]:
    """The ids of all events: the first field of each row, in quotes."""
    found = set[str]()
    for file in (data_dir / "training" / "events").glob("*.csv"):
        with file.open() as rows:
            next(rows)
            found.update(row[1:37] for row in rows)
    return found


def _fork(store: TrainingDataStore, number: int, share: int, target: Path) -> int:
    """A child that stores `share` records in each of its threads and writes their ids to a file; gives its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _store_in_threads(store, number, share, target)
        status = 0
    finally:
        os._exit(status)  # nothing of the parent's is closed here, and what was accepted is in the spool


def _store_in_threads(store: TrainingDataStore, number: int, share: int, target: Path) -> None:
    given: list[str | None] = []
    together = threading.Barrier(THREADS)
    events = events_of_line(number, share)

    def work() -> None:
        together.wait()
        own = [
            store.sync.store_agent_event(event_type, agent_id, session_id=session_id, payload=payload)
            for event_type, agent_id, session_id, payload in events
        ]
        given.extend(own)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    target.write_text("\n".join(map(str, given)))


if __name__ == "__main__":
    main()
