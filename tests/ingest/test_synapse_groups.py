"""Durable groups of subscribers: each record at least once, whoever dies, restarts or loses its data."""

import asyncio
import logging
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
import redis

from ingest import InvalidRecord, Settings, TrainingDataStore
from ingest.pipeline.ledger import open_ledger
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.subscription import forget_group
from ingest.pipeline.synapse import StreamSource, stream_groups, stream_key
from ingest.records import new_record_id
from tests.parts import PROJECT, RedisServer, environment, wait_until, writing

KEY = stream_key("events")
Record = dict[str, object]


@pytest.fixture
def remote(redis_server: RedisServer, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", redis_url=redis_server.url, group_idle=1)


@pytest.fixture
def agent(remote: Settings) -> Iterator[TrainingDataStore]:
    store = TrainingDataStore(remote)
    yield store
    store.sync.close()


@pytest.fixture
def client(remote: Settings) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(remote.redis_url or "", protocol=2)
    client.config_set("stream-node-max-entries", 1)  # trimming takes whole nodes
    yield client
    client.close()


def keep_house(settings: Settings) -> None:
    """What a writer does that finds nothing new, trimming included."""
    source = StreamSource(settings, "events")
    source.read({})
    with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
        source.acknowledge(ledger, {})
    source.close()


class Sender:
    """Another program that writes into Synapse, an entry a call."""

    def __init__(self, client: redis.Redis) -> None:
        self._client, self._seq = client, 1

    def send(self, *names: str, entry_id: str = "*") -> str:
        """One entry with a record of each name; gives the id of the last record."""
        records = [
            {"record_id": new_record_id(), "timestamp": "2024-05-15T08:30:00.000000Z", "event_type": name}
            for name in names
        ]
        fields = {
            "v": 1,
            "p": "sender",
            "o": self._seq,
            "n": len(names),
            "d": b"\n".join(map(msgspec.json.encode, records)),
        }
        self._seq += len(names)
        self._client.xadd(KEY, fields, id=entry_id)  # type: ignore[arg-type]  # its dict type is invariant
        return records[-1]["record_id"]


@pytest.fixture
def sender(client: redis.Redis) -> Sender:
    return Sender(client)


def subscribe(settings: Settings, group: str, after: str | None = None) -> AsyncGenerator[Record]:
    return TrainingDataStore(settings).subscribe("events", group=group, after=after)


async def take(records: AsyncGenerator[Record], n: int) -> list[object]:
    async with asyncio.timeout(20):
        return [(await anext(records))["event_type"] for _ in range(n)]


async def take_and_leave(settings: Settings, group: str, n: int, after: str | None = None) -> list[object]:
    """What one consumer gets that ends in good order with its last record in hand."""
    records = subscribe(settings, group, after)
    try:
        return await take(records, n)
    finally:
        await records.aclose()


async def nothing_more(records: AsyncGenerator[Record], for_s: float = 0.5) -> bool:
    """Whether nothing comes for so long; the subscription is over then."""
    waiting = asyncio.ensure_future(anext(records))
    done, _ = await asyncio.wait([waiting], timeout=for_s)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return not done


def numbered(first: int, last: int) -> list[str]:
    return [f"event {n}" for n in range(first, last + 1)]


def test_a_group_goes_on_over_restarts_with_the_first_record_that_was_not_acknowledged(
    remote: Settings, sender: Sender
) -> None:
    async def listen() -> None:
        sender.send("event 0")
        assert await take_and_leave(remote, "trainer", 1) == ["event 0"], "no writer has been here: all there is"
        for n in range(1, 6):
            sender.send(f"event {n}")
        assert await take_and_leave(remote, "trainer", 3) == numbered(0, 2), "the one in hand comes again"
        assert await take_and_leave(remote, "trainer", 4) == numbered(2, 5)

    asyncio.run(listen())


def test_a_group_made_beside_a_writer_begins_now_and_an_entry_is_acknowledged_whole(
    remote: Settings, sender: Sender, client: redis.Redis
) -> None:
    async def listen() -> None:
        sender.send("before")
        keep_house(remote)
        records = subscribe(remote, "trainer")
        first = asyncio.ensure_future(anext(records))
        await asyncio.to_thread(wait_until, lambda: "trainer" in stream_groups(client, "events"), "it is made")
        sender.send("a", "b", "c")
        assert (await first)["event_type"] == "a"
        assert await take(records, 1) == ["b"]
        await records.aclose()
        assert await take_and_leave(remote, "trainer", 3) == ["a", "b", "c"]

    asyncio.run(asyncio.wait_for(listen(), 20))


def test_groups_do_not_see_each_other_and_a_new_one_may_begin_behind_a_record(remote: Settings, sender: Sender) -> None:
    sender.send("a", "b")
    last = sender.send("c", "d")
    sender.send("e")
    sender.send("f")

    async def listen() -> None:
        assert await take_and_leave(remote, "one", 6) == ["a", "b", "c", "d", "e", "f"]
        assert await take_and_leave(remote, "two", 2, after=last) == ["e", "f"]
        assert await take_and_leave(remote, "three", 6, after="never seen") == ["a", "b", "c", "d", "e", "f"]

    asyncio.run(listen())


CONSUMER = """
import asyncio, sys
from ingest import get_training_data_store
async def main():
    async for record in get_training_data_store().subscribe("events", group="trainer"):
        print(record["event_type"], flush=True)
        await asyncio.sleep(float(sys.argv[1]))
asyncio.run(main())
"""


def consumer(settings: Settings, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONSUMER, str(pause_s)]
    return subprocess.Popen(command, env=environment(settings), cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_consumer_had_in_hand_goes_to_another_one_and_nothing_is_missing(
    remote: Settings, sender: Sender, client: redis.Redis
) -> None:
    client.xgroup_create(KEY, "trainer", id="0", mkstream=True)
    for n in range(100):
        sender.send(f"event {n}")
    first = consumer(remote, 0.01)
    assert first.stdout is not None
    seen = [first.stdout.readline().strip() for _ in range(20)]
    first.kill()
    seen += first.communicate()[0].split("\n")[:-1]
    unacknowledged = stream_groups(client, "events")["trainer"].pending
    assert unacknowledged > 0

    async def listen() -> None:
        records = subscribe(remote, "trainer")
        while not set(numbered(0, 99)) <= set(seen):
            seen.extend(map(str, await take(records, 1)))
        assert await nothing_more(records)

    asyncio.run(asyncio.wait_for(listen(), 30))
    assert len(seen) <= 100 + unacknowledged, "what was acknowledged does not come again"


def test_consumers_of_a_group_share_the_records_and_a_slow_one_that_lives_keeps_what_it_has(
    remote: Settings, sender: Sender, client: redis.Redis
) -> None:
    client.xgroup_create(KEY, "trainer", id="0", mkstream=True)
    for n in range(60):
        sender.send(f"event {n}")

    async def work(seen: list[object], pause_s: float) -> None:
        async for record in subscribe(remote, "trainer"):
            seen.append(record["event_type"])
            await asyncio.sleep(pause_s)

    async def listen() -> list[list[object]]:
        seen: list[list[object]] = [[], []]
        workers = [asyncio.ensure_future(work(part, pause)) for part, pause in zip(seen, (0.3, 0.01), strict=True)]
        await asyncio.to_thread(wait_until, lambda: len(seen[0]) + len(seen[1]) >= 60, "all are read")
        await asyncio.sleep(1.5)  # longer than TDS_GROUP_IDLE: nobody takes anything over
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        return seen

    slow, fast = asyncio.run(listen())
    assert slow
    assert fast
    assert sorted(map(str, slow + fast)) == sorted(numbered(0, 59)), "each of them once"


def test_an_entry_deleted_in_a_consumers_hands_is_told_and_does_not_stop_the_group(
    remote: Settings, sender: Sender, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def listen() -> None:
        for n in range(3):
            sender.send(f"event {n}")
        assert await take_and_leave(remote, "trainer", 1) == ["event 0"]
        client.xtrim(KEY, maxlen=1)
        assert await take_and_leave(remote, "trainer", 1) == ["event 2"]

    asyncio.run(listen())
    assert "2 entries that the group trainer had not acknowledged are trimmed" in caplog.text


def aged(hours: float) -> str:
    return f"{int((time.time() - hours * 3600) * 1000)}-0"


def test_trimming_waits_for_the_groups_and_not_longer_than_they_may_hold_it_back(
    remote: Settings, sender: Sender, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with writing(remote):  # publishes what comes
        for hours in (100, 90, 50, 40, 3, 2):
            sender.send(f"{hours} hours old", entry_id=aged(hours))
        wait_until(lambda: client.hget(f"{KEY}:marks", "sender") == b"6", "all are written")
        wait_until(lambda: stream_groups(client, "events")["writer"].pending == 0, "all are acknowledged")
        client.xtrim(KEY, minid="0")
    client.xgroup_create(KEY, "made by redis-cli", id="0")
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(KEY))
    client.xgroup_create(KEY, "trainer", id=entries[3][0])
    plain = client.xread({KEY: "0"}, count=1)  # a plain reader has a place too, and nobody cares
    assert plain

    def left() -> list[bytes]:
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(KEY))
        return [fields[b"d"].partition(b'"event_type":"')[2].partition(b'"')[0] for _, fields in entries]

    with caplog.at_level(logging.WARNING):
        keep_house(msgspec.structs.replace(remote, group_retention=200 * 3600))
        assert len(left()) == 6, "the first group has read nothing, and may hold back 200 hours"
        assert not caplog.records
        keep_house(remote)
        assert left() == [b"50 hours old", b"40 hours old", b"3 hours old", b"2 hours old"], "72 hours, by default"
    assert "the group made by redis-cli has not read what it was held for" in caplog.text
    assert "the group trainer" not in caplog.text
    client.xgroup_destroy(KEY, "made by redis-cli")
    keep_house(remote)
    assert left() == [b"40 hours old", b"3 hours old", b"2 hours old"], "up to what the other one was given last"
    client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.1))
    keep_house(remote)
    assert left() == [b"2 hours old"], "in a Redis nearly full groups hold nothing back: this is the writer's last one"


