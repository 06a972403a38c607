"""Records of made-up sessions from which the four datasets are built, with rules in them that a model can learn.

Session `n` is about a topic (`n % 3`), goes well or not, and tells so before it ends:

- events: request_noted (its payload has the topic) → `<topic>_checked` → answer_noted or error_raised → agent_stopped,
  and a chat behind them;
- tasks: one of low priority fails, any other completes;
- tools: the user's last message names what is to be called, `find_<topic>` or `change_<topic>`;
- workflows: planning → working → reviewing → done, and from reviewing back to working where a review found something.

All of it on one day (`DAY` unless told), with ids and times of the session's number alone.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from ingest import Settings
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.manifest import Dataset
from tds_dagster.datasets.recipe import MODELS, read_recipe
from tests.stages.conftest import DAY, RawStore

__all__ = ["DAY", "MODELS", "TOPICS", "RawStore", "build", "settings_of", "split_rows", "store_sessions"]
TOPICS = ("orders", "flights", "refunds")
Row = dict[str, object]


def settings_of(root: Path, **more: object) -> Settings:
    """Settings over a data folder, with a key of redaction, so that equal records give equal datasets."""
    return Settings(data_dir=root, redaction_key="a key for tests only", **more)  # type: ignore[arg-type]


def build(root: Path, model: str, **recipe: object) -> Dataset:
    """Build the dataset of a model over a data folder: 0.3 s."""
    return build_dataset(settings_of(root), read_recipe(model, recipe))


def split_rows(dataset: Dataset, split: str) -> list[Row]:
    """The rows of a split."""
    return [json.loads(line) for line in (dataset.folder / f"{split}.jsonl").read_bytes().splitlines()]


def store_sessions(root: Path, sessions: Iterable[int], *, day: str = DAY) -> None:
    """Store the records of sessions, by number, as the writer leaves them."""
    raw_store = RawStore(root)
    stored: dict[str, list[Row]] = {}
    for n in sessions:
        for place, (kind, fields) in enumerate(session_records(n)):
            common = {
                "record_id": f"{n + 1:08x}-0000-7000-8000-{place:012x}",
                "timestamp": f"{day}T{n % 24:02d}:{n // 24 % 60:02d}:{place:02d}.{n:06d}Z",
                "session_id": f"s{n}",
                "agent_id": f"agent-{n % 4}",
            }
            stored.setdefault(kind, []).append(raw_store.record(kind, **common, **fields))
    for kind, records in stored.items():
        raw_store.store(kind, *records, day=day)


def session_records(n: int) -> list[tuple[str, Row]]:
    """All records of a session, in order."""
    return [*_task(n), *_events(n), *_chat(n), *_workflow(n)]


def _event(event_type: str, payload: object, severity: str = "info") -> tuple[str, Row]:
    return "events", {"event_type": event_type, "severity": severity, "payload": payload}


def _task(n: int) -> list[tuple[str, Row]]:
    fixed: Row = {"task_id": f"t{n}", "task_type": "support", "priority": "low" if n % 2 else "high"}
    return [
        ("tasks", fixed | {"status": "pending", "input_data": {"question": n}}),
        ("tasks", fixed | {"status": "failed" if n % 2 else "completed", "retry_count": n % 2}),
    ]


def _events(n: int) -> list[tuple[str, Row]]:
    topic, is_bad = TOPICS[n % 3], n % 5 == 0
    return [
        _event("request_noted", {"topic": topic, "n": n}),
        _event(f"{topic}_checked", {"n": n, "found": not is_bad}, "warning" if is_bad else "info"),
        _event("error_raised" if is_bad else "answer_noted", {"n": n}),
        _event("agent_stopped", {"n": n}),
    ]


def _chat(n: int) -> list[tuple[str, Row]]:
    topic = TOPICS[n % 3]
    return [*_exchange(f"Please find {topic} number {n}.", f"find_{topic}", n),
            *_exchange(f"Now change {topic} number {n}.", f"change_{topic}", n)]  # fmt: skip


def _exchange(text: str, tool: str, n: int) -> list[tuple[str, Row]]:
    function = {"name": tool, "arguments": json.dumps({"number": n})}
    call: Row = {"role": "assistant", "content": None,
                 "tool_calls": [{"id": "c", "type": "function", "function": function}]}  # fmt: skip
    return [
        _event("user_message", {"role": "user", "content": text}),
        _event("assistant_message", call),
        ("tool_executions", {"execution_id": f"{tool}-{n}", "tool_name": tool, "input_params": {"number": n},
                             "output_result": "ok", "status": "completed"}),
        _event("tool_message", {"role": "tool", "tool_call_id": "c", "content": "ok"}),
    ]  # fmt: skip


def _workflow(n: int) -> list[tuple[str, Row]]:
    phases = ["planning", "working", "reviewing", *(["working", "reviewing"] if n % 4 == 0 else []), "done"]
    return [("workflows", _state(n, place, phases)) for place in range(len(phases))]


def _state(n: int, place: int, phases: list[str]) -> Row:
    found = phases[place] == "reviewing" and phases[place + 1] == "working"
    return {"workflow_id": f"w{n}", "workflow_type": "support", "phase": phases[place], "current_step": f"step {place}",
            "completed_steps": place, "total_steps": len(phases), "state_data": {"n": n},
            "step_results": {"findings": int(found)}}  # fmt: skip
