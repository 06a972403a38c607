"""Each model's dataset is an asset: its recipe in the launchpad, its version and its figures in what it reports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest

from ingest import Settings, TrainingDataStore
from ingest.records import KINDS
from tds_dagster.assets.datasets import RecipeConfig, dataset_definitions
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.manifest import read_dataset
from tds_dagster.datasets.recipe import MODELS, Recipe, read_recipe
from tds_dagster.definitions import defs
from tests.platform.dagster_parts import DATA_VERSION

DAY = "2024-05-15"


def store_sessions(store: TrainingDataStore, count: int) -> None:
    for n in range(count):
        for place, event_type in enumerate(("agent_started", "request_received", "agent_stopped")):
            store.sync.store_agent_event(
                event_type, "agent-1", session_id=f"s{n}", payload={"text": f"request {n}"},
                timestamp=f"{DAY}T10:{n:02d}:{place:02d}Z",
            )  # fmt: skip
    store.sync.flush()


def materialize(
    instance: dg.DagsterInstance, settings: Settings, config: Mapping[str, object] | None = None
) -> dg.ExecuteInProcessResult:
    definitions = dataset_definitions()
    run_config = {"ops": {"datasets__event_prediction": {"config": dict(config)}}} if config else None
    return dg.materialize(
        definitions,
        selection=["datasets/event_prediction"],
        instance=instance,
        resources={"settings": settings},
        run_config=run_config,
        raise_on_error=False,
    )


def last_report(instance: dg.DagsterInstance) -> dg.AssetMaterialization:
    (record,) = instance.fetch_materializations(dg.AssetKey(["datasets", "event_prediction"]), limit=1).records
    assert record.asset_materialization is not None
    return record.asset_materialization


def test_a_launch_without_settings_builds_the_dataset_and_reports_its_version_and_figures(
    instance: dg.DagsterInstance, settings: Settings, store: TrainingDataStore
) -> None:
    store_sessions(store, 40)
    assert materialize(instance, settings).success
    report = last_report(instance)
    metadata: dict[str, Any] = {name: value.value for name, value in report.metadata.items()}
    built = read_dataset(Path(str(metadata["path"])))
    assert (report.tags or {})[DATA_VERSION] == built.version == metadata["version"]
    assert metadata["dagster/row_count"] == built.rows == 80
    assert [metadata[f"{name}_rows"] for name in built.splits] == [split.rows for split in built.splits.values()]
    for plot in ("split_sizes", "classes"):
        assert "data:image/svg+xml" in str(metadata[plot])
    assert msgspec.convert(metadata["recipe"], Recipe) == built.recipe
    assert not [name for name, value in metadata.items() if "request 1" in str(value)]
    assert build_dataset(settings, read_recipe("event_prediction", {})).reused  # `tds dataset` makes the same


def test_a_recipe_from_the_launchpad_is_another_version(
    instance: dg.DagsterInstance, settings: Settings, store: TrainingDataStore
) -> None:
    store_sessions(store, 40)
    versions = []
    for config in ({}, {"seed": 3}, {"seed": 3, "where": "event_type = 'agent_stopped'"}):
        assert materialize(instance, settings, config).success
        versions.append(str((last_report(instance).tags or {})[DATA_VERSION]))
    assert len(set(versions)) == 3
    assert last_report(instance).metadata["dagster/row_count"].value == 40


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"balance": "sideways"}, "balance='sideways': expected one of none, downsample"),
        ({"where": "event_type; drop"}, "predicate"),
        ({"where": "event_type = 'never'"}, "train and validation and test would have no row"),
    ],
)
def test_a_recipe_that_cannot_be_followed_fails_the_run_and_says_why(
    config: dict[str, object], told: str, instance: dg.DagsterInstance, settings: Settings, store: TrainingDataStore
) -> None:
    store_sessions(store, 3)
    result = materialize(instance, settings, config)
    assert not result.success
    failed = result.get_step_failure_events()[0].step_failure_data.error
    assert failed is not None
    assert told in str(failed.cause or failed)
    assert not instance.fetch_materializations(dg.AssetKey(["datasets", "event_prediction"]), limit=1).records


def test_every_model_has_an_asset_on_all_exports_whose_settings_are_the_recipe() -> None:
    graph = defs.resolve_asset_graph()
    for model in MODELS:
        node = graph.get(dg.AssetKey(["datasets", model]))
        assert node.group_name == "datasets"
        assert node.parent_keys == {dg.AssetKey(["exports", kind]) for kind in KINDS}
        assert node.partitions_def is None
        assert node.description
        assert node.code_version
        assert node.metadata["dagster/column_schema"].columns
    fields = RecipeConfig.model_fields
    assert list(fields) == [name for name in Recipe.__struct_fields__ if name != "model"]
    assert all(field.description for field in fields.values())
    recipe = read_recipe(MODELS[0], RecipeConfig().model_dump())
    assert recipe == Recipe(model=MODELS[0])
