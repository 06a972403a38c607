"""Turns the days after a champion's dataset into how well it holds on them: its accuracy there, and how classes moved.

The examples are made as the dataset's were, by its recipe, over days that nothing has learned from; none is put
anywhere but in a scratch folder. Sessions that began before the first of these days begin there. The classes are
counted over all of them; asked about are `MOST_ROWS` at most: of more, those with the smallest MD5 of their record's
id, so that the same days give the same figures.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path

import msgspec

from ingest.errors import SourceMissing
from ingest.pipeline.partitions import DataPaths
from ingest.redaction.redactor import open_redactor
from ingest.settings import Settings
from tds_dagster.datasets.build import model_named, resolved_recipe
from tds_dagster.datasets.manifest import Dataset, read_dataset
from tds_dagster.datasets.recipe import Recipe
from tds_dagster.datasets.sources import Sources, build_shards, open_sources, resolved_range
from tds_dagster.datasets.splits import write_examples
from tds_dagster.training.baselines import expected_classes
from tds_dagster.training.champion import open_model_of
from tds_dagster.training.manifest import Model, champion_of
from tds_dagster.training.metrics import ROUNDING, Score, score_of
from tds_dagster.training.questions import question_of, read_object

MOST_ROWS = 2000  # that are asked: enough for an interval of 4 points, and no hour for a slow model


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How a champion does on days after its dataset."""

    champion: str  # version
    expected: Score  # on its own test split
    start: str  # first of the days
    end: str  # last, included
    examples: int  # of these days
    score: Score  # on all of them, or on `MOST_ROWS` chosen by hash
    drift: float  # total variation distance of the classes from those of train: 0 the same, 1 none in common
    drift_by_chance: float  # what of it so few rows show though nothing moved
    classes: dict[str, int]  # examples of each, most first


class _Chosen(msgspec.Struct, frozen=True):
    """An example that is asked about."""

    label: str
    entity: str
    offset: int  # of its row in the scratch file
    size: int


def measure_quality(settings: Settings, model: str) -> Quality | None:
    """Ask the champion about the days after its dataset; None without a champion, or without such days.

    Raises SourceMissing if its dataset is gone, and what opening a model and building a day's shard raise.
    """
    paths = DataPaths(settings.data_dir)
    champion = champion_of(paths, model)
    if champion is None:
        return None
    dataset = read_dataset(paths.dataset(model, champion.dataset))
    recipe = _recipe_of_new_days(settings, dataset)
    if recipe is None:
        return None
    redactor = open_redactor(settings, recipe.redaction or settings.dataset_redaction)
    shards = build_shards(settings, recipe)
    with open_sources(settings, recipe, shards=shards, redactor=redactor) as sources:
        rows, index = sources.folder / "examples.rows", sources.folder / "examples.parquet"
        write_examples(model_named(model).examples(sources, recipe), rows, index, recipe.seed)
        classes, chosen = _classes(sources, index), _sample(sources, index)
        if not chosen:
            return None
        score = _score(settings, champion, rows, chosen)
    expected = expected_classes(dataset)
    return Quality(
        champion=champion.version, expected=champion.metrics.score, start=str(recipe.start), end=str(recipe.end),
        examples=sum(classes.values()), score=score, drift=total_variation(expected, classes),
        drift_by_chance=variation_by_chance(expected, classes), classes=classes,
    )  # fmt: skip


def has_dropped(expected: float, accuracy: float, *, low: float, high: float, quality_drop: float) -> bool:
    """Whether a champion lost accuracy: `quality_drop` or more of it (0 to 1), and beyond chance.

    `expected` is its accuracy on its test split and `low` the lower end of that one's 95 % interval, `accuracy` that on
    new days and `high` the upper end. Both were measured on some rows: only where the intervals lie apart is it no
    chance.
    """
    return expected - accuracy >= quality_drop - ROUNDING and high < low


def has_drifted(drift: float, by_chance: float, *, least: float) -> bool:
    """Whether classes moved by `least` or more (0 to 1) beyond what `variation_by_chance` gives."""
    return drift - by_chance >= least - ROUNDING


def total_variation(before: Mapping[str, int], now: Mapping[str, int]) -> float:
    """Half the sum of the differences between two distributions' shares, 0 to 1; 0 where one of them is empty."""
    rows_before, rows_now = sum(before.values()), sum(now.values())
    if not rows_before or not rows_now:
        return 0.0
    names = {*before, *now}
    return sum(abs(before.get(name, 0) / rows_before - now.get(name, 0) / rows_now) for name in names) / 2


def variation_by_chance(before: Mapping[str, int], now: Mapping[str, int]) -> float:
    """The total variation distance to expect of two samples of one distribution, 0 to 1; 0 where one is empty.

    Half the sum over the classes of the mean of |difference|, which for a normal difference of variance v is √(2v/π);
    v is p(1 - p)(1/n + 1/m), with p the class's share of both samples together. It grows with the classes: 20 even ones
    in 50 rows move by 0.2 and more by chance alone.
    """
    rows_before, rows_now = sum(before.values()), sum(now.values())
    if not rows_before or not rows_now:
        return 0.0
    shares = [(before.get(name, 0) + now.get(name, 0)) / (rows_before + rows_now) for name in {*before, *now}]
    spread = 2 / math.pi * (1 / rows_before + 1 / rows_now)
    return min(1.0, sum(math.sqrt(spread * share * (1 - share)) for share in sorted(shares)) / 2)


def _recipe_of_new_days(settings: Settings, dataset: Dataset) -> Recipe | None:
    """The dataset's recipe over the days after it, to the last one with data before today."""
    start = (date.fromisoformat(str(dataset.recipe.end)) + timedelta(days=1)).isoformat()
    try:
        _, last = resolved_range(DataPaths(settings.data_dir), None, None)
    except SourceMissing:
        return None
    if last < start:
        return None
    recipe = msgspec.structs.replace(dataset.recipe, start=start, end=last)
    if dataset.recipe_redacted:  # what chose the records is not known any more
        recipe = msgspec.structs.replace(recipe, where=None, include=(), exclude=())
    return resolved_recipe(settings, recipe)


def _classes(sources: Sources, index: Path) -> dict[str, int]:
    rows = sources.connection.execute(
        "SELECT label, count(*) AS n FROM read_parquet($1) GROUP BY label ORDER BY n DESC, label", [str(index)]
    )
    return dict(rows.fetchall())


def _sample(sources: Sources, index: Path) -> list[_Chosen]:
    rows = sources.connection.execute(
        "SELECT label, entity, offset_bytes, size_bytes FROM read_parquet($1) ORDER BY md5(record_id), place LIMIT $2",
        [str(index), MOST_ROWS],
    )
    return [_Chosen(*row) for row in rows.fetchall()]


def _score(settings: Settings, champion: Model, rows: Path, chosen: Sequence[_Chosen]) -> Score:
    with open_model_of(settings, champion) as predictor:
        answers = predictor.predict(_questions(champion.model, rows, chosen))
        right = [answer.prediction == row.label for answer, row in zip(answers, chosen, strict=True)]
    return score_of(right, [row.entity for row in chosen])


def _questions(model: str, rows: Path, chosen: Sequence[_Chosen]) -> Iterator[Mapping[str, object]]:
    """One at a time: a row may have 16 MiB."""
    with rows.open("rb") as content:
        for row in chosen:
            content.seek(row.offset)
            yield question_of(model, read_object(content.read(row.size)))
