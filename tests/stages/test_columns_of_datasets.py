"""What a dataset says of where its columns come from is what becomes of marked records."""

import json
import re
from pathlib import Path

import pytest

from ingest.records import KINDS
from tds_dagster.datasets.build import build_dataset, model_named
from tds_dagster.datasets.recipe import MODELS, SPLITS, read_recipe
from tests.training.training_parts import Row, session_records, settings_of, split_rows, store_sessions

# Ids are compared with each other, times have a form, calls are found by name and arguments, a status may mean open.
UNMARKED = re.compile(r"(.*_id|timestamp|.*_at|tool_executions\.(tool_name|input_params)|tasks\.status|.*\.metadata)$")
# Some that have to get there, or the test would see nothing.
SEEN = {
    "event_prediction": {"events.event_type", "events.severity", "events.payload"},
    "task_completion": {"tasks.input_data", "events.payload", "tool_executions.status"},
    "tool_selection": {"events.payload"},
    "workflow_orchestration": {"workflows.phase", "workflows.state_data", "workflows.step_results"},
}


def marked(kind: str, fields: Row) -> Row:
    """A record with the name of its column in each text and document."""
    found = dict(fields)
    for name, column_type in KINDS[kind].types.items():
        column = f"{kind}.{name}"
        if UNMARKED.match(name) or UNMARKED.match(column):
            continue
        if column_type == "text" and isinstance(value := found.get(name, "some"), str):
            found[name] = f"{value} {column}~"
        elif column_type == "json":
            document = found.get(name, {})
            if isinstance(document, dict):
                place = "content" if document.get("content") else "mark"
                found[name] = {**document, place: f"{document.get(place, '')} {column}~"}
    return found


@pytest.mark.parametrize("model", MODELS)
def test_marks_of_columns_get_into_the_features_that_say_so_and_into_no_other(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.training.training_parts.session_records",
        lambda n: [(kind, marked(kind, fields)) for kind, fields in session_records(n)],
    )
    store_sessions(tmp_path / "data", range(40))
    by_agent = {"entity": "agent", "allow_empty_splits": True} if model == "task_completion" else {}
    recipe = read_recipe(model, {"redaction": "none", **by_agent})  # before a task its session has nothing
    dataset = build_dataset(settings_of(tmp_path / "data"), recipe)
    declared, seen = model_named(model).COLUMNS_FROM, dict[str, set[str]]()
    for split in SPLITS:
        for row in split_rows(dataset, split):
            for name, value in row.items():
                seen.setdefault(name, set()).update(re.findall(r"([a-z_]+\.[a-z_]+)~", json.dumps(value)))
    assert seen.keys() == declared.keys() == model_named(model).FEATURES.keys()
    for name, columns in seen.items():
        assert columns <= set(declared[name]), f"{name} has {columns}"
    assert set().union(*seen.values()) >= SEEN[model]


@pytest.mark.parametrize("model", MODELS)
def test_each_column_that_is_named_is_one_of_its_kind(model: str) -> None:
    for name, columns in model_named(model).COLUMNS_FROM.items():
        assert columns, name
        for kind, column in (each.split(".") for each in columns):
            assert column in KINDS[kind].types
