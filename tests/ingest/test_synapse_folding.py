"""Producers that ended leave Redis and the ledger, and the account stays what it was, wherever it is cut off."""

import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import redis

from ingest import Settings
from ingest.errors import SynapseUnavailable
from ingest.pipeline.accounting import account
from ingest.pipeline.ledger import Commit, Ledger, open_ledger
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.spool import ProducerCounters, Spool, SpooledProducer
from ingest.pipeline.synapse import Shipper, StreamSource, marks_key, producers_key, stream_key
from ingest.pipeline.writer import KindWriter, drain
from ingest.records import new_record_id
from tests.parts import RedisServer, csv_rows

DAY_S = 24 * 3600
Moment = tuple[int, int, int, int, int]


@pytest.fixture(autouse=True)
def _no_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step does all of its housekeeping."""
    for name in ("MARKS_INTERVAL", "COUNTERS_INTERVAL", "TRIM_INTERVAL", "FOLD_INTERVAL"):
        monkeypatch.setattr(f"ingest.pipeline.synapse._{name}_S", 0.0)


@pytest.fixture
def remote(redis_server: RedisServer, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", redis_url=redis_server.url)


@pytest.fixture
def client(remote: Settings) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(remote.redis_url or "", protocol=2)
    yield client
    client.close()


def store_and_end(settings: Settings, producers: int, records: int = 3) -> None:
    """What so many processes leave that stored some records, had one too large, and ended."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    for _ in range(producers):
        spool = Spool(msgspec.structs.replace(settings, max_record_bytes=1000, spool_segment_bytes=4096), "events")
        for n in range(records):
            record = {"record_id": new_record_id(), "timestamp": now, "event_type": f"event {n}"}
            spool.append(msgspec.json.encode(record), coerced=n == 0)
        spool.append(b"x" * 1001)
        spool.close()


def move(settings: Settings, *, steps: int = 3) -> None:
    """Ship and write what is there, and keep house."""
    shipper, writer = Shipper(settings, "events"), KindWriter(settings, "events")
    assert writer.lock.acquire()
    try:
        for _ in range(steps):
            while shipper.step() + writer.step():
                pass
    finally:
        shipper.close()
        writer.close()


def counted(settings: Settings) -> Moment:
    found = account(settings, "events")
    assert found.balanced
    assert found.waiting == 0
    return found.offered, found.accepted, found.dropped, found.coerced, found.stored


def age_ends(settings: Settings, days: float) -> None:
    """Let the producers have ended so long ago."""
    db = sqlite3.connect(DataPaths(settings.data_dir).ledger("events"))
    db.execute("UPDATE ended SET at = at - ? WHERE at > 0", (int(days * DAY_S),))
    db.commit()
    db.close()


def rows(settings: Settings) -> tuple[int, int, int]:
    """How many rows the ledger has of producers: marks, counters, ends."""
    db = sqlite3.connect(DataPaths(settings.data_dir).ledger("events"))
    try:
        marks, producers, ended = (
            db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("marks", "producers", "ended")
        )
        return marks, producers, ended
    finally:
        db.close()


def test_ended_producers_leave_redis_and_the_ledger_and_the_account_stays(
    remote: Settings, client: redis.Redis
) -> None:
    store_and_end(remote, 50)
    move(remote)
    before = counted(remote)
    assert before == (200, 150, 50, 50, 150)
    assert client.hlen(producers_key("events")) == 0, "their counters are in the ledger"
    assert (client.hlen(marks_key("events")), rows(remote)) == (50, (50, 50, 50)), "a mark is needed for longer"
    age_ends(remote, 6.9)
    move(remote)
    assert rows(remote) == (50, 50, 50), "TDS_KEY_DAYS is 7"
    age_ends(remote, 0.2)
    move(remote)
    assert (client.hlen(marks_key("events")), rows(remote)) == (0, (1, 1, 0))
    assert counted(remote) == before
    store_and_end(remote, 5)
    move(remote)
    assert counted(remote) == (220, 165, 55, 55, 165)
    assert (client.hlen(marks_key("events")), rows(remote)) == (5, (6, 6, 5))
    age_ends(remote, 8)
    move(remote)
    assert rows(remote) == (1, 1, 0)
    assert counted(remote) == (220, 165, 55, 55, 165)


