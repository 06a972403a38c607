"""Turns two models' figures into the decision which one is in use, and the decision into a link on the disk.

    lock the model → decision appended to `promotions.jsonl`, synced → `champion` replaced by rename

Killed between the two: the decision stands, and whoever holds the lock next moves the link (`settle`). A line that was
cut off in the middle is no decision and goes. At every moment `champion` points at a whole version, or at none.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ingest.errors import DamagedFile, InvalidTrainingPolicy, ModelMissing, SourceMissing, TrainingFailed
from ingest.pipeline.partitions import PRIVATE_FILE, DataPaths, make_folder, sync_folder
from ingest.settings import Settings
from tds_dagster.curate.artifacts import locked, made_now
from tds_dagster.curate.folders import is_as_described, remove_unfinished, replace_link
from tds_dagster.datasets.manifest import Dataset, read_dataset
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.training.contract import Closing, Prediction, Predictor, open_predictor
from tds_dagster.training.manifest import (
    CHAMPION,
    Model,
    champion_of,
    champion_version,
    read_model,
    trained_versions,
)
from tds_dagster.training.metrics import ROUNDING
from tds_dagster.training.questions import LabelledRow, checked_question, read_split

PROMOTIONS = "promotions.jsonl"
ERASED = "records that it was trained on are erased"
FEWEST_ROWS = 20  # of the test split, that neither model was trained on, to hold two models together


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Which of two models is in use from now on, and why."""

    at: str  # RFC 3339, UTC
    model: str
    kind: Literal["promotion", "rollback"]
    challenger: str  # the version that was judged, or that was gone back to
    champion: str | None  # the version in use before
    promoted: bool  # whether the challenger is in use now
    reason: str  # a sentence
    figures: Mapping[str, float | int] = {}


class Comparison(msgspec.Struct, frozen=True):
    """Two models on rows of one test split."""

    challenger: float  # accuracy
    champion: float
    rows: int  # that both were asked
    known: int  # rows of the split that were left out: of entities that the champion has seen


def decisions(paths: DataPaths, model: str) -> list[Decision]:
    """All decisions on a model, oldest first. A line that was cut off is none. Raises DamagedFile for a damaged one."""
    log = paths.models(model) / PROMOTIONS
    try:
        lines = log.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        if line.endswith(b"\n"):
            try:
                found.append(msgspec.json.decode(line, type=Decision))
            except (msgspec.DecodeError, UnicodeDecodeError) as err:
                raise DamagedFile(
                    f"{log}, line {number}: expected a decision as it is written each time ({err}); correct the line, "
                    "or remove it: then that decision is forgotten"
                ) from err
    return found


def settle(paths: DataPaths, model: str) -> None:
    """End what a killed process began: unfinished folders go, and the link follows the last decision.

    The caller holds the model's lock.
    """
    home = paths.models(model)
    make_folder(home)
    remove_unfinished(home)
    _cut_off_half_a_line(home / PROMOTIONS)
    promoted = [each for each in decisions(paths, model) if each.promoted]
    if promoted and champion_version(paths, model) != promoted[-1].challenger:
        replace_link(home / CHAMPION, promoted[-1].challenger)


def decide(settings: Settings, challenger: Model, dataset: Dataset, *, margin: float) -> Decision:
    """Whether the challenger takes the champion's place.

    It does if it was right more often than each baseline, and more often than the champion on the same rows of its
    test split by `margin` (0 to 1). Without a champion, or with one whose records were erased, baselines are enough.
    """
    paths, metrics = DataPaths(settings.data_dir), challenger.metrics
    present, champion = champion_version(paths, challenger.model), _present_champion(paths, challenger.model)
    figures: dict[str, float | int] = {
        "accuracy": metrics.score.accuracy, "rows": metrics.rows, "baseline": metrics.best_baseline[1].accuracy,
        "margin": margin,
    }  # fmt: skip
    promoted, reason = False, _hindrance(paths, challenger, champion)
    if reason is None and (champion is None or champion.is_tainted):
        promoted, reason = True, f"{_standing(challenger)}, and {_gap(present, champion)}"
    elif reason is None and champion is not None:
        try:
            compared = compare(settings, challenger, champion, dataset)
        except (ModelMissing, SourceMissing, TrainingFailed) as err:
            reason = (
                f"the champion {champion.version} cannot be held against it: {err}; "
                f"`tds rollback {challenger.model} --to {challenger.version}` puts this one in use all the same"
            )
        else:
            promoted, reason = _outcome(compared, champion, margin)
            figures |= {"challenger_accuracy": compared.challenger, "champion_accuracy": compared.champion,
                        "compared_rows": compared.rows, "gain": compared.challenger - compared.champion}  # fmt: skip
    return Decision(
        at=made_now(), model=challenger.model, kind="promotion", challenger=challenger.version,
        champion=present, promoted=promoted, reason=reason or "", figures=figures,
    )  # fmt: skip


