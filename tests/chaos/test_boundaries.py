"""Sizes around every limit of the write path, one less, exact and one more: each is stored and comes back equal."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import cast

import msgspec
import pytest
import redis

from ingest import NotAccepted, Settings, TrainingDataStore
from ingest.pipeline import dayfiles, spool, synapse, writer
from ingest.pipeline.accounting import account
from ingest.pipeline.spool import Spool, SpooledProducer
from ingest.pipeline.synapse import Shipper, stream_key
from ingest.pipeline.writer import drain
from ingest.records import KINDS, new_record_id
from tests.parts import RedisServer, csv_rows, wait_until, writing

pytestmark = pytest.mark.usefixtures("closed_spools")
SEGMENT_BYTES = 4096
DAY = "2026-01-02"
AROUND = (-1, 0, 1)


@pytest.fixture
def small(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", spool_segment_bytes=SEGMENT_BYTES, max_record_bytes=8192)


@pytest.fixture
def remote(small: Settings, redis_server: RedisServer, tmp_path: Path) -> Settings:
    return msgspec.structs.replace(small, redis_url=redis_server.url, spool_dir=tmp_path / "spool")


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_server.url, protocol=2)
    yield client
    client.close()


def line(name: object, size: int = 0, day: str = DAY) -> bytes:
    """An event's line, of exactly `size` bytes if it fits in there."""
    fields = {"record_id": new_record_id(), "timestamp": f"{day}T03:04:05.000000Z", "event_type": str(name)}
    short = len(msgspec.json.encode(fields | {"payload": ""}))
    return msgspec.json.encode(fields | {"payload": "x" * max(0, size - short)})


def leave_behind(settings: Settings, lines: Sequence[bytes]) -> None:
    """What a process leaves in the spool that did not live to write it."""
    producer = Spool(settings, "events")
    assert all(producer.append(text) for text in lines)
    producer.close()


def read_back(producer: Spool) -> list[bytes]:
    reader, lines = SpooledProducer(producer.folder, 0), list[bytes]()
    while batch := reader.read():
        assert batch.first_seq == len(lines) + 1
        lines += batch.lines
    reader.close()
    return lines


def stored(settings: Settings) -> list[bytes]:
    """The stored rows as the lines that they were made of."""
    columns = ("record_id", "timestamp", "event_type", "payload")
    return [msgspec.json.encode({name: row[name] for name in columns}) for row in csv_rows(settings, "events")]


@pytest.mark.parametrize("first", [0, 1, 7, 100])
def test_records_that_fill_a_segment_to_the_last_byte_or_just_do_not_are_kept(small: Settings, first: int) -> None:
    segments = set()
    room = SEGMENT_BYTES - first - len(KINDS["events"].header)
    for size in range(room - 72, room + 8):
        producer = Spool(small, "events")
        lines = [b"a" * first, b"b" * size, b"c", b"d" * size]
        assert all(producer.append(text) for text in lines)
        assert read_back(producer) == lines
        producer.close()
        assert read_back(producer) == lines
        segments.add(len(list(producer.folder.glob("*.seg"))))
    assert len(segments) > 1, "some sizes fit behind the first record and some do not"


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_batches_end_where_segments_and_limits_do_and_nothing_is_skipped(small: Settings, at_once: int) -> None:
    producer = Spool(small, "events")
    lines = [b"%d " % n * (n % 97) for n in range(700)]
    assert all(producer.append(text) for text in lines)
    for max_bytes in (1, 2, 96, 97, 98, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1):
        reader, read = SpooledProducer(producer.folder, 0), list[bytes]()
        while batch := reader.read(at_once, max_bytes):
            assert batch.count <= at_once
            assert batch.count == 1 or len(batch.data) <= max_bytes
            read += batch.lines
        reader.close()
        assert read == lines


@pytest.mark.parametrize("burst", [1, 2, 10, 11, 12, 13, 14, 30])
def test_a_reader_that_follows_a_producer_over_full_segments_misses_nothing(small: Settings, burst: int) -> None:
    producer = Spool(small, "events")
    reader, read, lines = SpooledProducer(producer.folder, 0), list[bytes](), list[bytes]()
    for _ in range(20):
        part = [b"%d " % n * 75 for n in range(len(lines), len(lines) + burst)]
        assert all(producer.append(text) for text in part)
        lines += part
        while batch := reader.read(10, 1000):
            read += batch.lines
        assert read == lines
    reader.close()


