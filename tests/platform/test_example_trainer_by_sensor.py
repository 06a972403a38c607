"""A trainer of somebody's own is run by the sensor as ours is."""

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from tds_dagster.assets.daily import daily_definitions
from tds_dagster.assets.datasets import dataset_asset
from tds_dagster.assets.models import model_asset
from tds_dagster.automation.retraining import SENTENCE, tick
from tds_dagster.datasets.recipe import Model
from tds_dagster.training.champion import load_champion
from tds_dagster.training.manifest import latest_trained
from tests.parts import PROJECT
from tests.platform.dagster_parts import last_days, paths_of, run_days
from tests.training.training_parts import settings_of, store_sessions

MODEL: Model = "event_prediction"


def test_the_ten_line_trainer_is_started_by_the_sensor_and_its_model_is_in_use(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    trainer = shlex.join([sys.executable, str(PROJECT / "examples" / "ten_line_trainer.py")])
    settings = settings_of(tmp_path / "data", trainer=trainer)
    (day,) = last_days(1)
    store_sessions(settings.data_dir, range(60), day=day)
    kinds = ("events", "tasks", "tool_executions", "workflows")
    assert run_days(
        instance, settings, [day], *(f"{g}/{kind}" for g in ("curated", "exports") for kind in kinds)
    ).success
    asked = tick(instance, settings, MODEL, datetime.now(UTC))
    assert isinstance(asked, dg.RunRequest)
    assert "it was never trained" in asked.tags[SENTENCE]
    assets: list[dg.AssetsDefinition] = [*daily_definitions(), dataset_asset(MODEL), model_asset(MODEL)]
    done = dg.materialize(
        assets, selection=[f"datasets/{MODEL}", f"models/{MODEL}"], instance=instance, run_config=asked.run_config,
        tags=asked.tags, resources={"settings": settings, "pipes": dg.PipesSubprocessClient()},
    )  # fmt: skip
    assert done.success
    model = latest_trained(paths_of(settings), MODEL)
    assert model is not None
    assert (model.trainer, model.metrics.beats_baselines) == (trainer, True)
    with load_champion(settings, MODEL) as champion:
        (answer,) = champion.predict([{"history": [{"event_type": "request_noted"}, {"event_type": "orders_checked"}]}])
        assert (champion.version, answer.prediction) == (model.version, "answer_noted")
    again = tick(instance, settings, MODEL, datetime.now(UTC))
    assert isinstance(again, dg.SkipReason)
