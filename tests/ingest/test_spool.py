"""The spool: frames that survive the process, sequence numbers without gaps, and what a reader makes of damage."""

import contextlib
import logging
import mmap
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest

from ingest import NotAccepted, Settings, TrainingDataStore
from ingest.pipeline import spool as spool_module
from ingest.pipeline.spool import Spool, SpooledProducer, SpoolReader, blank_written, read_counters
from tests.parts import csv_rows

pytestmark = pytest.mark.usefixtures("closed_spools")
SEGMENT = 4096


@pytest.fixture
def small(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", spool_segment_bytes=SEGMENT, max_record_bytes=100_000)


def read_all(spool: Spool, mark: int = 0, at_once: int = 1000) -> list[bytes]:
    producer, lines = SpooledProducer(spool.folder, mark), list[bytes]()
    while batch := producer.read(at_once, 1 << 30):
        assert batch.first_seq == mark + len(lines) + 1
        lines += batch.lines
    return lines


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_records_come_back_in_order_whatever_the_batch_size(small: Settings, at_once: int) -> None:
    spool = Spool(small, "events")
    lines: list[bytes] = [b"%d" % n * 40 for n in range(1000)]
    assert all(spool.append(line) for line in lines)
    assert len(list(spool.folder.glob("*.seg"))) > 5
    assert read_all(spool, at_once=at_once) == lines
    assert read_all(spool, mark=990, at_once=at_once) == lines[990:]


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_record_that_just_fits_a_segment_and_one_that_just_does_not_are_both_kept(small: Settings, over: int) -> None:
    spool = Spool(small, "events")
    exact = SEGMENT - len(spool_module._head(1, "events")) - 1 - 12  # head, line feed, entry of the index
    lines: list[bytes] = [b"x" * (exact + over), b"y" * (exact + over), b"z"]
    assert all(spool.append(line) for line in lines)
    assert read_all(spool) == lines


def test_a_reader_that_reads_along_sees_each_record_once(small: Settings) -> None:
    spool = Spool(small, "events")
    spool.append(b"first")
    producer = SpooledProducer(spool.folder, 0)
    seen: list[bytes] = []
    for n in range(500):
        spool.append(b"%d" % n * 30)
        batch = producer.read(3, 1 << 20)
        seen += batch.lines if batch else []
    while batch := producer.read(3, 1 << 20):
        seen += batch.lines
    assert seen == [b"first", *(b"%d" % n * 30 for n in range(500))]


def test_threads_that_store_at_once_lose_nothing_and_number_without_gaps(small: Settings) -> None:
    spool = Spool(small, "events")

    def append_many(name: int) -> None:
        for n in range(500):
            assert spool.append(b"%d %d" % (name, n))

    threads = [threading.Thread(target=append_many, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_all(spool), key=str) == sorted(
        (b"%d %d" % (a, b) for a in range(8) for b in range(500)), key=str
    )
    assert spool.counters.accepted == 4000


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def test_a_damaged_frame_becomes_a_tombstone_and_the_ones_behind_it_are_kept(small: Settings) -> None:
    spool = Spool(small, "events")
    for n in range(5):
        spool.append(b"record %d" % n)
    spool.close()
    segment = next(spool.folder.glob("*.seg"))
    damage(segment, lambda content: content.__setitem__(content.index(b"record 2"), ord("X")))
    assert read_all(spool) == [b"record 0", b"record 1", b"", b"record 3", b"record 4"]


@pytest.mark.parametrize("at_once", [1, 2, 1000])
@pytest.mark.parametrize("zeros", [slice(1000, 3000), slice(1000, None)], ids=["lines", "lines and their index"])
def test_what_a_power_cut_left_as_zeros_is_counted_as_lost_and_later_segments_are_read(
    small: Settings, at_once: int, zeros: slice
) -> None:
    spool = Spool(small, "events")
    for n in range(300):
        spool.append(b"%03d" % n * 20)
    spool.close()
    first = min(spool.folder.glob("*.seg"))
    following = int(sorted(spool.folder.glob("*.seg"))[1].stem)
    damage(first, lambda content: content.__setitem__(zeros, bytes(len(content[zeros]))))
    lines = read_all(spool, at_once=at_once)
    assert len(lines) == 300
    assert lines[following - 1 :] == [b"%03d" % n * 20 for n in range(following - 1, 300)]
    assert b"" in lines[: following - 1]
    assert (lines[0] == b"000" * 20) == (zeros.stop is not None)


def test_a_torn_last_frame_of_a_dead_producer_is_counted_as_lost(small: Settings) -> None:
    spool = Spool(small, "events")
    for n in range(3):
        spool.append(b"record %d" % n)
    spool.close()
    segment = next(spool.folder.glob("*.seg"))
    damage(segment, lambda content: content.__setitem__(content.index(b"record 2"), ord("X")))
    assert read_all(spool) == [b"record 0", b"record 1", b""]


def test_a_live_producers_unfinished_tail_is_waited_for(small: Settings) -> None:
    spool = Spool(small, "events")
    spool.append(b"record 0")
    spool.append(b"record 1")
    segment = next(spool.folder.glob("*.seg"))
    with segment.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        place = content.find(b"record 1")
        content[place : place + 1] = b"X"
        producer = SpooledProducer(spool.folder, 0)
        batch = producer.read(10, 1 << 20)
        assert batch is not None
        assert batch.lines == [b"record 0"]
        content[place : place + 1] = b"r"
        batch = producer.read(10, 1 << 20)
        assert batch is not None
        assert batch.lines == [b"record 1"]


@pytest.mark.parametrize("mark", [0, 100])
def test_records_behind_the_mark_that_a_power_cut_left_uncounted_are_kept_until_they_are_written(
    small: Settings, mark: int
) -> None:
    """An erasure may have blanked what the mark covers, and the page of the counts may never have been written."""
    settings = msgspec.structs.replace(small, spool_segment_bytes=64 << 10)
    spool = Spool(settings, "events")
    lines: list[bytes] = [b"%03d" % n * 20 for n in range(110)]
    assert all(spool.append(line) for line in lines[:100])
    blank_written(settings.spool, "events", {spool.producer: mark})
    assert all(spool.append(line) for line in lines[100:])
    spool.close()
    (spool.folder / "counters").write_bytes(bytes(32))
    producer = SpooledProducer(spool.folder, mark)
    assert not producer.release(mark), "asked before anything was read"
    assert read_all(spool, mark=mark) == lines[mark:]
    assert producer.release(110)


def test_segments_are_deleted_when_the_mark_covers_them_and_the_last_one_when_the_producer_has_ended(
    small: Settings,
) -> None:
    spool = Spool(small, "events")
    for n in range(300):
        spool.append(b"%03d" % n * 20)
    reader = SpoolReader(small.spool, "events")
    reader.refresh({})
    batches = reader.read(1000, 1 << 30)
    assert sum(batch.count for batch in batches) == 300
    producer = reader.producers[spool.producer]
    before = len(list(spool.folder.glob("*.seg")))
    assert not producer.release(100)
    assert 1 < len(list(spool.folder.glob("*.seg"))) < before
    assert not producer.release(300)
    assert len(list(spool.folder.glob("*.seg"))) == 1
    spool.close()
    assert producer.release(300)


def test_segments_of_the_former_version_are_read_and_released(small: Settings) -> None:
    """It had lines of JSON only, a head without a CSV header, and entries of end and running CRC."""
    folder = small.spool / "events" / "former"
    folder.mkdir(parents=True)
    lines: list[bytes] = [b'{"n":%d}' % n for n in range(20)]
    for first, part in ((1, lines[:10]), (11, lines[10:])):
        text, index = struct.pack("@8sQ", b"TDSSPL02", first), b""
        for line in part:
            text += line + b"\n"
            index = struct.pack("@II", len(text), crc32(text)) + index
        (folder / f"{first:020d}.seg").write_bytes(text.ljust(SEGMENT - len(index), b"\0") + index)
    (folder / "counters").write_bytes(struct.pack("@QQQQ", 20, 20, 0, 0))
    for at_once in (3, 1000):
        producer = SpooledProducer(folder, 0)
        found = list[bytes]()
        while batch := producer.read(at_once):
            assert not any(batch.days)
            found += batch.lines
        assert found == lines
    blank_written(small.spool, "events", {"former": 12})
    producer = SpooledProducer(folder, 12)
    batch = producer.read()
    assert batch is not None
    assert batch.lines == lines[12:]
    assert lines[0] not in (folder / f"{1:020d}.seg").read_bytes()
    assert producer.release(20)


def test_a_record_over_the_limit_is_dropped_and_counted_even_where_a_segment_has_room(tmp_path: Path) -> None:
    spool = Spool(Settings(data_dir=tmp_path, max_record_bytes=100), "events")
    assert spool.append(b"x" * 100)
    assert not spool.append(b"x" * 101)
    assert (spool.counters.offered, spool.counters.accepted, spool.counters.dropped) == (2, 1, 1)
    assert read_counters(spool.folder) == spool.counters


def test_a_full_spool_drops_and_counts_and_says_so_once(small: Settings, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(msgspec.structs.replace(small, spool_max_bytes=3 * SEGMENT), "events")
    with caplog.at_level(logging.WARNING):
        accepted = sum(bool(spool.append(b"x" * 1100)) for _ in range(50))
    assert accepted == 9
    assert spool.counters.dropped == 41
    assert len(caplog.records) == 1
    assert "TDS_SPOOL_MAX_BYTES" in caplog.text
    assert len(read_all(spool)) == 9


def test_a_full_spool_raises_if_asked_to_and_takes_records_again_when_there_is_room(small: Settings) -> None:
    settings = msgspec.structs.replace(small, spool_max_bytes=2 * SEGMENT, on_full="raise")
    spool = Spool(settings, "events")
    for _ in range(6):
        spool.append(b"x" * 1100)
    with pytest.raises(NotAccepted, match="TDS_SPOOL_MAX_BYTES"):
        spool.append(b"x" * 1100)
    reader = SpoolReader(settings.spool, "events")
    reader.refresh({})
    reader.read(1000, 1 << 30)
    reader.producers[spool.producer].release(6)
    time.sleep(0.06)  # it looks for room 20 times a second
    assert spool.append(b"x" * 1100)


def test_a_spool_of_which_all_is_written_takes_the_largest_record_whatever_it_keeps_to_use_again(
    small: Settings,
) -> None:
    least = 2 * SEGMENT + small.max_record_bytes
    spool = Spool(msgspec.structs.replace(small, spool_max_bytes=least, on_full="raise"), "events")
    reader = SpoolReader(small.spool, "events")
    assert all(spool.append(b"x" * 1100) for _ in range(6))
    reader.refresh({})
    reader.read(1000, 1 << 30)
    reader.producers[spool.producer].release(6)
    assert all(spool.append(b"x" * 1100) for _ in range(3))
    reader.read(1000, 1 << 30)
    reader.producers[spool.producer].release(9)
    assert list(spool.folder.glob("*.spare"))
    assert spool.append(b"y" * small.max_record_bytes)


def test_a_full_spool_blocks_if_asked_to_until_there_is_room(small: Settings) -> None:
    settings = msgspec.structs.replace(small, spool_max_bytes=2 * SEGMENT, on_full="block")
    spool = Spool(settings, "events")
    for _ in range(6):
        spool.append(b"x" * 1100)
    blocked = threading.Thread(target=spool.append, args=(b"x" * 1100,))
    blocked.start()
    blocked.join(0.1)
    assert blocked.is_alive()
    reader = SpoolReader(settings.spool, "events")
    reader.refresh({})
    reader.read(1000, 1 << 30)
    reader.producers[spool.producer].release(6)
    blocked.join(10)
    assert not blocked.is_alive()
    assert spool.counters.accepted == 7


def test_a_spool_folder_that_cannot_be_written_drops_and_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    spool = Spool(Settings(data_dir=tmp_path / "file"), "events")
    assert not spool.append(b"x")
    assert spool.counters.dropped == 1
    assert "TDS_SPOOL_DIR" in caplog.text


def test_a_segment_that_is_deleted_while_the_producer_counts_its_room_drops_nothing(
    small: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(small, "events")
    for _ in range(8):
        spool.append(b"x" * 1000)
    real_iterdir = Path.iterdir

    def iterdir_of_the_past(folder: Path) -> list[Path]:
        return [folder / "00000000000000000000.seg", *real_iterdir(folder)]

    monkeypatch.setattr(Path, "iterdir", iterdir_of_the_past)
    for _ in range(8):
        assert spool.append(b"x" * 1000)


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("moment", ["before the record", "after the record"])
def test_an_exception_out_of_a_signal_handler_in_the_middle_of_a_call_costs_no_other_record(
    small: Settings, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    spool = Spool(small, "events")
    spool.append(b"first")
    segment_type: Any = type(spool._segment)
    real_append = segment_type.append

    def interrupted(segment: object, line: bytes, day: int) -> None:
        if moment == "after the record":
            real_append(segment, line, day)
        raise Interrupt

    with monkeypatch.context() as fault:
        fault.setattr(segment_type, "append", interrupted)
        with pytest.raises(Interrupt):
            spool.append(b"interrupted")
    assert spool.append(b"second")
    expected = [b"first", b"interrupted", b"second"] if moment == "after the record" else [b"first", b"second"]
    assert read_all(spool) == expected
    counters = spool.counters
    assert (counters.accepted, counters.offered) == (len(expected), len(expected))
    assert read_counters(spool.folder) == counters
    spool.close()


def test_signals_that_raise_all_the_time_lose_no_record_whose_id_was_given(
    small: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = msgspec.structs.replace(small, spool_segment_bytes=1 << 20)
    spool = Spool(settings, "events")
    stored: list[bytes] = []

    is_calling = False

    def handler(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        if is_calling:
            raise Interrupt

    # A signal in a finalizer is nobody's to catch, and one in what reports it breaks the run of the tests.
    monkeypatch.setattr(sys, "unraisablehook", lambda _unraisable: None)
    former = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002)
    try:
        deadline = time.monotonic() + 2
        n = interrupted = 0
        while time.monotonic() < deadline:
            n += 1
            line = b"record %d" % n
            try:
                is_calling = True
                if spool.append(line):
                    is_calling = False
                    stored.append(line)
            except Interrupt:
                interrupted += 1
            is_calling = False
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a handler under way would start the timer again
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    found = read_all(spool)
    assert interrupted > 100
    assert b"" not in found
    assert set(stored) <= set(found)
    assert len(found) == len(set(found)) == spool.counters.accepted
    spool.close()


def test_a_spool_closed_by_another_thread_says_so_and_breaks_nothing(small: Settings) -> None:
    spool = Spool(small, "events")
    assert spool.append(b"x") is True
    spool.close()
    assert spool.append(b"y") is None
    assert read_all(spool) == [b"x"]


@pytest.mark.parametrize("name", ["counters", "00000000000000000001.seg"])
def test_what_a_power_cut_left_empty_breaks_no_reader(small: Settings, name: str) -> None:
    spool = Spool(small, "events")
    spool.append(b"x")
    spool.close()
    (spool.folder / name).write_bytes(b"")
    (spool.folder.parent / "stray file").write_text("not a producer")
    reader = SpoolReader(small.spool, "events")
    reader.refresh({})
    lines = [line for batch in reader.read(10, 1 << 20) for line in batch.lines]
    assert lines == ([b"x"] if name == "counters" else [b""])


def test_records_of_segments_that_are_gone_are_given_as_lost_a_batch_at_a_time(small: Settings) -> None:
    spool = Spool(small, "events")
    for n in range(1000):
        spool.append(b"%03d" % n * 20)
    later = sorted(spool.folder.glob("*.seg"))
    for path in later[:-1]:
        path.unlink()
    first_left = int(later[-1].stem)
    producer, lines = SpooledProducer(spool.folder, 0), list[bytes]()
    while batch := producer.read(7, 1 << 20):
        assert len(batch.lines) <= 7
        lines += batch.lines
    assert lines == [b""] * (first_left - 1) + [b"%03d" % n * 20 for n in range(first_left - 1, 1000)]


def test_with_always_each_record_and_its_folder_entry_are_on_the_disk_when_the_call_returns(
    small: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr("ingest.pipeline.spool.sync_data", lambda descriptor: synced.append("data"))
    monkeypatch.setattr("ingest.pipeline.spool.sync_folder", lambda folder: synced.append(folder.name))
    spool = Spool(msgspec.structs.replace(small, spool_sync="always"), "events")
    spool.append(b"x")
    assert synced == ["data", spool.producer, "events"]
    spool.append(b"y")
    assert synced == ["data", spool.producer, "events", "data"]


def test_the_spool_is_private(small: Settings) -> None:
    spool = Spool(small, "events")
    spool.append(b"x")
    for path in small.data_dir.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert small.data_dir.stat().st_mode & 0o777 == 0o700


def test_a_reader_follows_a_live_producer_from_segment_to_segment_and_misses_nothing(small: Settings) -> None:
    spool, found, lines = Spool(small, "events"), list[bytes](), list[bytes]()
    producer = SpooledProducer(spool.folder, 0)
    for burst in range(1, 60):
        for n in range(burst):
            lines.append(b"%d %d " % (burst, n) + b"x" * (7 * n))
            assert spool.append(lines[-1])
        while batch := producer.read(burst % 7 + 1, 2000):
            found += batch.lines
    assert found == lines


def test_a_record_over_a_batchs_limit_comes_alone(small: Settings) -> None:
    spool = Spool(small, "events")
    for _ in range(3):
        spool.append(b"x" * 1000)
    producer = SpooledProducer(spool.folder, 0)
    batch = producer.read(10, 999)
    assert batch is not None
    assert batch.count == 1


def test_threads_that_store_at_once_do_not_hand_each_call_to_one_another(settings: Settings) -> None:
    spool, waits = Spool(settings, "events"), list[int]()
    sleep, began = time.sleep, threading.Barrier(8)

    def append_many() -> None:
        began.wait()
        for _ in range(2_000):
            spool.append(b"x" * 300)

    def counted(seconds: float) -> None:
        waits.append(1)
        sleep(seconds)

    threads = [threading.Thread(target=append_many) for _ in range(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.pipeline.spool.time.sleep", counted)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert spool.counters.accepted == 16_000
    assert len(waits) < 4_000, "most calls found their turn free"


def test_a_signal_handler_may_store_and_close_in_the_middle_of_a_call(tmp_path: Path) -> None:
    store = TrainingDataStore(Settings(data_dir=tmp_path / "data")).sync
    ids: list[str | None] = []
    closed = handled = 0
    interrupted = False

    def handler(*_: object) -> None:
        nonlocal closed, handled, interrupted
        handled += 1
        ids.append(store.store_agent_event("from the handler"))
        interrupted |= bool(store._set_aside)
        if handled % 100 == 0:
            closed += 1
            store.close()
        signal.setitimer(signal.ITIMER_REAL, 0.0003)

    former = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0003)
    try:
        began = time.monotonic()
        while time.monotonic() < began + 2 or (time.monotonic() < began + 30 and not (closed > 3 and interrupted)):
            ids.append(store.store_agent_event("from the loop"))
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a handler under way would start the timer again
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert closed > 3
    assert interrupted, "a handler met a call in its middle"
    assert None not in ids
    store.flush(60)
    store.close()
    rows = csv_rows(Settings(data_dir=tmp_path / "data"), "events")
    assert sorted(str(row["record_id"]) for row in rows) == sorted(map(str, ids))


def test_a_close_that_is_interrupted_in_the_middle_of_a_call_leaves_no_other_call_waiting(
    small: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(small, "events")
    spool.append(b"first")
    segment_type: Any = type(spool._segment)
    real_append = segment_type.append

    def closed_meanwhile(segment: object, line: bytes, day: int) -> bool:
        spool._is_closed = True
        return bool(real_append(segment, line, day))

    def interrupted(_: Spool) -> None:
        raise Interrupt

    with monkeypatch.context() as fault:
        fault.setattr(segment_type, "append", closed_meanwhile)
        fault.setattr(Spool, "_let_go", interrupted)
        with pytest.raises(Interrupt):
            spool.append(b"second")
    later = threading.Thread(target=spool.close, daemon=True)
    later.start()
    later.join(10)
    assert not later.is_alive()
    assert spool.append(b"third") is None
    assert read_all(spool) == [b"first", b"second"]


@pytest.mark.parametrize("step", ["_wait_for_erasure", "_SegmentWriter"])
@pytest.mark.parametrize("fault", [Interrupt(), OSError(24, "too many open files")])
def test_a_call_that_is_cut_off_while_it_takes_a_spare_leaves_no_text_of_its_former_use(
    small: Settings, monkeypatch: pytest.MonkeyPatch, step: str, fault: BaseException
) -> None:
    spool = _with_spares(small)

    def cut_off(*_: object, **__: object) -> None:
        assert [path.suffix for path in spool.folder.iterdir()].count(".new") == 1, "it has the spare"
        raise fault

    with monkeypatch.context() as cut:
        cut.setattr(spool_module, step, cut_off)
        with contextlib.suppress(Interrupt):
            while spool.append(b"y" * 1000):
                pass
    assert not list(spool.folder.glob("*.new"))
    assert spool.append(b"z" * 1000)


def test_an_erasure_removes_what_a_killed_producer_had_just_taken_a_spare_for(small: Settings) -> None:
    spool = _with_spares(small)
    spool.close()
    draft = spool.folder / f"{spool.counters.accepted + 1:020d}.new"
    next(spool.folder.glob("*.spare")).rename(draft)
    assert b"former" in draft.read_bytes()
    blank_written(small.spool, "events", {spool.producer: spool.counters.accepted})
    assert b"former" not in b"".join(path.read_bytes() for path in spool.folder.iterdir())


def test_an_erasure_brings_the_zeros_of_a_reused_segment_to_the_disk_before_anything_is_written_in_it(
    small: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = _with_spares(small)
    written = spool.counters.accepted
    while spool.counters.accepted < written + 5 and spool.append(b"y" * 1000):
        pass
    synced = list[int]()
    monkeypatch.setattr(spool_module, "sync_data", synced.append)
    blank_written(small.spool, "events", {spool.producer: written})
    assert len(synced) >= len(list(spool.folder.glob("*.seg")))


def _with_spares(settings: Settings) -> Spool:
    """A spool that keeps what it has written to use it again."""
    spool = Spool(settings, "events")
    for _ in range(9):
        spool.append(b"former" * 180)
    reader = SpoolReader(settings.spool, "events")
    reader.refresh({})
    reader.read(1000, 1 << 30)
    reader.producers[spool.producer].release(9)
    assert list(spool.folder.glob("*.spare"))
    return spool
