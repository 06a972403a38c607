"""Runs the processes of a measurement: a function apart, a Redis, a `tds writer`; and reads how large one is."""

import multiprocessing
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.tools import NotMeasured
from ingest import Settings
from ingest.settings import child_environment

Result = TypeVar("Result")
SPAWN = multiprocessing.get_context("spawn")


class Redis(NamedTuple):
    """A running redis-server."""

    url: str
    process: "subprocess.Popen[bytes]"

    def pause(self) -> None:
        """Let it answer nobody, with its connections open."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)


def apart(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a new process, so that imports, threads and memory of one way are not another's."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def running_redis(binary: str, folder: Path) -> Iterator[Redis]:
    """A Redis on a free port, with an append-only file that it syncs each second."""
    folder = folder / "redis"
    folder.mkdir()
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(port), "redis-server answers")
        yield Redis(f"redis://127.0.0.1:{port}/0", process)
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_writer(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """`tds writer` for events. It is ready when a record was flushed."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with (settings.data_dir.parent / "writer.log").open("wb") as log:
        command = [str(Path(sys.executable).with_name("tds")), "writer", "events"]
        process = subprocess.Popen(command, env=child_environment(settings), stdout=log, stderr=log)
        try:
            yield process
        finally:
            stop(process)


def stop(process: "subprocess.Popen[bytes]", timeout_s: float = 30.0) -> None:
    """End a process by SIGTERM, and by SIGKILL if it does not listen."""
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Wait for a condition, looking each millisecond. Raises TimeoutError naming it when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what}")
        time.sleep(0.001)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def resident_mib(pid: int | str = "self") -> float:
    """Resident memory of a process, mapped files included. Raises NotMeasured without Linux's /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError as err:
        raise NotMeasured("resident memory is read from Linux's /proc") from err
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(1)
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
