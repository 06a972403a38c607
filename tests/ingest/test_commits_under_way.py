"""The writer at full load: one batch on its way to the disk while the next one is read."""

import errno
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from ingest import Settings
from ingest.calls import BlockingCalls, Recorder
from ingest.pipeline import writer as writer_module
from ingest.pipeline.dayfiles import DayFiles
from ingest.pipeline.exactly_once import Pending, Writer
from ingest.pipeline.ledger import open_ledger, total
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.spool import Batch, Spool
from ingest.pipeline.writer import KindWriter, drain
from tests.parts import csv_rows

AT_ONCE = 3_000  # more than the writer writes without a thread of its own


@pytest.fixture(autouse=True)
def _small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MAX_RECORDS", AT_ONCE)


def fill(settings: Settings, n: int, *, keys: int | None = None) -> Spool:
    spool = Spool(settings, "events")
    calls = BlockingCalls("agent", Recorder(lambda _kind: spool))
    for number in range(n):
        calls.store_agent_event(str(number), idempotency_key=None if keys is None else str(number % keys))
    return spool


def numbers(settings: Settings) -> list[int]:
    return [int(str(row["event_type"])) for row in csv_rows(settings, "events")]


def test_batches_that_overlap_on_their_way_are_written_once_and_in_order(settings: Settings) -> None:
    fill(settings, 4 * AT_ONCE + 5).close()
    drain(settings, ["events"])
    assert numbers(settings) == list(range(4 * AT_ONCE + 5))
    assert not list((settings.spool / "events").iterdir()), "all of it was acknowledged"


def test_a_step_returns_while_its_batch_is_still_on_its_way_and_acknowledges_nothing_of_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = fill(settings, AT_ONCE)
    spool.close()
    go_on = threading.Event()
    commit = Writer.commit

    def held_up(self: Writer, pending: Pending) -> None:
        assert go_on.wait(10)
        commit(self, pending)

    monkeypatch.setattr(Writer, "commit", held_up)
    writer = KindWriter(settings, "events")
    assert writer.lock.acquire()
    assert writer.step() == AT_ONCE
    assert spool.folder.exists()
    go_on.set()
    writer.finish()
    assert not spool.folder.exists()
    writer.close()
    assert len(numbers(settings)) == AT_ONCE


def test_a_disk_that_fails_under_way_is_told_by_the_next_step_and_nothing_is_lost_or_doubled(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings, 3 * AT_ONCE).close()
    append, calls = DayFiles.append, []

    def fails_the_second_time(self: DayFiles, rows: Any, counts: Any) -> Any:
        calls.append(counts)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, rows, counts)

    monkeypatch.setattr(DayFiles, "append", fails_the_second_time)
    writer = KindWriter(settings, "events")
    assert writer.lock.acquire()
    steps = [writer.step(), writer.step()]
    with pytest.raises(OSError, match="No space left"):
        writer.step()
    while moved := writer.step():
        steps.append(moved)
    writer.close()
    assert numbers(settings) == list(range(3 * AT_ONCE))
    assert sum(steps) == 4 * AT_ONCE, "the batch that failed was read again"


def test_a_key_that_is_still_on_its_way_counts_as_known(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(settings, 2 * AT_ONCE, keys=AT_ONCE).close()
    prepared, commit, prepare = threading.Event(), Writer.commit, Writer.prepare

    def waits_for_the_second(self: Writer, pending: Pending) -> None:
        assert prepared.wait(10)
        commit(self, pending)

    def tells(self: Writer, batches: Sequence[Batch], strays: Any = ()) -> Pending:
        pending = prepare(self, batches, strays)
        if batches and batches[0].first_seq > 1:
            prepared.set()
        return pending

    monkeypatch.setattr(Writer, "commit", waits_for_the_second)
    monkeypatch.setattr(Writer, "prepare", tells)
    drain(settings, ["events"])
    assert numbers(settings) == list(range(AT_ONCE))
    with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
        assert total(ledger.counts(), "duplicates") == AT_ONCE
