"""Turns a dataset into one version of a model: trained, tried on the test split, put in place, promoted if better.

    lock the model → end what was cut off → trainer into `.building-…/model` → its answers on test → figures, card,
    manifest → rename to the version → decision → `latest.json` → old versions go

Killed before the rename: the next one to hold the lock removes the folder. `latest.json` is the mark that moves last,
when the model is in place and decided on: a training that failed, or was killed, has seen nothing. The next one finds
the model, and decides.

An erasure does not wait for a training. It removes the dataset, then marks the models that are in place, under a lock
that a model needs to be put there with its dataset still whole: so there is none that it does not see.
"""

import hashlib
import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from ingest.errors import DamagedFile, ModelMissing, SourceMissing, TrainingFailed
from ingest.pipeline.partitions import PRIVATE_FILE, PRIVATE_FOLDER, DataPaths, make_folder, replacing, sync_data
from ingest.settings import Settings
from tds_dagster.curate.artifacts import code_version_of, locked, made_now, placing_models
from tds_dagster.curate.folders import (
    begun_folder,
    described_file,
    described_files,
    is_as_described,
    put_in_place,
    synced_file,
)
from tds_dagster.datasets.build import is_whole
from tds_dagster.datasets.manifest import Dataset, read_dataset
from tds_dagster.training.baselines import fit_baselines
from tds_dagster.training.card import model_card
from tds_dagster.training.champion import Decision, decide, record, settle
from tds_dagster.training.contract import Report, open_predictor, run_in_subprocess, say_nothing, trainer_name
from tds_dagster.training.manifest import (
    CARD,
    CONTENT,
    LATEST,
    MANIFEST,
    PREDICTIONS,
    Model,
    manifest_bytes,
    read_model,
    trained_versions,
)
from tds_dagster.training.metrics import measure
from tds_dagster.training.policy import policy_of
from tds_dagster.training.pruning import prune_models
from tds_dagster.training.questions import LabelledRow, read_split

RunTrainer = Callable[[Path, Path, Report], None]  # dataset's folder, output folder, what is told
_VERSION_DIGITS = 12


class Trained(msgspec.Struct, frozen=True):
    """What came of a training."""

    model: Model
    decision: Decision


def code_version() -> str:
    """The version of our code that decides a model's figures, and of the default trainer."""
    return code_version_of(sorted(str(path) for path in Path(__file__).parent.glob("*.py")))


def inputs_of(settings: Settings, dataset: str) -> str:
    """Hex SHA-256 over what a model of this dataset's version is made of: that, the trainer and our code.

    Of a trainer of one's own it has the command and the content of each file in it: who changes the script trains anew.
    """
    said = msgspec.json.encode([dataset, trainer_name(settings), _script_hashes(settings), code_version()])
    return hashlib.sha256(said).hexdigest()


def train_model(
    settings: Settings,
    dataset: Dataset,
    *,
    run_trainer: RunTrainer | None = None,
    margin: float | None = None,
    report: Report = say_nothing,
) -> Trained:
    """Train the model of a dataset, or find it trained, and decide whether it is the champion.

    `run_trainer` runs the trainer (None: as a process of its own); `margin` is that of the promotion, 0 to 1 (None: the
    policy's).

    Raises TrainingFailed if the trainer fails or what it made does not answer, DamagedFile if the dataset is not what
    its manifest says, InvalidTrainingPolicy. Then nothing is put in place.
    """
    paths, name = DataPaths(settings.data_dir), dataset.model
    margin = policy_of(settings, name).margin if margin is None else margin
    if not is_whole(dataset):
        raise DamagedFile(f"{dataset.folder}: not what its manifest says, somebody changed it; build the dataset again")
    home = paths.models(name)
    make_folder(home)
    with locked(paths, f"model_{name}"):
        settle(paths, name)
        inputs = inputs_of(settings, dataset.version)
        model = _trained_before(paths, name, inputs)
        if model is None:
            run = run_trainer or partial(run_in_subprocess, settings)
            with begun_folder(home) as folder:
                model = _train(settings, dataset, folder, inputs, run, report)
                target = home / model.version
                with placing_models(paths, name):
                    _require_dataset(dataset)
                    put_in_place(folder, target)
            model = msgspec.structs.replace(model, path=target)
        else:
            os.utime(model.folder / MANIFEST)  # the latest asked for is the last to be pruned
            report("this model was trained before: the same dataset, trainer and code", {})
        decision = decide(settings, model, dataset, margin=margin)
        if decision.champion != model.version:
            record(paths, decision)
        with replacing(home / LATEST) as out:
            out.write(msgspec.json.encode({"version": model.version}) + b"\n")
        prune_models(paths, name, settings.keep_versions)
    return Trained(model, decision)


