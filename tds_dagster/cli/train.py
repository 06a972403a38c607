"""Turns `tds train` and `tds rollback` into one call of the function that the asset uses, and prints the figures."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import print_json, print_table, print_warning

if TYPE_CHECKING:
    from tds_dagster.training.metrics import Score
    from tds_dagster.training.run import Trained

EXAMPLE = "tds train tool_selection"
ROLLBACK_EXAMPLE = "tds rollback tool_selection"
MODEL_HELP = "event_prediction, task_completion, tool_selection or workflow_orchestration."
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]


class TrainedScore(msgspec.Struct, frozen=True):
    accuracy: float  # 0 to 1
    low: float  # of its 95 % interval
    high: float
    rows: int  # of the test split


class TrainedModel(msgspec.Struct, frozen=True):
    """What `tds train --json` prints."""

    model: str
    version: str
    path: str  # the folder
    card: str
    dataset: str  # version
    days: str
    trainer: str
    reused: bool  # it had been trained before
    scores: dict[str, TrainedScore]  # `model`, and each baseline
    beats_baselines: bool
    promoted: bool
    champion: str | None  # the version in use now
    reason: str  # of the decision


class MovedChampion(msgspec.Struct, frozen=True):
    """What `tds rollback --json` prints."""

    model: str
    champion: str  # the version in use now
    before: str | None
    reason: str


def train(
    model: ModelArgument,
    *,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="A version of its dataset, or a folder; default: the one built last."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="By how much of accuracy a new champion has to be better, 0 to 1 (0.01)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model, and put it in use if it is better.

    TDS_TRAINER trains (default: a small scikit-learn model). It is tried on the untouched test split and becomes the
    champion if it beats the majority and the most recent class, and the champion on the same rows by the margin. A
    model that is not promoted is no error: its card says why.
    """
    from ingest.errors import InvalidRecipe
    from ingest.pipeline.partitions import DataPaths
    from ingest.settings import read_settings
    from tds_dagster.datasets.manifest import find_dataset
    from tds_dagster.training.champion import checked_margin
    from tds_dagster.training.manifest import champion_version
    from tds_dagster.training.run import train_model

    settings = read_settings()
    paths = DataPaths(settings.data_dir)
    built = find_dataset(paths, _dataset_text(model, dataset))
    if built.model != model:
        raise InvalidRecipe(
            f"--dataset {dataset}: a dataset of {built.model}, expected one of {model}; "
            f"`tds train {built.model}` takes that one"
        )
    margin = None if margin is None else checked_margin(margin)
    trained = train_model(settings, built, margin=margin, report=_tell)
    result = _result(trained, champion_version(paths, model))
    if as_json:
        print_json(result)
    else:
        _print(result)


def rollback(
    model: ModelArgument,
    *,
    to: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="The version to go back to; default: the champion before this one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put an earlier version of a model back in use.

    The version that goes is not promoted again by itself; `tds rollback MODEL --to VERSION` brings it back.
    """
    from ingest.settings import read_settings
    from tds_dagster.training.champion import ERASED
    from tds_dagster.training.champion import rollback as go_back

    decision = go_back(read_settings(), model, to)
    if as_json:
        print_json(MovedChampion(model, decision.challenger, decision.champion, decision.reason))
    else:
        typer.echo(f"{model}: {decision.challenger} is the champion now; it was {decision.champion or 'none'}")
    if decision.reason.endswith(ERASED):
        print_warning(f"{model} {decision.challenger}: {ERASED}; `tds train {model}` makes one without them")


def _tell(message: str, figures: Mapping[str, float | int | str]) -> None:
    """What the trainer says, on a terminal."""
    if sys.stderr.isatty():
        from tds_dagster.training.contract import sentence_of

        typer.echo(sentence_of(message, figures), err=True)


def _dataset_text(model: str, dataset: str | None) -> str:
    """What `find_dataset` looks for: a version is one of this model's."""
    from ingest.errors import InvalidRecipe
    from tds_dagster.datasets.recipe import MODELS

    if model not in MODELS:
        raise InvalidRecipe(f"model={model!r}: expected one of {', '.join(MODELS)}; pass one of these names")
    return model if dataset is None else dataset if "/" in dataset else f"{model}/{dataset}"


def _result(trained: "Trained", champion: str | None) -> TrainedModel:
    model = trained.model
    scores = {"model": model.metrics.score, **model.metrics.baselines}
    return TrainedModel(
        model=model.model, version=model.version, path=str(model.folder), card=str(model.folder / "README.md"),
        dataset=model.dataset, days=model.days, trainer=model.trainer, reused=model.reused,
        scores={name: _score(score) for name, score in scores.items()},
        beats_baselines=model.metrics.beats_baselines, promoted=trained.decision.promoted, champion=champion,
        reason=trained.decision.reason,
    )  # fmt: skip


def _score(score: "Score") -> TrainedScore:
    return TrainedScore(score.accuracy, score.interval.low, score.interval.high, score.rows)


def _print(result: TrainedModel) -> None:
    print_table(
        ["on the test split", "accuracy", "95 % interval", "rows"],
        [
            [name if name != "model" else result.model, f"{score.accuracy:.1%}", f"{score.low:.1%} to {score.high:.1%}",
             score.rows]
            for name, score in result.scores.items()
        ],
    )  # fmt: skip
    typer.echo("")
    typer.echo(f"{result.model} {result.version}, of dataset {result.dataset}{', as trained before' * result.reused}")
    typer.echo(f"{'promoted' if result.promoted else 'not promoted'}: {result.reason}")
    if result.champion is not None and not result.promoted:
        typer.echo(f"champion: {result.champion}")
    typer.echo(result.card)
