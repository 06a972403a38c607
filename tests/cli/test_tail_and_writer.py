"""The commands that run until they are stopped: what they print, how they stop, and what they leave."""

import json
import signal
import subprocess
from collections.abc import Callable

import msgspec
import pytest

from ingest import Settings, TrainingDataStore
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS
from tests.parts import RedisServer, csv_rows, wait_until

StartTds = Callable[..., subprocess.Popen[str]]


def read_lines(process: subprocess.Popen[str], n: int) -> list[dict[str, object]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(n)]


def test_tail_prints_a_line_a_record_behind_an_id_and_goes_on_live(
    settings: Settings, store: TrainingDataStore, start_tds: StartTds
) -> None:
    ids = [store.sync.store_agent_event("e", payload={"n": n}) for n in range(4)]
    store.sync.flush()
    tail = start_tds("tail", "events", "--after", ids[1])
    assert [line["record_id"] for line in read_lines(tail, 2)] == ids[2:]
    later = store.sync.store_agent_event("e", payload={"n": 9})
    store.sync.flush()
    (line,) = read_lines(tail, 1)
    assert (line["record_id"], line["payload"]) == (later, {"n": 9})
    tail.send_signal(signal.SIGINT)
    out, err = tail.communicate(timeout=20)
    assert (tail.returncode, out) == (0, "")
    assert err == f"waiting for events in {settings.data_dir}; Ctrl-C ends it\n"


def test_tail_ends_quietly_when_its_reader_has_seen_enough(store: TrainingDataStore, start_tds: StartTds) -> None:
    first = store.sync.store_agent_event("e")
    for _ in range(3):
        store.sync.store_agent_event("e")
    store.sync.flush()
    tail = start_tds("tail", "events", "--after", first)
    read_lines(tail, 3)
    assert tail.stdout is not None
    tail.stdout.close()
    store.sync.store_agent_event("e")
    store.sync.flush()
    assert tail.wait(20) == 0
    assert tail.stderr is not None
    assert len(tail.stderr.read().splitlines()) == 1, "that it waits, and nothing else"


def test_tail_follows_synapse(settings: Settings, redis_server: RedisServer, start_tds: StartTds) -> None:
    through_redis = msgspec.structs.replace(settings, redis_url=redis_server.url)
    start_tds("writer", settings=through_redis)
    store = TrainingDataStore(through_redis)
    first = store.sync.store_agent_event("e", payload=0)
    store.sync.flush()
    tail = start_tds("tail", "events", "--after", first, settings=through_redis)
    second = store.sync.store_agent_event("e", payload=1)
    assert [line["record_id"] for line in read_lines(tail, 1)] == [second]
    store.sync.close()


def is_written(settings: Settings, kind: str) -> bool:
    return FileLock.is_taken(DataPaths(settings.data_dir).lock(kind))


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_writer_writes_until_a_signal_and_ends_with_0(
    stop: signal.Signals, settings: Settings, redis_server: RedisServer, start_tds: StartTds
) -> None:
    through_redis = msgspec.structs.replace(settings, redis_url=redis_server.url)
    writer = start_tds("writer", settings=through_redis)
    store = TrainingDataStore(through_redis)
    for n in range(20):
        store.sync.store_agent_event("e", payload=n)
    store.sync.flush()
    assert len(csv_rows(settings, "events")) == 20
    assert all(is_written(settings, kind) for kind in KINDS)
    writer.send_signal(stop)
    out, err = writer.communicate(timeout=20)
    assert (writer.returncode, out) == (0, "")
    assert err.splitlines()[-1] == "stopped"
    assert redis_server.url in err
    assert not any(is_written(settings, kind) for kind in KINDS)
    store.sync.close()


def test_a_second_writer_stands_by_says_so_and_takes_over(settings: Settings, start_tds: StartTds) -> None:
    first = start_tds("writer", "tasks")
    wait_until(lambda: is_written(settings, "tasks"), "the first writer is at work")
    second = start_tds("writer", "tasks")
    assert second.stderr is not None
    second.stderr.readline()
    assert second.stderr.readline() == "tasks: another process writes this kind; standing by to take over\n"
    first.kill()
    assert second.stderr.readline() == "tasks: taking over\n"
    wait_until(lambda: is_written(settings, "tasks"), "the second writer is at work")


