"""Turns a dataset into a small scikit-learn model, the trainer where TDS_TRAINER names no other one.

    python -m tds_dagster.training.trainer DATASET OUTPUT | --predict OUTPUT          (the contract of `contract`)

It is a baseline that is honest: of a few simple candidates, among them the commonest class, it keeps the one that is
right most often on validation, of equals the one with the smaller log loss; test it does not read. It learns on one
core, from `MOST_ROWS` rows of train at most: of more, those whose record's hash is smallest, so that the same dataset
gives the same sample. Equal datasets give equal bytes, with the same versions of scikit-learn and NumPy on the same
kind of processor.

`model.skops` has the model, `trainer.json` how it was chosen. No word of the dataset is in either but the classes.
"""

import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ingest.errors import TrainingFailed
from ingest.pipeline.partitions import PRIVATE_FILE
from tds_dagster.datasets.manifest import Dataset, read_dataset
from tds_dagster.training.baselines import require_train_rows
from tds_dagster.training.contract import Answer, Prediction, Predictor, Report, run_trainer
from tds_dagster.training.features import FEATURES_VERSION, matrix, signs_of
from tds_dagster.training.questions import LabelledRow, read_split
from tds_dagster.training.skops_file import read_estimator, written_estimator

MODEL_FILE, FIGURES_FILE = "model.skops", "trainer.json"
MOST_ROWS = 20_000  # of train
MOST_VALIDATION_ROWS = 5_000
MOST_COLUMNS = 20_000  # signs that a model looks at, the most frequent ones
_AT_ONCE = 256  # questions
_UNTOLD = "linear, C=0.3"  # the candidate that is taken where validation has no row
_LEAST = 1e-15  # a probability of 0 has no logarithm


class Candidate(msgspec.Struct, frozen=True):
    """What a candidate was worth on validation; None where validation has no row."""

    name: str
    accuracy: float | None
    log_loss: float | None


class TrainerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What `trainer.json` says."""

    model: str
    features_version: int
    scikit_learn: str
    chosen: str  # a candidate's name
    candidates: list[Candidate]
    classes: list[str]
    rows: int  # of train that it learned from
    rows_of_train: int  # that there were
    validation_rows: int
    columns: int


def train(dataset_folder: Path, output: Path, report: Report) -> None:
    """Learn from a dataset's train split, choose on validation, and write the model's two files into `output`.

    Raises SourceMissing if the folder is no dataset, TrainingFailed if train has no row.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

    dataset = read_dataset(dataset_folder)
    require_train_rows(dataset)
    with threadpool_limits(1):  # the order of sums, and with it the last bits, would change with the threads
        figures, estimator, columns = _learn(dataset, report)
    content = written_estimator(estimator, columns)
    _write(output / MODEL_FILE, content)
    _write(output / FIGURES_FILE, msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
    report(f"chosen: {figures.chosen}", {"rows": figures.rows, "columns": figures.columns, "bytes": len(content)})


def load(output: Path) -> Answer:
    """What answers one question at a time, for `run_trainer`."""
    model = open_model(output)

    def answer(question: Mapping[str, object]) -> tuple[str, float | None]:
        found = model.answers([question])[0]
        return found.prediction, found.score

    return answer


class SklearnModel(Predictor):
    """A model that was loaded, and answers in this process."""

    def __init__(self, model: str, estimator: Any, columns: Any) -> None:  # noqa: ANN401 - scikit-learn has no types
        self.model = model
        self._estimator, self._columns = estimator, columns
        self._classes = [str(name) for name in estimator.classes_]

    def predict(self, questions: Iterable[Mapping[str, object]]) -> Iterator[Prediction]:
        """An answer for each question, in order."""
        remaining = iter(questions)
        while batch := list(itertools.islice(remaining, _AT_ONCE)):
            yield from self.answers(batch)

    def answers(self, questions: Sequence[Mapping[str, object]]) -> list[Prediction]:
        """The classes that are most probable; of a question with tools at hand, one of those."""
        signs = matrix(signs_of(self.model, question) for question in questions)[:, self._columns]
        shares = self._estimator.predict_proba(signs)
        return [self._best(question, row.tolist()) for question, row in zip(questions, shares, strict=True)]

    def close(self) -> None:
        """There is nothing to end."""

    def _best(self, question: Mapping[str, object], shares: Sequence[float]) -> Prediction:
        at_hand = _names_at_hand(question)
        known = [place for place, name in enumerate(self._classes) if name in at_hand]
        if at_hand and not known:
            return Prediction(min(at_hand), 1 / len(at_hand))  # it has seen none of them: one is as good as another
        known = known or list(range(len(self._classes)))
        total = math.fsum(shares[place] for place in known)
        best = max(known, key=lambda place: shares[place])
        return Prediction(self._classes[best], min(shares[best] / total, 1.0) if total else 1 / len(known))


def open_model(folder: Path) -> SklearnModel:
    """The model that `train` wrote into a folder.

    Raises TrainingFailed if a file is missing, is no skops file, or holds anything but the types that we write: then
    nothing of it was run.
    """
    figures = _read_figures(folder / FIGURES_FILE)
    if figures.features_version != FEATURES_VERSION:
        raise TrainingFailed(
            f"{folder}: made with features of version {figures.features_version}, expected {FEATURES_VERSION}; train "
            f"the model again with `tds train {figures.model}`"
        )
    return SklearnModel(figures.model, *read_estimator(folder / MODEL_FILE))


# ---------------------------------------------------------------------------------------------------- learning


def _learn(dataset: Dataset, report: Report) -> tuple[TrainerFigures, Any, Any]:
    """The figures, the estimator that was chosen, and the columns that it looks at."""
    import sklearn

    x, labels = _read(dataset, "train", MOST_ROWS)
    report("train was read", {"rows": len(labels), "of": dataset.splits["train"].rows, "classes": len(set(labels))})
    columns = _columns(x)
    x = x[:, columns]
    held, truth = _read(dataset, "validation", MOST_VALIDATION_ROWS)
    tried: list[tuple[Candidate, Any]] = []
    for name, make in _candidates(labels).items():
        estimator = _fitted(make(), x, labels)
        candidate = Candidate(name, *_worth(estimator, held[:, columns], truth))
        tried.append((candidate, estimator))
        if candidate.accuracy is not None and candidate.log_loss is not None:
            measured = {"accuracy": candidate.accuracy, "log_loss": candidate.log_loss}
            report(f"candidate {len(tried)}, {name}, on validation", measured)
    chosen, estimator = min(tried, key=_order)
    if not truth:
        report(f"validation has no row to choose by: {chosen.name} is taken", {})
    figures = TrainerFigures(
        model=dataset.model, features_version=FEATURES_VERSION, scikit_learn=sklearn.__version__, chosen=chosen.name,
        candidates=[candidate for candidate, _ in tried], classes=sorted(set(labels)), rows=len(labels),
        rows_of_train=dataset.splits["train"].rows, validation_rows=len(truth), columns=len(columns),
    )  # fmt: skip
    return figures, estimator, columns


def _candidates(labels: Sequence[str]) -> Mapping[str, Callable[[], Any]]:
    """What is tried, the simplest first.

    512 leaves keep a hundred trees of 20 classes below 20 MB, whatever the rows; on datasets of a thousand rows trees
    without that bound were no better.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression

    def linear(strength: float) -> Callable[[], Any]:
        return lambda: LogisticRegression(C=strength, max_iter=300, tol=1e-3)

    prior: Mapping[str, Callable[[], Any]] = {"the commonest class": lambda: DummyClassifier(strategy="prior")}
    if len(set(labels)) == 1:
        return prior
    return {
        **prior,
        "linear, C=0.03": linear(0.03),
        _UNTOLD: linear(0.3),
        "trees": lambda: ExtraTreesClassifier(100, max_leaf_nodes=512, random_state=0),
    }


def _fitted(estimator: Any, x: Any, labels: Sequence[str]) -> Any:  # noqa: ANN401 - scikit-learn has no types
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what 300 steps have learned is judged on validation
        return estimator.fit(x, labels)


def _worth(estimator: Any, x: Any, truth: Sequence[str]) -> tuple[float | None, float | None]:  # noqa: ANN401 - as above
    """Accuracy and mean log loss; a class that train does not have counts as improbable as it gets."""
    if not truth:
        return None, None
    shares = estimator.predict_proba(x)
    place = {str(name): n for n, name in enumerate(estimator.classes_)}
    right = sum(place.get(label) == best for label, best in zip(truth, shares.argmax(axis=1).tolist(), strict=True))
    probable = [row[place[label]] if label in place else 0.0 for label, row in zip(truth, shares.tolist(), strict=True)]
    loss = math.fsum(-math.log(min(max(share, _LEAST), 1.0)) for share in probable) / len(truth)
    return right / len(truth), abs(loss)


def _order(tried: tuple[Candidate, Any]) -> tuple[bool, float, float]:
    """The best candidate comes first; where validation tells nothing, the one that is rarely the worst."""
    candidate = tried[0]
    if candidate.accuracy is None or candidate.log_loss is None:
        return candidate.name != _UNTOLD, 0.0, 0.0
    return False, -candidate.accuracy, candidate.log_loss


def _read(dataset: Dataset, split: str, most: int) -> tuple[Any, list[str]]:
    """The rows of a split as a sparse matrix, and their classes."""
    labels: list[str] = []

    def signs() -> Iterator[list[str]]:
        for row in _sample(read_split(dataset, split), most / max(dataset.splits[split].rows, 1)):
            labels.append(row.label)
            yield signs_of(dataset.model, row.question)

    return matrix(signs()), labels


def _sample(rows: Iterable[LabelledRow], share: float) -> Iterator[LabelledRow]:
    """About that share of the rows, always the same ones; all of them for 1 and more."""
    for row in rows:
        if share >= 1 or int.from_bytes(hashlib.sha256(row.record_id.encode()).digest()[:8]) < share * (1 << 64):
            yield row


def _columns(x: Any) -> Any:  # noqa: ANN401 - SciPy has no types
    """The columns that two rows or more have, the most frequent ones of too many; all of them if there are none."""
    import numpy as np

    times = np.bincount(x.indices, minlength=x.shape[1])
    found = np.flatnonzero(times >= 2)
    if not len(found):
        found = np.flatnonzero(times)
    most = found[np.argsort(-times[found], kind="stable")][:MOST_COLUMNS]
    return np.sort(most).astype(np.int32)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(PRIVATE_FILE)


def _read_figures(path: Path) -> TrainerFigures:
    try:
        return msgspec.json.decode(path.read_bytes(), type=TrainerFigures)
    except (FileNotFoundError, msgspec.DecodeError) as err:
        raise TrainingFailed(f"{path}: {err}: expected the figures that our trainer writes; train again") from err


def _names_at_hand(question: Mapping[str, object]) -> frozenset[str]:
    tools = question.get("tools")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return frozenset(str(one.get("name")) for one in functions if isinstance(one, dict))


if __name__ == "__main__":
    run_trainer(train, load)
