"""Turns the rows of a workflow, in order, into examples: states and step results so far → the state that came next.

Each row of a workflow is its state at one moment. A row of the dataset is read as: after the states in `history`, the
last of which is the present one, the workflow came into `phase` and `current_step` with `completed_steps` of
`total_steps`. What the next row says beyond that (its state data, results, error) is not in it: nobody knows it before.
Order is (timestamp, record_id).
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tds_dagster.datasets.examples import Example, ExtraFile, document, encode_row, parsed
from tds_dagster.datasets.process_mining import write_event_logs
from tds_dagster.datasets.recipe import Entity, Recipe
from tds_dagster.datasets.sources import entity_of, time_text
from tds_dagster.export.features import Features, ListOf

if TYPE_CHECKING:
    from tds_dagster.datasets.sources import Sources

TITLE = "Workflow orchestration"
DESCRIPTION = (
    "The states of a workflow and the results of its steps so far, and the state that it came into next. `history` has "
    "the states before it, oldest first; `phase`, `current_step`, `completed_steps` and `total_steps` are to be "
    "predicted. `process_mining/` has the same workflows as event logs, OCEL 2.0 and XES, unsplit."
)
ENTITY: Entity = "workflow"
ENTITIES: tuple[Entity, ...] = ("workflow", "session", "agent")
FEATURES: Features = {
    "record_id": "string",
    "workflow_id": "string",
    "session_id": "string",
    "agent_id": "string",
    "timestamp": "timestamp",
    "workflow_type": "string",
    "history": ListOf({
        "timestamp": "timestamp", "phase": "string", "current_step": "string", "completed_steps": "int64",
        "total_steps": "int64", "state_data": "json", "step_results": "json", "error": "string",
    }),
    "phase": "string",
    "current_step": "string",
    "completed_steps": "int64",
    "total_steps": "int64",
}  # fmt: skip
_TARGET = ("phase", "current_step", "completed_steps", "total_steps")
_STATE = ("timestamp", *_TARGET, "error")
# Which columns of the exports each feature is made of; corrected outputs of feedback stand for what was logged.
_OWN = ("record_id", "workflow_id", "session_id", "agent_id", "timestamp", "workflow_type")
COLUMNS_FROM: Mapping[str, Sequence[str]] = {
    **{name: [f"workflows.{name}"] for name in _OWN},
    "history": [f"workflows.{name}" for name in (*_STATE, "state_data", "step_results")],
    **{name: [f"workflows.{name}", "feedback.corrected_output"] for name in _TARGET},
}
FIRST, SHORT = "the first state of its workflow, with nothing before it", "less history than the recipe's minimum"


def examples(sources: "Sources", recipe: Recipe) -> Iterator[Example]:
    """One example a state that the recipe chose and that has enough before it; `sources.left_out` counts the others.

    A correction of a state is an object with any of what is to be predicted, or the right phase as text.
    """
    history: deque[dict[str, object]] = deque(maxlen=recipe.window)
    workflow: object = None
    for state in sources.rows(_query(sources, recipe)):
        if (state["entity"], state["workflow_id"]) != workflow:
            workflow = state["entity"], state["workflow_id"]
            history.clear()
        if state["chosen"]:
            if not history:
                sources.left_out[FIRST] += 1
            elif len(history) < recipe.minimum_history:
                sources.left_out[SHORT] += 1
            else:
                yield _example(state, list(history))
        history.append({
            **{name: state[name] for name in _STATE},
            "state_data": document(cast("str | None", state["state_data"])),
            "step_results": document(cast("str | None", state["step_results"])),
        })  # fmt: skip


def extra_files(folder: Path, sources: "Sources", _recipe: Recipe) -> list[ExtraFile]:
    """Write the event logs beside the split files of a dataset's folder."""
    return write_event_logs(folder / "process_mining", sources)


def _query(sources: "Sources", recipe: Recipe) -> str:
    entity = entity_of("workflows", recipe.entity or ENTITY)
    own = ("record_id", "workflow_id", "session_id", "agent_id", "workflow_type", *_TARGET, "error")
    return (
        f"SELECT {entity} AS entity, {', '.join(own)}, {time_text('timestamp')} AS timestamp, "
        "state_data, step_results, corrected_output, record_id IN (FROM targets) AS chosen "
        f"FROM workflows LEFT JOIN {sources.corrected_outputs('workflows')} "
        f"USING (record_id) ORDER BY {entity}, workflow_id, workflows.timestamp, record_id"
    )


def _example(state: Mapping[str, object], history: list[dict[str, object]]) -> Example:
    target = _corrected({name: state[name] for name in _TARGET}, cast("str | None", state["corrected_output"]))
    row = {**{name: state[name] for name in _OWN}, "history": history, **target}
    label = str(target["phase"] or target["current_step"] or "no phase")
    return Example(str(state["record_id"]), str(state["entity"]), str(state["timestamp"]), label, encode_row(row))


def _corrected(logged: dict[str, object], corrected_output: str | None) -> dict[str, object]:
    """The state to predict, with what somebody corrected of it and has the right type."""
    if corrected_output is None:
        return logged
    better = parsed(corrected_output)
    if isinstance(better, str):
        better = {"phase": better}
    if not isinstance(better, dict):
        return logged
    types = {"phase": str, "current_step": str, "completed_steps": int, "total_steps": int}
    return logged | {name: better[name] for name, kind in types.items() if type(better.get(name)) is kind}
