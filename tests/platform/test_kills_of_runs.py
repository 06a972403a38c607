"""What is killed in the middle of a training is taken up again, and leaves no half model and no process behind."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tds_dagster.training.manifest import champion_of
from tests.parts import wait_until
from tests.platform.dagster_parts import last_days, paths_of
from tests.platform.tree_parts import Platform, processes
from tests.training.training_parts import settings_of, store_sessions

MODEL = "task_completion"

# It takes a minute, unless it has been killed twice.
SLOW = """
import json, os, sys, time
from pathlib import Path
from tds_dagster.training.contract import run_trainer

def train(dataset, output, report):
    begun = Path(__file__).with_name("begun")
    with begun.open("a") as log:
        log.write(f"{os.getpid()}\\n")
    (output / "half").write_text("x")
    if len(begun.read_text().split()) < 3:
        time.sleep(60)
    (output / "answers.json").write_text(json.dumps({"low": "failed", "high": "completed"}))

def predict(output):
    answers = json.loads((output / "answers.json").read_text())
    return lambda question: (answers[question["priority"]], 1.0)

run_trainer(train, predict)
"""


class Site:
    """`tds up` over sixty sessions of yesterday, with a trainer that is slow, and what it has begun."""

    def __init__(self, folder: Path) -> None:
        (folder / "slow.py").write_text(SLOW)
        others_rest = '[default.recipe]\nstart = "2099-01-01"\n'
        (folder / "policy.toml").write_text(f'{others_rest}[{MODEL}.recipe]\nstart = "{last_days(1)[0]}"\n')
        self.begun = folder / "begun"
        self.settings = settings_of(
            folder / "data", trainer=f"{sys.executable} {folder / 'slow.py'}", training_policy=folder / "policy.toml"
        )
        store_sessions(self.settings.data_dir, range(60), day=last_days(1)[0])
        self.platform = Platform(self.settings)

    def trainers(self) -> list[int]:
        """The pids of the trainings begun so far."""
        return [int(pid) for pid in self.begun.read_text().split()] if self.begun.exists() else []

    def wait_for_training(self, number: int) -> int:
        wait_until(lambda: len(self.trainers()) >= number, f"training {number} begins", 150)
        return self.trainers()[number - 1]

    def run_worker(self) -> int:
        """The process of the run that trains."""
        rows = {pid: (parent, command) for pid, parent, _, command in processes()}
        above = self.trainers()[-1]
        while "execute_run" not in rows[above][1] and "multiprocessing" not in rows[above][1]:
            above = rows[above][0]
        return above


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.platform.start()
    yield site
    site.platform.stop()


def is_alive(pid: int) -> bool:
    return any(each == pid and "<defunct>" not in command for each, _, _, command in processes())


@pytest.mark.timeout(400)  # two minutes alone: the platform starts, a sensor starts it, and it is killed twice
def test_a_training_whose_run_and_then_whose_daemon_is_killed_ends_right(site: Site) -> None:
    home = paths_of(site.settings).models(MODEL)

    trainer = site.wait_for_training(1)
    os.kill(site.run_worker(), signal.SIGKILL)
    wait_until(lambda: not is_alive(trainer), "the trainer ends with its run", 20)
    assert champion_of(paths_of(site.settings), MODEL) is None

    trainer = site.wait_for_training(2)
    os.kill(site.platform.children()["daemon"], signal.SIGKILL)
    wait_until(lambda: not is_alive(trainer), "the trainer ends with the daemon", 20)

    site.wait_for_training(3)
    os.kill(site.platform.children()["webserver"], signal.SIGKILL)
    wait_until(lambda: champion_of(paths_of(site.settings), MODEL) is not None, "the third training ends", 60)
    champion = champion_of(paths_of(site.settings), MODEL)
    assert champion is not None
    assert [file.path for file in champion.files if file.path.startswith("model/")] == [
        "model/answers.json",
        "model/half",
    ]
    wait_until(lambda: not list(home.glob(".building-*")), "nothing unfinished is left", 20)
    versions = [path.name for path in home.iterdir() if path.is_dir() and not path.is_symlink()]
    assert versions == [champion.version]
    wait_until((home / "latest.json").exists, "the mark moves, after the decision", 20)
    assert json.loads((home / "latest.json").read_text()) == {"version": champion.version}
    assert len(site.trainers()) == 3
