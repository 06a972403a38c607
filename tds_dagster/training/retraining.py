"""Turns what is known of the exported days, and of what was learned from them, into start or wait, and why.

The mark is the model that was trained last: its dataset's manifest names each day's shard with rows and hash. A
training that fails leaves no model, so it moves no mark. How often a day was exported does not matter: it counts if its
hash is not the one that was learned from.

Nothing here is remembered between two looks. Files and Dagster's event log say all, so a daemon that starts again, or
two that look at once, come to the same decision under the same `run_key`.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Literal

import msgspec

from ingest.errors import ModelMissing, SourceMissing
from ingest.pipeline.partitions import DataPaths
from tds_dagster.datasets.manifest import read_dataset
from tds_dagster.datasets.recipe import PRIMARY
from tds_dagster.training.manifest import LATEST, champion_version, latest_trained_version, read_model
from tds_dagster.training.policy import ModelPolicy
from tds_dagster.training.quality import has_drifted, has_dropped

EMPTY = hashlib.sha256(b"").hexdigest()  # of a day without rows, which is in no dataset
FEWEST_ROWS = 50  # with fewer, drift and accuracy on new days are chance
FIRST_ROWS = 100  # for a first model; of fewer, a test split holds hardly any, and a dataset may not come about

_DAY_S = 86_400


class Day(msgspec.Struct, frozen=True):
    """A day's shard."""

    version: str  # hex SHA-256 of its bytes
    rows: int


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned from last."""

    version: str  # of the model that was trained last
    made_at: datetime
    is_tainted: bool  # some of it has been erased since
    last_day: str  # of its dataset; empty if that is gone
    days: Mapping[str, Day]  # of the predicted kind; none if the dataset is gone
    is_lost: bool = False  # the model is damaged or gone, and with it what it learned from


class InUse(msgspec.Struct, frozen=True):
    """The champion."""

    version: str
    accuracy: float  # on the test split of its own dataset
    low: float  # lower end of its 95 % interval
    is_tainted: bool
    is_lost: bool = False  # damaged or gone: nobody can ask it


class OnNewDays(msgspec.Struct, frozen=True, kw_only=True):
    """What the last check of a champion on days after its dataset's has found."""

    champion: str  # version
    start: str  # first of these days
    rows: int
    accuracy: float
    high: float  # upper end of its 95 % interval
    drift: float  # total variation distance of the classes
    drift_by_chance: float = 0.0  # what of it so few rows show though nothing moved


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision is made from."""

    model: str
    days: Mapping[str, str]  # version of each exported day that a dataset of today would be made of (`days_for`)
    changed: Mapping[str, Day]  # those of them that are not as they were learned from (`changed_days`)
    mark: Mark | None = None  # None: no model was trained yet
    champion: InUse | None = None
    on_new_days: OnNewDays | None = None
    trainer: str = "default"
    now: datetime


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether to train, and why."""

    start: bool
    sentence: str  # what was seen, and why it starts or waits
    run_key: str | None = None  # the same for the same data, recipe and trainer; None without data
    last_day: str | None = None  # the last one of the dataset that is to be made
    figures: dict[str, float | int | str | None] = {}


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """Dagster's runs that bear on a decision, by id."""

    training: str | None = None  # trains this model now, or waits to
    exporting: str | None = None  # builds days of the predicted kind now
    earlier: str | None = None  # the last one that had this decision's `run_key`
    ended: Literal["succeeded", "failed", "was canceled"] = "failed"  # how that one did


def read_mark(paths: DataPaths, model: str) -> Mark | None:
    """What the model that was trained last has learned from; None if there is none.

    A dataset that an erasure took away counts as one without days, and so does that of a model that is damaged or gone.
    Raises DamagedFile where it cannot be read which one was the last.
    """
    version = latest_trained_version(paths, model)
    if version is None:
        return None
    try:
        latest = read_model(paths.model(model, version))
    except ModelMissing:
        then = datetime.fromtimestamp((paths.models(model) / LATEST).stat().st_mtime, UTC)
        return Mark(version=version, made_at=then, is_tainted=False, last_day="", days={}, is_lost=True)
    try:
        dataset = read_dataset(paths.dataset(model, latest.dataset))
        kind = PRIMARY[model]
        days = {each.day: Day(each.sha256, each.rows) for each in dataset.sources if each.kind == kind}
        last_day = dataset.recipe.end or ""
    except SourceMissing:
        days, last_day = {}, ""
    made_at = datetime.fromisoformat(latest.made_at)
    return Mark(version=latest.version, made_at=made_at, is_tainted=latest.is_tainted, last_day=last_day, days=days)


