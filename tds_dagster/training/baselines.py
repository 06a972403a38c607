"""Turns the train split into the two guesses that every model has to beat: the commonest class, and the last one again.

`majority` answers with the commonest class, as it was before a recipe balanced train. `most_recent` answers with the
class that the question's own history ends in: the last event's type, the status of the last task that was over, the
tool called last, the last phase; where there is none it answers as `majority`.
"""

from collections.abc import Callable, Mapping

import msgspec

from ingest.errors import TrainingFailed
from tds_dagster.datasets.manifest import Dataset
from tds_dagster.datasets.task_completion import OPEN
from tds_dagster.training.contract import Prediction

MAJORITY, MOST_RECENT = "majority", "most_recent"


class Baseline(msgspec.Struct, frozen=True):
    """A guess that learns nothing."""

    name: str  # majority or most_recent
    model: str
    commonest: str  # the commonest class; of two the first by name
    share: float  # of the rows, 0 to 1

    def predict(self, question: Mapping[str, object]) -> Prediction:
        """The guess; its score is the class's share, or None where it is the last one again."""
        if self.name == MOST_RECENT:
            last = _LAST[self.model](question)
            if last is not None:
                return Prediction(last)
        return Prediction(self.commonest, self.share)


def fit_baselines(dataset: Dataset) -> dict[str, Baseline]:
    """Both baselines, by name, of a dataset. Raises TrainingFailed if its train split has no row."""
    require_train_rows(dataset)
    classes = expected_classes(dataset)
    commonest = min(classes, key=lambda label: (-classes[label], label))
    share = classes[commonest] / sum(classes.values())
    return {name: Baseline(name, dataset.model, commonest, share) for name in (MAJORITY, MOST_RECENT)}


def expected_classes(dataset: Dataset) -> dict[str, int]:
    """The rows of each class as they came: those of train, or of the other splits where train was balanced."""
    is_balanced = dataset.recipe.balance != "none"
    splits = [split for name, split in dataset.splits.items() if (name == "train") != is_balanced and split.rows]
    splits = splits or [dataset.splits["train"]]
    names = sorted({name for split in splits for name in split.classes})
    return {name: sum(split.classes.get(name, 0) for split in splits) for name in names}


def require_train_rows(dataset: Dataset) -> None:
    """Raise TrainingFailed if there is nothing to learn from."""
    if not dataset.splits["train"].rows:
        raise TrainingFailed(
            f"dataset {dataset.model}/{dataset.version}: train has no row, expected at least one; build it with more "
            "days, or with a larger first number in `fractions`"
        )


def _items(question: Mapping[str, object], name: str) -> list[dict[str, object]]:
    """The objects in a list of the question, the last one first."""
    found = question.get(name)
    return [item for item in reversed(found) if isinstance(item, dict)] if isinstance(found, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _last_event(question: Mapping[str, object]) -> str | None:
    return next((_text(item.get("event_type")) for item in _items(question, "history")), None)


def _last_status(question: Mapping[str, object]) -> str | None:
    statuses = (_text(item.get("status")) for item in _items(question, "history") if item.get("kind") == "task")
    return next((status for status in statuses if status is not None and status.lower() not in OPEN), None)


def _last_tool(question: Mapping[str, object]) -> str | None:
    return next((names[-1] for message in _items(question, "messages") if (names := called_tools(message))), None)


def _last_phase(question: Mapping[str, object]) -> str | None:
    return next((phase_of(item) for item in _items(question, "history")), None)


def called_tools(message: Mapping[str, object]) -> list[str]:
    """The names of the tools that a chat message calls, in order."""
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return [name for one in functions if isinstance(one, dict) and (name := _text(one.get("name")))]


def phase_of(state: Mapping[str, object]) -> str:
    """A workflow state's class, as its dataset names it."""
    return str(state.get("phase") or state.get("current_step") or "no phase")


_LAST: Mapping[str, Callable[[Mapping[str, object]], str | None]] = {
    "event_prediction": _last_event,
    "task_completion": _last_status,
    "tool_selection": _last_tool,
    "workflow_orchestration": _last_phase,
}
