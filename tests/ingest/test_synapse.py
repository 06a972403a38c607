"""Through a real Redis: nothing lost and nothing doubled, whatever happens to Redis, the writer or the wire."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import redis

from ingest import FlushTimeout, Settings, TrainingDataStore
from ingest.errors import InvalidSetting, SynapseUnavailable
from ingest.pipeline.accounting import account
from ingest.pipeline.ledger import Commit, open_ledger
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.spool import Spool
from ingest.pipeline.synapse import Shipper, StreamSource, marks_key, producers_key, stream_key
from ingest.records import new_record_id
from tests.parts import PROJECT, RedisServer, csv_rows, environment, listening, wait_until, writing


@pytest.fixture
def remote(redis_server: RedisServer, tmp_path: Path) -> Settings:
    """An agent's host: a spool of its own, Redis, and the data folder where the writer is."""
    return Settings(data_dir=tmp_path / "data", spool_dir=tmp_path / "spool", redis_url=redis_server.url)


@pytest.fixture
def agent(remote: Settings) -> Iterator[TrainingDataStore]:
    store = TrainingDataStore(remote)
    yield store
    store.sync.close()


@pytest.fixture
def client(remote: Settings) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(remote.redis_url or "", protocol=2)
    yield client
    client.close()


def leave_behind(settings: Settings, event_type: str) -> None:
    """What a process leaves in the spool that died before its thread did anything."""
    spool = Spool(settings, "events")
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    spool.append(msgspec.json.encode({"record_id": new_record_id(), "timestamp": now, "event_type": event_type}))
    spool.close()


def names(settings: Settings) -> list[object]:
    return [row["event_type"] for row in csv_rows(settings, "events")]


def test_records_come_through_in_packed_entries_each_once(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis
) -> None:
    with writing(remote):
        for n in range(5000):
            agent.sync.store_agent_event(f"event {n}")
        agent.sync.flush()
    assert names(remote) == [f"event {n}" for n in range(5000)]
    assert client.xlen(stream_key("events")) < 500
    counted = account(remote, "events")
    assert (counted.accepted, counted.stored, counted.waiting, counted.balanced) == (5000, 5000, 0, True)


def test_a_host_without_the_data_folder_is_seen_in_the_account(remote: Settings, tmp_path: Path) -> None:
    elsewhere = TrainingDataStore(msgspec.structs.replace(remote, data_dir=tmp_path / "unused"))
    with writing(msgspec.structs.replace(remote, spool_dir=tmp_path / "spool of the writer's host")):
        for n in range(100):
            elsewhere.sync.store_agent_event(f"event {n}")
        elsewhere.sync.flush()
        elsewhere.sync.close()
        here = msgspec.structs.replace(remote, spool_dir=tmp_path / "spool of the writer's host")
        wait_until(lambda: account(here, "events").accepted == 100, "its counters came through Redis")
    assert not (tmp_path / "unused").exists()
    assert account(here, "events").balanced


def test_with_redis_down_the_call_goes_on_and_everything_arrives_when_it_is_back(
    remote: Settings, agent: TrainingDataStore, redis_server: RedisServer
) -> None:
    redis_server.kill()
    said: list[str] = []
    with writing(remote, said):
        for n in range(1000):
            assert agent.sync.store_agent_event(f"event {n}") is not None
        with pytest.raises(FlushTimeout, match="nothing is lost"):
            agent.sync.flush(0.5)
        wait_until(lambda: bool(said), "the writer says that it waits")
        assert "TDS_REDIS_URL=redis://127.0.0.1" in said[0]
        redis_server.start()
        agent.sync.flush()
    assert names(remote) == [f"event {n}" for n in range(1000)]


