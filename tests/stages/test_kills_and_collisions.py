"""Killed at any step, or run twice at once: no manifest ever stands beside an artifact that it does not describe."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.pipeline.ledger import Reject
from tds_dagster.export import export_range
from tests.stages.conftest import DAY, RawStore

# Exports in a forked child that dies at the n-th change of a name on disk, for n = 1, 2, ... until one gets through.
DIE_AT_EVERY_STEP = """
import os, shutil, sys
from pathlib import Path
import duckdb, orjson, pyarrow
from ingest.pipeline.partitions import DataPaths
from tds_dagster.export import export_range

before, work, day = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
for step in range(1, 1000):
    shutil.copytree(before, work / str(step), copy_function=shutil.copy2)
    child = os.fork()
    if not child:
        left = step
        def die(event, arguments):
            global left
            if event in {"os.rename", "os.remove", "os.link"}:
                left -= 1
                if not left:
                    os._exit(9)
        sys.addaudithook(die)
        export_range(DataPaths(work / str(step)), "events", day, day)
        os._exit(0)
    if not os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        break
"""


def contradictions(root: Path) -> list[str]:
    """Manifests whose artifact is absent or another one."""
    found = []
    for manifest in root.rglob("*.manifest.json"):
        said = json.loads(manifest.read_text())
        artifact = manifest.with_name(said["path"])
        if not artifact.exists() or hashlib.sha256(artifact.read_bytes()).hexdigest() != said["sha256"]:
            found.append(str(manifest))
    return found


def leftovers(root: Path) -> list[Path]:
    return [*root.rglob("*.tmp"), *root.rglob("*.link"), *root.glob("state/scratch/*")]


def artifacts(root: Path) -> dict[str, bytes]:
    folders = ("curated", "exports", "quarantine", "training")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and not path.name.endswith(".manifest.json")
    }


@pytest.mark.timeout(300)
def test_killed_at_any_step_the_export_can_run_again(raw_store: RawStore, tmp_path: Path) -> None:
    raw_store.store("events", raw_store.record("events"))
    export_range(raw_store.paths, "events", DAY, DAY)
    reject = Reject(DAY, "no JSON", "producer p seq 1", b"{")
    rows = [raw_store.row("events", raw_store.record("events")), b"\n"]
    raw_store.commit("events", rows, rejects=[reject], quarantined=1)
    before, work = raw_store.paths.root, tmp_path / "work"

    command = [sys.executable, "-c", DIE_AT_EVERY_STEP, str(before), str(work), DAY]
    subprocess.run(command, check=True, timeout=280, cwd=Path(__file__).parents[2])

    steps = sorted(work.iterdir(), key=lambda path: int(path.name))
    assert len(steps) > 15
    export_range(raw_store.paths, "events", DAY, DAY)
    expected = artifacts(before)
    for step in steps:
        assert contradictions(step) == [], f"killed at step {step.name}"
        there = RawStore(step)
        export = export_range(there.paths, "events", DAY, DAY)
        assert artifacts(step) == expected, f"killed at step {step.name}"
        assert export.rows == 2
        # The next build of any day removes what the killed one left.
        there.store("events", there.record("events"))
        export_range(there.paths, "events", DAY, DAY)
        assert leftovers(step) == [], f"killed at step {step.name}"


def test_two_processes_that_export_at_once_give_the_same_file(raw_store: RawStore) -> None:
    days = [f"2024-05-{number:02d}" for number in range(1, 9)]
    for day in days:
        raw_store.store("events", *(raw_store.record("events") for _ in range(20)), day=day)
    code = f"""
from pathlib import Path
from ingest.pipeline.partitions import DataPaths
from tds_dagster.export import export_range
print(export_range(DataPaths(Path({str(raw_store.paths.root)!r})), "events", "2024-05-01", "2024-05-08").sha256)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        for _ in range(3)
    ]
    hashes = [process.communicate(timeout=100)[0].strip() for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0]
    export = export_range(raw_store.paths, "events", days[0], days[-1])
    assert set(hashes) == {export.sha256}
    assert (export.rows, export.rebuilt, export.reused) == (160, [], True)
    assert contradictions(raw_store.paths.root) == []
    assert leftovers(raw_store.paths.root) == []


def test_looking_at_accounts_loads_no_engine() -> None:
    code = (
        "import sys, tds_dagster.export; print({'duckdb', 'pyarrow', 'orjson', 'pandas', 'dagster'} & {*sys.modules})"
    )

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )

    assert result.stdout.strip() == "set()"


def test_nothing_is_left_of_a_day_that_fails(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events"))
    shutil.copy(raw_store.paths.training("events", DAY), raw_store.paths.training("events", "2024-05-16"))
    os.truncate(raw_store.paths.training("events", DAY), 10)

    export_range(raw_store.paths, "events", DAY, DAY, allow_missing=True)

    assert leftovers(raw_store.paths.root) == []
