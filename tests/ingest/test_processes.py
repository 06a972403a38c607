"""Processes that die, fork, exit and compete: what was accepted is written once, by whoever is there."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
import redis

from ingest import FlushTimeout, Settings, TrainingDataStore
from ingest.errors import InvalidSetting, WriterBusy
from ingest.pipeline.accounting import account
from ingest.pipeline.failpoints import Failpoint
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.writer import KindWriter, drain, run_writers
from tests.parts import PROJECT, RedisServer, csv_rows, environment, run_python, wait_until

STORE_1000 = """
import os, signal, sys
from ingest import get_training_data_store
store = get_training_data_store()
accepted = [store.sync.store_agent_event(f"{sys.argv[1]} {n}") for n in range(1000)]
assert None not in accepted
"""


def names(settings: Settings) -> list[object]:
    return [row["event_type"] for row in csv_rows(settings, "events")]


@pytest.mark.parametrize(
    "end",
    [
        "",
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "raise SystemExit(3)",
        "raise RuntimeError('the agent broke')",
        "store.sync.close()",
    ],
)
def test_however_a_process_ends_nothing_that_it_accepted_is_lost_or_doubled(settings: Settings, end: str) -> None:
    run_python(STORE_1000 + end, settings, "event")
    drain(settings, ["events"])
    assert names(settings) == [f"event {n}" for n in range(1000)]
    counted = account(settings, "events")
    assert (counted.accepted, counted.waiting, counted.balanced) == (1000, 0, True)
    assert list((settings.spool / "events").iterdir()) == [], "the spool of a dead process is cleared away"


def test_a_process_that_exits_in_peace_has_written_its_records_itself(settings: Settings) -> None:
    run_python(STORE_1000, settings, "event")
    assert len(names(settings)) == 1000


@pytest.mark.parametrize("step", ["intent:2", "append:2", "sync:2", "commit:2"])
def test_killed_at_any_step_of_writing_each_record_is_written_once(settings: Settings, step: str) -> None:
    code = """
import sys, time
from ingest import get_training_data_store
store = get_training_data_store()
for n in range(int(sys.argv[1]), 10_000_000):
    store.sync.store_agent_event(f"event {n}")
    print(n, flush=True)
    time.sleep(0.001)
"""
    stored = 0
    for _ in range(3):
        dead = run_python(code, msgspec.structs.replace(settings, failpoint=step), str(stored))
        assert dead.returncode == -signal.SIGKILL, dead.stderr
        stored = int(dead.stdout.split()[-1]) + 1
    drain(settings, ["events"])
    found = [str(name) for name in names(settings)]
    # A record whose call was under way when the process died may be there too, once.
    assert [name for name in found if int(name.split()[1]) < stored] == [f"event {n}" for n in range(stored)]
    assert account(settings, "events").balanced
    assert account(settings, "events").foreign == 0


def test_a_forked_child_has_producers_of_its_own_and_the_parent_goes_on(settings: Settings) -> None:
    code = """
import os
from ingest import get_training_data_store
store = get_training_data_store()
for n in range(100): store.sync.store_agent_event(f"before {n}")
children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        for n in range(100): assert store.sync.store_agent_event(f"child {child} {n}")
        os._exit(0)
    children.append(pid)
for n in range(100): store.sync.store_agent_event(f"after {n}")
for pid in children: assert os.waitpid(pid, 0)[1] == 0
store.sync.flush()
store.sync.close()
"""
    done = run_python(code, settings)
    assert done.returncode == 0, done.stderr
    expected = [f"{who} {n}" for who in ("before", "after", "child 0", "child 1", "child 2") for n in range(100)]
    assert sorted(names(settings), key=str) == sorted(expected)
    assert account(settings, "events").balanced


def test_a_store_of_which_only_the_blocking_twin_is_kept_survives_a_fork_too(settings: Settings) -> None:
    code = """
