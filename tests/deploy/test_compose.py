"""The services of docker-compose.yml, started without containers: their own commands, environment and health checks."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from ingest.pipeline.partitions import DataPaths
from tests.parts import PROJECT, PostgresServer, free_port, wait_until
from tests.platform.dagster_parts import last_days

COMPOSE = PROJECT / "docker-compose.yml"
SECRETS = {"REDIS_PASSWORD": "swordfish-of-redis", "POSTGRES_PASSWORD": "swordfish-of-postgres"}
OURS = ("home", "writer", "webserver", "daemon", "metrics")
DAYS = last_days(3)
AGENT = """
import asyncio, sys
from ingest import TrainingDataStore
from ingest.agents.messages import Messages

async def work():
    store = TrainingDataStore()
    for day in sys.argv[1:]:
        for n in range(20):
            await store.store_agent_event("step", "agent", payload={"n": n}, timestamp=f"{day}T10:00:00Z")
    await store.flush()
    await store.close()
    async with Messages() as messages:
        await messages.add_message("i", "user", "hello")
        print(len(await messages.get_history("i")))

asyncio.run(work())
"""


def services(values: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services, with variables filled in as Compose does: `${NAME:?hint}`, and `$$` for one dollar."""
    text = COMPOSE.read_text(encoding="utf-8")
    filled = re.sub(r"(?<!\$)\$\{(\w+):\?[^}]*\}", lambda match: values[match[1]], text).replace("$$", "$")
    found: dict[str, dict[str, Any]] = yaml.safe_load(filled)["services"]
    return found


def test_it_is_a_compose_file_by_the_published_schema() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", COMPOSE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ports_are_of_the_loopback_users_are_not_root_images_are_pinned_and_each_has_limits() -> None:
    for name, service in services(SECRETS).items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert re.search(r":v?\d+\.\d+", service["image"]), name
        assert service["mem_limit"], name
        assert service["cpus"], name
        assert service["cap_drop"] == ["ALL"], name
        if name not in {"prometheus", "grafana"}:  # these two images bring a user that is not root
            assert not service["user"].startswith("0"), name
        if name in {"redis", "postgres", "writer", "webserver", "daemon", "metrics"}:
            assert service["healthcheck"]["test"][0] == "CMD", name
    assert "swordfish" not in COMPOSE.read_text()


def test_what_the_image_copies_is_there_and_its_packages_are_the_locked_ones() -> None:
    dockerfile = (PROJECT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--)(.+) \S+$", dockerfile, re.MULTILINE) for word in line.split()]
    assert "requirements/platform.txt" in copied
    ignored = (PROJECT / ".dockerignore").read_text().split()
    for name in copied:
        assert (PROJECT / name).exists(), name
        assert f"!{Path(name).parts[0]}" in ignored, name
    pins = {path: set(re.findall(r"^(\S+==\S+)", (PROJECT / "requirements" / path).read_text(), re.MULTILINE))
            for path in ("platform.txt", "dev.txt")}  # fmt: skip
    assert len(pins["platform.txt"]) > 50
    assert pins["platform.txt"] < pins["dev.txt"]
    for of_tests in ("pytest", "pm4py", "playwright", "datasets"):
        assert not any(pin.startswith(f"{of_tests}==") for pin in pins["platform.txt"])