@pytest.mark.parametrize("keep_data", [True, False])
def test_redis_killed_in_the_middle_with_or_without_its_data_loses_and_doubles_nothing(
    remote: Settings, agent: TrainingDataStore, redis_server: RedisServer, keep_data: bool
) -> None:
    with writing(remote):
        for n in range(3000):
            agent.sync.store_agent_event(f"event {n}")
            if n in {1000, 2000}:
                redis_server.kill()
            if n in {1200, 2200}:
                redis_server.start(keep_data=keep_data)
            time.sleep(0.0003)
        agent.sync.flush(60)
    assert names(remote) == [f"event {n}" for n in range(3000)]


def test_a_flushed_redis_is_filled_again_from_the_spool(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis
) -> None:
    for n in range(1000):
        agent.sync.store_agent_event(f"early {n}")
    wait_until(lambda: client.xlen(stream_key("events")) > 0, "the first entries are in Redis")
    client.flushall()  # before any writer saw them
    with writing(remote):
        for n in range(1000):
            agent.sync.store_agent_event(f"late {n}")
            if n == 500:
                client.flushall()
            time.sleep(0.0005)
        agent.sync.flush(60)
        wait_until(lambda: client.hlen(marks_key("events")) > 0, "the marks are published again")
    assert names(remote) == [f"early {n}" for n in range(1000)] + [f"late {n}" for n in range(1000)]


def test_a_paused_redis_is_waited_for(remote: Settings, agent: TrainingDataStore, redis_server: RedisServer) -> None:
    with writing(remote):
        agent.sync.store_agent_event("before")
        agent.sync.flush()
        redis_server.pause()
        slowest = 0.0
        for n in range(200):
            start = time.perf_counter()
            agent.sync.store_agent_event(f"during {n}")
            slowest = max(slowest, time.perf_counter() - start)
        redis_server.resume()
        agent.sync.flush(60)
    assert slowest < 0.5, "a call does not wait for Redis"
    assert len(names(remote)) == 201


def test_an_entry_that_is_none_goes_to_quarantine_and_the_rest_flows(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis
) -> None:
    key = stream_key("events")
    client.xadd(key, {"hello": "world"})
    client.xadd(key, {"v": "9", "p": "x", "o": "1", "n": "1", "d": "{}"})
    client.xadd(key, {"v": "1", "p": "x", "o": "first", "n": "1", "d": "{}"})
    client.xadd(key, {"v": "1", "p": "x", "o": "1", "n": "3", "d": "{}"})
    with writing(remote):
        agent.sync.store_agent_event("good")
        agent.sync.flush()
    assert names(remote) == ["good"]
    with open_ledger(DataPaths(remote.data_dir), "events") as ledger:
        reasons = [reject.reason for reject in ledger.rejects(datetime.now(UTC).date().isoformat())]
    assert [word in reason for word, reason in zip(["missing", "v=b'9'", "first", "n=3"], reasons, strict=True)] == [
        True
    ] * 4
    counted = account(remote, "events")
    assert (counted.foreign, counted.quarantined, counted.balanced) == (4, 0, True)
    assert client.xpending(key, "writer")["pending"] == 0


def test_any_redis_client_can_write(remote: Settings, client: redis.Redis) -> None:
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    record = {"record_id": new_record_id(), "timestamp": now, "event_type": "from afar", "payload": {"a": 1}}
    text = msgspec.json.format(msgspec.json.encode(record), indent=0).replace(b"\n", b" ")
    client.xadd(stream_key("events"), {"v": 1, "p": "my-shell-script", "o": 1, "n": 1, "d": text})
    with writing(remote):
        wait_until(lambda: client.hget(marks_key("events"), "my-shell-script") == b"1", "its mark is published")
    assert [(row["event_type"], row["payload"]) for row in csv_rows(remote, "events")] == [("from afar", {"a": 1})]


