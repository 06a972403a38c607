"""Turns a step of a run into the words and values that both the terminal and the page show of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from tds_dagster.cli.output import duration_text
from tds_dagster.export.run import Row, Run, Step, chat_message, repeats, tool_calls

_FAILURES = {"failed", "error", "critical", "cancelled", "timeout"}


class Part(NamedTuple):
    """One value of a step: prose, or a document to be shown as JSON."""

    label: str  # "" for what needs none
    value: object
    is_prose: bool


class Narrated(NamedTuple):
    """A step as it is told."""

    style: str  # user, assistant, system, tool, call, event, task, workflow or feedback
    title: str
    marks: list[str]  # short facts, such as "completed" or "47 ms"
    failed: bool
    parts: list[Part]
    rest: Row  # columns that are told nowhere else


def narrated(step: Step) -> Narrated:
    """A step in words: what it is called, short facts about it, and the values that matter."""
    message = chat_message(step.row) if step.kind == "events" else None
    if message is not None:
        return _message(step, message)
    return {
        "events": _event,
        "task": _task,
        "tool_executions": _call,
        "workflows": _workflow,
        "feedback": _feedback,
    }[step.kind](step)


def told_steps(step: Step) -> list[Step]:
    """The steps below a step, without a tool's message that only repeats the result above it."""
    output = step.row.get("output_result")
    return [
        below
        for below in step.steps
        if not (step.kind == "tool_executions" and repeats(below, output, None))
    ]  # fmt: skip


def summary_lines(run: Run) -> list[str]:
    """What the whole run was, in a few lines: when, how long, how many records, verdicts."""
    took = (moment(run.ended) - moment(run.began)).total_seconds()
    tasks = sum(step.kind == "task" for step in all_steps(run.steps))
    counts = [_counted(run.records.get("events", 0), "event"), _counted(tasks, "task")]
    counts += [_counted(run.records.get("tool_executions", 0), "tool execution")]
    counts += [_counted(run.records.get("workflows", 0), "workflow state")]
    lines = [f"{clock_text(run.began, with_day=True)} UTC, {duration_text(took)}", ", ".join(filter(None, counts))]
    if run.agents:
        lines.append(f"agents: {', '.join(run.agents)}")
    verdicts = [narrated(step) for step in all_steps(run.steps) if step.kind == "feedback"]
    if verdicts:
        lines.append("; ".join(f"{verdict.title} ({', '.join(verdict.marks)})" for verdict in verdicts[:10]))
    if run.redaction != "none":
        lines.append(f"redacted: {run.redaction}")
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}" if number else ""


def all_steps(steps: Sequence[Step]) -> Iterator[Step]:
    """Steps and all that stand below them, from top to bottom."""
    for step in steps:
        yield step
        yield from all_steps(step.steps)


def moment(text: str) -> datetime:
    """A record's time."""
    return datetime.fromisoformat(text)


def clock_text(text: str, *, with_day: bool = False) -> str:
    """A record's time to the millisecond: `08:30:00.250`."""
    return text[:23].replace("T", " ") if with_day else text[11:23]


def document_text(value: object, *, indent: int | None = None) -> str:
    """A document as JSON on one line, or as a tree; one that is nested deeper than the encoder goes stays on a line."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except RecursionError:
        return "(nested too deep to be shown; `tds export` has it)" if indent is None else document_text(value)


def parsed(value: object) -> object:
    """A document that stands in a text, as tools return it; any other value as it is."""
    if isinstance(value, str) and value[:1] in {"{", "["}:
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            return value
    return value


def _message(step: Step, message: Mapping[str, Any]) -> Narrated:
    parts = [Part("", text, is_prose=True) for text in _prose(message.get("content"))]
    parts += [Part("", other, is_prose=False) for other in _other_content(message.get("content"))]
    told = {step.row.get("tool_name") for step in step.steps}
    if any(name not in told for _, name in tool_calls(message)):
        parts.append(Part("asks for", message.get("tool_calls") or message.get("function_call"), is_prose=False))
    role = str(message["role"])
    marks = [str(message["name"])] if isinstance(message.get("name"), str) else []
    rest = {
        name: value
        for name, value in message.items()
        if name not in {"role", "content", "tool_calls", "function_call"} and value is not None
    }
    style = (
        role
        if role in {"user", "assistant", "system", "tool"}
        else {"developer": "system", "function": "tool"}.get(role, "event")
    )
    shown_rest = _rest(step.row, {"payload", "event_type", "severity"}) | ({"message": rest} if rest else {})
    return Narrated(style, role, marks, _is_failure(step.row.get("severity")), parts, shown_rest)


def _prose(content: object) -> list[str]:
    """The texts of a message's content, which is a text or a list of parts."""
    if isinstance(content, str):
        return [content] if content else []
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _other_content(content: object) -> list[object]:
    if isinstance(content, list):
        return [part for part in content if not (isinstance(part, dict) and isinstance(part.get("text"), str))]
    return [] if content is None or isinstance(content, str) else [content]