def test_without_the_group_the_entries_would_be_trimmed(remote: Settings, sender: Sender, client: redis.Redis) -> None:
    """The control of the test above."""
    with writing(remote):
        sender.send("old", entry_id=aged(50))
        sender.send("young")
        wait_until(lambda: client.hget(f"{KEY}:marks", "sender") == b"2", "all are written")
    keep_house(remote)
    assert client.xlen(KEY) == 1


def test_a_consumer_whose_group_is_flushed_away_goes_on_with_all_that_is_sent_again(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def listen() -> set[object]:
        records = subscribe(remote, "trainer")
        for n in range(5):
            agent.sync.store_agent_event(f"event {n}")
        seen = set(await take(records, 2))
        client.flushall()  # no writer: all of it is in the spool, and sent again
        for n in range(5, 10):
            agent.sync.store_agent_event(f"event {n}")
        while not set(numbered(0, 9)) <= seen:
            seen |= set(await take(records, 1))
        await records.aclose()
        return seen

    assert asyncio.run(asyncio.wait_for(listen(), 20)) == set(numbered(0, 9))
    assert "Redis lost the group trainer" in caplog.text


def test_a_group_without_a_consumer_is_made_again_by_the_writer_when_redis_loses_everything(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    agent.sync.store_agent_event("event 0")
    wait_until(lambda: client.xlen(KEY) == 1, "it is in Redis")
    client.xgroup_create(KEY, "trainer", id="0")
    keep_house(remote)  # takes note of it
    client.flushall()
    with writing(remote):
        wait_until(lambda: "writer" in stream_groups(client, "events"), "the writer goes on")
        assert "trainer" in stream_groups(client, "events")
        agent.sync.store_agent_event("event 1")
        assert set(asyncio.run(take_and_leave(remote, "trainer", 2))) == set(numbered(0, 1))
    assert "with it the group trainer" in caplog.text


def test_a_group_that_somebody_destroyed_stays_away(remote: Settings, sender: Sender, client: redis.Redis) -> None:
    sender.send("x")
    assert asyncio.run(take_and_leave(remote, "trainer", 1)) == ["x"]
    keep_house(remote)
    assert forget_group(remote, "events", "trainer")
    assert not forget_group(remote, "events", "trainer")
    assert not forget_group(remote, "tasks", "trainer"), "there is no stream at all"
    keep_house(remote)
    client.flushall()
    keep_house(remote)
    assert list(stream_groups(client, "events")) == ["writer"]


def test_redis_restarted_with_its_data_has_the_groups_where_they_were(
    remote: Settings, sender: Sender, client: redis.Redis, redis_server: RedisServer
) -> None:
    client.config_set("appendfsync", "always")
    for n in range(5):
        sender.send(f"event {n}")
    assert asyncio.run(take_and_leave(remote, "trainer", 3)) == numbered(0, 2)
    redis_server.kill()
    redis_server.start()
    assert asyncio.run(take_and_leave(remote, "trainer", 3)) == numbered(2, 4)


@pytest.mark.parametrize("group", ["trainer", None])
def test_a_cancellation_that_comes_while_the_consumer_works_ends_the_subscription(
    remote: Settings, sender: Sender, group: str | None
) -> None:
    first = sender.send("x")
    sender.send("x")

    async def work() -> None:
        async for _ in TrainingDataStore(remote).subscribe("events", group=group, after=None if group else first):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()  # what Ctrl-C does; it is noticed where the task waits next

    async def listen() -> None:
        working = asyncio.ensure_future(work())
        done, _ = await asyncio.wait([working], timeout=5)
        assert done, "it is still waiting for records"
        assert working.cancelled()

    asyncio.run(listen())


@pytest.mark.parametrize("name", ["writer", "", "a b", "../x", ".x", "x" * 65])
def test_a_name_that_cannot_be_a_groups_is_refused(settings: Settings, name: str) -> None:
    async def listen() -> None:
        await anext(subscribe(settings, name))

    with pytest.raises(InvalidRecord, match="group="):
        asyncio.run(listen())


def test_without_redis_a_group_goes_on_over_restarts_too(settings: Settings, store: TrainingDataStore) -> None:
    def write(first: int, last: int) -> list[str | None]:
        days = ("2024-05-15", "2024-05-16")
        ids = [
            store.sync.store_agent_event(f"event {n}", timestamp=f"{days[n % 2]}T08:00:00Z")
            for n in range(first, last + 1)
        ]
        store.sync.flush()
        return ids

    ids = write(0, 5)

    async def listen() -> None:
        records = subscribe(settings, "trainer")
        assert await nothing_more(records), "it begins now"
        write(6, 11)
        seen = await take_and_leave(settings, "trainer", 4)
        assert len(set(seen)) == 4
        seen += await take_and_leave(settings, "trainer", 3)
        assert len(seen) == 7
        assert set(seen) == set(numbered(6, 11)), "the one in hand comes again, and no other"
        behind = await take_and_leave(settings, "another", 9, after=ids[2])
        assert set(behind) == set(numbered(3, 11))

    asyncio.run(listen())
    assert forget_group(settings, "events", "trainer")
    assert not forget_group(settings, "events", "trainer")


def test_without_redis_one_consumer_is_at_work_and_another_takes_over_when_it_is_killed(
    settings: Settings, store: TrainingDataStore
) -> None:
    async def begin() -> None:
        assert await nothing_more(subscribe(settings, "trainer"))

    asyncio.run(begin())
    for n in range(50):
        store.sync.store_agent_event(f"event {n}")
    store.sync.flush()
    first = consumer(settings, 0.1)
    assert first.stdout is not None
    seen = [first.stdout.readline().strip() for _ in range(15)]  # more than a second: its place is noted
    second = consumer(settings, 0.0)
    assert second.stdout is not None
    first.send_signal(signal.SIGKILL)
    seen += first.communicate()[0].split("\n")[:-1]
    seen += [second.stdout.readline().strip() for _ in range(50 - len(seen))]
    while not set(numbered(0, 49)) <= set(seen):
        seen.append(second.stdout.readline().strip())
    second.kill()
    rest = second.communicate()[0].split("\n")[:-1]
    assert seen[0] != seen[15] or len(seen) < 65
    assert len(seen + rest) < 50 + 15, "what was noted does not come again"


def test_a_day_file_that_was_written_anew_is_given_again_and_nothing_in_it_is_left_out(
    settings: Settings, store: TrainingDataStore
) -> None:
    async def listen() -> None:
        assert await nothing_more(subscribe(settings, "trainer"))
        for n in range(5):
            store.sync.store_agent_event(f"event {n}", timestamp="2024-05-15T08:00:00Z")
        store.sync.flush()
        await take_and_leave(settings, "trainer", 4)
        with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
            ledger.place_group("trainer", {"2024-05-15": ledger.groups()["trainer"]["2024-05-15"] + 3})
        assert await take_and_leave(settings, "trainer", 5) == numbered(0, 4)

    asyncio.run(listen())