def test_a_producer_is_not_folded_while_the_stream_may_hold_its_records(remote: Settings, client: redis.Redis) -> None:
    client.xadd(stream_key("events"), {"left": "by somebody"}, id=f"{1_700_000_000_000}-0")
    client.xgroup_create(stream_key("events"), "trainer", id="0")  # holds it back
    settings = msgspec.structs.replace(remote, group_retention=10**9)
    store_and_end(settings, 3)
    move(settings)
    age_ends(settings, 100)
    move(settings)
    assert rows(settings) == (3, 3, 3)
    client.xgroup_destroy(stream_key("events"), "trainer")
    client.xtrim(stream_key("events"), maxlen=1, approximate=False)
    move(settings)
    assert rows(settings) == (1, 1, 0)


def test_a_stream_given_again_before_the_folding_doubles_nothing(remote: Settings, client: redis.Redis) -> None:
    store_and_end(remote, 10)
    move(remote)
    client.xgroup_destroy(stream_key("events"), "writer")
    client.delete(marks_key("events"))
    age_ends(remote, 6)
    move(remote)
    assert counted(remote) == (40, 30, 10, 10, 30)
    assert len(csv_rows(remote, "events")) == 30
    assert client.hlen(marks_key("events")) == 10, "lost marks are published again"


def test_without_the_marks_the_stream_given_again_would_double_records(remote: Settings, client: redis.Redis) -> None:
    """The control of the test above: too early a folding does harm."""
    store_and_end(remote, 10)
    move(remote)
    with open_ledger(DataPaths(remote.data_dir), "events") as ledger:
        ledger.forget_folded(ledger.fold(10**11))
    client.xgroup_destroy(stream_key("events"), "writer")
    move(remote)
    assert len(csv_rows(remote, "events")) == 60


def test_ended_counters_that_an_older_redis_brings_back_are_not_counted_again(
    remote: Settings, client: redis.Redis
) -> None:
    store_and_end(remote, 3)
    move(remote)
    with open_ledger(DataPaths(remote.data_dir), "events") as ledger:
        names = [name for name in ledger.marks() if name]
    age_ends(remote, 8)
    move(remote)
    before = counted(remote)
    old = msgspec.json.encode({"offered": 4, "accepted": 3, "dropped": 1, "coerced": 1, "ended": 1_700_000_000})
    client.hset(producers_key("events"), mapping=dict.fromkeys(names, old))
    move(remote)
    assert counted(remote) == before
    assert client.hlen(producers_key("events")) == 0


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("place", ["commit", "hdel:1", "fold", "hdel:2", "forget_folded"])
@pytest.mark.parametrize("is_done", [False, True])
def test_killed_between_any_two_steps_the_sums_are_right_and_nothing_is_left(
    remote: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, place: str, is_done: bool
) -> None:
    store_and_end(remote, 5)
    name, _, number = place.partition(":")
    owner = redis.Redis if name == "hdel" else Ledger
    original, calls = getattr(owner, name), 0
    kills = int(number or 1)

    def die(*arguments: object, **named: object) -> object:
        nonlocal calls
        interesting = name != "commit" or getattr(arguments[1], "ended", None)
        calls += bool(interesting)
        is_last = bool(interesting) and calls == kills
        if is_last and not is_done:
            raise Killed
        result = original(*arguments, **named)
        if is_last:
            raise Killed
        return result

    def move_twice() -> None:
        move(remote)
        age_ends(remote, 8)
        move(remote)

    monkeypatch.setattr(owner, name, die)
    with pytest.raises(Killed):
        move_twice()
    monkeypatch.setattr(owner, name, original)
    move_twice()
    assert counted(remote) == (20, 15, 5, 5, 15)
    assert rows(remote) == (1, 1, 0)
    assert (client.hlen(marks_key("events")), client.hlen(producers_key("events"))) == (0, 0)


