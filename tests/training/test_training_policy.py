"""The policy of training: what it says of each model, and what is wrong with one that cannot be used."""

from pathlib import Path

import pytest

from ingest import Settings
from ingest.errors import InvalidTrainingPolicy
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.training.policy import ModelPolicy, policy_of, read_policy


def policies(tmp_path: Path, text: str) -> dict[str, ModelPolicy]:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return read_policy(Settings(training_policy=path))


def test_without_a_file_every_model_has_the_defaults() -> None:
    assert read_policy(Settings()) == dict.fromkeys(MODELS, ModelPolicy())
    assert policy_of(Settings(), "tool_selection").new_rows == 1000


def test_a_models_table_stands_above_the_default_table_and_that_above_the_defaults(tmp_path: Path) -> None:
    read = policies(tmp_path, "[default]\nnew_rows = 500\ndrift = 0\n[tool_selection]\nnew_rows = 50\nmargin = 0.2\n")
    assert read["tool_selection"] == ModelPolicy(new_rows=50, drift=0, margin=0.2)
    assert read["event_prediction"] == ModelPolicy(new_rows=500, drift=0)


def test_a_recipe_is_plain_values_on_top_of_the_one_for_all(tmp_path: Path) -> None:
    text = "[default.recipe]\nwindow = 10\nstart = 2024-05-01\n[task_completion.recipe]\nwindow = 5\nseed = 1\n"
    read = policies(tmp_path, text)
    assert read["task_completion"].recipe == {"window": 5, "start": "2024-05-01", "seed": 1}
    assert read["event_prediction"].recipe == {"window": 10, "start": "2024-05-01"}


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert policies(tmp_path, "") == read_policy(Settings())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[event]\n", r"\[event\]: expected one of default, event_prediction, .*; correct its name"),
        ("new_rows = 5\n", r"\[new_rows\]: expected one of default"),
        ("tool_selection = 5\n", r"tool_selection=5: expected a table; write \[tool_selection\] above it"),
        ("[default]\nnew_row = 5\n", r"\[default\] new_row: expected one of new_rows, new_days, .*, recipe; correct"),
        ("[default]\nnew_rows = true\n", r"\[default\] new_rows=True: expected a whole number of 0 or more"),
        ("[default]\nnew_rows = 1.5\n", r"new_rows=1\.5: expected a whole number"),
        ("[default]\nnew_days = -1\n", r"new_days=-1: expected a whole number"),
        ("[default]\nnew_rows = '5'\n", r"new_rows='5': expected a whole number"),
        ("[default]\ndrift = nan\n", r"drift=nan: expected a number from 0 to 1"),
        ("[default]\ndrift = 1.1\n", r"drift=1\.1: expected a number from 0 to 1"),
        ("[default]\nquality_drop = true\n", r"quality_drop=True: expected a number from 0 to 1"),
        ("[default]\nmargin = -0.1\n", r"margin=-0\.1: expected a number from 0 to 1"),
        ("[default]\nmax_age_days = inf\n", r"max_age_days=inf: expected a number of days"),
        ("[task_completion]\nrecipe = 5\n", r"\[task_completion\] recipe=5: expected a table; write"),
        ("[task_completion.recipe]\nsed = 5\n", r"\[task_completion.recipe\] sed: expected one of start, end, where"),
        ("[task_completion.recipe]\nmodel = 'x'\n", r"\[task_completion.recipe\] model: expected one of start"),
        ("[task_completion.recipe]\ninclude = []\n", r"include=\[\]: expected an id or more"),
        ("[task_completion.recipe]\nbalance = 'up'\n", r"balance='up': expected one of none, downsample"),
        ("[task_completion.recipe]\nstart = 2024-05-01T00:00:00Z\n", "start=.*: expected another type"),
        ("[task_completion.recipe]\nwhere = 'severity = 1'\n", r"\[task_completion.recipe\] predicate"),
        ("[default.recipe]\nwhere = 'severity IS NULL'\n", r"\[task_completion.recipe\] predicate"),
        ("[default.recipe]\nstart = '2024-05-02'\nend = '2024-05-01'\n", r"recipe\] start=2024-05-02 lies after"),
        ("[default\n", r"expected TOML; mend it"),
    ],
)
def test_what_cannot_be_used_is_told_with_file_field_value_and_what_it_may_be(
    text: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidTrainingPolicy, match=rf"policy\.toml: .*{told}"):
        policies(tmp_path, text)


def test_a_file_that_is_not_there_or_is_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidTrainingPolicy, match=r"No such file.*TDS_TRAINING_POLICY"):
        read_policy(Settings(training_policy=tmp_path / "none.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidTrainingPolicy, match="expected TOML"):
        read_policy(Settings(training_policy=tmp_path / "bytes.toml"))
