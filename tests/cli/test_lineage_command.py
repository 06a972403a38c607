"""`tds lineage`: a model's days in a terminal and for a program."""

import json
from collections.abc import Callable

from typer.testing import Result

from ingest import Settings
from ingest.pipeline.partitions import DataPaths
from tds_dagster.training.run import train_model
from tests.stages.conftest import DAY
from tests.training.training_parts import build, store_sessions

MODEL = "task_completion"
KINDS = ("events", "tasks", "tool_executions", "workflows")


def test_the_days_of_a_model_are_shown_in_runs_or_each_with_its_files(
    settings: Settings, tds: Callable[..., Result]
) -> None:
    store_sessions(settings.data_dir, range(40))
    train_model(settings, build(settings.data_dir, MODEL))
    paths = DataPaths(settings.data_dir)
    told = tds("lineage", MODEL).stdout.splitlines()
    assert told[0].startswith(f"model    {MODEL} ")
    assert told[0].endswith(", the champion")
    assert any(line.split()[:4] == ["events", DAY, DAY, "1"] for line in told)
    assert told[-1] == "4 days: 4 unchanged"
    assert str(paths.training("events", DAY)) in tds("lineage", MODEL, "--all").stdout
    read = json.loads(tds("lineage", MODEL, "--json").stdout)
    assert {day["raw"]["path"] for day in read["days"]} == {str(paths.training(kind, DAY)) for kind in KINDS}
    assert tds("lineage", "weather").exit_code == 1
