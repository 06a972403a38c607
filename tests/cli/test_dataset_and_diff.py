"""`tds dataset` and `tds diff`: the same functions as the assets', from a shell."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from ingest import Settings, TrainingDataStore

Tds = Callable[..., Result]
DAY = "2024-05-15"


@pytest.fixture
def sessions(settings: Settings) -> None:
    store = TrainingDataStore(settings)
    for n in range(40):
        for place, event_type in enumerate(("agent_started", "request_received", "agent_stopped")):
            store.sync.store_agent_event(
                event_type, "agent-1", session_id=f"s{n}", payload={"text": f"request {n}"},
                timestamp=f"{DAY}T10:{n:02d}:{place:02d}Z",
            )  # fmt: skip
    store.sync.close()


@pytest.mark.usefixtures("sessions")
def test_a_dataset_is_built_from_what_waits_in_the_spool_and_its_path_is_the_last_line(tds: Tds) -> None:
    result = tds("dataset", "event_prediction")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    split, rows, entities, *_ = lines[1].split()
    assert (split, int(rows)) == ("train", 2 * int(entities))
    assert "left out: 40 (the first event of its entity, with nothing before it)" in lines
    assert (Path(lines[-1]) / "manifest.json").is_file()
    again = tds("dataset", "event_prediction", "--json")
    built = json.loads(again.stdout)
    assert (built["path"], built["reused"]) == (lines[-1], True)
    assert sum(split["rows"] for split in built["splits"].values()) == 80


@pytest.mark.usefixtures("sessions")
def test_options_come_on_top_of_a_recipe_file_and_lists_of_ids_from_files(tds: Tds, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("seed = 4\nwindow = 1\nallow_empty_splits = true\n")
    (tmp_path / "ids").write_text("s1\ns2\n\n s3 \n")
    options = ["--recipe", tmp_path / "recipe.toml", "--window", 2, "--fractions", "0.5,0.25,0.25", "--json"]
    built = json.loads(tds("dataset", "event_prediction", *options, "--include-ids", tmp_path / "ids").stdout)
    recipe = json.loads(Path(built["manifest"]).read_bytes())["recipe"]
    expected = {"seed": 4, "window": 2, "fractions": [0.5, 0.25, 0.25], "include": ["s1", "s2", "s3"]}
    assert {name: recipe[name] for name in expected} == expected
    assert sum(split["rows"] for split in built["splits"].values()) == 6
    (tmp_path / "ids").write_text("s1\ns2\ns3\ns400\nmia.lopez@example.org\n")
    without = tds("dataset", "event_prediction", *options, "--exclude-ids", tmp_path / "ids")
    assert sum(split["rows"] for split in json.loads(without.stdout)["splits"].values()) == 74
    assert "ids in include or exclude that no record of events in the range has: <EMAIL:" in without.stderr
    assert without.stderr.rstrip().endswith(", s400")
    (tmp_path / "recipe.json").write_text('{"include": []}')
    none = tds("dataset", "event_prediction", "--recipe", tmp_path / "recipe.json")
    assert (none.exit_code, "include=[]: expected an id or more" in none.stderr) == (2, True)


@pytest.mark.usefixtures("sessions")
def test_two_versions_are_compared_and_the_reason_is_told(tds: Tds) -> None:
    first = json.loads(tds("dataset", "event_prediction", "--json").stdout)
    json.loads(tds("dataset", "event_prediction", "--where", "session_id != 's1'", "--json").stdout)
    told = tds("diff", first["version"], "event_prediction", "--rows", 1)
    assert told.exit_code == 0, told.stderr
    assert told.stdout.splitlines()[1].split(maxsplit=2) == ["removed", "2", "another recipe (where)"]
    found = json.loads(tds("diff", first["path"], "event_prediction", "--json").stdout)
    assert found["changes"] == {"added": {}, "removed": {"another recipe (where)": 2}, "changed": {}}
    assert len(found["rows"]) == 2
    same = json.loads(tds("diff", first["path"], first["version"][:6], "--json").stdout)
    assert (same["unchanged"], same["rows"]) == (80, [])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chess"], "model='chess': expected one of event_prediction"),
        (["event_prediction", "--start", "May"], "start='May': expected a date"),
        (["event_prediction", "--balance", "up"], "balance='up': expected one of none, downsample"),
        (["event_prediction", "--fractions", "a,b"], "fractions='a,b': expected three numbers"),
        (["event_prediction", "--include-ids", "absent"], "expected a text file with one id a line"),
        (["event_prediction", "--include-ids", "/dev/null"], "/dev/null: holds no id: expected one a line"),
        (["event_prediction", "--fractions", "nan,0.1,0.1"], "fractions=(nan, 0.1, 0.1): expected shares"),
        (["event_prediction", "--recipe", "absent.toml"], "expected a recipe, TOML or JSON"),
        (["task_completion", "--where", "1; DROP TABLE x"], "predicate"),
    ],
)
def test_a_wrong_recipe_exits_with_2_and_looks_at_no_data(
    arguments: list[str], told: str, tds: Tds, settings: Settings
) -> None:
    result = tds("dataset", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not settings.data_dir.exists()


def test_without_data_or_a_version_that_is_not_there_it_exits_with_1(tds: Tds) -> None:
    for arguments in (["dataset", "event_prediction"], ["diff", "abc", "def"]):
        result = tds(*arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
