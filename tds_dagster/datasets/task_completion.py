"""Turns tasks into examples of whether each will complete, with what status and after how many retries.

A task is predicted at the moment when it begins: the earliest of its first row's `started_at`, that row itself and the
first tool execution that names it. What goes in is the first row's type, priority, input and limits, and what happened
before that moment in its session (or to its agent): events, tool executions, and states of other tasks. Many callers
store a task once, when it is over. If then nothing says when it began, it has no history, for what it did itself would
tell how it ended. The outcome is the task's latest row by (timestamp, record_id). Of that row and of any later one
nothing else goes in: no output, error, times or metadata.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from tds_dagster.datasets.examples import Example, document, encode_row
from tds_dagster.datasets.recipe import Entity, Recipe
from tds_dagster.datasets.sources import Sources, entity_of, time_text
from tds_dagster.export.features import Features, ListOf

TITLE = "Task completion"
DESCRIPTION = (
    "A task's type and input, and what happened before it in its session (or to its agent) → whether it will complete, "
    "its final status, and how many retries it takes. `completed`, `status` and `retry_count` are to be predicted."
)
ENTITY: Entity = "session"
ENTITIES: tuple[Entity, ...] = ("session", "agent")
FEATURES: Features = {
    "record_id": "string",
    "task_id": "string",
    "session_id": "string",
    "agent_id": "string",
    "timestamp": "timestamp",
    "task_type": "string",
    "priority": "string",
    "input": "json",
    "max_retries": "int64",
    "timeout_seconds": "int64",
    "history": ListOf(
        {"kind": "string", "type": "string", "status": "string", "timestamp": "timestamp", "data": "json"}
    ),
    "completed": "bool",
    "status": "string",
    "retry_count": "int64",
}
# Which columns of the exports each feature is made of; corrected outputs of feedback stand for what was logged.
_OF_EVENTS = ("event_type", "severity", "payload", "timestamp")
_OF_TOOLS = ("tool_name", "status", "input_params", "output_result", "error", "timestamp")
_OF_TASKS = ("task_type", "status", "input_data", "output_data", "error", "timestamp")
COLUMNS_FROM: Mapping[str, Sequence[str]] = {
    **{name: [f"tasks.{name}"] for name in ("record_id", "task_id", "session_id", "agent_id", "task_type")},
    **{name: [f"tasks.{name}"] for name in ("priority", "max_retries", "timeout_seconds", "status", "retry_count")},
    "timestamp": ["tasks.timestamp", "tasks.started_at", "tool_executions.timestamp"],
    "input": ["tasks.input_data"],
    "history": [
        *(f"events.{name}" for name in _OF_EVENTS),
        *(f"tool_executions.{name}" for name in _OF_TOOLS),
        *(f"tasks.{name}" for name in _OF_TASKS),
        "feedback.corrected_output",
    ],
    "completed": ["tasks.status"],
}
# A status that says that the outcome is still to come. Any other word is final: statuses are the callers' own.
OPEN = frozenset(
    {"pending", "queued", "scheduled", "created", "assigned", "started", "running", "in_progress", "processing"}
    | {"retrying", "waiting", "paused", "blocked", "unknown"}
)
COMPLETED = frozenset({"completed", "complete", "succeeded", "success", "done", "finished", "ok"})
EARLIER, UNDECIDED = "an earlier state of its task", "a task that is still open"
SHORT = "less history than the recipe's minimum"


def examples(sources: Sources, recipe: Recipe) -> Iterator[Example]:
    """One example a task with a final status that the recipe chose; `sources.left_out` counts other rows of tasks."""
    history: deque[dict[str, object]] = deque(maxlen=recipe.window)
    entity: object = None
    for item in sources.rows(_query(sources, recipe)):
        if item["entity"] != entity:
            entity = item["entity"]
            history.clear()
        if item["is_earlier"]:
            sources.left_out[EARLIER] += 1
        if item["kind"] != "beginning":
            history.append(_happening(item))
            continue
        known = list(history) if item["is_told"] or _is_open(item["status"]) else []
        if _is_open(item["final_status"]):
            sources.left_out[UNDECIDED] += 1
        elif len(known) < recipe.minimum_history:
            sources.left_out[SHORT] += 1
        else:
            yield _example(item, known)


def _is_open(status: object) -> bool:
    return str(status or "pending").lower() in OPEN


def _query(sources: Sources, recipe: Recipe) -> str:
    """Everything that happens in an entity, in order, and the beginnings of the tasks whose latest row was chosen.

    A task's rows are all in the entity of its first one. A beginning has that row's columns, and comes before what
    has its place: the row itself, or the tool execution.
    """
    by = recipe.entity or ENTITY
    events = (
        f"SELECT {entity_of('events', by)} AS entity, timestamp, record_id, 'event' AS kind, event_type AS type, "
        "severity AS status, payload AS input FROM events"
    )
    tools = (
        f"SELECT {entity_of('tool_executions', by)} AS entity, timestamp, record_id, 'tool' AS kind, "
        "tool_name AS type, status, input_params AS input, output_result AS output, error FROM tool_executions"
    )
    states = (
        "SELECT ends.entity, t.timestamp, t.record_id, 'task' AS kind, t.task_type AS type, t.status, "
        "t.input_data AS input, coalesce(c.corrected_output, t.output_data) AS output, t.error, "
        "t.record_id != final_id AND t.record_id IN (FROM targets) AS is_earlier "
        "FROM tasks AS t JOIN ends USING (task_id) "
        f"LEFT JOIN {sources.corrected_outputs('tasks')} AS c USING (record_id)"
    )
    beginnings = (
        "SELECT entity, place.timestamp AS timestamp, place.record_id AS record_id, 'beginning' AS kind, "
        "task_type AS type, status, input_data AS input, task_id, session_id, agent_id, priority, max_retries, "
        "timeout_seconds, is_told, final_id, final_at, final_status, final_retry_count FROM begun"
    )
    return (
        f"WITH {_ends(by)}, {_begun()}, "
        f"happenings AS ({events} UNION ALL BY NAME {tools} UNION ALL BY NAME {states} "
        f"UNION ALL BY NAME {beginnings}) "
        f"SELECT * REPLACE ({time_text('timestamp')} AS timestamp) FROM happenings "
        "ORDER BY entity, happenings.timestamp, record_id, kind != 'beginning'"
    )


def _ends(by: Entity) -> str:
    """SQL of the table `ends`: each task's entity, first and latest row."""
    order = "timestamp, record_id"
    return (
        f"ends AS (SELECT task_id, first({entity_of('tasks', by)} ORDER BY {order}) AS entity, "
        f"first(record_id ORDER BY {order}) AS first_id, last(record_id ORDER BY {order}) AS final_id, "
        f"max(timestamp) AS final_at, last(struct_pack(status := status, retry_count := retry_count) ORDER BY {order}) "
        "AS final FROM tasks GROUP BY task_id)"
    )


