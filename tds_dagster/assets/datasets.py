"""Turns a recipe from the launchpad into one version of a dataset, and reports its figures.

Each model's dataset is an asset without partitions, made of the exports of all kinds and days in its range. Its data
version is the dataset's: the same content of the same recipe is the same version, whoever built it.
"""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg
import msgspec
from pydantic import Field

from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS
from ingest.settings import Settings
from tds_dagster.assets.raw import OWNERS, column_lineage
from tds_dagster.automation.checks import dataset_results, dataset_specs
from tds_dagster.datasets.build import build_dataset, code_version, model_named
from tds_dagster.datasets.manifest import Dataset
from tds_dagster.datasets.recipe import MODELS, Model, Recipe, read_recipe
from tds_dagster.export.features import Feature, type_text
from tds_dagster.export.plot import classes_plot, splits_plot
from tds_dagster.training.pruning import prune_datasets

_DEFAULTS = Recipe(model=MODELS[0])


class RecipeConfig(dg.Config):
    """What the dataset is made of and how it is split. Every setting has a default; docs/datasets.md has the rules."""

    start: str | None = Field(default=None, description="First day, YYYY-MM-DD (UTC). Default: the first with data.")
    end: str | None = Field(default=None, description="Last day, included. Default: the last with data, but not today.")
    where: str | None = Field(
        default=None,
        description="Which records are predicted: an SQL condition over their columns and their latest feedback, "
        "such as feedback.reward >= 1.",
    )
    include: list[str] = Field(
        default=[],
        description="Ids of records, tasks, sessions or agents: if any, only records with one are predicted.",
    )
    exclude: list[str] = Field(default=[], description="Ids whose records are not predicted.")
    window: int = Field(default=_DEFAULTS.window, description="The most history that an example has, in items.")
    minimum_history: int = Field(
        default=_DEFAULTS.minimum_history, description="Examples with less history are left out."
    )
    balance: str = Field(
        default=_DEFAULTS.balance,
        description="none, or downsample: every class of train gets as many rows as its smallest.",
    )
    split_by: str = Field(
        default=_DEFAULTS.split_by, description="entity (by hash), or time: train, then validation, then test."
    )
    entity: str | None = Field(
        default=None,
        description="What is never in two splits, and beyond which no history reaches: session, agent, task or "
        "workflow. Default: the model's own.",
    )
    fractions: list[float] = Field(
        default=list(_DEFAULTS.fractions), description="Shares of train, validation and test; their sum is 1."
    )
    seed: int = Field(default=_DEFAULTS.seed, description="Another number gives another split.")
    redaction: str | None = Field(
        default=None, description="none, secrets or full. Default: TDS_DATASET_REDACTION, which is full unless set."
    )
    allow_empty_splits: bool = Field(
        default=_DEFAULTS.allow_empty_splits, description="Go on where a split has no row, instead of failing."
    )


def dataset_definitions() -> Sequence[dg.AssetsDefinition]:
    """`datasets/<model>` of every model."""
    return [dataset_asset(model) for model in MODELS]


def dataset_asset(model: Model) -> dg.AssetsDefinition:
    """One model's dataset."""
    module = model_named(model)

    @dg.asset(
        key=["datasets", model],
        deps=[["exports", kind] for kind in KINDS],
        group_name="datasets",
        description=f"{module.DESCRIPTION} Train, validation and test, a card and a manifest, in a folder a version. "
        "See docs/datasets.md.",
        metadata={
            "dagster/column_schema": _column_schema(module.FEATURES),
            "dagster/column_lineage": column_lineage("exports", module.COLUMNS_FROM),
        },
        code_version=code_version(),
        owners=OWNERS,
        kinds={"json", "huggingface"},
        tags={"model": model},
        check_specs=dataset_specs(model),
    )
    def dataset(
        context: dg.AssetExecutionContext, config: RecipeConfig, settings: dg.ResourceParam[Settings]
    ) -> Iterator[dg.MaterializeResult[None]]:
        built = build_dataset(settings, read_recipe(model, config.model_dump()))
        for warning in built.warnings:
            context.log.warning(warning)
        prune_datasets(DataPaths(settings.data_dir), model, settings.keep_versions)
        yield dg.MaterializeResult(
            data_version=dg.DataVersion(built.version),
            metadata=_metadata(built),
            check_results=dataset_results(settings, built),
        )

    return dataset


def _metadata(built: Dataset) -> Mapping[str, dg.MetadataValue | int | str]:
    """Recipe, counts, paths and plots: no record's content goes into Dagster's event log.

    The recipe is the manifest's, redacted to the dataset's level; the run's configuration has it as it was typed.
    """
    splits = {name: split.rows for name, split in built.splits.items()}
    classes = {name: split.classes for name, split in built.splits.items()}
    return {
        "dagster/row_count": built.rows,
        **{f"{name}_rows": rows for name, rows in splits.items()},
        "version": built.version,
        "recipe": dg.MetadataValue.json(msgspec.to_builtins(built.recipe)),
        "path": dg.MetadataValue.path(built.folder),
        "days": f"{built.recipe.start} to {built.recipe.end}",
        "split_sizes": dg.MetadataValue.md(splits_plot(splits)),
        "classes": dg.MetadataValue.md(classes_plot(classes)),
        "no_example": dg.MetadataValue.json(built.no_example),
        "left_out": dg.MetadataValue.json(built.left_out),
        "duplicates": dg.MetadataValue.json(msgspec.to_builtins(built.duplicates)),
        "redaction": built.redaction,
        "redacted": dg.MetadataValue.json(built.redacted),
        "warnings": dg.MetadataValue.json(built.warnings),
    }


def _column_schema(features: Mapping[str, Feature]) -> dg.TableSchema:
    return dg.TableSchema(columns=[dg.TableColumn(name, type=type_text(kind)) for name, kind in features.items()])
