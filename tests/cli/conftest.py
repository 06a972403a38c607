"""Fixtures for the tests of `tds`: the command in this process, and as a process of its own."""

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ingest import Settings
from tests.parts import PROJECT, environment

# Real runs are no part of the project: their tests are there only where the file is.
AIRLINE_RUNS = PROJECT.parent / "shared" / "data" / "airline_runs.jsonl.gz"
REAL_RUNS = [
    "test_airline_datasets.py",
    "test_airline_dialects.py",
    "test_airline_erasure.py",
    "test_airline_privacy.py",
    "test_airline_runs.py",
    "test_airline_runs_shown.py",
    "test_airline_through_synapse.py",
    "test_airline_training.py",
    "test_airline_verification.py",
]
collect_ignore = [] if AIRLINE_RUNS.exists() else REAL_RUNS

Tds = Callable[..., Result]


@pytest.fixture(scope="session")
def run_tds() -> Callable[..., Result]:
    """Run `tds` in this process with the settings in its environment: `run_tds(settings, "status", "--json")`."""
    from tds_dagster.cli.app import app

    def run(settings: Settings, *arguments: object) -> Result:
        environment = {"TDS_DATA_DIR": str(settings.data_dir)}
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def tds(settings: Settings, run_tds: Callable[..., Result]) -> Tds:
    """Run `tds` in this process, over the test's own data folder."""
    return functools.partial(run_tds, settings)


def tds_process(settings: Settings, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start `tds` as a process of its own, with the settings in its environment."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("tds")), *arguments],
        env=environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def start_tds(settings: Settings) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `tds` processes; those that still run at the end of the test are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, settings: Settings = settings) -> subprocess.Popen[str]:
        process = tds_process(settings, [str(argument) for argument in arguments])
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
