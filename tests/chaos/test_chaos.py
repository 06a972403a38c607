"""The chaos harness in short: nothing is lost or doubled under attack, and without a protection the loss is seen."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ingest import TrainingDataStore
from tests.chaos.site import Plan, Site
from tests.chaos.tools import Tools
from tests.chaos.verify import destroyable_records, verify
from tests.chaos.worker import document
from tests.parts import PROJECT, skip_unless_required

CALM = Plan(
    redis=False, small_disks=False, without=None, kinds=["events"], workers=0, rate=1, stepped_clock=False,
    failpoint_share=0.0, steps=(), patience_s=10.0,
)  # fmt: skip

if not sys.platform.startswith("linux"):
    pytest.skip("the harness needs Linux: /proc/locks, prctl, tmpfs", allow_module_level=True)


def chaos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--folder", folder, *arguments],
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def figures(printed: str) -> dict[str, int]:
    rows = re.findall(r"^(.{44}) *([\d,]+)$", printed, re.MULTILINE)
    return {name.strip(): int(n.replace(",", "")) for name, n in rows}


@pytest.mark.parametrize(("mode", "seed"), [("embedded", "1"), ("embedded", "2"), ("redis", "3"), ("redis", "4")])
def test_under_attack_each_accepted_record_is_written_once(
    request: pytest.FixtureRequest, tmp_path: Path, mode: str, seed: str
) -> None:
    if mode == "redis":
        request.getfixturevalue("redis_binary")  # skips with its reason where there is none
    done = chaos(tmp_path, "--mode", mode, "--seed", seed, "--rounds", "2", "--round-seconds", "1.5")
    assert done.returncode == 0, done.stdout + done.stderr
    found = figures(done.stdout)
    assert (found["lost"], found["doubled"], found["wrong"]) == (0, 0, 0)
    assert found["accepted"] > 100
    assert found["kills"] + found["faults"] > 0
    assert list(tmp_path.iterdir()) == [], "a good run leaves nothing behind"


@pytest.mark.parametrize(
    ("protection", "seen"),
    [
        ("intent", "strange lines|nobody stored that"),  # taken for somebody else's rows, or for his whole file
        ("committed-size", "doubled"),
        ("preallocation", "Bus error"),
    ],
)
def test_without_a_protection_the_harness_sees_it(tmp_path: Path, protection: str, seen: str) -> None:
    done = chaos(tmp_path, "--without", protection, "--seed", "1")
    if "left out, see above" in done.stdout:
        skip_unless_required(done.stdout.splitlines()[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(seen, done.stdout), done.stdout


@pytest.fixture
def calm_site(tmp_path: Path) -> Iterator[Site]:
    """A folder with ten records, each in its worker's log, and nothing else."""
    site = Site(tmp_path / "site", CALM, random.Random(0), Tools(None, None, can_mount=False, missing=[]))
    store = TrainingDataStore(site.settings)
    lines = []
    for number in range(1, 11):
        name = f"w1.0.{number}"
        lines.append(f"+ events {store.sync.store_agent_event(name, payload=document(name))} {name}\n")
    store.sync.flush()
    store.sync.close()
    (site.log / "w1.log").write_text("".join(lines))
    yield site
    site.leave()


def test_a_calm_folder_is_good(calm_site: Site) -> None:
    verdict = verify(calm_site)
    assert verdict.is_good, verdict
    assert (verdict.accepted, verdict.rows) == (10, 10)


def test_a_record_that_a_worker_logged_and_no_file_has_is_lost(calm_site: Site) -> None:
    with (calm_site.log / "w1.log").open("a") as log:
        log.write("+ events 01a20eb0-a692-70e6-8032-3f1cd48c4b74 w1.0.11\n")
    verdict = verify(calm_site)
    assert verdict.lost == ["w1.0.11 01a20eb0-a692-70e6-8032-3f1cd48c4b74"]
    assert any("events: accepted 10" in wrong for wrong in verdict.wrong)


def test_the_one_record_of_a_killed_worker_that_is_not_logged_is_no_finding(calm_site: Site) -> None:
    log = calm_site.log / "w1.log"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert verify(calm_site).is_good


@pytest.mark.parametrize("missing", [1, 2])
def test_a_row_that_nobody_logged_is_wrong_if_its_worker_was_not_killed_just_then(
    calm_site: Site, missing: int
) -> None:
    log = calm_site.log / "w1.log"
    kept = log.read_text().splitlines(keepends=True)[:-missing]
    log.write_text("".join([*kept, "=\n"] if missing == 1 else kept))
    assert any("nobody stored that" in wrong for wrong in verify(calm_site).wrong)


def test_a_row_that_is_there_twice_is_doubled_and_a_changed_one_wrong(calm_site: Site) -> None:
    (day_file,) = (calm_site.settings.data_dir / "training" / "events").iterdir()
    lines = day_file.read_text().splitlines(keepends=True)
    changed = [*lines[:2], lines[1], lines[3].replace("fill", "fell"), *lines[4:]]
    day_file.write_text("".join(changed))
    verdict = verify(calm_site)
    assert len(verdict.doubled) == 1
    assert verdict.lost[0].startswith("w1.0.2 ")
    assert any("its content changed" in wrong for wrong in verdict.wrong)


def test_a_record_that_an_attack_destroyed_may_be_missing_only_if_the_store_gave_it_up_by_name(
    calm_site: Site,
) -> None:
    record_id = "01a20eb0-a692-70e6-8032-3f1cd48c4b74"
    with (calm_site.log / "w1.log").open("a") as log:
        log.write(f"+ events {record_id} w1.0.11\n")
    calm_site.damaged.append((Path("x.seg"), msgspec.json.encode({"record_id": record_id})))
    verdict = verify(calm_site)
    assert verdict.lost == []
    assert any("0 quarantined: expected 1 that are missing" in wrong for wrong in verdict.wrong)


def test_two_destroyed_records_of_one_idempotency_key_are_two() -> None:
    record_id = "01a20eb0-a692-70e6-8032-3f1cd48c4b74"
    line = msgspec.json.encode({"record_id": record_id})
    assert destroyable_records([line + line[:-5], line]) == {record_id: 2}
