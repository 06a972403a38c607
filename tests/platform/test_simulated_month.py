"""A week in small: the platform's own automation, run by a clock that is passed in, does nothing for nothing."""

import datetime as dt
import sys
from pathlib import Path

import dagster as dg
import msgspec

from benchmarks.simulated_month import simulate
from ingest import Settings
from ingest.pipeline.partitions import today
from tds_dagster.automation.retraining import tick
from tests.platform.retraining_parts import waits

TRAINER = """
import json, sys
if sys.argv[1] == "--predict":
    for line in sys.stdin:
        print('{"prediction": "answer_noted", "score": null}', flush=True)
else:
    open(sys.argv[2] + "/model.json", "w").close()
"""


def test_every_run_of_some_days_makes_something_new_and_each_training_has_its_reason(
    settings: Settings, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "policy.toml").write_text("[default]\nnew_rows = 80\n[default.recipe]\nallow_empty_splits = true\n")
    settings = msgspec.structs.replace(
        settings, trainer=f"{sys.executable} {tmp_path}/trainer.py", training_policy=tmp_path / "policy.toml"
    )
    month = simulate(settings, instance, [today() - dt.timedelta(days=number) for number in (3, 2, 1)])
    assert not [run for run in month.runs if run.has_failed or not run.is_new]
    trained = [(run.moment.date(), run.why.split(" (")[0]) for run in month.runs if run.what == "train"]
    # 160 events and 40 rows of tasks a day: one day's events suffice, and two days' tasks.
    assert trained == [
        (today() - dt.timedelta(days=2), "event_prediction starts: it was never trained"),
        (today() - dt.timedelta(days=1), "event_prediction starts: new_rows 160 of 80"),
        (today() - dt.timedelta(days=1), "task_completion starts: it was never trained"),
    ]
    assert month.kept < month.events[3]
    later = dt.datetime.combine(today(), dt.time(0, 5), dt.UTC)  # what retention left is enough to decide from
    assert "waits: new_rows 40 of 80" in waits(tick(instance, settings, "task_completion", later))