import gc, os
from ingest import TrainingDataStore
calls = TrainingDataStore().sync
gc.collect()
for n in range(50): calls.store_agent_event(f"before {n}")
pid = os.fork()
for n in range(50): calls.store_agent_event(f"{'child' if pid == 0 else 'after'} {n}")
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
"""
    assert run_python(code, settings).returncode == 0
    drain(settings, ["events"])
    assert sorted(names(settings), key=str) == sorted(
        f"{who} {n}" for who in ("before", "after", "child") for n in range(50)
    )


@pytest.mark.parametrize("damage", ["counters", "segment", "stray file", "header"])
def test_damage_that_one_kind_meets_stops_no_other_kind_and_no_later_record(settings: Settings, damage: str) -> None:
    run_python(STORE_1000 + "os._exit(0)", settings, "event")
    (producer,) = (settings.spool / "events").iterdir()
    if damage == "counters":
        (producer / "counters").write_bytes(b"")
    elif damage == "segment":
        (producer / "00000000000000009999.seg").write_bytes(b"")
    elif damage == "stray file":
        (settings.spool / "events" / "notes.txt").write_text("mine")
    else:
        folder = DataPaths(settings.data_dir).training("events", "").parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "events_2025-01-01.csv").write_text('"event_id"x,y\n"1\n')
    store = TrainingDataStore(settings)
    store.sync.store_agent_event("later")
    store.sync.store_agent_task("task")
    store.sync.flush()
    assert "later" in names(settings)
    assert len(csv_rows(settings, "tasks")) == 1
    assert names(settings).count("event 999") == 1
    store.sync.close()


def test_draining_ends_while_an_agent_goes_on_storing(settings: Settings) -> None:
    code = """
import time
from ingest.pipeline.spool import Spool
from ingest.settings import read_settings
from ingest.records import new_record_id, now_text
import msgspec
spool = Spool(read_settings(), "events")
print("ready", flush=True)
while True:
    spool.append(msgspec.json.encode({"record_id": new_record_id(), "timestamp": now_text(), "event_type": "x"}))
"""
    agent = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(settings), cwd=PROJECT, stdout=subprocess.PIPE
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        start = time.monotonic()
        drain(settings, ["events"])
        assert time.monotonic() - start < 20
    finally:
        agent.kill()
        agent.communicate()


def test_a_forked_child_that_lives_on_does_not_keep_the_writers_lock_of_a_dead_parent(settings: Settings) -> None:
    code = """
import os, sys, time
from ingest import get_training_data_store
store = get_training_data_store()
store.sync.store_agent_event("parent")
store.sync.flush()
if os.fork() == 0:
    time.sleep(30)
    os._exit(0)
print("ready", flush=True)
os._exit(0)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(settings),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.wait(10)
        wait_until(lambda: not FileLock.is_taken(DataPaths(settings.data_dir).lock("events")), "the lock is free")
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def test_processes_that_store_at_once_are_all_written(settings: Settings) -> None:
    agents = [
        subprocess.Popen([sys.executable, "-c", STORE_1000, f"agent {n}"], env=environment(settings), cwd=PROJECT)
        for n in range(4)
    ]
    for agent in agents:
        assert agent.wait(60) == 0
    drain(settings, ["events"])
    assert sorted(names(settings), key=str) == sorted(f"agent {a} {n}" for a in range(4) for n in range(1000))
    assert account(settings, "events").balanced


def test_flush_also_waits_for_what_dead_processes_left(settings: Settings) -> None:
    run_python(STORE_1000 + "os._exit(0)", msgspec.structs.replace(settings, spool_sync="off"), "event")
    store = TrainingDataStore(settings)
    store.sync.flush()
    assert len(names(settings)) == 1000
    store.sync.close()


def test_flush_says_so_when_nobody_can_write(settings: Settings) -> None:
    other = FileLock(DataPaths(settings.data_dir).lock("events"))
    assert other.acquire()
    store = TrainingDataStore(settings)
    store.sync.store_agent_event("x")
    with pytest.raises(FlushTimeout, match=r"events of 1 processes are not written after 0\.2 s"):
        store.sync.flush(0.2)
    assert account(settings, "events").waiting == 1
    other.release()
    store.sync.flush()
    assert names(settings) == ["x"]
    store.sync.close()


def test_a_second_writer_stands_by_says_so_and_takes_over(settings: Settings) -> None:
    first = KindWriter(settings, "events")
    assert first.lock.acquire()
    said: list[str] = []
    stop = threading.Event()
    second = threading.Thread(target=run_writers, args=(settings, ["events"], stop), kwargs={"report": said.append})
    second.start()
    wait_until(lambda: bool(said), "it says that it stands by")
    assert "standing by" in said[0]
    with pytest.raises(WriterBusy, match="events: another process writes this kind"):
        run_writers(settings, ["events"], threading.Event(), wait=False)
    store = TrainingDataStore(settings)
    store.sync.store_agent_event("x")
    first.close()
    store.sync.flush()
    assert names(settings) == ["x"]
    store.sync.close()
    stop.set()
    second.join(10)
    assert not second.is_alive()