def test_a_second_writer_that_must_not_wait_exits_with_1(settings: Settings, start_tds: StartTds) -> None:
    start_tds("writer", "tasks")
    wait_until(lambda: is_written(settings, "tasks"), "the first writer is at work")
    second = start_tds("writer", "--no-wait", "tasks")
    _, err = second.communicate(timeout=20)
    assert second.returncode == 1
    assert err.splitlines()[-1].startswith("Error: tasks: another process writes this kind")


def test_a_writer_of_one_kind_leaves_the_others_alone(settings: Settings, start_tds: StartTds) -> None:
    start_tds("writer", "tasks", "tasks")
    wait_until(lambda: is_written(settings, "tasks"), "the writer is at work")
    assert not is_written(settings, "events")


def test_a_writer_that_cannot_write_the_data_folder_says_so_and_exits_with_1(
    settings: Settings, start_tds: StartTds
) -> None:
    settings.data_dir.write_text("in the way")
    writer = start_tds("writer")
    out, err = writer.communicate(timeout=20)
    assert writer.returncode == 1
    assert "\nError: " in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("through_redis", [False, True])
def test_tail_in_a_group_goes_on_where_the_group_stands_and_status_shows_how_far_it_is(
    settings: Settings, redis_server: RedisServer, start_tds: StartTds, through_redis: bool
) -> None:
    if through_redis:
        settings = msgspec.structs.replace(settings, redis_url=redis_server.url)
        start_tds("writer", "events", settings=settings)
        wait_until(lambda: is_written(settings, "events"), "the writer is at work")
    store = TrainingDataStore(settings)

    def groups() -> dict[str, dict[str, object]]:
        out, _ = start_tds("status", "--json", settings=settings).communicate(timeout=20)
        return dict(json.loads(out)["kinds"]["events"]["groups"])

    tail = start_tds("tail", "events", "--group", "trainer", settings=settings)
    wait_until(lambda: "trainer" in groups(), "the group is made")
    for n in range(3):
        store.sync.store_agent_event("e", payload=n)
        store.sync.flush()
    first = [line["payload"] for line in read_lines(tail, 3)]
    tail.send_signal(signal.SIGINT)
    assert tail.wait(20) == 0
    assert first == [0, 1, 2]
    for n in range(3, 6):
        store.sync.store_agent_event("e", payload=n)
        store.sync.flush()
    behind = groups()["trainer"]
    assert isinstance(behind["behind_s"], float)
    assert 0 < behind["behind_s"] < 60
    tail = start_tds("tail", "events", "--group", "trainer", settings=settings)
    assert [line["payload"] for line in read_lines(tail, 3)][-1] in {4, 5}, "at most the one in hand comes again"
    tail.send_signal(signal.SIGINT)
    tail.communicate(timeout=20)
    forget = start_tds("tail", "events", "--group", "trainer", "--forget", settings=settings)
    assert forget.communicate(timeout=20)[0] == "events: group trainer is forgotten\n"
    again = start_tds("tail", "events", "--group", "trainer", "--forget", settings=settings)
    assert again.communicate(timeout=20)[0] == "events: there is no group trainer\n"
    assert groups() == {}
    store.sync.close()


def test_forgetting_without_a_group_and_a_name_that_is_taken_are_told(start_tds: StartTds) -> None:
    forget = start_tds("tail", "events", "--forget")
    assert "--group NAME" in forget.communicate(timeout=20)[1]
    assert forget.returncode == 2
    tail = start_tds("tail", "events", "--group", "writer")
    assert "choose a name" in tail.communicate(timeout=20)[1]
    assert tail.returncode in {1, 2}


def test_status_tells_how_long_records_wait_in_synapse_and_what_it_cannot_see(
    settings: Settings, redis_server: RedisServer, start_tds: StartTds
) -> None:
    through_redis = msgspec.structs.replace(settings, redis_url=redis_server.url, spool_dir=settings.data_dir / "here")
    elsewhere = TrainingDataStore(msgspec.structs.replace(through_redis, spool_dir=settings.data_dir / "other host"))
    elsewhere.sync.store_agent_event("e")

    def events() -> dict[str, object]:
        out, _ = start_tds("status", "--json", settings=through_redis).communicate(timeout=20)
        return dict(json.loads(out)["kinds"]["events"])

    wait_until(lambda: events()["lag_s"] is not None, "it waits in Synapse, of a spool that is not here")
    assert events()["groups"] == {}
    elsewhere.sync.close()
    redis_server.kill()
    assert events()["groups"] is None
    out, _ = start_tds("status", settings=through_redis).communicate(timeout=20)
    assert "does not answer" in out
