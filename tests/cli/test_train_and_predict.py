"""`tds train`, `tds predict` and `tds rollback`, as a person and a program use them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from ingest import Settings
from tds_dagster.training.manifest import TAINTED
from tests.training.training_parts import build, store_sessions

Tds = Callable[..., Result]
MODEL = "tool_selection"


def questions(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def asked(text: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.fixture
def trained(settings: Settings, tds: Tds) -> dict[str, Any]:
    store_sessions(settings.data_dir, range(60))
    build(settings.data_dir, MODEL)
    result = tds("train", MODEL, "--json")
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_a_training_is_told_with_its_baselines_and_its_decision(trained: dict[str, Any], tds: Tds) -> None:
    assert set(trained["scores"]) == {"model", "majority", "most_recent"}
    assert (trained["promoted"], trained["champion"]) == (True, trained["version"])
    assert trained["scores"]["model"]["low"] <= trained["scores"]["model"]["accuracy"]
    assert Path(trained["card"]).is_file()
    again = tds("train", MODEL)
    lines = again.stdout.splitlines()
    assert lines[0].split() == ["on", "the", "test", "split", "accuracy", "95", "%", "interval", "rows"]
    assert f"{MODEL} {trained['version']}, of dataset {trained['dataset']}, as trained before" in lines
    assert "not promoted: it is the champion already" in lines
    assert lines[-1] == trained["card"]


def test_each_line_of_questions_gets_a_line_with_prediction_and_score(
    trained: dict[str, Any], tds: Tds, tmp_path: Path
) -> None:
    source = questions(
        tmp_path / "q.jsonl", asked("Please find flights number 7."), "", asked("Please find refunds number 3.")
    )
    result = tds("predict", MODEL, "--input", source)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["prediction"] for answer in answers] == ["find_flights", "find_refunds"]
    assert all(0 < answer["score"] <= 1 for answer in answers)
    assert (result.exit_code, result.stderr) == (0, "")
    assert tds("predict", MODEL, "--input", source, "--version", trained["version"][:6]).stdout == result.stdout


def test_a_line_that_is_no_question_is_told_by_its_number_and_the_others_are_answered(
    trained: dict[str, Any], tds: Tds, tmp_path: Path
) -> None:
    assert trained
    source = questions(tmp_path / "q.jsonl", "{", asked("Please find flights."), {"message": []})
    with source.open("ab") as out:
        out.write(b'{"messages": [{"role": "user", "content": "\xff"}]}\n' + b"[" * 100_000 + b"\n[]\n")
    result = tds("predict", MODEL, "--input", source)
    assert [json.loads(line)["prediction"] for line in result.stdout.splitlines()] == ["find_flights"]
    assert result.exit_code == 1
    assert f"{source}, line 1: " in result.stderr
    assert f"{source}, line 3: field 'message'" in result.stderr
    assert all(f"{source}, line {number}: " in result.stderr for number in (4, 5, 6))
    assert "Traceback" not in result.stderr


def test_what_belongs_to_another_model_is_not_taken(trained: dict[str, Any], settings: Settings, tds: Tds) -> None:
    other = build(settings.data_dir, "task_completion")
    refused = tds("train", MODEL, "--dataset", f"task_completion/{other.version}")
    assert (refused.exit_code, "a dataset of task_completion, expected one of tool_selection" in refused.stderr) == (
        2,
        True,
    )
    refused = tds("predict", "task_completion", "--input", "/dev/null", "--version", f"{MODEL}/{trained['version']}")
    assert refused.exit_code == 1
    assert "a model of tool_selection, expected one of task_completion" in refused.stderr


def test_a_champion_whose_records_were_erased_is_asked_with_a_warning(
    trained: dict[str, Any], tds: Tds, tmp_path: Path
) -> None:
    (Path(trained["path"]) / TAINTED).write_text("{}")
    result = tds("predict", MODEL, "--input", questions(tmp_path / "q.jsonl", asked("Please find flights.")))
    assert result.exit_code == 0
    assert "records that it was trained on were erased; train it anew" in result.stderr


def test_the_files_of_a_model_are_verified_with_the_others(
    trained: dict[str, Any], tds: Tds, settings: Settings
) -> None:
    folder = Path(trained["path"])
    (folder / TAINTED).write_text("{}")  # which an erasure puts there
    for target in (folder, folder.parent, folder.parent / "champion", settings.data_dir):
        assert tds("verify", target).exit_code == 0
    content = folder / "model" / "trainer.json"
    content.write_bytes(content.read_bytes().replace(b"{", b"[", 1))
    result = tds("verify", folder.parent)
    assert result.exit_code == 1
    assert result.stdout.count(f"damaged: {content}") == 1  # by its own name, and not again by the champion's


def test_a_models_folder_is_inspected_by_its_answers_and_its_figures(trained: dict[str, Any], tds: Tds) -> None:
    folder = Path(trained["path"])
    shown = tds("inspect", folder)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.startswith(f"{folder}: model {MODEL}, its answers on test\n")
    found = json.loads(tds("inspect", folder.parent, "--json").stdout)
    assert found["rows"] == found["manifest"]["metrics"]["rows"]
    (folder / "predictions.jsonl").unlink()
    assert "train the model again" in tds("inspect", folder).stderr


def test_another_version_is_trained_and_gone_back_from(trained: dict[str, Any], settings: Settings, tds: Tds) -> None:
    build(settings.data_dir, MODEL, window=3)
    better = json.loads(tds("train", MODEL, "--margin", "0", "--json").stdout)
    assert better["version"] != trained["version"]
    named = json.loads(tds("train", MODEL, "--dataset", trained["dataset"][:6], "--json").stdout)
    assert (named["version"], named["reused"]) == (trained["version"], True)
    if not better["promoted"]:
        assert "take more days" in better["reason"]
        return
    back = tds("rollback", MODEL)
    assert back.stdout == f"{MODEL}: {trained['version']} is the champion now; it was {better['version']}\n"


@pytest.mark.parametrize(
    ("arguments", "problem", "code"),
    [
        (["train", "weather"], "model='weather': expected one of", 2),
        (["train", MODEL], "expected a folder, <model>/<version>", 1),
        (["predict", MODEL, "--input", "-"], "tds train tool_selection", 1),
        (["predict", "weather", "--input", "-"], "'weather': expected one of", 1),
        (["rollback", MODEL], "no earlier champion", 1),
        (["rollback", "weather"], "'weather': expected one of", 1),
    ],
)
def test_what_cannot_be_done_is_an_error_that_says_what_to_do(
    arguments: list[str], problem: str, code: int, tds: Tds
) -> None:
    result = tds(*arguments)
    assert (result.exit_code, problem in result.stderr) == (code, True), result.stderr


def test_a_margin_out_of_range_and_a_file_that_is_not_there_are_errors(
    trained: dict[str, Any], tds: Tds, tmp_path: Path
) -> None:
    assert trained
    assert "margin=7.0: expected a number from 0 to 1" in tds("train", MODEL, "--margin", "7").stderr
    assert "No such file" in tds("predict", MODEL, "--input", tmp_path / "none.jsonl").stderr