def test_a_killed_writer_is_taken_over_by_the_agents_own_process(settings: Settings) -> None:
    code = """
import sys, threading
from ingest.pipeline.writer import run_writers
from ingest.settings import read_settings
run_writers(read_settings(), ["events"], threading.Event(), report=lambda text: None)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], env=environment(settings), cwd=PROJECT)
    try:
        wait_until(lambda: account(settings, "events").writer_alive, "the writer is up")
        store = TrainingDataStore(settings)
        store.sync.store_agent_event("while it lived")
        store.sync.flush()
    finally:
        writer.kill()
        writer.wait()
    store.sync.store_agent_event("after its death")
    store.sync.flush()
    assert names(settings) == ["while it lived", "after its death"]
    store.sync.close()


def test_a_writer_that_fails_says_so_and_goes_on_when_the_cause_is_gone(settings: Settings) -> None:
    store = TrainingDataStore(settings)
    store.sync.store_agent_event("a", timestamp="2026-01-02T00:00:00Z")
    store.sync.flush()
    store.sync.close()
    day_file = DataPaths(settings.data_dir).training("events", "2026-01-02")
    content = day_file.read_bytes()
    day_file.write_bytes(content[:-5])
    said: list[str] = []
    stop = threading.Event()
    writer = threading.Thread(target=run_writers, args=(settings, ["events"], stop), kwargs={"report": said.append})
    writer.start()
    wait_until(lambda: account(settings, "events").writer_alive, "the writer is up")
    store.sync.store_agent_event("b", timestamp="2026-01-02T00:00:00Z")
    wait_until(lambda: any("DamagedFile" in text for text in said), "the writer says what is wrong")
    with pytest.raises(FlushTimeout):
        store.sync.flush(0.3)
    day_file.write_bytes(content)
    store.sync.flush()
    stop.set()
    writer.join()
    assert names(settings) == ["a", "b"]
    assert any("working again" in text for text in said)
    store.sync.close()


def test_a_writer_whose_folder_is_gone_for_a_moment_loses_nothing(settings: Settings, tmp_path: Path) -> None:
    store = TrainingDataStore(msgspec.structs.replace(settings, spool_dir=tmp_path / "spool"))
    settings.data_dir.write_text("in the way")
    store.sync.store_agent_event("x")
    time.sleep(0.2)
    settings.data_dir.unlink()
    store.sync.flush()
    assert names(settings) == ["x"]
    store.sync.close()


def test_an_unknown_failpoint_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="TDS_FAILPOINT='lunch': expected one of intent, append"):
        Failpoint("lunch")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are read from Linux's /proc")
def test_no_forked_child_inherits_an_open_ledger(store: TrainingDataStore) -> None:
    stop = threading.Event()

    def go_on_storing_and_flushing() -> None:
        while not stop.is_set():
            store.sync.store_agent_event("x")
            store.sync.flush()

    threads = [threading.Thread(target=go_on_storing_and_flushing) for _ in range(3)]
    for thread in threads:
        thread.start()
    inherited = []
    for _ in range(20):
        time.sleep(0.01)
        child = os.fork()
        if child == 0:
            links = []
            for link in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):  # the folder's own is gone
                    links.append(link.readlink().name)
            os._exit(any(".sqlite" in name for name in links))
        inherited.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    assert inherited == [0] * 20
    store.sync.store_agent_event("last")
    store.sync.flush()


OUTLIVE = """
import os, signal, sys, time
from ingest import get_training_data_store
store = get_training_data_store().sync
store.store_agent_event("parent")
store.flush()
if os.fork():
    os.kill(os.getpid(), signal.SIGKILL)
for half in range(2):
    for n in range(50):
        store.store_agent_event(f"child {half}")
    store.flush(20)
    print("written", flush=True)
    sys.stdin.readline()
os._exit(0)
"""


def test_a_child_that_writes_on_after_its_parent_loses_nothing_while_others_look_at_the_ledger(
    settings: Settings,
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", OUTLIVE],
        env=environment(settings), cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        for half in (1, 2):
            assert child.stdout.readline() == "written\n"
            counted = account(settings, "events")  # opens the ledger, and closes it as the last one that it sees
            assert counted.rows == 1 + 50 * half
            child.stdin.write("\n")
            child.stdin.flush()
    assert len(csv_rows(settings, "events")) == 101


def test_a_fork_does_not_wait_for_a_redis_that_does_not_answer(settings: Settings, redis_server: RedisServer) -> None:
    store = TrainingDataStore(msgspec.structs.replace(settings, redis_url=redis_server.url)).sync
    store.store_agent_event("first")
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: bool(client.exists("tds:{events}")), "it is shipped")
    redis_server.pause()
    try:
        store.store_agent_event("second")
        time.sleep(0.2)  # the shipper waits for an answer now
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(0)
        took_s = time.monotonic() - began
        os.waitpid(child, 0)
        assert took_s < 2, "an answer is waited for 3 s"
    finally:
        redis_server.resume()
        store.close()
