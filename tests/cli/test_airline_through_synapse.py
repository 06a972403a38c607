"""The real runs once more, paced through a real Redis while `tds writer` is killed: the same CSV rows."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from ingest import Settings
from ingest.pipeline.accounting import account
from ingest.records import KINDS
from tests.parts import PROJECT, RedisServer, csv_rows, environment

AIRLINE_RUNS = PROJECT.parent / "shared" / "data" / "airline_runs.jsonl.gz"
IMPORT = ("import", AIRLINE_RUNS, "--format", "openai-chat", "--start", "2024-05-15", "--days", "7")
STEPS = ("append", "sync", "commit", "publish", "acknowledge")


def rows_of(settings: Settings) -> dict[str, list[dict[str, object]]]:
    """All rows by kind, in an order of their own: between producers and kills the order of lines may differ."""
    return {kind: sorted(csv_rows(settings, kind), key=lambda row: str(row["record_id"])) for kind in KINDS}


def start_tds(settings: Settings, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [Path(sys.executable).with_name("tds"), *map(str, arguments)],
        env=environment(settings),
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def embedded_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("embedded") / "data")
    assert start_tds(settings, *IMPORT).wait(60) == 0
    return rows_of(settings)


def import_while_the_writer_dies(remote: Settings, failpoint: str | None) -> int:
    """Import 1,000 records a second; start `tds writer` again each time it is dead. Gives how often it was killed.

    It lives for a second, and each time a little longer: on a slow machine it has just started by then.
    """
    kills, importing = 0, start_tds(remote, *IMPORT, "--rate", "1000")
    deadline = time.monotonic() + 180
    while importing.poll() is None:
        assert time.monotonic() < deadline
        writer = start_tds(msgspec.structs.replace(remote, failpoint=failpoint), "writer")
        try:
            writer.wait(1.0 + kills / 10)
        except subprocess.TimeoutExpired:
            writer.kill()
        kills += writer.wait() == -signal.SIGKILL
        if kills >= 5:
            failpoint = None  # enough: let it come to its end, killed once a second
    assert importing.returncode == 0
    return kills


@pytest.mark.parametrize("failpoint", [None, *(f"{step}:3" for step in STEPS)])
def test_imported_through_redis_with_the_writer_killed_the_rows_are_the_same(
    redis_server: RedisServer, tmp_path: Path, embedded_rows: dict[str, object], failpoint: str | None
) -> None:
    remote = Settings(data_dir=tmp_path / "data", spool_dir=tmp_path / "spool", redis_url=redis_server.url)
    kills = import_while_the_writer_dies(remote, failpoint)
    assert kills >= 3
    assert rows_of(remote) == embedded_rows
    for kind in KINDS:
        counted = account(remote, kind)
        assert (counted.waiting, counted.quarantined, counted.foreign) == (0, 0, 0)
        assert counted.balanced