def _train(settings: Settings, dataset: Dataset, folder: Path, inputs: str, run: RunTrainer, report: Report) -> Model:
    """Train into a folder, try it, and write everything but the rename."""
    output = folder / CONTENT
    output.mkdir(mode=PRIVATE_FOLDER)
    run(dataset.folder, output, report)
    _make_private(output)
    if not any(output.iterdir()):
        raise TrainingFailed(
            f"trainer {trainer_name(settings)}: it wrote nothing into the output folder, expected the model; "
            "docs/training.md has the contract"
        )
    rows = list(read_split(dataset, "test"))
    report("asking the model about the test split", {"rows": len(rows)})
    predicted, scores = _predictions(settings, dataset.model, output, rows)
    _write_predictions(folder, rows, predicted, scores)
    guesses = {
        name: [baseline.predict(row.question).prediction for row in rows]
        for name, baseline in fit_baselines(dataset).items()
    }
    labels, entities = [row.label for row in rows], [row.entity for row in rows]
    files = described_files(folder, but=MANIFEST)
    train = dataset.splits["train"]
    model = Model(
        model=dataset.model, version=_version(inputs, files), dataset=dataset.version,
        days=f"{dataset.recipe.start} to {dataset.recipe.end}", train_rows=train.rows, classes=train.classes,
        trainer=trainer_name(settings), code_version=code_version(), inputs=inputs,
        metrics=measure(labels, predicted, entities, guesses, scores), files=files, made_at=made_now(),
    )  # fmt: skip
    with synced_file(folder / CARD) as out:
        out.write(model_card(model).encode())
    model = msgspec.structs.replace(
        model, files=sorted([*files, described_file(folder, CARD)], key=lambda file: file.path)
    )
    with synced_file(folder / MANIFEST) as out:
        out.write(manifest_bytes(model))
    return model


def _require_dataset(dataset: Dataset) -> None:
    """Raise TrainingFailed if an erasure, or somebody, took the dataset away while it was learned from."""
    try:
        present = read_dataset(dataset.folder).version
    except SourceMissing:
        present = None
    if present != dataset.version:
        raise TrainingFailed(
            f"{dataset.folder}: expected the dataset that the model has learned from, and it is gone: an erasure or "
            f"somebody removed it meanwhile. The model is not kept; `tds train {dataset.model}` trains one of what is "
            "there now"
        )


def _predictions(
    settings: Settings, model: str, output: Path, rows: Sequence[LabelledRow]
) -> tuple[list[str], list[float | None]]:
    with open_predictor(settings, model, output, trainer_name(settings)) as predictor:
        answers = list(predictor.predict(row.question for row in rows))
    if len(answers) != len(rows):
        raise TrainingFailed(
            f"trainer {trainer_name(settings)}: {len(answers)} answers to {len(rows)} questions, expected one for each"
        )
    return [answer.prediction for answer in answers], [answer.score for answer in answers]


def _write_predictions(
    folder: Path, rows: Sequence[LabelledRow], predicted: Sequence[str], scores: Sequence[float | None]
) -> None:
    """A line a row of the test split, by the number of its line there: no id, nothing of its content."""
    with synced_file(folder / PREDICTIONS) as out:
        for line, (row, prediction, score) in enumerate(zip(rows, predicted, scores, strict=True), 1):
            told = {"line": line, "label": row.label, "prediction": prediction, "score": score}
            out.write(msgspec.json.encode(told) + b"\n")


def _version(inputs: str, files: object) -> str:
    """A hash over the inputs and what came of them: a trainer that is not deterministic makes another version."""
    return hashlib.sha256(msgspec.json.encode([inputs, files])).hexdigest()[:_VERSION_DIGITS]


def _trained_before(paths: DataPaths, name: str, inputs: str) -> Model | None:
    """The version that was made of the same inputs, if it still is what its manifest says."""
    for version in reversed(trained_versions(paths, name)):
        folder = paths.model(name, version)
        try:
            model = read_model(folder)
        except ModelMissing:
            continue  # of another version of this program, or damaged: it is trained anew
        if model.inputs == inputs and is_as_described(folder, model.files):
            return msgspec.structs.replace(model, reused=True)
    return None


def _make_private(folder: Path) -> None:
    """What a trainer wrote, for nobody else to read, and on the disk."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise TrainingFailed(f"{path.name}: a link in the output folder, expected files; write the model itself")
        path.chmod(PRIVATE_FOLDER if path.is_dir() else PRIVATE_FILE)
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                sync_data(descriptor)
            finally:
                os.close(descriptor)


def _script_hashes(settings: Settings) -> list[str]:
    words = [] if settings.trainer is None else shlex.split(settings.trainer)
    return [hashlib.sha256(Path(word).read_bytes()).hexdigest() for word in words if Path(word).is_file()]
