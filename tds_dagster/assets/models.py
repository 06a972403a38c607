"""Turns a dataset into a model: runs the trainer through Dagster Pipes, and reports figures, decision and card.

The asset's data version is the model's: the same dataset, trainer and code are the same version, whoever trained it. A
model that is not promoted is no failure of its run; the check `beats_its_baselines` tells it, and the decision.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError  # noqa: PLC2701 - the client raises it, dagster exports no name
from pydantic import Field

from ingest.errors import EngineFailed, TdsError, TrainingFailed
from ingest.pipeline.partitions import DataPaths
from ingest.settings import Settings, child_environment
from tds_dagster.assets.raw import OWNERS
from tds_dagster.automation.conditions import each_morning
from tds_dagster.datasets.build import model_named
from tds_dagster.datasets.manifest import find_dataset
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.training.card import verdict
from tds_dagster.training.champion import checked_margin
from tds_dagster.training.confusion import accuracy_plot, confusion_plot
from tds_dagster.training.contract import Report, trainer_command, trainer_name
from tds_dagster.training.manifest import CARD, Model, champion_version
from tds_dagster.training.policy import policy_of
from tds_dagster.training.quality import Quality, has_dropped, measure_quality
from tds_dagster.training.run import Trained, code_version, train_model

POOL = "training"
BEATS, HOLDS = "beats_its_baselines", "champion_holds_on_new_days"
Metadata = Mapping[str, dg.MetadataValue | int | float | str]
_MOST_LOGGED = 200  # messages of a trainer, in the asset's metadata


class TrainConfig(dg.Config):
    """What the model is trained on and when it is promoted."""

    dataset: str | None = Field(
        default=None, description="A version of its dataset. Default: the one built last, in this run or before it."
    )
    margin: float | None = Field(
        default=None,
        description="By how much of accuracy a new champion has to be better, 0 to 1. Default: the policy's "
        "(TDS_TRAINING_POLICY), which is 0.01 unless set.",
    )


def model_assets() -> Sequence[dg.AssetsDefinition]:
    """`models/<model>` of every model."""
    return [model_asset(model) for model in MODELS]


def champion_checks() -> Sequence[dg.AssetChecksDefinition]:
    """The check of each model's champion on new days."""
    return [champion_check(model) for model in MODELS]


def model_asset(model: str) -> dg.AssetsDefinition:
    """One model."""
    module = model_named(model)

    @dg.asset(
        key=["models", model],
        deps=[["datasets", model]],
        group_name="models",
        description=f"{module.TITLE}: trained by TDS_TRAINER, tried on the untouched test split, promoted to champion "
        "if it beats its baselines and the champion on the same rows. A folder a version, with a card. "
        "See docs/models.md.",
        code_version=code_version(),
        owners=OWNERS,
        kinds={"scikitlearn"},
        tags={"model": model},
        pool=POOL,
        check_specs=[
            dg.AssetCheckSpec(
                BEATS,
                asset=["models", model],
                description="More often right on the test split than the majority and the most recent class.",
            )
        ],
        # For a full disk or a locked database; a trainer that fails is not run again (_refusal).
        retry_policy=dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL),
    )
    def trained(
        context: dg.AssetExecutionContext,
        config: TrainConfig,
        settings: dg.ResourceParam[Settings],
        pipes: dg.ResourceParam[dg.PipesSubprocessClient],
    ) -> Iterator[dg.MaterializeResult[None]]:
        paths, told = DataPaths(settings.data_dir), list[dict[str, object]]()

        def run_trainer(dataset: Path, output: Path, _report: Report) -> None:
            _run_in_pipes(context, pipes, settings, [str(dataset), str(output)], told)

        try:
            version = config.dataset or _version_of_this_run(context, model)
            dataset = find_dataset(paths, model if version is None else f"{model}/{version}")
            margin = None if config.margin is None else checked_margin(config.margin)
            made = train_model(
                settings, dataset, run_trainer=run_trainer, margin=margin,
                report=lambda message, _figures: context.log.info(message),
            )  # fmt: skip
        except TdsError as err:
            raise _refusal(err) from err
        context.log.info("%s: %s", "promoted" if made.decision.promoted else "not promoted", made.decision.reason)
        yield dg.MaterializeResult(
            data_version=dg.DataVersion(made.model.version),
            metadata=_metadata(made, champion_version(paths, model), told),
            check_results=[_beats(made.model)],
        )

    return trained


