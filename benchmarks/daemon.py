"""Measures the memory of the platform at work: `tds up` for half an hour, its sensors at short intervals.

    python -m benchmarks.daemon [--minutes 30] [--write]

A copy of the packages, in which every sensor ticks each two seconds and the present day is reported each minute, runs
over a month of made-up events, to which new ones come all the time. Resident memory of each process is read every ten
seconds. Flat is what does not grow between the second and the last fifth of the time: in the first one caches fill.
"""

import argparse
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import describe_machine
from benchmarks.processes import free_port, resident_mib, wait_until
from benchmarks.tools import working_folder
from ingest import Settings, TrainingDataStore
from ingest.settings import child_environment

PAGE = Path(__file__).with_name("RESULTS-daemon.md")
EVERY_S, PRESENT_EVERY_S, SAMPLE_S = 2, 60, 10
DAYS, SESSIONS = 30, 8
_INTERVALS = re.compile(r"^(EVERY_S|TODAY_EVERY_S) = \d+", re.MULTILINE)
_NAMES = {"main() writer": "writer", "dagster_webserver": "webserver", "dagster._daemon": "daemon"}


class Growth(NamedTuple):
    """Resident memory of one process, in MiB."""

    name: str
    first: float  # median of the second fifth of the time
    last: float  # median of the last fifth
    most: float


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--write", action="store_true", help=f"keep the page, {PAGE.name}")
    asked = parser.parse_args()
    with working_folder() as folder:
        page = _measure(Path(folder), asked.minutes)
    print(page)
    if asked.write:
        PAGE.write_text(page + "\n", encoding="utf-8")


def _measure(folder: Path, minutes: float) -> str:
    _copy_packages(folder)
    settings = Settings(data_dir=folder / "data", redaction_key="of a benchmark only")
    store = TrainingDataStore(settings)
    for day in range(DAYS, 0, -1):
        _store_sessions(store, datetime.now(UTC) - timedelta(days=day), day)
    store.sync.flush()
    samples: dict[str, list[float]] = {}
    environment = {**child_environment(settings), "PYTHONPATH": str(folder), "DAGSTER_HOME": ""}
    command = [sys.executable, "-c", "from tds_dagster.cli import main; main()", "up", "--port", str(free_port())]
    with (
        (folder / "told").open("wb") as told,
        subprocess.Popen(command, env=environment, cwd=folder, stdout=told) as up,
    ):
        try:
            wait_until(lambda: len(_children(up.pid)) == 3, "three processes", 90)
            end, number = time.monotonic() + minutes * 60, 1000
            while time.monotonic() < end:
                number += 1
                _store_sessions(store, datetime.now(UTC), number)
                for name, pid in _children(up.pid).items():
                    samples.setdefault(name, []).append(resident_mib(pid))
                time.sleep(SAMPLE_S)
        finally:
            up.terminate()
            up.wait(60)
    store.sync.close()
    return _page(minutes, [_growth(name, values) for name, values in samples.items()], _counts(settings))


def _copy_packages(folder: Path) -> None:
    root = Path(__file__).parent.parent
    for package in ("ingest", "tds_dagster"):
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "tds_dagster" / "automation").glob("*.py"):
        text = path.read_text()
        path.write_text(_INTERVALS.sub(lambda found: f"{found[1]} = {_interval(found[1])}", text))


def _interval(name: str) -> int:
    return PRESENT_EVERY_S if name == "TODAY_EVERY_S" else EVERY_S


def _store_sessions(store: TrainingDataStore, moment: datetime, number: int) -> None:
    for session in range(SESSIONS):
        seen = {"session_id": f"s{number}-{session}", "agent_id": "agent-1", "timestamp": moment}
        for event_type in ("asked", f"looked_up_{session % 3}", "answered"):
            store.sync.store_agent_event(event_type, payload={"n": number, "s": session}, **seen)  # type: ignore[arg-type]


def _processes() -> Sequence[tuple[int, int, str]]:
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [(int(pid), int(parent), args[0]) for pid, parent, *args in rows if args]


def _children(parent: int) -> dict[str, int]:
    """The processes under `tds up`, and the code server of the daemon, in which sensors tick."""
    rows = _processes()
    found = {
        name: pid for pid, above, command in rows if above == parent for part, name in _NAMES.items() if part in command
    }
    for pid, above, command in rows:
        if above == found.get("daemon") and "api grpc" in command:
            found["code server of the daemon"] = pid
    return found


def _growth(name: str, values: Sequence[float]) -> Growth:
    fifth = max(1, len(values) // 5)
    return Growth(
        name, statistics.median(values[fifth : 2 * fifth] or values), statistics.median(values[-fifth:]), max(values)
    )


def _counts(settings: Settings) -> dict[str, int]:
    """What Dagster has in its tables at the end."""
    home, found = settings.data_dir / "dagster", {}
    for path, table, name in [
        ("history/runs.db", "runs", "runs"), ("history/runs/index.db", "event_logs", "events in the index"),
        ("schedules/schedules.db", "job_ticks", "ticks kept"),
    ]:  # fmt: skip
        with sqlite3.connect(home / path) as connection:
            found[name] = int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    models = settings.data_dir / "models"
    found["trainings"] = len({path.parent for path in models.glob("*/*/manifest.json") if not path.parent.is_symlink()})
    return found


def _page(minutes: float, grown: Sequence[Growth], counts: dict[str, int]) -> str:
    lines = [
        "# Memory of the platform at work",
        "",
        (
            f"Written by `python -m benchmarks.daemon --minutes {minutes:g} --write` on {datetime.now(UTC).date()}: "
            f"`tds up`, each sensor every {EVERY_S} s and the present day reported every {PRESENT_EVERY_S} s, over "
            f"{DAYS} days of events to which {SESSIONS} sessions come every {SAMPLE_S} s."
        ),
        "",
        *(f"- {line}" for line in describe_machine()),
        "",
        "| process | MiB, second fifth of the time | last fifth | grown by | most |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(f"| {row.name} | {row.first:.0f} | {row.last:.0f} | {row.last - row.first:+.0f} | {row.most:.0f} |"
          for row in grown),
        "",
        f"At the end: {', '.join(f'{number:,} {name}' for name, number in counts.items())}.",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
