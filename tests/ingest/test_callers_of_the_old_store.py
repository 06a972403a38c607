"""Code that called the store which this one replaces runs unchanged, and every field that it gives comes out again."""

import asyncio
import inspect
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ingest import Settings, TrainingDataStore
from ingest.pipeline.partitions import today

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ENDED = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)

# Every call of the old store: its parameters in its order, each with a value that is not its default.
CALLS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "store_agent_event": ("events", {
        "event_type": "pipeline.tool", "agent_id": "agent-1", "workflow_id": "w-1", "session_id": "s-1",
        "source": "pipeline", "payload": {"nested": {"list": [1, 2.5, True, None, "ü"]}}, "severity": "warning",
    }),
    "store_agent_task": ("tasks", {
        "task_id": "t-1", "agent_id": "agent-1", "instance_id": "i-1", "task_type": "research", "priority": "high",
        "status": "failed", "input_data": {"question": "why?"}, "output_data": {"answer": None}, "error": "no route",
        "retry_count": 2, "max_retries": 5, "timeout_seconds": 30, "execution_time_ms": 12.5, "started_at": STARTED,
        "completed_at": ENDED,
    }),
    "store_tool_execution": ("tool_executions", {
        "execution_id": "x-1", "agent_id": "agent-1", "task_id": "t-1", "tool_name": "search",
        "tool_category": "web", "input_params": {"q": 'a, "b"\nc'}, "output_result": {"hits": [1, 2]},
        "status": "failed", "error": "timed out", "execution_time_ms": 0.25, "completed_at": ENDED,
    }),
    "store_workflow_data": ("workflows", {
        "workflow_id": "w-1", "workflow_type": "release", "phase": "testing", "state_data": {"build": 7},
        "step_results": {"lint": "ok"}, "error": "flaky", "name": "Release", "description": "of the week",
        "current_step": "unit", "total_steps": 4, "completed_steps": 2, "assigned_agents": ["a", "b"],
        "metadata": {"team": "core"}, "tags": ["weekly", "ci"],
    }),
}  # fmt: skip


def stored(settings: Settings, call: str, *given: object, **named: object) -> dict[str, Any]:
    """What comes out of the export of a record that went in by this call."""

    async def store_it() -> str | None:
        store = TrainingDataStore(settings)
        record_id: str | None = await getattr(store, call)(*given, **named)
        await store.flush()
        day = today().isoformat()
        await store.export_for_training_async(CALLS[call][0], settings.data_dir / "out.jsonl", day, day)
        await store.close()
        return record_id

    assert asyncio.run(store_it())
    (line,) = (settings.data_dir / "out.jsonl").read_bytes().splitlines()
    row: dict[str, Any] = json.loads(line)
    return row


def as_stored(value: object) -> object:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value


@pytest.mark.parametrize("way", ["by position", "by keyword", "as the pipeline does"])
@pytest.mark.parametrize("call", CALLS)
def test_what_an_old_caller_gives_comes_out_field_by_field(settings: Settings, call: str, way: str) -> None:
    _, fields = CALLS[call]
    first, *_ = fields
    if way == "by position":
        row = stored(settings, call, *fields.values())
    elif way == "by keyword":
        row = stored(settings, call, **dict(reversed([*fields.items()])))
    else:
        row = stored(settings, call, fields[first], **{name: fields[name] for name in fields if name != first})
    for name, value in fields.items():
        assert row[name] == as_stored(value), name


@pytest.mark.parametrize("call", CALLS)
def test_an_old_caller_may_leave_out_all_but_the_first(settings: Settings, call: str) -> None:
    _, fields = CALLS[call]
    first, value = next(iter(fields.items()))
    row = stored(settings, call, value)
    assert row[first] == value
    assert row["record_id"]


def test_the_one_call_of_the_old_pipeline_runs_as_it_stands(settings: Settings) -> None:
    row = stored(
        settings,
        "store_agent_event",
        event_type="pipeline.interaction",
        agent_id="agent-1",
        session_id="s-1",
        payload={"instruction": "do", "response": "done"},
        severity="info",
    )
    assert (row["event_type"], row["severity"]) == ("pipeline.interaction", "info")
    assert row["payload"] == {"instruction": "do", "response": "done"}
    assert (row["workflow_id"], row["agent_id"], row["session_id"]) == (None, "agent-1", "s-1")


@pytest.mark.parametrize("call", CALLS)
def test_the_parameters_are_in_the_old_order_and_new_ones_come_by_keyword(call: str) -> None:
    parameters = list(inspect.signature(getattr(TrainingDataStore, call)).parameters.values())[1:]
    old = list(CALLS[call][1])
    assert [each.name for each in parameters][: len(old)] == old
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters[len(old) :])


def test_the_old_export_takes_its_four_arguments_by_position(settings: Settings, tmp_path: Path) -> None:
    store, day = TrainingDataStore(settings), today().isoformat()
    store.sync.store_agent_event("kept")
    target = tmp_path / "events.jsonl"
    assert store.export_for_training("events", target, day, day) == target
    assert json.loads(target.read_bytes())["event_type"] == "kept"
    store.sync.close()