def read_champion(paths: DataPaths, model: str) -> InUse | None:
    """The champion; None if none was promoted yet. Raises DamagedFile where it cannot be read which one it is."""
    version = champion_version(paths, model)
    if version is None:
        return None
    try:
        champion = read_model(paths.model(model, version))
    except ModelMissing:
        return InUse(version, accuracy=0.0, low=0.0, is_tainted=False, is_lost=True)
    score = champion.metrics.score
    return InUse(version, accuracy=score.accuracy, low=score.interval.low, is_tainted=champion.is_tainted)


def days_for(versions: Mapping[str, str], recipe: Mapping[str, object], today: date) -> dict[str, str]:
    """Of the exported days those that a dataset of this recipe would be made of today: never the present day."""
    start, end = str(recipe.get("start") or ""), str(recipe.get("end") or "9999-12-31")
    present = today.isoformat()
    return {day: version for day, version in sorted(versions.items()) if start <= day <= end and day < present}


def changed_days(days: Mapping[str, str], mark: Mark | None) -> list[str]:
    """The days that are not as they were learned from. A day that Dagster has not seen is not taken for a lost one."""
    learned = mark.days if mark is not None else {}
    return [day for day, version in days.items() if version != (learned[day].version if day in learned else EMPTY)]


def changed_rows(changed: Mapping[str, Day], mark: Mark | None) -> int:
    """How many rows were added, removed or changed, at least.

    Hashes do not tell how many rows of a day differ. A day that has as many rows as before, and others, counts as one.
    """
    learned = mark.days if mark is not None else {}
    return sum(
        max(abs(day.rows - learned[name].rows), 1) if name in learned else day.rows for name, day in changed.items()
    )


def decide_retraining(policy: ModelPolicy, known: Known) -> Verdict:
    """Whether a model should be trained now, by the conditions of its policy. `hold_back` has the runs' say."""
    kind, filled = PRIMARY[known.model], [day for day, version in known.days.items() if version != EMPTY]
    if not filled:
        present = known.now.date().isoformat()
        return Verdict(start=False, sentence=f"{known.model} waits: no exported day of {kind} before {present} yet")
    rows, days = changed_rows(known.changed, known.mark), len(known.changed)
    conditions = _conditions(policy, known, rows)
    met, unmet = ([text for is_met, text in conditions if is_met is wanted] for wanted in (True, False))
    seen = f"{_counted(rows, 'row')} in {_counted(days, 'day')} of {kind} {_since(known.mark)}"
    why = f"starts: {'; '.join(met)}" if met else f"waits: {'; '.join(unmet) or 'its policy has no condition'}"
    return Verdict(
        start=bool(met),
        sentence=f"{known.model} {why} ({seen})",
        run_key=_run_key(policy, known),
        last_day=max(filled),
        figures={
            "rows": rows,
            "days": days,
            "age_days": None if known.mark is None else round(_age_days(known, known.mark), 2),
            "drift": None if known.on_new_days is None else known.on_new_days.drift,
            "accuracy": None if known.on_new_days is None else known.on_new_days.accuracy,
            "learned_from": None if known.mark is None else known.mark.version,
        },
    )


def hold_back(verdict: Verdict, runs: Runs) -> Verdict:
    """The verdict, but a start waits for runs under way, and is not asked for twice with the same data."""
    if not verdict.start:
        return verdict
    if runs.training is not None:
        reason = f"run {runs.training[:8]} is training it"
    elif runs.exporting is not None:
        reason = f"run {runs.exporting[:8]} is exporting days, all of which are to be in"
    elif runs.earlier is not None:
        reason = (
            f"run {runs.earlier[:8]} on the same data {runs.ended}, and the same is not tried twice: it takes another "
            "day, recipe or trainer, or somebody who starts it"
        )
    else:
        return verdict
    return msgspec.structs.replace(
        verdict,
        start=False,
        sentence=verdict.sentence.replace(" starts: ", f" waits: {reason}; its reason to start: ", 1),
    )


