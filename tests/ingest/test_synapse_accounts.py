"""The account through Redis adds up to the record, whatever was killed, lost or too large on the way."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import redis

from ingest import Settings
from tests.parts import PROJECT, RedisServer, environment, wait_until

AGENT = """
import os, sys
from ingest import get_training_data_store
store = get_training_data_store()
for n in range(400):
    store.sync.store_agent_event("e", payload={"n": n, "odd": object() if n % 10 == 0 else None},
                                 idempotency_key=f"{sys.argv[1]}-{n % 300}")
    store.sync.store_agent_task(f"task {n}", input_data="x" * (5000 if n % 4 == 0 else 10))
if sys.argv[2] == "killed": os._exit(9)
store.sync.close()
"""
Incident = Callable[[RedisServer, redis.Redis], None]


def nothing(_server: RedisServer, _client: redis.Redis) -> None:
    """All is well."""


def flush(_server: RedisServer, client: redis.Redis) -> None:
    client.flushall()


def restart(server: RedisServer, _client: redis.Redis) -> None:
    server.kill()
    server.start()


def restart_without_data(server: RedisServer, _client: redis.Redis) -> None:
    server.kill()
    server.start(keep_data=False)


@pytest.fixture
def remote(redis_server: RedisServer, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", redis_url=redis_server.url, max_record_bytes=2000)


def kind_of_status(settings: Settings, kind: str) -> dict[str, object]:
    command = [str(Path(sys.executable).with_name("tds")), "status", "--json"]
    done = subprocess.run(command, env=environment(settings), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    return dict(json.loads(done.stdout)["kinds"][kind])


@pytest.mark.parametrize(
    ("incident", "failpoint"),
    [
        (nothing, "append"),
        (restart, "sync"),
        (flush, "commit"),
        (restart_without_data, "publish"),
        (flush, "acknowledge"),
    ],
)
def test_after_an_incident_every_call_is_in_the_account_of_its_kind(
    remote: Settings, redis_server: RedisServer, incident: Incident, failpoint: str
) -> None:
    def start_writer(failpoint: str | None) -> subprocess.Popen[bytes]:
        settings = msgspec.structs.replace(remote, failpoint=failpoint)
        command = [str(Path(sys.executable).with_name("tds")), "writer", "events", "tasks"]
        return subprocess.Popen(command, env=environment(settings), stderr=subprocess.DEVNULL)

    def run_agent(name: str, end: str) -> None:
        subprocess.run(
            [sys.executable, "-c", AGENT, name, end], env=environment(remote), cwd=PROJECT, check=False, timeout=60
        )

    run_agent("one", "killed")
    writer = start_writer(failpoint)
    try:
        assert writer.wait(30) == -signal.SIGKILL
    finally:
        writer.kill()
    with redis.Redis.from_url(remote.redis_url or "") as client:
        incident(redis_server, client)
    writer = start_writer(None)
    try:
        run_agent("two", "closed")
        wait_until(lambda: kind_of_status(remote, "events")["waiting"] == 0, "events are written")
        wait_until(lambda: kind_of_status(remote, "tasks")["waiting"] == 0, "tasks are written")
        events, tasks = kind_of_status(remote, "events"), kind_of_status(remote, "tasks")
    finally:
        writer.terminate()
        writer.wait(30)
    names = ("offered", "accepted", "dropped", "waiting", "stored", "pending", "duplicates", "quarantined", "coerced")
    assert [events[name] for name in names] == [800, 800, 0, 0, 800, 600, 200, 0, 80]
    assert [tasks[name] for name in names] == [800, 600, 200, 0, 600, 600, 0, 0, 0]
    assert events["lag_s"] is tasks["lag_s"] is None
