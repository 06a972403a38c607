"""`tds erase` as one types it: it asks, shows what would go, and says what went."""

import importlib
import json
import os
from pathlib import Path

import dagster as dg
import pytest

from ingest import Settings, TrainingDataStore
from ingest.pipeline.partitions import DataPaths
from tds_dagster.cli.diagnosis import check_erasures
from tds_dagster.cli.up import prepare_home
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.recipe import read_recipe
from tds_dagster.erasure.journal import begin_journal
from tests.cli.conftest import Tds
from tests.parts import csv_rows


@pytest.fixture
def two_agents(settings: Settings) -> Settings:
    store = TrainingDataStore(settings)
    for n in range(4):
        for agent in ("agent-7", "agent-8"):
            by = {"agent_id": agent, "session_id": f"chat-{agent}", "timestamp": f"2024-05-15T08:30:0{n}Z"}
            store.sync.store_record("events", event_type="said", payload={"n": n}, **by)
    store.sync.flush()
    store.sync.close()
    return settings


def test_a_dry_run_says_what_would_go_and_changes_nothing(tds: Tds, two_agents: Settings) -> None:
    shown = tds("erase", "--agent-id", "agent-7", "--dry-run")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[1].split() == ["events", "4", "0", "1"]
    told = json.loads(tds("erase", "--agent-id", "agent-7", "--dry-run", "--json").stdout)
    assert (told["dry_run"], told["kinds"]["events"]["records"], told["receipts"]) == (True, 4, [])
    assert (told["exports"], told["datasets"]) == ([], {})
    assert len(csv_rows(two_agents, "events")) == 8


def test_a_dry_run_names_the_exports_and_datasets_that_would_go(tds: Tds, two_agents: Settings) -> None:
    recipe = read_recipe("event_prediction", {"redaction": "none", "allow_empty_splits": True})
    version = build_dataset(two_agents, recipe).version
    for form in ("records", "parquet"):
        assert tds("export", "events", "--end", "2024-05-15", "--limit", "1", "--format", form).exit_code == 0
    assert tds("export", "events", "--start", "2024-05-16", "--end", "2024-05-16").exit_code == 0  # none of theirs
    told = json.loads(tds("erase", "--agent-id", "agent-7", "--dry-run", "--json").stdout)
    assert [Path(path).suffix for path in sorted(told["exports"], key=lambda path: path[-3:])] == [".jsonl", ".parquet"]
    assert all((two_agents.data_dir / path).is_file() for path in told["exports"])
    assert told["datasets"] == {f"event_prediction/{version}": None}
    shown = tds("erase", "--agent-id", "agent-7", "--dry-run").stdout
    assert shown.count("would be removed and built again") == 3
    done = json.loads(tds("erase", "--agent-id", "agent-7", "--yes", "--json").stdout)
    assert sorted(done["exports"]) == sorted(told["exports"])
    assert list(done["datasets"]) == list(told["datasets"])


def test_it_erases_says_where_the_receipt_is_and_finds_nothing_the_next_time(tds: Tds, two_agents: Settings) -> None:
    done = tds("erase", "--agent-id", "agent-7", "--yes")
    assert done.exit_code == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).is_file()
    assert {row["agent_id"] for row in csv_rows(two_agents, "events")} == {"agent-8"}
    again = tds("erase", "--agent-id", "agent-7", "--yes")
    assert (again.exit_code, again.stdout) == (0, "nothing found: 0 records\n")
    status = json.loads(tds("status", "--json").stdout)
    assert (status["balanced"], status["kinds"]["events"]["erased"]) == (True, 4)


