"""The demo: what it makes, and what a second round adds."""

import asyncio
import json
from collections.abc import Callable
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path

import msgspec
import pytest
from typer.testing import Result

from ingest import Settings, TrainingDataStore
from ingest.pipeline.partitions import today
from ingest.records import KINDS
from tds_dagster.cli.demo import Demo
from tds_dagster.cli.simulation import ROLES, work
from tds_dagster.datasets.recipe import MODELS, SPLITS
from tests.parts import csv_rows

Tds = Callable[..., Result]


@pytest.mark.timeout(400)
def test_the_demo_makes_seven_days_of_all_kinds_and_a_second_round_adds_to_them(tds: Tds, settings: Settings) -> None:
    result = tds("demo", "--json")
    assert result.exit_code == 0, result.stderr
    first = msgspec.json.decode(result.stdout, type=Demo)
    assert list(json.loads(result.stdout)) == list(Demo.__struct_fields__)
    assert first.balanced
    assert first.start == (today() - timedelta(days=7)).isoformat()
    assert list(first.kinds) == list(KINDS)
    assert sum(made.rows for made in first.kinds.values()) == first.stored
    assert list(first.datasets) == list(MODELS)
    for built in first.datasets.values():
        assert list(built.rows) == list(SPLITS)
        assert built.rows["train"] > 100
        assert (Path(built.path) / "README.md").is_file()
    assert list(first.models) == list(MODELS)
    for trained in first.models.values():
        assert trained.low <= trained.accuracy <= trained.high
        assert (trained.champion == trained.version) == (trained.accuracy > trained.baseline)
        assert (Path(trained.path) / "README.md").is_file()
    for kind, made in first.kinds.items():
        assert made.days == 7
        assert made.rows > 100
        lines = Path(made.path).read_bytes().splitlines()
        assert len(lines) == made.rows
        assert len(list((settings.data_dir / "training" / kind).glob("*.csv"))) == 7
    table = tds("demo")
    assert table.exit_code == 0, table.stderr
    assert "every record is accounted for" in table.stdout
    assert "tds up" in table.stdout
    assert "best baseline" in table.stdout
    for line, made in zip(table.stdout.splitlines()[1:], first.kinds.values(), strict=False):
        assert line.split()[2] == f"{2 * made.rows:,}"
    from dagster import DagsterInstance

    with DagsterInstance.from_config(str(settings.data_dir / "dagster")) as instance:
        # Of each round one for the days and one for datasets and models.
        assert [run.is_success for run in instance.get_runs()] == [True] * 4


def test_a_demo_whose_days_have_no_partition_says_so(tds: Tds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDS_START_DATE", today().isoformat())
    result = tds("demo")
    assert result.exit_code == 1
    assert "set an earlier one" in result.stderr


def test_a_run_that_fails_is_told_with_the_end_of_its_log(
    tds: Tds, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settings.data_dir / "dagster"
    home.mkdir(parents=True)
    (home / "dagster.yaml").write_text("nonsense: true\n")  # somebody's own: it stays
    result = tds("demo")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the Dagster run over")
    assert "nonsense" in result.stderr


def stories(settings: Settings, seed: int) -> dict[str, list[str]]:
    """What agents did, without the ids, which are new each time."""
    store = TrainingDataStore(settings)

    async def let_work() -> None:
        await work(store, [date(2024, 5, 15)], seed=seed, progress=lambda _: None)
        await store.flush()
        await store.close()

    asyncio.run(let_work())
    return {
        kind: sorted(
            f"{row['timestamp']} {row.get('agent_id')} {row.get('status')}" for row in csv_rows(settings, kind)
        )
        for kind in KINDS
    }


def test_equal_seeds_tell_equal_stories_and_others_do_not(settings: Settings, tmp_path: Path) -> None:
    first = stories(settings, 1)
    assert stories(Settings(data_dir=tmp_path / "again"), 1) == first
    assert stories(Settings(data_dir=tmp_path / "other"), 2) != first


def test_the_agents_lives_are_plausible(settings: Settings) -> None:
    stories(settings, 3)
    events, tasks = csv_rows(settings, "events"), csv_rows(settings, "tasks")
    assert {row["agent_id"] for row in events} == {role.agent_id for role in ROLES}
    for _, rows in groupby(sorted(tasks, key=lambda row: str(row["task_id"])), key=lambda row: row["task_id"]):
        history = [row["status"] for row in sorted(rows, key=lambda row: str(row["timestamp"]))]
        assert history[0] == "pending"
        assert history[1:-1] == ["running"] * (len(history) - 2)
        assert history[-1] in {"completed", "failed"}
    calls = csv_rows(settings, "tool_executions")
    assert {row["task_id"] for row in calls} == {row["task_id"] for row in tasks}
    assert {row["status"] for row in calls} == {"completed", "failed"}
    assert {row["target_id"] for row in csv_rows(settings, "feedback")} == {row["session_id"] for row in events}
    assert len({row["execution_id"] for row in calls}) == len(calls)


def test_another_round_adds_sessions_and_repeats_none(settings: Settings) -> None:
    stories(settings, 1)
    first = {row["session_id"] for row in csv_rows(settings, "events")}
    stories(settings, 1)
    assert len({row["session_id"] for row in csv_rows(settings, "events")}) == 2 * len(first)