def test_an_end_that_redis_did_not_take_is_said_when_it_answers_again(
    remote: Settings, client: redis.Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.config_set("appendfsync", "always")
    store_and_end(remote, 1)
    shipper, writer = Shipper(remote, "events"), KindWriter(remote, "events")
    assert writer.lock.acquire()
    remove = SpooledProducer.remove

    def remove_and_lose_redis(producer: SpooledProducer) -> None:
        remove(producer)
        redis_server.kill()

    def ship_and_write_on() -> None:
        while True:
            shipper.step()
            writer.step()
            writer.finish()

    monkeypatch.setattr(SpooledProducer, "remove", remove_and_lose_redis)
    try:
        with pytest.raises(SynapseUnavailable):
            ship_and_write_on()
        redis_server.start()
        shipper.step()
        assert b"ended" in client.hvals(producers_key("events"))[0]
    finally:
        shipper.close()
        writer.close()


def test_a_program_that_says_it_has_ended_is_folded_once_all_it_counted_is_written(
    remote: Settings, client: redis.Redis
) -> None:
    record = msgspec.json.encode({"record_id": "x-1", "timestamp": "2024-05-15T08:30:00.000000Z", "event_type": "x"})
    client.xadd(stream_key("events"), {"v": 1, "p": "billing", "o": 1, "n": 1, "d": record})
    ended = int(datetime.now(UTC).timestamp())
    client.hset(producers_key("events"), "billing", f'{{"offered":2,"accepted":2,"dropped":0,"ended":{ended}}}')
    move(remote)
    found = account(remote, "events")
    assert (found.accepted, found.stored, found.waiting, found.balanced) == (2, 1, 1, True)
    assert rows(remote) == (1, 1, 0), "its second record has not come"
    client.xadd(stream_key("events"), {"v": 1, "p": "billing", "o": 2, "n": 1, "d": record})
    move(remote)
    assert rows(remote) == (1, 1, 1)
    age_ends(remote, 8)
    move(remote)
    with open_ledger(DataPaths(remote.data_dir), "events") as ledger:
        assert ledger.marks() == {"": 2}
    assert rows(remote) == (1, 1, 0)
    assert counted(remote) == (2, 2, 0, 0, 2)


def test_a_hundred_thousand_ended_producers_are_no_work_between_two_foldings(
    remote: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"p{n}": ProducerCounters(3, 2, 1, 0) for n in range(100_000)}
    with open_ledger(DataPaths(remote.data_dir), "events") as ledger:
        ended = dict.fromkeys(many, int(datetime.now(UTC).timestamp()))
        ledger.commit(Commit(marks=dict.fromkeys(many, 2), producers=many, ended=ended))
        source = StreamSource(remote, "events")
        source.read({})
        few = Ledger.marks

        def never_all(ledger: Ledger, producers: Iterable[str] | None = None) -> dict[str, int]:
            assert producers is not None
            return few(ledger, producers)

        monkeypatch.setattr(Ledger, "marks", never_all)
        monkeypatch.delattr(Ledger, "producers")
        source.acknowledge(ledger, {})
        source.close()
    assert client.hlen(marks_key("events")) == 100_000, "the marks are there for whoever waits for one of them"


def test_without_redis_ended_producers_leave_the_ledger_too(settings: Settings) -> None:
    store_and_end(settings, 20)
    drain(settings, ["events"])
    assert counted(settings) == (80, 60, 20, 20, 60)
    assert rows(settings) == (20, 20, 20)
    age_ends(settings, 8)
    store_and_end(settings, 1)
    drain(settings, ["events"])
    assert counted(settings) == (84, 63, 21, 21, 63)
    assert rows(settings) == (2, 2, 1), "the sum, and the one that ended just now"