def _begun() -> str:
    """SQL of the table `begun`: the first rows of tasks, with the place in the order of things where each began.

    `is_told` says whether something else than that row told it.
    """
    place = "struct_pack(timestamp := {}, record_id := {})"
    own, started = place.format("t.timestamp", "t.record_id"), place.format("t.started_at", "''")
    return (
        f"calls AS (SELECT task_id, min({place.format('timestamp', 'record_id')}) AS first_call FROM tool_executions "
        "WHERE task_id IS NOT NULL GROUP BY task_id), "
        f"begun AS (SELECT t.*, entity, final_id, {time_text('final_at')} AS final_at, final.status AS final_status, "
        "final.retry_count AS final_retry_count, "
        f"least({own}, first_call, CASE WHEN t.started_at IS NOT NULL THEN {started} END) AS place, "
        f"coalesce(first_call < {own}, FALSE) OR coalesce(t.started_at < t.timestamp, FALSE) AS is_told "
        "FROM tasks AS t JOIN ends ON record_id = first_id LEFT JOIN calls ON calls.task_id = t.task_id "
        "WHERE final_id IN (FROM targets))"
    )


def _happening(item: Mapping[str, object]) -> dict[str, object]:
    """One thing that happened, as later rows of the entity have it in their history."""
    payload: object = document(cast("str | None", item["input"]))
    if item["kind"] != "event":
        given = {"input": item["input"], "output": item["output"]}
        parts: dict[str, object] = {name: document(str(text)) for name, text in given.items() if text is not None}
        payload = parts | ({} if item["error"] is None else {"error": item["error"]})
    return {
        "kind": item["kind"],
        "type": item["type"],
        "status": item["status"],
        "timestamp": item["timestamp"],
        "data": payload,
    }


def _example(item: Mapping[str, object], history: list[dict[str, object]]) -> Example:
    status = str(item["final_status"])
    row = {
        "record_id": item["final_id"],
        "task_id": item["task_id"],
        "session_id": item["session_id"],
        "agent_id": item["agent_id"],
        "timestamp": item["timestamp"],
        "task_type": item["type"],
        "priority": item["priority"],
        "input": document(cast("str | None", item["input"])),
        "max_retries": item["max_retries"],
        "timeout_seconds": item["timeout_seconds"],
        "history": history,
        "completed": status.lower() in COMPLETED,
        "status": status,
        "retry_count": item["final_retry_count"],
    }
    return Example(str(item["final_id"]), str(item["entity"]), str(item["final_at"]), status, encode_row(row))
