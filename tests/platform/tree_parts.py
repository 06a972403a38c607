"""A whole platform as `tds up` runs it, in processes of its own, and what its UI's API answers."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from ingest import Settings
from ingest.settings import child_environment
from tests.parts import free_port, wait_until


class Platform:
    """`tds up` over a data folder, from its start to the end of its last process."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.port = settings, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.home = settings.data_dir / "dagster"
        self._told = settings.data_dir / "up.out"

    def start(self) -> None:
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        own = child_environment(self.settings)
        with self._told.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from tds_dagster.cli import main; main()", "up", "--port", str(self.port)],
                env={name: value for name, value in own.items() if not name.startswith("DAGSTER_")},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: "lineage" in self.told() or self.process.poll() is not None, "the UI answers", 90)
        assert self.process.poll() is None, self.told()

    def told(self) -> str:
        return self._told.read_text()

    def children(self) -> dict[str, int]:
        """The pids of the processes under `tds up` by name; a child leads a process group."""
        found: dict[str, int] = {}
        for pid, parent, _, command in processes():
            if parent == self.process.pid:
                names = {
                    "main() writer": "writer", "main() metrics": "metrics", "dagster_webserver": "webserver",
                    "dagster._daemon": "daemon",
                }  # fmt: skip
                found |= {name: pid for part, name in names.items() if part in command}
        return found

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Signal `tds up` as a person does; gives its exit code and how long it took, in seconds."""
        begin = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(30), time.monotonic() - begin

    def query(self, text: str, **variables: object) -> Any:
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = json.load(answer)
        assert "errors" not in content, content["errors"]
        return content["data"]


def processes() -> list[tuple[int, int, int, str]]:
    """(pid, parent, process group, command) of everything that runs."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,pgid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=3) for line in listed.stdout.splitlines()]
    return [(int(pid), int(parent), int(group), args[0]) for pid, parent, group, *args in rows if args]


def alive_in(groups: set[int]) -> list[str]:
    """What is left of process groups."""
    return [
        f"{pid} {command}" for pid, _, group, command in processes() if group in groups and "<defunct>" not in command
    ]


def log_of(platform: Platform, name: str) -> Path:
    return platform.home / "processes" / f"{name}.log"
