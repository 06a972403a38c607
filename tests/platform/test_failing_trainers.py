"""A trainer that fails, fails its run once, with its own words, and leaves nothing behind."""

import shlex
import sys
from pathlib import Path

import dagster as dg

from tds_dagster.assets.models import model_asset
from tds_dagster.training.manifest import latest_trained
from tests.platform.dagster_parts import paths_of
from tests.training.training_parts import build, settings_of, store_sessions

MODEL = "event_prediction"


def test_a_trainer_that_fails_is_run_once_and_says_why(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import sys\nsys.stderr.write('no GPU here\\n')\nsys.exit(3)\n")
    settings = settings_of(tmp_path / "data", trainer=shlex.join([sys.executable, str(script)]))
    store_sessions(settings.data_dir, range(60))
    build(settings.data_dir, MODEL)
    run = dg.materialize(
        [model_asset(MODEL)], instance=instance, raise_on_error=False,
        resources={"settings": settings, "pipes": dg.PipesSubprocessClient()},
    )  # fmt: skip
    assert not run.success
    kinds = [event.event_type for event in run.all_events]
    assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in kinds
    (failure,) = run.get_step_failure_events()
    error = failure.step_failure_data.error
    assert error is not None
    assert "no GPU here" in error.to_string()
    assert "expected 0" in error.to_string()
    assert latest_trained(paths_of(settings), MODEL) is None
    assert not list(paths_of(settings).models(MODEL).glob(".building-*"))