def test_it_exits_with_1_and_names_the_file_when_a_day_is_damaged_while_it_erases(
    tds: Tds, two_agents: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("tds_dagster.erasure.erase")  # as an attribute it is the function of that name
    day_file = DataPaths(two_agents.data_dir).training("events", "2024-05-15")
    size = day_file.stat().st_size

    def damage(*given: object) -> object:
        os.truncate(day_file, size - 1)
        return begin_journal(*given)  # type: ignore[arg-type]  # as given

    monkeypatch.setattr(module, "begin_journal", damage)
    done = tds("erase", "--agent-id", "agent-7", "--yes", "--json")
    assert done.exit_code == 1
    reason = json.loads(done.stdout)["not_erased"]["training/events/events_2024-05-15.csv"]
    assert reason.startswith(f"has {size - 1} bytes, but {size} are committed; nothing was erased from this day")
    assert f"training/events/events_2024-05-15.csv: {reason[:20]}" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected --agent-id"),
        (["--agent-id", " ", "--yes"], "matches every record"),
        (["--agent-id", "agent-7"], "expected --yes"),
        (["--where", "no_such_column = 1", "--yes"], "no_such_column"),
        (["strangers", "--agent-id", "agent-7", "--yes"], "strangers"),
    ],
)
def test_wrong_usage_exits_with_2_and_erases_nothing(
    tds: Tds, two_agents: Settings, arguments: list[str], said: str
) -> None:
    result = tds("erase", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert len(csv_rows(two_agents, "events")) == 8


def test_a_predicate_says_which_kinds_it_was_asked_of(tds: Tds, two_agents: Settings) -> None:
    done = tds("erase", "--where", "payload->>'n' = '3'", "--whole-sessions", "--dry-run")
    assert "looked for in events" in done.stdout
    assert done.stdout.splitlines()[1].split() == ["events", "8", "0", "1"]


def test_dagster_is_told_of_models_that_were_trained_on_it(tds: Tds, two_agents: Settings) -> None:
    home = prepare_home(two_agents)
    recipe = read_recipe("event_prediction", {"redaction": "none", "allow_empty_splits": True})
    dataset = build_dataset(two_agents, recipe).version
    manifest = two_agents.data_dir / "models" / "event_prediction" / "m1" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"dataset": dataset}))
    told = json.loads(tds("erase", "--agent-id", "agent-7", "--yes", "--json").stdout)
    assert told["models"] == ["event_prediction/m1"]
    again = build_dataset(two_agents, recipe).version
    assert told["datasets"] == {f"event_prediction/{dataset}": again}
    assert again != dataset
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (observed,) = instance.fetch_observations(dg.AssetKey(["models", "event_prediction"]), limit=5).records
        assert observed.asset_observation is not None
        said = {name: value.value for name, value in observed.asset_observation.metadata.items()}
    assert (said["tainted"], said["model_version"], said["dataset_version"]) == (True, "m1", dataset)
    assert "agent-7" not in str(said)


def test_doctor_names_an_erasure_that_was_cut_off(settings: Settings) -> None:
    assert list(check_erasures(settings)) == []
    journal = settings.data_dir / "state" / "erasures" / "1.journal"
    journal.parent.mkdir(parents=True)
    journal.touch()
    (check,) = check_erasures(settings)
    assert (check.state, str(journal) in check.found) == ("warning", True)


def test_a_dataset_that_nothing_was_erased_of_is_said_to_be_there_as_it_was(tds: Tds, two_agents: Settings) -> None:
    all_of_it = {"redaction": "none", "allow_empty_splits": True}
    kept = build_dataset(two_agents, read_recipe("event_prediction", {**all_of_it, "where": "agent_id = 'agent-8'"}))
    changed = build_dataset(two_agents, read_recipe("event_prediction", all_of_it))
    said = tds("erase", "--agent-id", "agent-7", "--yes").stdout
    again = build_dataset(two_agents, read_recipe("event_prediction", all_of_it))
    assert kept.folder.is_dir()
    assert f"dataset event_prediction/{kept.version} was built again as it was" in said
    assert f"dataset event_prediction/{changed.version} is gone; built again as {again.version}" in said