def test_an_entry_behind_a_gap_waits_for_the_gap(remote: Settings, client: redis.Redis) -> None:
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    def send(seq: int) -> None:
        record = {"record_id": new_record_id(), "timestamp": now, "event_type": f"number {seq}"}
        fields = {"v": 1, "p": "p", "o": seq, "n": 1, "d": msgspec.json.encode(record)}
        client.xadd(stream_key("events"), fields)  # type: ignore[arg-type]

    with writing(remote):
        send(1)
        send(3)
        wait_until(lambda: client.hget(marks_key("events"), "p") == b"1", "the first one is written")
        time.sleep(0.3)
        assert names(remote) == ["number 1"]
        send(2)
        send(3)
        wait_until(lambda: client.hget(marks_key("events"), "p") == b"3", "all are written")
        wait_until(lambda: client.xpending(stream_key("events"), "writer")["pending"] == 0, "none is pending")
    assert names(remote) == ["number 1", "number 2", "number 3"]


WRITER = """
import threading
from ingest.pipeline.writer import run_writers
from ingest.settings import read_settings
run_writers(read_settings(), ["events"], threading.Event(), report=lambda text: None)
"""


@pytest.mark.parametrize("failpoint", [None, "append:2", "sync:2", "commit:2", "publish:2", "acknowledge:2"])
def test_a_writer_killed_again_and_again_loses_and_doubles_nothing(
    remote: Settings, agent: TrainingDataStore, failpoint: str | None
) -> None:
    def start() -> subprocess.Popen[bytes]:
        settings = msgspec.structs.replace(remote, failpoint=failpoint)
        return subprocess.Popen([sys.executable, "-c", WRITER], env=environment(settings), cwd=PROJECT)

    kills, writer, started = 0, start(), time.monotonic()
    for n in range(3000):
        agent.sync.store_agent_event(f"event {n}")
        time.sleep(0.0008)
        if failpoint is None and time.monotonic() - started > 0.8:
            writer.kill()
        if writer.poll() is not None:
            assert writer.returncode == -signal.SIGKILL
            kills, writer, started = kills + 1, start(), time.monotonic()
    if writer.poll() is None:
        writer.kill()
    writer.wait()
    with writing(remote):
        agent.sync.flush()
    assert kills >= 2
    assert names(remote) == [f"event {n}" for n in range(3000)]
    counted = account(remote, "events")
    assert (counted.stored, counted.foreign, counted.balanced) == (3000, 0, True)


def test_without_the_mark_the_killed_writer_would_double_records(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis
) -> None:
    """The control of the test above: what protects is the mark, for Redis does give entries twice."""
    for n in range(1000):
        agent.sync.store_agent_event(f"event {n}")
    wait_until(lambda: client.xlen(stream_key("events")) >= 2, "entries are in Redis")
    first, second = StreamSource(remote, "events"), StreamSource(remote, "events")
    given = [batch.first_seq for source in (first, first, second) for batch in source.read({})[0]]
    first.close()
    second.close()
    assert len(given) > len(set(given))