@pytest.mark.parametrize("over", AROUND)
@pytest.mark.parametrize("limit", [SEGMENT_BYTES // 2, SEGMENT_BYTES, 8192])
def test_a_record_of_the_largest_size_is_stored_and_one_byte_more_is_dropped(
    small: Settings, over: int, limit: int
) -> None:
    settings = msgspec.structs.replace(small, max_record_bytes=limit)
    store = TrainingDataStore(settings).sync
    assert store.store_agent_event("", payload="", timestamp=f"{DAY}T00:00:00.000000Z") is not None
    producer = next((settings.spool / "events").glob("[!.]*"))
    reader = SpooledProducer(producer, 0)
    batch = reader.read()
    reader.close()
    assert batch is not None
    json = KINDS["events"].json_line(batch.data) if any(batch.days) else batch.data
    payload = "x" * (limit + over - len(json))
    record_id = store.store_agent_event("", payload=payload, timestamp=f"{DAY}T00:00:00.000000Z")
    store.flush()
    store.close()
    rows = csv_rows(settings, "events")
    assert [row["payload"] for row in rows] == (["", payload] if over <= 0 else [""])
    assert (record_id is None) == (over > 0)
    counted = account(settings, "events")
    assert (counted.accepted, counted.dropped, counted.balanced) == (len(rows), max(over, 0), True)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_smallest_values_come_back_as_they_were(small: Settings, size: int) -> None:
    store = TrainingDataStore(small).sync
    store.store_agent_event("e" * size, payload="x" * size, agent_id="a" * size, metadata={"k" * size: "v" * size})
    store.flush()
    store.close()
    (row,) = csv_rows(small, "events")
    assert (row["event_type"], row["payload"], row["agent_id"]) == ("e" * size, "x" * size, "a" * size)
    assert row["metadata"] == {"k" * size: "v" * size}


def test_a_store_without_a_record_flushes_closes_and_leaves_nothing(small: Settings) -> None:
    store = TrainingDataStore(small).sync
    store.flush()
    store.close()
    drain(small, ["events"])
    assert not small.data_dir.exists()


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 19, 20, 21])
def test_as_many_records_as_a_commit_takes_and_one_less_and_one_more_are_written(
    small: Settings, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(writer, "MAX_RECORDS", 10)
    lines = [line(n) for n in range(count)]
    leave_behind(small, lines)
    drain(small, ["events"])
    assert (stored(small) if count else []) == lines


@pytest.mark.parametrize("over", AROUND)
@pytest.mark.parametrize("records", [1, 2, 10])
def test_as_many_bytes_as_a_commit_takes_and_one_less_and_one_more_are_written(
    small: Settings, monkeypatch: pytest.MonkeyPatch, over: int, records: int
) -> None:
    lines = [line(n, 500) for n in range(25)]
    monkeypatch.setattr(writer, "MAX_BYTES", len(b"\n".join(lines[:records])) + over)
    leave_behind(small, lines)
    drain(small, ["events"])
    assert stored(small) == lines


@pytest.mark.parametrize("over", AROUND)
def test_a_spool_takes_what_its_limit_allows_drops_the_rest_and_has_room_again_when_it_is_written(
    small: Settings, over: int
) -> None:
    settings = msgspec.structs.replace(small, spool_max_bytes=3 * SEGMENT_BYTES + over)
    producer = Spool(settings, "events")
    lines = [line(n, 600) for n in range(40)]
    taken = [text for text in lines if producer.append(text)]
    assert len(list(producer.folder.glob("*.seg"))) == (3 if over >= 0 else 2)
    assert taken == lines[: len(taken)]
    assert producer.counters.dropped == 40 - len(taken)
    drain(settings, ["events"])
    late = line("late", 600)
    wait_until(lambda: producer.append(late) is True, "there is room again")
    producer.close()
    drain(settings, ["events"])
    assert stored(settings) == [*taken, late]
    assert account(settings, "events").balanced


def test_a_full_spool_says_so_where_that_is_asked_for(small: Settings) -> None:
    producer = Spool(msgspec.structs.replace(small, spool_max_bytes=SEGMENT_BYTES, on_full="raise"), "events")
    size = SEGMENT_BYTES - 200
    assert producer.append(b"x" * size)
    with pytest.raises(NotAccepted, match="TDS_SPOOL_MAX_BYTES"):
        producer.append(b"x" * size)


@pytest.mark.parametrize("days", [1, dayfiles._MAX_OPEN - 1, dayfiles._MAX_OPEN, dayfiles._MAX_OPEN + 1])
def test_as_many_days_as_may_be_open_and_one_less_and_one_more_are_written_again_and_again(
    small: Settings, days: int
) -> None:
    names = [(date(2025, 1, 1) + timedelta(days=n)).isoformat() for n in range(days)]
    lines = []
    for turn in range(3):
        part = [line(turn, day=day) for day in names]
        leave_behind(small, part)
        drain(small, ["events"])
        lines += part
    assert stored(small) == sorted(lines, key=lambda text: str(msgspec.json.decode(text)["timestamp"]))


# ------------------------------------------------------------------------------------------------------- Synapse ---


def entries(client: redis.Redis) -> list[dict[bytes, bytes]]:
    found = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(stream_key("events")))
    return [fields for _, fields in found]


