"""Turns the workflows of a range into two event logs for process mining: `log.ocel.json` (OCEL 2.0) and `log.xes`.

An event is a row that tells a new state: of a workflow, or of a task that belongs to one.

| | OCEL 2.0 | XES (IEEE 1849) |
|---|---|---|
| unit | objects: workflow, task, agent, session, each id with its type before it | a trace a workflow |
| a workflow's state | event of type `<phase>: <current_step>` | event of that name, transition complete |
| a task's state | event of type `task: <status>` | event named by the task's type, transition by its status |
| what changes | attributes of the workflow or the task, with the time of each change | attributes of the event |

Both are written row by row, in an order of their own, so that equal records give equal bytes and memory does not grow.
Formats: https://www.ocel-standard.org/specification/formats/json/ and
https://www.tf-pm.org/resources/xes-standard/about-xes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from xml.sax.saxutils import quoteattr

import msgspec

from ingest.pipeline.partitions import make_folder, replacing
from tds_dagster.datasets.examples import ExtraFile
from tds_dagster.datasets.sources import time_text

if TYPE_CHECKING:
    from tds_dagster.datasets.sources import Sources

OCEL, XES = "log.ocel.json", "log.xes"

_STATE_ATTRIBUTES = {
    "phase": "string",
    "current_step": "string",
    "completed_steps": "integer",
    "total_steps": "integer",
    "error": "string",
}
_TASK_ATTRIBUTES = {"task_type": "string", "status": "string", "retry_count": "integer", "error": "string"}
_OBJECT_TYPES: Mapping[str, Mapping[str, str]] = {
    "agent": {},
    "session": {},
    "task": _TASK_ATTRIBUTES,
    "workflow": {"workflow_type": "string", "title": "string", **_STATE_ATTRIBUTES},
}
# The transitions of XES' lifecycle extension by a task's status; any other status is `unknown`.
_TRANSITIONS = {
    "pending": "schedule",
    "running": "start",
    "completed": "complete",
    "failed": "ate_abort",
    "cancelled": "pi_abort",
}
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production [2] Char

_LOG_EVENTS = f"""
CREATE OR REPLACE TABLE log_events AS
WITH chosen AS (SELECT DISTINCT workflow_id FROM workflows WHERE record_id IN (SELECT record_id FROM targets))
SELECT 'workflow' AS kind, record_id, {time_text("timestamp")} AS timestamp, workflow_id, agent_id, session_id,
    coalesce(nullif(concat_ws(': ', nullif(phase, ''), nullif(current_step, '')), ''), 'no phase') AS name,
    workflow_type, name AS title, phase, current_step, completed_steps, total_steps, error,
    list_distinct(coalesce(TRY_CAST(assigned_agents::JSON AS VARCHAR[]), [])) AS assigned
FROM workflows WHERE workflow_id IN (FROM chosen)
UNION ALL BY NAME
SELECT 'task' AS kind, record_id, {time_text("timestamp")} AS timestamp, workflow_id, agent_id, session_id, task_id,
    'task: ' || coalesce(nullif(status, ''), 'no status') AS name, task_type, status, retry_count, error
