"""Turns a model's figures into its card: `README.md` as Hugging Face reads model cards.

Source of the front matter: https://huggingface.co/docs/hub/model-cards and its `model-index`. A card has classes and
counts, as the dataset's has, and nothing else of a record.
"""

from collections.abc import Iterator

from tds_dagster.datasets.build import model_named
from tds_dagster.export.card import front_matter, table_cell
from tds_dagster.training.confusion import accuracy_plot, confusion_plot
from tds_dagster.training.manifest import CONTENT, MANIFEST, PREDICTIONS, Model
from tds_dagster.training.metrics import Metrics

_MOST_CLASSES = 50
_QUESTIONS = {
    "event_prediction": '{"history": [{"event_type": "agent_started"}]}',
    "task_completion": '{"task_type": "support", "priority": "high", "input": {"question": "…"}}',
    "tool_selection": '{"messages": [{"role": "user", "content": "…"}]}',
    "workflow_orchestration": '{"workflow_type": "support", "history": [{"phase": "planning"}]}',
}


def model_card(model: Model) -> str:
    """The card of a model. Equal models give equal text."""
    return front_matter(_front(model)) + "\n" + "\n".join(_body(model)) + "\n"


def verdict(metrics: Metrics) -> str:
    """Whether it is worth anything, as a sentence."""
    name, best = metrics.best_baseline
    if not metrics.rows:
        return "The test split has no row, so nothing is known of it: it is not promoted."
    if metrics.beats_baselines:
        return f"It beats the best baseline, {name} with {best.accuracy:.1%}, by {_points(metrics)} points."
    return (
        f"It does not beat the best baseline, {name} with {best.accuracy:.1%} ({_points(metrics)} points): "
        "it is not promoted."
    )


def _points(metrics: Metrics) -> str:
    return f"{100 * (metrics.score.accuracy - metrics.best_baseline[1].accuracy):+.1f}"


def _front(model: Model) -> dict[str, object]:
    title = model_named(model.model).TITLE
    metric = {"type": "accuracy", "value": round(model.metrics.score.accuracy, 6)}
    return {
        "library_name": "sklearn" if model.trainer == "default" else "custom",
        "tags": ["tabular-classification", model.model],
        "model-index": [
            {
                "name": f"{model.model}-{model.version}",
                "results": [
                    {
                        "task": {"type": "text-classification", "name": title},
                        "dataset": {"type": model.model, "name": title, "split": "test", "revision": model.dataset},
                        "metrics": [metric, {"type": "f1", "value": round(model.metrics.macro_f1, 6)}],
                    }
                ],
            }
        ],
    }


def _body(model: Model) -> Iterator[str]:
    metrics = model.metrics
    yield f"# {model_named(model.model).TITLE}: a model\n\n{model_named(model.model).DESCRIPTION}\n"
    yield f"{verdict(metrics)}\n"
    yield "| on the untouched test split | accuracy | 95 % interval | right | of |\n|---|--:|---|--:|--:|"
    for name, score in {"**this model**": metrics.score, **metrics.baselines}.items():
        low, high = score.interval.low, score.interval.high
        yield f"| {name} | {score.accuracy:.1%} | {low:.1%} to {high:.1%} | {score.correct:,} | {score.rows:,} |"
    brier = "" if metrics.brier is None else f" Brier score of its probabilities: {metrics.brier:.3f}."
    yield (
        f"\nMean F1 of the classes: {metrics.macro_f1:.3f}.{brier} The interval is Wilson's for the effective number "
        f"of rows: the {metrics.rows:,} rows are of {metrics.entities:,} entities, and rows of one resemble each "
        "other. `majority` always says what is most frequent, `most_recent` what came last.\n"
    )
    yield accuracy_plot(metrics)
    yield f"\n{confusion_plot(metrics)}"
    yield "\n## Classes\n\n| class | rows of test | precision | recall | F1 |\n|---|--:|--:|--:|--:|"
    for label, each in list(metrics.classes.items())[:_MOST_CLASSES]:
        yield f"| {table_cell(label)} | {each.rows:,} | {each.precision:.2f} | {each.recall:.2f} | {each.f1:.2f} |"
    if len(metrics.classes) > _MOST_CLASSES:
        yield f"| {len(metrics.classes) - _MOST_CLASSES} more, in `{MANIFEST}` | | | | |"
    yield "\n## Where it comes from\n\n| | |\n|---|---|"
    yield f"| version | {model.version} |"
    yield f"| dataset | {model.model}/{model.dataset}, {model.train_rows:,} rows of train, days {model.days} |"
    yield f"| trainer | {table_cell(model.trainer)} |"
    yield f"| code | {model.code_version} |"
    yield (
        f"| files | `{CONTENT}/` of the trainer, `{PREDICTIONS}` with a line a row of test, `{MANIFEST}` with the "
        "SHA-256 of each |"
    )
    yield (
        f"\n## How to ask it\n\n```sh\necho '{_QUESTIONS[model.model]}' | tds predict {model.model} --input - "
        f"--version {model.version}\n```\n"
    )
    yield (
        "It answers with one of the classes of train and with how probable it holds it. It knows what happened in the "
        "days of its dataset, and nothing of classes that came later."
    )