def _hindrance(paths: DataPaths, challenger: Model, champion: Model | None) -> str | None:
    """Why a model cannot be promoted whatever the champion does; None if it can."""
    if champion is not None and champion.version == challenger.version:
        return "it is the champion already"
    if challenger.is_tainted:
        return f"{ERASED}; `tds train {challenger.model}` trains one of what is there now"
    if _was_rolled_back(paths, challenger):
        return f"it was rolled back; `tds rollback {challenger.model} --to {challenger.version}` puts it back"
    return None if challenger.metrics.beats_baselines else _standing(challenger)


def _standing(challenger: Model) -> str:
    metrics = challenger.metrics
    name, best = metrics.best_baseline
    verb = "beats" if metrics.beats_baselines else "does not beat"
    return f"{metrics.score.accuracy:.1%} on {metrics.rows} rows of test {verb} {name} with {best.accuracy:.1%}"


def _gap(present: str | None, champion: Model | None) -> str:
    if present is None:
        return "there is no champion"
    if champion is None:
        return f"the champion {present} is damaged or gone"
    return f"of the champion {champion.version} {ERASED}"


def _outcome(compared: Comparison, champion: Model, margin: float) -> tuple[bool, str]:
    if compared.rows < FEWEST_ROWS:
        return False, (
            f"only {compared.rows} rows of test are new to the champion {champion.version}, expected {FEWEST_ROWS}: "
            "take more days"
        )
    promoted = compared.challenger - compared.champion >= margin - ROUNDING
    return promoted, (
        f"{compared.challenger:.1%} against {compared.champion:.1%} of the champion {champion.version} on the same "
        f"{compared.rows} rows: {'at least' if promoted else 'less than'} the margin of {100 * margin:.1f} points"
    )


def compare(settings: Settings, challenger: Model, champion: Model, dataset: Dataset) -> Comparison:
    """Ask both about the rows of the challenger's test split that are of no entity the champion has seen.

    Raises ModelMissing or TrainingFailed if the champion cannot be asked, SourceMissing if its dataset is gone.
    """
    paths = DataPaths(settings.data_dir)
    rows = list(read_split(dataset, "test"))
    seen = _seen_entities(paths, champion, rows)
    fresh = [row for row in rows if row.entity not in seen]
    right = [_accuracy(settings, model, fresh) for model in (challenger, champion)]
    return Comparison(right[0], right[1], len(fresh), len(rows) - len(fresh))


def record(paths: DataPaths, decision: Decision) -> None:
    """Write a decision down and, if it promotes, move the link. The caller holds the model's lock."""
    home = paths.models(decision.model)
    descriptor = os.open(home / PROMOTIONS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE)
    with os.fdopen(descriptor, "ab") as log:  # writes all of it, or raises
        log.write(msgspec.json.encode(decision) + b"\n")
        log.flush()
        os.fsync(descriptor)
    sync_folder(home)
    if decision.promoted:
        replace_link(home / CHAMPION, decision.challenger)


def rollback(settings: Settings, model: str, to: str | None = None) -> Decision:
    """Put an earlier version back in use: `to`, or the one that was in use before the present one.

    The version that goes is not promoted again by itself. Raises ModelMissing if there is none to go back to.
    """
    paths = DataPaths(settings.data_dir)
    if model not in MODELS:
        raise ModelMissing(f"model {model!r}: expected one of {', '.join(MODELS)}; pass one of these")
    with locked(paths, f"model_{model}"):
        settle(paths, model)
        present = champion_version(paths, model)
        wanted = _earlier_champion(paths, model, present) if to is None else _version_named(paths, model, to)
        if wanted == present:
            raise ModelMissing(f"model {model}: {wanted} is the champion already; pass another version with --to")
        is_tainted = read_model(paths.model(model, wanted)).is_tainted
        decision = Decision(
            at=made_now(), model=model, kind="rollback", challenger=wanted, champion=present, promoted=True,
            reason=f"somebody went back from {present or 'no champion'} to {wanted}"
            + (f", though {ERASED}" if is_tainted else ""),
        )  # fmt: skip
        record(paths, decision)
    return decision


def open_model_of(settings: Settings, model: Model) -> Predictor:
    """What answers with a version of a model, once its files are found to be what the manifest says.

    Raises TrainingFailed if they are not, and as `open_predictor` does.
    """
    if not is_as_described(model.folder, model.files):
        raise TrainingFailed(
            f"{model.folder}: not what its manifest says, a file is damaged or somebody changed it; "
            f"`tds train {model.model}` trains it again"
        )
    return open_predictor(settings, model.model, model.content, model.trainer)