def test_what_a_dead_process_left_is_shipped_by_the_next_one_on_its_host(remote: Settings) -> None:
    code = """
import os
from ingest import get_training_data_store
store = get_training_data_store()
for n in range(1000): store.sync.store_agent_event(f"event {n}")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], env=environment(remote), cwd=PROJECT, check=True)
    store = TrainingDataStore(remote)
    with writing(remote):
        store.sync.flush()
    store.sync.close()
    assert names(remote) == [f"event {n}" for n in range(1000)]


def test_the_writers_host_ships_what_dead_processes_left_in_its_own_spool(remote: Settings) -> None:
    leave_behind(remote, "left behind")
    with writing(remote):
        wait_until(lambda: account(remote, "events").stored == 1, "it is written")
    assert names(remote) == ["left behind"]


def test_trimming_keeps_what_is_unread_and_what_is_young(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis
) -> None:
    key = stream_key("events")
    now = msgspec.structs.replace(remote, synapse_retention=0)
    for n in range(60_000):
        agent.sync.store_agent_event(f"event {n}")
    wait_until(lambda: client.xlen(key) >= 120, "entries are in Redis")
    source = StreamSource(now, "events")
    source.read({})
    with open_ledger(DataPaths(remote.data_dir), "events") as ledger:
        source.acknowledge(ledger, {})
        unread = client.xlen(key)
        assert unread >= 120, "nothing is written, so nothing is trimmed"
    source.close()
    with writing(remote):
        agent.sync.flush()
        assert client.xlen(key) >= unread, "it is written, and younger than the retention"
    with writing(now):
        wait_until(lambda: int(client.xlen(key)) < 120, "it is trimmed")
    assert len(names(remote)) == 60_000


def test_subscribers_get_every_record_from_now_on_or_from_behind_an_id(
    remote: Settings, agent: TrainingDataStore
) -> None:
    async def listen() -> tuple[list[object], list[object]]:
        stream = await listening(agent)
        ids = [await agent.store_agent_event(f"event {n}", payload={"n": n}) for n in range(1200)]
        live = [await anext(stream) for _ in range(1200)]
        await stream.aclose()
        stream = agent.subscribe("events", after=ids[599])
        behind = [await anext(stream) for _ in range(600)]
        await stream.aclose()
        return [r["event_type"] for r in live], [r["event_type"] for r in behind]

    live, behind = asyncio.run(asyncio.wait_for(listen(), 30))
    assert live == [f"event {n}" for n in range(1200)]
    assert behind == [f"event {n}" for n in range(600, 1200)]


def test_an_unreachable_redis_is_named_without_its_password(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, redis_url="redis://user:secret@127.0.0.1:1/0")
    shipper = Shipper(settings, "events")
    leave_behind(settings, "x")
    with pytest.raises(SynapseUnavailable, match=r"redis://\*\*\*@127.0.0.1:1") as caught:
        shipper.step()
    assert "secret" not in str(caught.value)
    shipper.close()


@pytest.mark.parametrize(
    "url", ["redis://:pa#ss@localhost", "redis://localhost?foo=bar", "redis://:pass@localhost:port"]
)
def test_an_address_that_cannot_be_parsed_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    settings = Settings(data_dir=tmp_path, redis_url=url)
    leave_behind(settings, "x")
    shipper = Shipper(settings, "events")
    with pytest.raises(InvalidSetting, match="TDS_REDIS_URL=") as caught:
        shipper.step()
    assert "pa" not in str(caught.value).replace("password", "").replace("parse", "")
    shipper.close()


def test_entries_of_one_producer_that_redis_lost_are_resent_while_another_one_is_busy(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis
) -> None:
    agent.sync.store_agent_event("lost in redis")
    wait_until(lambda: client.xlen(stream_key("events")) == 1, "it is in Redis")
    client.xtrim(stream_key("events"), maxlen=0)
    busy = TrainingDataStore(remote)
    with writing(remote):
        deadline = time.monotonic() + 10
        while "lost in redis" not in names(remote):
            assert time.monotonic() < deadline, "resent while the other one goes on"
            busy.sync.store_agent_event("busy")
            time.sleep(0.02)
    busy.sync.close()


def test_after_a_writer_has_stopped_others_may_ship_from_its_host(remote: Settings, agent: TrainingDataStore) -> None:
    with writing(remote):
        pass
    agent.sync.store_agent_event("x")
    with writing(msgspec.structs.replace(remote, spool_dir=remote.data_dir / "another spool")):
        agent.sync.flush()
    assert names(remote) == ["x"]


def test_what_others_put_into_the_hashes_stops_nobody(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis
) -> None:
    client.hset(producers_key("events"), mapping={"x": "no json", "y": '{"offered":"many"}'})
    client.hset(marks_key("events"), mapping={"x": "no number"})
    with writing(remote):
        agent.sync.store_agent_event("good")
        agent.sync.flush()
        wait_until(lambda: account(remote, "events").accepted == 1, "the counters came through")
    assert names(remote) == ["good"]


def test_flush_ends_in_time_with_a_redis_that_hangs(
    remote: Settings, agent: TrainingDataStore, redis_server: RedisServer
) -> None:
    agent.sync.store_agent_event("x")
    agent.sync.store_agent_task("x")
    agent.sync.store_workflow_data("x")
    redis_server.pause()
    start = time.monotonic()
    with pytest.raises(FlushTimeout):
        agent.sync.flush(0.5)
    took_s = time.monotonic() - start
    redis_server.resume()
    assert took_s < 2.5


def test_a_subscriber_whose_record_is_trimmed_gets_all_that_is_left(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis
) -> None:
    key = stream_key("events")

    async def listen() -> list[object]:
        first = await agent.store_agent_event("trimmed")
        wait_until(lambda: client.xlen(key) == 1, "it is in Redis")
        client.xtrim(key, maxlen=0)
        for n in range(5):
            await agent.store_agent_event(f"event {n}")
        wait_until(lambda: client.xlen(key) >= 1, "they are in Redis")
        stream = agent.subscribe("events", after=first)
        return [(await anext(stream))["event_type"] for _ in range(5)]

    assert asyncio.run(asyncio.wait_for(listen(), 20)) == [f"event {n}" for n in range(5)]


def test_the_counters_of_producers_are_published(
    remote: Settings, agent: TrainingDataStore, client: redis.Redis
) -> None:
    with writing(remote):
        agent.sync.store_agent_event("x")
        agent.sync.flush()
        wait_until(lambda: client.hlen(producers_key("events")) == 1, "its counters are in Redis")
        wait_until(lambda: b'"accepted":1' in client.hvals(producers_key("events"))[0], "they are up to date")


def test_an_entry_read_while_another_commit_was_under_way_is_acknowledged_only_with_its_own(
    remote: Settings, client: redis.Redis
) -> None:
    def pending() -> int:
        return int(client.xpending(stream_key("events"), "writer")["pending"])

    source = StreamSource(remote, "events")
    record = msgspec.json.encode({"record_id": "r", "timestamp": "2024-05-15T08:30:00.000000Z", "event_type": "x"})
    for seq in (1, 2):
        client.xadd(stream_key("events"), {"v": 1, "p": "p", "o": seq, "n": 1, "d": record})
    client.xadd(stream_key("events"), {"hello": "stray"})
    client.xadd(stream_key("events"), {"to be": "deleted"})
    with open_ledger(DataPaths(remote.data_dir), "events") as ledger:
        source.read({})  # what is pending: nothing
        strays = source.read({})[1]
        assert len(strays) == 2
        source.acknowledge(ledger, {"p": 1})
        assert pending() == 3, "the first record alone is written"
        ledger.commit(Commit(marks={"p": 2}, rejects=strays[:1]))
        source.acknowledge(ledger, {"p": 2})
        assert pending() == 1, "one stray is not in quarantine"
        client.xtrim(stream_key("events"), maxlen=0)
    source.close()
    with writing(remote):
        wait_until(lambda: pending() == 0, "a deleted entry is let go of")
    assert account(remote, "events").foreign == 0, "and is no stray"


def test_a_subscriber_that_waits_for_its_first_entry_gets_it_whenever_it_comes(
    remote: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.pipeline.subscription._BLOCK_MS", 1)  # so that it does not listen most of the time
    key, record = stream_key("events"), msgspec.json.encode({"record_id": "r", "event_type": "x"})

    async def listen() -> None:
        for _ in range(20):
            stream = TrainingDataStore(remote).subscribe("events")
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(client.xadd, key, {"v": 1, "p": "p", "o": 1, "n": 1, "d": record})
            assert (await asyncio.wait_for(first, 2))["event_type"] == "x"
            await stream.aclose()

    asyncio.run(listen())