class Graph:
    """The services as processes of this host."""

    def __init__(self, folder: Path, postgres: PostgresServer, redis_binary: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.ports = {name: free_port() for name in ("6379", "3000", "9464")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        socket = postgres.url.partition("host=")[2]
        for name in ("redis", "data"):
            (folder / name).mkdir(mode=0o700)
        self._places = {
            "@redis:6379": f"@127.0.0.1:{self.ports['6379']}",
            "@postgres:5432/conversations": f"@/conversations?host={socket}",
            "@postgres:5432/dagster": f"@/dagster?host={socket}",
            "/tmp/redis.conf": str(folder / "redis.conf"),
            "--dir /redis ": f"--dir {folder / 'redis'} ",
        }
        self._path = ":".join([str(Path(sys.executable).parent), str(Path(redis_binary).parent), postgres.binaries])
        self._more = {"PGHOST": socket, "HOME": str(folder)}
        self.services = services(SECRETS)

    def here(self, text: str) -> str:
        """A word of a service's command or environment, with this host's places and ports."""
        text = re.sub(r"^/data(?=/|$)", str(self.data), text)
        for theirs, ours in self._places.items():
            text = text.replace(theirs, ours)
        for theirs, port in self.ports.items():
            text = re.sub(rf"(?<![\d:@]){theirs}(?!\d)|(?<=127\.0\.0\.1:){theirs}", str(port), text)
        return "127.0.0.1" if text == "0.0.0.0" else text

    def environment(self, name: str) -> dict[str, str]:
        given = {key: self.here(str(value)) for key, value in self.services[name].get("environment", {}).items()}
        return {**self._more, "PATH": f"{self._path}:{os.environ['PATH']}", **given}

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        command = [self.here(word) for word in self.services[name]["command"]]
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command, env=self.environment(name), cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.processes[name] = process
        return process

    def is_healthy(self, name: str) -> bool:
        if name in self.processes:
            assert self.processes[name].poll() is None, self.log(name).read_text()[-3000:]
        command = [self.here(word) for word in self.services[name]["healthcheck"]["test"][1:]]
        with self.log(f"health of {name}").open("ab") as log:
            done = subprocess.run(
                command, env=self.environment(name), cwd=self.folder, stdout=log, stderr=log, check=False, timeout=60
            )
        return done.returncode == 0

    def wait_for(self, name: str) -> None:
        wait_until(lambda: self.is_healthy(name), f"{name} is healthy", 120)

    def stop(self, name: str) -> int:
        self.processes[name].send_signal(signal.SIGTERM)
        return self.processes[name].wait(60)

    def end(self) -> None:
        for process in self.processes.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()


@pytest.fixture
def graph(tmp_path: Path, postgres_server: PostgresServer, redis_binary: str) -> Iterator[Graph]:
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(b"CREATE ROLE tds SUPERUSER LOGIN")
        connection.execute(b"CREATE DATABASE conversations OWNER tds")
        for statement in (PROJECT / "deploy" / "postgres" / "init.sql").read_bytes().split(b";"):
            if statement.strip():
                connection.execute(statement)
    graph = Graph(tmp_path, postgres_server, redis_binary)
    yield graph
    graph.end()


@pytest.mark.timeout(400)
def test_the_services_do_their_work_together_and_no_secret_is_to_be_seen(graph: Graph) -> None:
    graph.start("redis")
    graph.wait_for("redis")
    graph.wait_for("postgres")
    assert graph.start("home").wait(60) == 0, graph.log("home").read_text()
    for name in ("writer", "webserver", "daemon", "metrics"):
        graph.start(name)
    for name in ("writer", "webserver", "daemon", "metrics"):
        graph.wait_for(name)

    elsewhere = graph.environment("writer") | {"TDS_SPOOL_DIR": str(graph.folder / "spool of an agent")}
    agent = subprocess.run(
        [sys.executable, "-c", AGENT, *DAYS], env=elsewhere, cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert (agent.returncode, agent.stdout) == (0, "1\n"), agent.stderr

    paths = DataPaths(graph.data)
    wait_until(lambda: all(paths.shard("events", day).exists() for day in DAYS), "automation exports the days", 120)
    asked = {"assetSelection": [{"path": ["exports", "events"]}], "partitionNames": list(DAYS)}
    launch = "mutation($p: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $p) {__typename}}"
    assert query(graph, launch, p=asked)["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess"
    target = paths.range_export("events", DAYS[0], DAYS[-1])
    wait_until(target.exists, "the range of the UI is a file", 120)
    assert len(target.read_bytes().splitlines()) == 60
    assert b'tds_records_stored_total{kind="events"} 60.0' in page(graph, "9464", "metrics")

    shown = json.dumps(query(graph, "{instance {info}}")) + processes_of(graph)
    assert [graph.stop(name) for name in ("daemon", "webserver", "metrics", "writer", "redis")] == [0] * 5
    for path in [*graph.folder.rglob("*.log"), *graph.data.rglob("*")]:
        if path.is_file():
            assert b"swordfish" not in path.read_bytes(), path
    assert "swordfish" not in shown


def processes_of(graph: Graph) -> str:
    """The command lines of all processes, as `ps` shows them."""
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    text = "\n".join(lines)
    assert "dagster_webserver" in text or "dagster-webserver" in text
    return text


def page(graph: Graph, port: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{graph.ports[port]}/{path}", timeout=30) as answer:
        return bytes(answer.read())


def query(graph: Graph, text: str, **variables: object) -> Any:
    body = json.dumps({"query": text, "variables": variables}).encode()
    url = f"http://127.0.0.1:{graph.ports['3000']}/graphql"
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]