class Champion(Closing):
    """The model in use, loaded: `champion.predict([question, …])`. `with` closes it."""

    def __init__(self, settings: Settings, model: Model) -> None:
        """Load a model. Raises ModelMissing, TrainingFailed if its file is not what was written."""
        self.model = model
        self.is_tainted = model.is_tainted  # records that it was trained on have been erased since
        self._predictor: Predictor = open_model_of(settings, model)

    @property
    def version(self) -> str:
        """Which version it is."""
        return self.model.version

    def predict(self, questions: Iterable[object]) -> list[Prediction]:
        """The answer to each question, in order: its class and how probable that is.

        A question is an object as `tds predict` takes it. Raises InvalidRecord for one that cannot be asked.
        """
        asked = [checked_question(self.model.model, question) for question in questions]
        return list(self._predictor.predict(asked))

    def predict_each(self, questions: Iterable[Mapping[str, object]]) -> Iterator[Prediction]:
        """The same for a stream of checked questions, one at a time."""
        yield from self._predictor.predict(questions)

    def close(self) -> None:
        """End what a trainer's own process runs; again does nothing."""
        self._predictor.close()


def load_champion(settings: Settings, model: str) -> Champion:
    """Load the model in use. Raises ModelMissing if none was promoted yet."""
    if model not in MODELS:
        raise ModelMissing(f"model {model!r}: expected one of {', '.join(MODELS)}; pass one of these")
    champion = champion_of(DataPaths(settings.data_dir), model)
    if champion is None:
        raise ModelMissing(
            f"{model}: no model was promoted yet: expected one that beats its baselines; `tds train {model}` trains one"
        )
    return Champion(settings, champion)


def checked_margin(margin: float) -> float:
    """A margin, if it is one. Raises InvalidTrainingPolicy."""
    if not 0 <= margin <= 1:
        raise InvalidTrainingPolicy(f"margin={margin}: expected a number from 0 to 1, such as 0.01 for one point")
    return margin


def _accuracy(settings: Settings, model: Model, rows: Sequence[LabelledRow]) -> float:
    with open_model_of(settings, model) as predictor:
        answers = predictor.predict(row.question for row in rows)
        right = sum(answer.prediction == row.label for answer, row in zip(answers, rows, strict=True))
    return right / max(1, len(rows))


def _seen_entities(paths: DataPaths, model: Model, rows: Iterable[LabelledRow]) -> set[str]:
    """The entities of `rows` that the model's trainer had, in train or, to choose by, in validation.

    Where the other recipe's entity is another one (agents, not sessions) it is their records that tell.
    """
    dataset = read_dataset(paths.dataset(model.model, model.dataset))
    entities, records = set(), set()
    for split in ("train", "validation"):
        for row in read_split(dataset, split):
            entities.add(row.entity)
            records.add(row.record_id)
    return {row.entity for row in rows if row.entity in entities or row.record_id in records}


def _present_champion(paths: DataPaths, model: str) -> Model | None:
    """The champion; None also where its folder is damaged or was removed by hand: then it holds nobody back."""
    try:
        champion = champion_of(paths, model)
    except ModelMissing:
        return None
    return champion if champion is not None and is_as_described(champion.folder, champion.files) else None


def _was_rolled_back(paths: DataPaths, challenger: Model) -> bool:
    """Whether the last thing that was decided of this version by hand is that it goes."""
    by_hand = [each for each in decisions(paths, challenger.model) if each.kind == "rollback"]
    about = [each for each in by_hand if challenger.version in (each.champion, each.challenger)]
    return bool(about) and about[-1].champion == challenger.version


def _earlier_champion(paths: DataPaths, model: str, present: str | None) -> str:
    """The version in use before the present one, without what is gone and what was gone back from."""
    used: list[str] = []
    for decision in decisions(paths, model):
        if decision.kind == "rollback" and decision.challenger in used:
            del used[used.index(decision.challenger) + 1 :]
        elif decision.promoted:
            used.append(decision.challenger)
    there = trained_versions(paths, model)
    for version in reversed(used[:-1]):
        if version != present and version in there:
            return version
    raise ModelMissing(
        f"model {model}: no earlier champion is there to go back to; `ls {paths.models(model)}` shows the versions, "
        "--to takes one"
    )


def _version_named(paths: DataPaths, model: str, text: str) -> str:
    found = [version for version in trained_versions(paths, model) if version.startswith(text)]
    if len(found) != 1 or not text:
        raise ModelMissing(
            f"model {model}: --to {text!r}: expected the beginning of one version below {paths.models(model)}, found "
            f"{len(found)}"
        )
    return read_model(paths.model(model, found[0])).version


def _cut_off_half_a_line(path: Path) -> None:
    try:
        with path.open("rb+") as log:
            content = log.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                log.truncate(whole)
                os.fsync(log.fileno())
    except FileNotFoundError:
        return