def champion_check(model: str) -> dg.AssetChecksDefinition:
    """How the champion does on days after its dataset, each morning; sensors read the figures of the last result."""

    @dg.asset_check(
        name=HOLDS,
        asset=["models", model],
        description="On days that nothing has learned from the champion is as good as on its test split, but for "
        "quality_drop of the policy and what may be chance.",
        automation_condition=each_morning(),
        pool=POOL,
    )
    def holds(context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
        try:
            quality, quality_drop = measure_quality(settings, model), policy_of(settings, model).quality_drop
        except TdsError as err:
            context.log.warning(str(err))
            return _held(passed=False, text=f"not measured: {err}", metadata={"rows": 0})
        if quality is None:
            return _held(passed=True, text="no champion, or no day after its dataset yet", metadata={"rows": 0})
        passed = not has_dropped(
            quality.expected.accuracy, quality.score.accuracy, low=quality.expected.interval.low,
            high=quality.score.interval.high, quality_drop=quality_drop,
        )  # fmt: skip
        text = (
            f"{quality.score.accuracy:.1%} on {quality.score.rows} rows of {quality.start} to {quality.end}, "
            f"{quality.expected.accuracy:.1%} on its test split; classes moved by {quality.drift:.2f}, of which "
            f"{quality.drift_by_chance:.2f} may be chance"
        )
        return _held(passed=passed, text=text, metadata=_figures(quality))

    return holds


def _refusal(err: TdsError) -> dg.Failure:
    """The end of a step that trained nothing. It is tried again if that can help."""
    return dg.Failure(str(err), allow_retries=isinstance(err, EngineFailed))


def _version_of_this_run(context: dg.AssetExecutionContext, model: str) -> str | None:
    """The version of the dataset that this run has built, or the one that it goes on from; None without any.

    Not the latest on disk: a command may have built another one since.
    """
    key = dg.AssetKey(["datasets", model])
    for run_id in filter(None, (context.run.run_id, context.run.parent_run_id)):
        for entry in context.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            event = entry.dagster_event
            if event is not None and event.asset_key == key:
                tags = event.step_materialization_data.materialization.tags or {}
                return str(tags["dagster/data_version"])
    return None


def _run_in_pipes(
    context: dg.AssetExecutionContext,
    pipes: dg.PipesSubprocessClient,
    settings: Settings,
    arguments: Sequence[str],
    told: list[dict[str, object]],
) -> None:
    """Run the trainer; what it says goes to the run's log, its figures to `told`. Raises TrainingFailed."""
    with TemporaryDirectory() as folder:
        last_lines = Path(folder) / "stderr"
        try:
            done = pipes.run(
                context=context.op_execution_context,
                command=[*trainer_command(settings, last_lines), *arguments],
                env=child_environment(settings, PYTHONUNBUFFERED="1"),
            )
        except DagsterPipesExecutionError as err:
            said = last_lines.read_text(encoding="utf-8", errors="replace") if last_lines.exists() else ""
            raise TrainingFailed(
                f"trainer {trainer_name(settings)}: {err}, expected 0; correct what it says. "
                + (f"The end of its stderr:\n{said}" if said else "It wrote nothing to stderr.")
            ) from err
    told += [message for message in done.get_custom_messages() if isinstance(message, dict)][-_MOST_LOGGED:]


def _metadata(made: Trained, champion: str | None, told: Sequence[Mapping[str, object]]) -> Metadata:
    """Figures, paths and plots: no record's content goes into Dagster's event log."""
    model, metrics = made.model, made.model.metrics
    return {
        "version": model.version,
        "dataset": model.dataset,
        "days": model.days,
        "accuracy": metrics.score.accuracy,
        "accuracy_low": metrics.score.interval.low,
        "accuracy_high": metrics.score.interval.high,
        **{f"accuracy_{name}": score.accuracy for name, score in metrics.baselines.items()},
        "test_rows": metrics.rows,
        "train_rows": model.train_rows,
        "verdict": verdict(metrics),
        "decision": f"{'promoted' if made.decision.promoted else 'not promoted'}: {made.decision.reason}",
        "champion": champion or "none",
        "trainer": model.trainer,
        "path": dg.MetadataValue.path(model.folder),
        "card": dg.MetadataValue.path(model.folder / CARD),
        "accuracy_plot": dg.MetadataValue.md(accuracy_plot(metrics)),
        "confusion_matrix": dg.MetadataValue.md(confusion_plot(metrics)),
        "training_log": dg.MetadataValue.json(list(told)),
        "reused": str(model.reused),
    }


def _beats(model: Model) -> dg.AssetCheckResult:
    name, best = model.metrics.best_baseline
    return dg.AssetCheckResult(
        check_name=BEATS,
        passed=model.metrics.beats_baselines,
        severity=dg.AssetCheckSeverity.WARN,
        description=verdict(model.metrics),
        metadata={"accuracy": model.metrics.score.accuracy, "baseline": name, "baseline_accuracy": best.accuracy},
    )


def _held(*, passed: bool, text: str, metadata: Metadata) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, description=text, metadata=metadata)


def _figures(quality: Quality) -> Metadata:
    return {
        "champion": quality.champion, "start": quality.start, "end": quality.end, "rows": quality.score.rows,
        "examples": quality.examples, "accuracy": quality.score.accuracy, "low": quality.score.interval.low,
        "high": quality.score.interval.high, "expected": quality.expected.accuracy, "drift": quality.drift,
        "drift_by_chance": quality.drift_by_chance,
        "classes": dg.MetadataValue.json(quality.classes),
    }  # fmt: skip