def ship(settings: Settings) -> Shipper:
    shipper = Shipper(settings, "events")
    assert shipper.lock.acquire()
    while shipper.step():
        pass
    return shipper


@pytest.mark.parametrize("count", [1, 499, 500, 501, 1000, 1001])
def test_an_entry_takes_500_records_and_the_next_one_goes_into_another(
    remote: Settings, client: redis.Redis, count: int
) -> None:
    assert spool.BATCH_RECORDS == 500
    settings = msgspec.structs.replace(remote, spool_segment_bytes=1 << 20)
    lines = [line(n) for n in range(count)]
    leave_behind(settings, lines)
    ship(settings).close()
    found = entries(client)
    assert [int(entry[b"n"]) for entry in found] == [min(500, count - start) for start in range(0, count, 500)]
    assert b"\n".join(entry[b"d"] for entry in found).split(b"\n") == lines
    with writing(settings):
        wait_until(lambda: account(settings, "events").rows == count, "all of them are written")
    assert stored(settings) == lines


@pytest.mark.parametrize("over", AROUND)
@pytest.mark.parametrize("records", [1, 4])
def test_an_entry_takes_256_kib_and_a_larger_record_is_an_entry_of_its_own(
    remote: Settings, client: redis.Redis, over: int, records: int
) -> None:
    limit = spool.BATCH_BYTES
    assert limit == 256 << 10
    settings = msgspec.structs.replace(remote, spool_segment_bytes=4 << 20, max_record_bytes=1 << 20)
    size = limit // records - 1  # and a line feed
    lines = [line(n, size) for n in range(records - 1)] + [line("last", size + over), line("next", 300)]
    leave_behind(settings, lines)
    ship(settings).close()
    found = entries(client)
    assert b"\n".join(entry[b"d"] for entry in found).split(b"\n") == lines
    assert all(len(entry[b"d"]) <= limit or int(entry[b"n"]) == 1 for entry in found)
    assert len(found) > 1, "the last one does not fit"
    with writing(settings):
        wait_until(lambda: account(settings, "events").rows == len(lines), "all of them are written")
    assert stored(settings) == lines


@pytest.mark.parametrize("over", AROUND)
def test_what_redis_may_hold_unacknowledged_is_kept_to_and_the_rest_follows(
    remote: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, over: int
) -> None:
    settings = msgspec.structs.replace(remote, spool_segment_bytes=1 << 20)
    lines = [line(n, 400) for n in range(3000)]
    limit = 2 * len(b"\n".join(lines[:500])) + over  # two entries of 500 records
    monkeypatch.setattr(synapse, "_MAX_UNACKNOWLEDGED_BYTES", limit)
    leave_behind(settings, lines)
    shipper = ship(settings)
    held = [len(entry[b"d"]) for entry in entries(client)]
    shipper.close()
    assert sum(held[:-1]) < limit <= sum(held), "the entry that reaches the limit is the last one"
    with writing(settings):
        wait_until(lambda: account(settings, "events").rows == len(lines), "all of them are written")
    assert stored(settings) == lines
