"""Turns predictions on a test split into figures: accuracy with its interval, beside baselines, by class, confusion.

The interval is Wilson's score interval at 95 % (E. B. Wilson, JASA 22, 1927) for the effective number of rows: rows of
one session resemble each other, so there is less to learn from them than from as many sessions. The number of rows is
divided by the design effect of the accuracy's variance between clusters (J. N. K. Rao and A. J. Scott, Biometrics 48,
1992), the clusters being the entities of the split. Where all are right, or all wrong, there is no variance to see:
then rows of one entity count as one and the same (Kish: (Σm)² / Σm²).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

ROUNDING = 1e-9  # of a difference between two shares, which is no difference between models
_Z = 1.959963984540054  # of 95 %, two-sided


class Interval(msgspec.Struct, frozen=True):
    """Where the accuracy lies on other rows of this kind, in 95 of 100 such tests."""

    low: float
    high: float


class Score(msgspec.Struct, frozen=True):
    """How often something was right."""

    accuracy: float  # correct / rows; 0 without rows
    interval: Interval
    correct: int
    rows: int


class ClassScore(msgspec.Struct, frozen=True):
    """How one class fared."""

    rows: int  # whose class it is
    precision: float  # of those taken for it, the share that is; 0 if none was
    recall: float  # of those that are, the share that was taken for it; 0 if none is
    f1: float  # harmonic mean of the two


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a model, and what stands beside it, reached on one split."""

    rows: int
    entities: int
    score: Score
    baselines: dict[str, Score]  # by name
    macro_f1: float  # mean over the classes that the split has
    classes: dict[str, ClassScore]  # those of the split, most rows first
    confusion: dict[str, dict[str, int]]  # true class → predicted class → rows
    brier: float | None = None  # of "this prediction is right", 0 to 1, less is better; None where scores are missing

    @property
    def best_baseline(self) -> tuple[str, Score]:
        """The baseline with the highest accuracy."""
        return max(self.baselines.items(), key=lambda item: item[1].accuracy)

    @property
    def beats_baselines(self) -> bool:
        """Whether it was right more often than each baseline; on an empty split it was not."""
        return self.score.accuracy > self.best_baseline[1].accuracy


def measure(
    labels: Sequence[str],
    predicted: Sequence[str],
    entities: Sequence[str],
    baselines: Mapping[str, Sequence[str]],
    scores: Sequence[float | None] = (),
) -> Metrics:
    """The figures of one split; all sequences have an item a row, in one order.

    `scores` are the probabilities that the model gave its predictions. Raises ValueError if lengths differ.
    """
    pairs = Counter(zip(labels, predicted, strict=True))
    confusion: dict[str, dict[str, int]] = {}
    for (label, guess), rows in sorted(pairs.items()):
        confusion.setdefault(label, {})[guess] = rows
    classes = _class_scores(pairs)
    return Metrics(
        rows=len(labels),
        entities=len(set(entities)),
        score=score_of([a == b for a, b in zip(labels, predicted, strict=True)], entities),
        baselines={
            name: score_of([a == b for a, b in zip(labels, guesses, strict=True)], entities)
            for name, guesses in baselines.items()
        },
        macro_f1=sum(each.f1 for each in classes.values()) / max(1, len(classes)),
        classes=classes,
        confusion=confusion,
        brier=_brier(labels, predicted, scores),
    )


def score_of(right: Sequence[bool], entities: Sequence[str]) -> Score:
    """Accuracy with its interval; `entities` says to which cluster each row belongs."""
    rows, correct = len(right), sum(right)
    accuracy = correct / rows if rows else 0.0
    return Score(accuracy, wilson_interval(accuracy, _effective_rows(right, entities)), correct, rows)


def wilson_interval(share: float, rows: float) -> Interval:
    """Wilson's 95 % interval of a share among so many rows, which need not be a whole number; 0 to 1 for none."""
    if rows <= 0:
        return Interval(0.0, 1.0)
    z2 = _Z * _Z / rows
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows)) / (1 + z2)
    # Exactly at the ends, where rounding would leave all-right ones below themselves.
    return Interval(0.0 if share == 0 else middle - half, 1.0 if share == 1 else middle + half)


def _effective_rows(right: Sequence[bool], entities: Sequence[str]) -> float:
    sizes, hits = (
        Counter(entities),
        Counter(entity for entity, is_right in zip(entities, right, strict=True) if is_right),
    )
    rows, clusters = len(right), len(sizes)
    if clusters < 2:
        return float(clusters)
    share = sum(right) / rows
    naive = share * (1 - share) / rows
    if naive == 0:
        return rows * rows / sum(size * size for size in sizes.values())
    spread = sum((hits[entity] - share * size) ** 2 for entity, size in sizes.items())
    between = clusters / (clusters - 1) * spread / (rows * rows)
    return rows / max(1.0, between / naive)


def _class_scores(pairs: Mapping[tuple[str, str], int]) -> dict[str, ClassScore]:
    actual, guessed = Counter[str](), Counter[str]()
    for (label, guess), rows in pairs.items():
        actual[label] += rows
        guessed[guess] += rows
    found = {}
    for label, rows in sorted(actual.items(), key=lambda item: (-item[1], item[0])):
        hits = pairs.get((label, label), 0)
        precision, recall = hits / guessed[label] if guessed[label] else 0.0, hits / rows
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        found[label] = ClassScore(rows, precision, recall, f1)
    return found


def _brier(labels: Sequence[str], predicted: Sequence[str], scores: Sequence[float | None]) -> float | None:
    """Mean squared difference between the score and whether the prediction was right (G. W. Brier, 1950).

    A model tells the probability of its prediction only, so no figure over all classes can be had, as log loss is.
    """
    if not scores or any(score is None for score in scores):
        return None
    losses = [
        (score - (label == guess)) ** 2
        for label, guess, score in zip(labels, predicted, scores, strict=True)
        if score is not None
    ]
    return sum(losses) / len(losses)
