"""A question is what was known before the answer; the baselines guess from it without learning."""

import json
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import InvalidRecord, SourceMissing, TrainingFailed
from ingest.pipeline.partitions import DataPaths
from tds_dagster.datasets.build import model_named
from tds_dagster.datasets.examples import DEEPEST
from tds_dagster.datasets.manifest import Dataset, find_dataset
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.training.baselines import fit_baselines
from tds_dagster.training.questions import ANSWERS, LEFT_OUT, QUESTIONS, checked_question, question_of, read_split
from tests.training.training_parts import build, split_rows


def dataset_of(root: Path, model: str) -> Dataset:
    return find_dataset(DataPaths(root), model)


@pytest.mark.parametrize("model", MODELS)
def test_every_field_of_a_row_is_asked_or_answered_or_left_out(model: str) -> None:
    fields = set(model_named(model).FEATURES)
    assert fields == {*QUESTIONS[model], *ANSWERS[model]} | (LEFT_OUT & fields)
    assert not {*QUESTIONS[model]} & {*ANSWERS[model]}
    assert ("timestamp" in QUESTIONS[model]) == (model == "task_completion")


@pytest.mark.parametrize("model", MODELS)
def test_a_question_is_the_row_without_its_answer_and_has_no_ids(model: str, prepared_data: Path) -> None:
    for row in split_rows(dataset_of(prepared_data, model), "train"):
        question = question_of(model, row)
        assert list(question) == list(QUESTIONS[model])
        unchanged = [name for name in question if name != "messages"]
        assert [question[name] for name in unchanged] == [row[name] for name in unchanged]


def test_the_message_that_calls_is_the_answer(prepared_data: Path) -> None:
    for row in split_rows(dataset_of(prepared_data, "tool_selection"), "train"):
        messages: Any = question_of("tool_selection", row)["messages"]
        assert [*messages, row["messages"][-1]] == row["messages"]  # type: ignore[index]
        assert messages[-1]["role"] == "user"


@pytest.mark.parametrize("model", MODELS)
def test_a_split_comes_with_the_class_and_the_entity_of_each_row(model: str, prepared_data: Path) -> None:
    dataset = dataset_of(prepared_data, model)
    read, rows = list(read_split(dataset, "validation")), split_rows(dataset, "validation")
    assert [row.question for row in read] == [question_of(model, row) for row in rows]
    assert [row.record_id for row in read] == [row["record_id"] for row in rows]
    classes = {"event_prediction": "event_type", "task_completion": "status", "workflow_orchestration": "phase"}
    assert [row.label for row in read] == [row[classes.get(model, "tool_name")] for row in rows]
    entity = "workflow_id" if model == "workflow_orchestration" else "session_id"
    assert [row.entity for row in read] == [row[entity] for row in rows]


@pytest.mark.parametrize("name", ["train.jsonl", "rows.jsonl"])
@pytest.mark.parametrize("damage", ["a line less", "no JSON", "gone"])
def test_a_split_that_is_not_what_the_dataset_lists_is_an_error(name: str, damage: str, training_data: Path) -> None:
    dataset = dataset_of(training_data, "task_completion")
    path = dataset.folder / name
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"".join(lines[1:] if damage == "a line less" else [b"{\n", *lines[1:]]))
    with pytest.raises(SourceMissing, match="build the dataset again"):
        list(read_split(dataset, "train"))


@pytest.mark.parametrize("levels", [DEEPEST + 5, 5000])
def test_what_is_nested_too_deep_is_null_in_a_question(levels: int, training_data: Path) -> None:
    dataset = dataset_of(training_data, "task_completion")
    path = dataset.folder / "train.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    row = json.loads(first)
    deep = b'{"note": "a ] in a text", "deep": ' + b"[" * levels + b"1" + b"]" * levels + b', "after": 7}'
    asked = json.dumps({**row, "input": "here"}).encode().replace(b'"here"', deep) + b"\n"
    path.write_bytes(asked + b"".join(others))
    question: Any = next(read_split(dataset, "train")).question
    assert (question["input"]["note"], question["input"]["after"]) == ("a ] in a text", 7)
    found, depth = question["input"]["deep"], 0
    while found is not None:
        (found,), depth = found, depth + 1
    assert DEEPEST - 5 < depth < DEEPEST