def _conditions(policy: ModelPolicy, known: Known, rows: int) -> list[tuple[bool, str]]:
    """What can start a training as things are: whether it does, and in words."""
    mark = known.mark
    if mark is None:
        least = min(policy.new_rows or FIRST_ROWS, FIRST_ROWS)
        return [(rows >= least, "it was never trained" if rows >= least else f"a first model takes {least} rows")]
    broken = [*_of_lost(known, mark), *_of_erasure(known, mark)]
    if not known.changed:
        return broken or [(False, "nothing changed")]
    return [*broken, *_of_data(policy, known, mark, rows), *_of_champion(policy, known, mark)]


def _of_lost(known: Known, mark: Mark) -> list[tuple[bool, str]]:
    champion = known.champion
    if champion is not None and champion.is_lost:
        return [(True, f"its champion {champion.version} is damaged or gone")]
    return [(True, f"{mark.version}, which was trained last, is damaged or gone")] if mark.is_lost else []


def _of_erasure(known: Known, mark: Mark) -> list[tuple[bool, str]]:
    champion = known.champion
    if champion is None or not champion.is_tainted:
        return []
    text = f"records that its champion {champion.version} learned from were erased"
    if known.changed or mark.is_tainted:
        return [(True, text)]
    return [(False, f"{text}, but {mark.version} learned from all that is there now and was not better")]


def _of_data(policy: ModelPolicy, known: Known, mark: Mark, rows: int) -> list[tuple[bool, str]]:
    days, age_days = len(known.changed), _age_days(known, mark)
    found: list[tuple[str, float, float]] = [
        ("new_rows", rows, policy.new_rows),
        ("new_days", days, policy.new_days),
        ("max_age_days", age_days, policy.max_age_days),
    ]
    return [(value >= least, f"{name} {int(value):,} of {least:,}") for name, value, least in found if least]


def _of_champion(policy: ModelPolicy, known: Known, mark: Mark) -> list[tuple[bool, str]]:
    """Drift and lost accuracy, and whether each is reason enough, from a check on days that nothing has learned from.

    A model that was trained since has seen days of that check, or its champion was another one. So one drift starts one
    training: if that one is not promoted, rows and age decide about the next.
    """
    check, champion = known.on_new_days, known.champion
    if check is None or champion is None or check.champion != champion.version or check.start <= mark.last_day:
        return []
    if check.rows < FEWEST_ROWS:
        return []
    found = []
    if policy.drift:
        is_met = has_drifted(check.drift, check.drift_by_chance, least=policy.drift)
        text = f"drift {check.drift:.2f}, {check.drift_by_chance:.2f} of it chance, of {policy.drift:g}"
        found.append((is_met, text))
    if policy.quality_drop:
        lost = champion.accuracy - check.accuracy
        text = (
            f"{champion.accuracy:.2f} on its test split, {champion.low:.2f} at least; "
            f"{check.accuracy:.2f} on new days, {check.high:.2f} at most"
        )
        is_met = has_dropped(
            champion.accuracy, check.accuracy, low=champion.low, high=check.high, quality_drop=policy.quality_drop
        )
        found.append((is_met, f"quality_drop {lost:.2f} of {policy.quality_drop:g} ({text})"))
    return found


def _age_days(known: Known, mark: Mark) -> float:
    return (known.now.astimezone(UTC) - mark.made_at).total_seconds() / _DAY_S


def _since(mark: Mark | None) -> str:
    if mark is None:
        return "are exported"
    return f"changed since {mark.version}, which learned up to {mark.last_day or 'a day that is not known any more'}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _run_key(policy: ModelPolicy, known: Known) -> str:
    """Of everything that another training could learn something else from."""
    # A model that an erasure has tainted, or that is lost, is to be trained again, though its days may be the same.
    mark, champion = known.mark, known.champion
    tainted = mark.version if mark is not None and (mark.is_tainted or mark.is_lost) else None
    lost = [champion.version] if champion is not None and champion.is_lost else []
    filled = {day: version for day, version in known.days.items() if version != EMPTY}
    said = msgspec.json.encode([known.model, filled, policy.recipe, known.trainer, tainted, *lost], order="sorted")
    return f"{known.model}-{hashlib.sha256(said).hexdigest()[:16]}"