def _event(step: Step) -> Narrated:
    row = step.row
    severity = row.get("severity")
    marks = [str(severity)] if severity not in {None, "info"} else []
    parts = [_part("", row["payload"])] if "payload" in row else []
    return Narrated(
        "event",
        row.get("event_type", "event"),
        marks,
        _is_failure(severity),
        parts,
        _rest(row, {"event_type", "severity", "payload"}),
    )


def _task(step: Step) -> Narrated:
    row = step.row
    marks = [str(row[name]) for name in ("task_type", "status") if row.get(name)]
    if row.get("retry_count"):
        marks.append(f"{row['retry_count']} of {row.get('max_retries', '?')} retries")
    marks += _duration(row)
    parts = [
        _part(label, row[name]) for label, name in (("input", "input_data"), ("output", "output_data")) if name in row
    ]
    inputs = [state["input_data"] for state in step.history if "input_data" in state]
    if "input_data" not in row and inputs:
        parts.insert(0, _part("input", inputs[-1]))
    parts += _error(row)
    if step.history:
        states = [f"{state.get('status', '?')} {clock_text(state['timestamp'])}" for state in [*step.history, row]]
        parts.append(Part("states", " → ".join(states), is_prose=True))
    told = {
        "task_id",
        "task_type",
        "status",
        "retry_count",
        "max_retries",
        "execution_time_ms",
        "input_data",
        "output_data",
        "error",
    }
    return Narrated(
        "task", f"task {row.get('task_id', '?')}", marks, _is_failure(row.get("status")), parts, _rest(row, told)
    )


def _call(step: Step) -> Narrated:
    row = step.row
    marks = [str(row[name]) for name in ("tool_category", "status") if row.get(name)] + _duration(row)
    parts = [
        _part(label, row[name])
        for label, name in (("input", "input_params"), ("output", "output_result"))
        if name in row
    ]
    failed = _is_failure(row.get("status")) or "error" in row
    told = {
        "tool_name",
        "tool_category",
        "status",
        "execution_time_ms",
        "input_params",
        "output_result",
        "error",
        "task_id",
    }
    return Narrated("call", str(row.get("tool_name", "?")), marks, failed, [*parts, *_error(row)], _rest(row, told))


def _workflow(step: Step) -> Narrated:
    row = step.row
    marks = [str(row[name]) for name in ("phase", "current_step") if row.get(name)]
    if "total_steps" in row:
        marks.append(f"{row.get('completed_steps', 0)} of {row['total_steps']} steps done")
    parts = [
        _part(label, row[name])
        for label, name in (("", "description"), ("state", "state_data"), ("results", "step_results"))
        if row.get(name)
    ]
    told = {
        "name",
        "workflow_type",
        "phase",
        "current_step",
        "total_steps",
        "completed_steps",
        "description",
        "state_data",
        "step_results",
        "error",
    }
    title = f"workflow {row.get('name', row.get('workflow_id', '?'))}"
    return Narrated("workflow", title, marks, "error" in row, [*parts, *_error(row)], _rest(row, told))


def _feedback(step: Step) -> Narrated:
    row = step.row
    value = row.get("value")
    shown = value if isinstance(value, str) else document_text(value)
    title = str(row.get("name", "feedback")) + ("" if value is None else f": {shown}")
    marks = [str(row["source"])] if row.get("source") else []
    marks.append(f"on the {row.get('target_kind', '?')}")
    parts = [Part("", row["comment"], is_prose=True)] if row.get("comment") else []
    if "corrected_output" in row:
        parts.append(_part("better", row["corrected_output"]))
    told = {"name", "value", "source", "target_kind", "comment", "corrected_output"}
    return Narrated("feedback", title, marks, failed=False, parts=parts, rest=_rest(row, told))


def _part(label: str, value: object) -> Part:
    value = parsed(value)
    return Part(label, value, is_prose=isinstance(value, str))


def _error(row: Row) -> list[Part]:
    return [Part("error", row["error"], is_prose=True)] if "error" in row else []


def _duration(row: Row) -> list[str]:
    took_ms = row.get("execution_time_ms")
    if took_ms is None:
        return []
    return [f"{took_ms:.0f} ms" if took_ms < 1000 else duration_text(took_ms / 1000)]


def _is_failure(word: object) -> bool:
    return isinstance(word, str) and word.lower() in _FAILURES


def _rest(row: Row, told: set[str]) -> Row:
    return {name: value for name, value in row.items() if name not in told | {"event_id", "timestamp"}}