@pytest.mark.parametrize(
    ("model", "value", "problem"),
    [
        ("event_prediction", {}, "history is missing"),
        ("event_prediction", {"history": None}, "history is missing"),
        ("event_prediction", {"history": ["x"]}, "expected a list of objects"),
        ("event_prediction", {"history": {}}, "expected a list of objects"),
        ("event_prediction", [1], "expected an object with 'history'"),
        ("tool_selection", {"message": []}, "field 'message': expected 'messages' and, if known, tools"),
        ("task_completion", {"priority": "low"}, "task_type is missing"),
        ("task_completion", {"task_type": 7}, "expected a text"),
        ("workflow_orchestration", {"workflow_type": "a"}, "history is missing"),
        ("weather", {}, "expected one of event_prediction"),
    ],
)
def test_a_question_that_cannot_be_asked_is_an_error_that_says_why(model: str, value: object, problem: str) -> None:
    with pytest.raises(InvalidRecord, match=problem):
        checked_question(model, value)


def test_what_a_question_leaves_out_is_null_and_a_whole_row_is_one(prepared_data: Path) -> None:
    assert checked_question("task_completion", {"task_type": None})["history"] is None
    messages = [{"role": "user", "content": "Hello"}]
    assert checked_question("tool_selection", {"messages": messages}) == {"messages": messages, "tools": None}
    for model in MODELS:
        for row in split_rows(dataset_of(prepared_data, model), "test"):
            question = question_of(model, row)
            assert checked_question(model, row) == checked_question(model, question) == question


def chat(*tools: str) -> dict[str, object]:
    called = [{"role": "assistant", "tool_calls": [{"function": {"name": tool}}]} for tool in tools]
    return {"messages": [{"role": "user", "content": "Do it"}, *called, {"role": "tool", "content": "ok"}]}


@pytest.mark.parametrize(
    ("model", "question", "last"),
    [
        ("event_prediction", {"history": [{"event_type": "a"}, {"event_type": "b"}]}, "b"),
        ("tool_selection", chat("find", "change"), "change"),
        ("tool_selection", chat(), None),
        ("workflow_orchestration", {"history": [{"phase": "a"}, {"phase": None, "current_step": "s"}]}, "s"),
        ("task_completion", {"history": [
            {"kind": "task", "status": "failed"}, {"kind": "task", "status": "Running"},
            {"kind": "tool", "status": "ok"},
        ]}, "failed"),
        ("task_completion", {"history": [{"kind": "event", "status": "info"}]}, None),
        ("task_completion", {"history": None}, None),
    ],
)  # fmt: skip
def test_the_last_class_again_is_one_baseline_and_the_commonest_the_other(
    model: str, question: dict[str, object], last: str | None, prepared_data: Path
) -> None:
    dataset = dataset_of(prepared_data, model)
    baselines = fit_baselines(dataset)
    classes = dataset.splits["train"].classes
    majority = baselines["majority"].predict(question)
    assert classes[majority.prediction] == max(classes.values())
    assert majority.score == pytest.approx(max(classes.values()) / dataset.splits["train"].rows)
    expected = (majority.prediction, majority.score) if last is None else (last, None)
    found = baselines["most_recent"].predict(question)
    assert (found.prediction, found.score) == expected


def test_a_dataset_whose_train_split_is_empty_has_no_baseline(training_data: Path) -> None:
    alone = split_rows(dataset_of(training_data, "task_completion"), "test")[0]["session_id"]
    dataset = build(training_data, "task_completion", include=[alone], allow_empty_splits=True)
    with pytest.raises(TrainingFailed, match="train has no row, expected at least one; build it with more days"):
        fit_baselines(dataset)
