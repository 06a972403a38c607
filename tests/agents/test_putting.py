"""`store.put` sends a thing to where it belongs, and says what to do where nothing is to be stored."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ingest import Settings, TrainingDataStore
from ingest.agents.messages import Messages
from ingest.errors import InvalidRecord
from tests.parts import csv_rows, run_python


def during(settings: Settings, work: Callable[[TrainingDataStore], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        store = TrainingDataStore(settings)
        try:
            return await work(store)
        finally:
            await store.flush()
            await store.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("what", "fields", "kind"),
    [
        ("event", {"event_type": "started"}, "events"),
        ("agent_tasks", {"task_id": "t", "status": "failed"}, "tasks"),
        ("a tool call and its result", {"execution_id": "x", "tool_name": "search"}, "tool_executions"),
        ("the state of a workflow", {"workflow_id": "w", "phase": "testing"}, "workflows"),
        ("the rating a user gave", {"target_kind": "task", "target_id": "t", "name": "stars", "value": 5}, "feedback"),
    ],
)  # fmt: skip
def test_training_data_goes_to_its_kind_with_the_calls_own_defaults(
    settings: Settings, what: str, fields: dict[str, Any], kind: str
) -> None:
    record_id = during(settings, lambda store: store.put(what, **fields))
    (row,) = csv_rows(settings, kind)
    assert row["record_id"] == record_id
    assert {name: row[name] for name in fields} == fields
    if kind == "events":
        assert row["severity"] == "info"


def test_what_is_said_goes_to_the_conversations(settings: Settings) -> None:
    async def talk(store: TrainingDataStore) -> list[str]:
        await store.put("chat message", instance_id="i", role="user", content="hello")
        async with Messages(settings) as messages:
            return [message.content for message in await messages.get_history("i")]

    assert during(settings, talk) == ["hello"]
    assert not (settings.data_dir / "training" / "events").exists()


def test_a_number_goes_to_the_metrics(settings: Settings) -> None:
    code = (
        "import asyncio\nfrom ingest import TrainingDataStore\n"
        "async def work():\n    store = TrainingDataStore()\n"
        "    for depth in (3, 7):\n        await store.put('metric', name='queue_depth', value=depth)\n"
        "        await store.put('metric', name='load', value=0.5, labels={'host': 'a'})\n"
        "    await store.close()\n    from ingest.agents.metrics import registry_of\n"
        "    print([s.value for f in registry_of(store.settings).collect() for s in f.samples "
        "if s.name in ('agent_queue_depth', 'agent_load')])\nasyncio.run(work())\n"
    )
    done = run_python(code, settings)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.strip("[]\n").split(", ")) == ["0.5", "7.0"]


@pytest.mark.parametrize(
    ("what", "fields", "told"),
    [
        ("prompt template", {"template": "x"}, "configs/prompts"),
        ("api key", {"value": "sesame"}, "secret manager"),
        ("heartbeat", {}, "Instances"),
        ("xyzzy", {"a": 1}, "Ask: "),
        ("event", {"event_type": "x", "colour": "red"}, "colour"),
        ("event", {}, "event_type"),
    ],
)
def test_what_is_not_to_be_stored_or_not_so_is_an_error_that_says_what_to_do(
    settings: Settings, what: str, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidRecord, match=told) as caught:
        during(settings, lambda store: store.put(what, **fields))
    assert "sesame" not in str(caught.value)
    assert not (settings.data_dir / "training").exists()