FROM tasks WHERE workflow_id IN (FROM chosen)
"""
_OBJECTS = """
WITH members AS (
    SELECT workflow_id AS id, list(DISTINCT task_id ORDER BY task_id) AS tasks
    FROM log_events WHERE kind = 'task' GROUP BY workflow_id
)
SELECT * FROM (
    SELECT 'workflow' AS type, workflow_id AS id, * FROM log_events WHERE kind = 'workflow'
    UNION ALL BY NAME
    SELECT 'task' AS type, task_id AS id, * FROM log_events WHERE kind = 'task'
    UNION ALL BY NAME
    SELECT DISTINCT 'session' AS type, session_id AS id FROM log_events WHERE session_id IS NOT NULL
    UNION ALL BY NAME
    SELECT DISTINCT 'agent' AS type, id FROM (
        SELECT agent_id AS id FROM log_events WHERE agent_id IS NOT NULL
        UNION ALL SELECT unnest(assigned) FROM log_events
    )
) LEFT JOIN members USING (id) ORDER BY type, id, timestamp, record_id
"""


def write_event_logs(folder: Path, sources: "Sources") -> list[ExtraFile]:
    """Write both logs of the workflows that have a row among the targets, and of their tasks."""
    make_folder(folder)
    sources.connection.execute(_LOG_EVENTS)
    written = []
    for name, write in ((OCEL, _write_ocel), (XES, _write_xes)):
        with replacing(folder / name) as out:
            events = write(out, sources)
        written.append(ExtraFile("process_mining", name, f"{folder.name}/{name}", events))
    return written


# --------------------------------------------------------------------------------------------------------- OCEL


def _write_ocel(out: BinaryIO, sources: "Sources") -> int:
    """One JSON object with a line an event and a line an object; gives how many events there are."""
    kinds = sources.rows(
        "SELECT name, list(DISTINCT kind ORDER BY kind) AS kinds FROM log_events GROUP BY name ORDER BY 1"
    )
    out.write(b'{"objectTypes":')
    out.write(msgspec.json.encode([_declared(name, given) for name, given in _OBJECT_TYPES.items()]))
    out.write(b',\n"eventTypes":')
    out.write(msgspec.json.encode([_declared(str(row["name"]), _event_attributes(row["kinds"])) for row in kinds]))
    out.write(b',\n"objects":[')
    rows = sources.rows(_OBJECTS)
    _write_items(out, (_object(list(states)) for _, states in groupby(rows, key=itemgetter("type", "id"))))
    out.write(b'],\n"events":[')
    events = _write_items(out, map(_event, sources.rows("SELECT * FROM log_events ORDER BY timestamp, record_id")))
    out.write(b"]}\n")
    return events


def _write_items(out: BinaryIO, items: Iterable[object]) -> int:
    count = 0
    for count, item in enumerate(items, 1):
        out.write((b",\n" if count > 1 else b"\n") + msgspec.json.encode(item))
    return count


def _declared(name: str, attributes: Mapping[str, str]) -> dict[str, object]:
    return {"name": name, "attributes": [{"name": key, "type": kind} for key, kind in attributes.items()]}


def _event_attributes(kinds: object) -> Mapping[str, str]:
    """The attributes of an event type; a workflow's state may have the name of a task's."""
    of_kinds = {"workflow": _STATE_ATTRIBUTES, "task": _TASK_ATTRIBUTES}
    return {key: kind for name in of_kinds if name in list(kinds) for key, kind in of_kinds[name].items()}  # type: ignore[call-overload]


def _object(states: list[Mapping[str, object]]) -> dict[str, object]:
    """An object and every change of its attributes, in order of time."""
    first, changes = states[0], list[dict[str, object]]()
    present: dict[str, object] = {}
    for state in states:
        for key in _OBJECT_TYPES[str(first["type"])]:
            if state[key] is not None and state[key] != present.get(key):
                present[key] = state[key]
                changes.append({"name": key, "time": state["timestamp"], "value": state[key]})
    tasks = first["tasks"] if first["type"] == "workflow" else None
    return {
        "id": f"{first['type']}:{first['id']}",
        "type": first["type"],
        "attributes": changes,
        "relationships": [_related("task", task, "contains") for task in _items(tasks)],
    }


def _event(row: Mapping[str, object]) -> dict[str, object]:
    keys = _STATE_ATTRIBUTES if row["kind"] == "workflow" else _TASK_ATTRIBUTES
    related = [_related("workflow", row["workflow_id"], "state of" if row["kind"] == "workflow" else "part of")]
    if row["kind"] == "task":
        related.append(_related("task", row["task_id"], "state of"))
    if row["agent_id"] is not None:
        related.append(_related("agent", row["agent_id"], "done by"))
    # Packages keep one relation of an event to an object: who did it is not told as assigned again.
    related += [_related("agent", agent, "assigned") for agent in _items(row["assigned"]) if agent != row["agent_id"]]
    if row["session_id"] is not None:
        related.append(_related("session", row["session_id"], "within"))
    return {
        "id": row["record_id"],
        "type": row["name"],
        "time": row["timestamp"],
        "attributes": [{"name": key, "value": row[key]} for key in keys if row[key] is not None],
        "relationships": related,
    }


def _related(kind: str, object_id: object, qualifier: str) -> dict[str, str]:
    return {"objectId": f"{kind}:{object_id}", "qualifier": qualifier}


def _items(values: object) -> list[str]:
    return sorted(map(str, values)) if isinstance(values, list) else []


# ---------------------------------------------------------------------------------------------------------- XES

_XES_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<log xes.version="1849-2016" xes.features="" xmlns="http://www.xes-standard.org/">
<extension name="Concept" prefix="concept" uri="http://www.xes-standard.org/concept.xesext"/>
<extension name="Lifecycle" prefix="lifecycle" uri="http://www.xes-standard.org/lifecycle.xesext"/>
<extension name="Organizational" prefix="org" uri="http://www.xes-standard.org/org.xesext"/>
<extension name="Time" prefix="time" uri="http://www.xes-standard.org/time.xesext"/>
<global scope="trace">
<string key="concept:name" value=""/>
</global>
<global scope="event">
<string key="concept:name" value=""/>
<string key="lifecycle:transition" value="complete"/>
<date key="time:timestamp" value="1970-01-01T00:00:00.000Z"/>
</global>
<classifier name="Activity" keys="concept:name"/>
<classifier name="Activity and transition" keys="concept:name lifecycle:transition"/>
<string key="lifecycle:model" value="standard"/>
"""


def _write_xes(out: BinaryIO, sources: "Sources") -> int:
    """A trace a workflow, a line an event; gives how many events there are."""
    out.write(_XES_HEAD.encode())
    rows = sources.rows("SELECT * FROM log_events ORDER BY workflow_id, timestamp, record_id")
    events = 0
    for workflow_id, states in groupby(rows, key=itemgetter("workflow_id")):
        out.write(f"<trace>\n{_attribute('concept:name', workflow_id)}\n".encode())
        for state in states:
            out.write(f"<event>{''.join(_xes_attributes(state))}</event>\n".encode())
            events += 1
        out.write(b"</trace>\n")
    out.write(b"</log>\n")
    return events


def _xes_attributes(row: Mapping[str, object]) -> Iterator[str]:
    is_task = row["kind"] == "task"
    yield _attribute("concept:name", row["task_type"] or "task" if is_task else row["name"])
    yield _attribute("lifecycle:transition", _TRANSITIONS.get(str(row["status"]), "unknown") if is_task else "complete")
    yield f'<date key="time:timestamp" value={quoteattr(str(row["timestamp"]))}/>'
    if is_task:
        yield _attribute("concept:instance", row["task_id"])
    if row["agent_id"] is not None:
        yield _attribute("org:resource", row["agent_id"])
    for key in (
        "record_id",
        "session_id",
        *(_TASK_ATTRIBUTES if is_task else {"workflow_type": "", **_STATE_ATTRIBUTES}),
    ):
        if row[key] is not None:
            yield _attribute(key, row[key])


def _attribute(key: str, value: object) -> str:
    """An attribute of the type that its value has; signs that XML cannot hold become U+FFFD."""
    tag = "int" if isinstance(value, int) else "string"
    text = _NOT_IN_XML.sub("\ufffd", str(value))
    return f'<{tag} key="{key}" value={quoteattr(text)}/>'
