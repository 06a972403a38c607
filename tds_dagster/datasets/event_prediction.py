"""Turns the events of a session or an agent, in order, into examples of which event comes next, and how severe it is.

A row is read as: after `history`, the last events of the entity, came an event of `event_type` with `severity`. The
payload of that event is not in the row: it is not known before the event. Order is (timestamp, record_id).
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from tds_dagster.datasets.examples import Example, document, encode_row, parsed
from tds_dagster.datasets.recipe import Entity, Recipe
from tds_dagster.datasets.sources import Sources, entity_of, time_text
from tds_dagster.export.features import Features, ListOf

TITLE = "Event prediction"
DESCRIPTION = (
    "What happened so far in a session (or to an agent) → the type and the severity of the next event. "
    "`history` has the events before it, oldest first; `event_type` and `severity` are to be predicted."
)
ENTITY: Entity = "session"
ENTITIES: tuple[Entity, ...] = ("session", "agent", "workflow")
FEATURES: Features = {
    "record_id": "string",
    "session_id": "string",
    "agent_id": "string",
    "timestamp": "timestamp",
    "history": ListOf({"event_type": "string", "severity": "string", "timestamp": "timestamp", "payload": "json"}),
    "event_type": "string",
    "severity": "string",
}
# Which columns of the exports each feature is made of; corrected outputs of feedback stand for what was logged.
COLUMNS_FROM: Mapping[str, Sequence[str]] = {
    **{name: [f"events.{name}"] for name in ("record_id", "session_id", "agent_id", "timestamp")},
    "history": ["events.event_type", "events.severity", "events.timestamp", "events.payload"],
    "event_type": ["events.event_type", "feedback.corrected_output"],
    "severity": ["events.severity", "feedback.corrected_output"],
}
FIRST, SHORT = "the first event of its entity, with nothing before it", "less history than the recipe's minimum"


def examples(sources: Sources, recipe: Recipe) -> Iterator[Example]:
    """One example an event that the recipe chose and that has enough before it; `sources.left_out` counts the others.

    A correction of an event is an object with its `event_type` and `severity`, or the right type as text.
    """
    history: deque[dict[str, object]] = deque(maxlen=recipe.window)
    entity: object = None
    for event in sources.rows(_query(sources, recipe)):
        if event["entity"] != entity:
            entity = event["entity"]
            history.clear()
        if not event["chosen"]:
            pass
        elif not history:
            sources.left_out[FIRST] += 1
        elif len(history) < recipe.minimum_history:
            sources.left_out[SHORT] += 1
        else:
            yield _example(event, list(history))
        history.append(
            {
                "event_type": event["event_type"],
                "severity": event["severity"],
                "timestamp": event["timestamp"],
                "payload": document(cast("str | None", event["payload"])),
            }
        )


def _query(sources: Sources, recipe: Recipe) -> str:
    entity = entity_of("events", recipe.entity or ENTITY)
    return (
        f"SELECT {entity} AS entity, record_id, session_id, agent_id, {time_text('timestamp')} AS timestamp, "
        "event_type, severity, payload, corrected_output, record_id IN (FROM targets) AS chosen "
        f"FROM events LEFT JOIN {sources.corrected_outputs('events')} USING (record_id) "
        f"ORDER BY {entity}, events.timestamp, record_id"
    )


def _example(event: Mapping[str, object], history: list[dict[str, object]]) -> Example:
    event_type, severity = _outcome(event)
    row = {
        "record_id": event["record_id"],
        "session_id": event["session_id"],
        "agent_id": event["agent_id"],
        "timestamp": event["timestamp"],
        "history": history,
        "event_type": event_type,
        "severity": severity,
    }
    return Example(str(event["record_id"]), str(event["entity"]), str(event["timestamp"]), event_type, encode_row(row))


def _outcome(event: Mapping[str, object]) -> tuple[str, str | None]:
    """The event's type and severity, the corrected ones where somebody corrected it."""
    logged = str(event["event_type"]), cast("str | None", event["severity"])
    if event["corrected_output"] is None:
        return logged
    corrected = parsed(str(event["corrected_output"]))
    if isinstance(corrected, str):
        return corrected, logged[1]
    if not isinstance(corrected, dict):
        return logged
    event_type, severity = corrected.get("event_type"), corrected.get("severity")
    return (
        event_type if isinstance(event_type, str) else logged[0],
        severity if isinstance(severity, str) else logged[1],
    )
