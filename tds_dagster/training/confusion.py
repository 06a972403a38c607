"""Turns a model's confusion matrix and its accuracy beside baselines into pictures, as `export.plot` draws them."""

from collections.abc import Mapping

from tds_dagster.export.plot import COLOURS, TEXT_COLOUR, bars_image, image, label_text, text_at
from tds_dagster.training.metrics import Metrics, Score

_MOST_CLASSES = 12
_CELL, _LEFT, _TOP = 30, 140, 40
_OTHERS = "others"
_DARK = 0.6  # share from which a number is white on its cell


def accuracy_plot(metrics: Metrics) -> str:
    """One bar for the model and one for each baseline: the accuracy, its interval as figures."""
    scores = {"model": metrics.score, **metrics.baselines}
    bars = [(name, [score.accuracy], f"{score.accuracy:.1%}") for name, score in scores.items()]
    figures = ", ".join(f"{name} {score_text(score)}" for name, score in scores.items())
    return bars_image("accuracy on the test split", figures, bars, [""])


def confusion_plot(metrics: Metrics) -> str:
    """A row a true class, a column a predicted one; a cell is as dark as its share of the row.

    The 12 most frequent classes are shown, the others together as one.
    """
    matrix = _folded(metrics)
    names = list(matrix)
    parts = [
        text_at(0, 14, "true class, left; predicted class, in the same order"),
        *(text_at(_LEFT - 8, _TOP + n * _CELL + 20, label_text(name), anchor="end") for n, name in enumerate(names)),
        *(text_at(_LEFT + n * _CELL + _CELL / 2, _TOP - 6, str(n + 1), anchor="middle") for n in range(len(names))),
    ]
    for row, (_name, guesses) in enumerate(matrix.items()):
        total = max(1, sum(guesses.values()))
        for column, guess in enumerate(names):
            rows = guesses.get(guess, 0)
            x, y = _LEFT + column * _CELL, _TOP + row * _CELL
            parts.append(
                f'<path d="M{x} {y}h{_CELL - 1}v{_CELL - 1}H{x}z" fill="{COLOURS[0 if row == column else 1]}" '
                f'fill-opacity="{rows / total:.2f}" stroke="{TEXT_COLOUR}" stroke-opacity=".3"/>'
            )
            if rows:
                number = text_at(x + _CELL / 2, y + 19, f"{rows}", anchor="middle")
                is_dark = rows / total > _DARK
                parts.append(number.replace("<text", '<text fill="#fff"') if is_dark else number)
    figures = "; ".join(
        f"{label_text(name)}: {guesses.get(name, 0)} of {sum(guesses.values())} right"
        for name, guesses in matrix.items()
    )
    return image("confusion matrix", figures or "no row", parts, _TOP + len(names) * _CELL + 4)


def score_text(score: Score) -> str:
    """An accuracy for people: `84.6 % (78.1 to 89.5)`."""
    return f"{score.accuracy:.1%} ({score.interval.low:.1%} to {score.interval.high:.1%})"


def _folded(metrics: Metrics) -> Mapping[str, dict[str, int]]:
    shown = list(metrics.classes)[:_MOST_CLASSES]
    if len(metrics.classes) > len(shown) or any(set(row) - set(shown) for row in metrics.confusion.values()):
        shown.append(_OTHERS)
    folded: dict[str, dict[str, int]] = {name: {} for name in shown}
    for label, guesses in metrics.confusion.items():
        row = folded[label if label in folded else _OTHERS]
        for guess, rows in guesses.items():
            column = guess if guess in folded else _OTHERS
            row[column] = row.get(column, 0) + rows
    return folded
