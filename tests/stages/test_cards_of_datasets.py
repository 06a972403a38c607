"""Cards and Croissant files of the four datasets: every split loads elsewhere with its types and its rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest import Settings
from ingest.errors import SourceMissing
from tds_dagster.curate.seal import find_flaw
from tds_dagster.datasets.build import build_dataset, model_named
from tds_dagster.datasets.manifest import Dataset, read_dataset
from tds_dagster.datasets.recipe import MODELS, Recipe
from tests.stages.conftest import DAY, RawStore
from tests.stages.loading import croissant_rows, croissant_warnings, load_with_datasets, loaded_feature, rows_of

SESSIONS = 12


def messages(session: int) -> Iterator[dict[str, Any]]:
    """A conversation with a call of a tool, whose arguments have another shape in every session."""
    arguments = json.dumps({f"key_{session}": [session, None, {"deep": True}]})
    yield {"role": "user", "content": f"question {session}"}
    call = {"id": f"call_{session}", "type": "function", "function": {"name": "find", "arguments": arguments}}
    yield {"role": "assistant", "content": None, "tool_calls": [call]}
    yield {"role": "tool", "tool_call_id": f"call_{session}", "name": "find", "content": str(session)}
    yield {"role": "assistant", "content": f"answer {session}"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A data folder with a day of everything that the datasets are made of."""
    store = RawStore(tmp_path_factory.mktemp("datasets") / "data")
    rows: dict[str, list[dict[str, object]]] = {"events": [], "tasks": [], "workflows": []}

    def add(kind: str, session: int, step: int, **fields: object) -> None:
        stamp = f"{DAY}T08:{session:02}:{step:02}.000000Z"
        named = {"record_id": f"{kind}-{session}-{step}", "session_id": f"s-{session}", "agent_id": "a"}
        rows[kind].append(store.record(kind, **named, **fields, timestamp=stamp))

    for session in range(SESSIONS):
        for step, message in enumerate(messages(session)):
            add("events", session, step, event_type=f"{message['role']}_message", severity="info", payload=message)
        for step, status in enumerate(("pending", "running", ["completed", "failed"][session % 2])):
            add("tasks", session, step, task_id=f"t-{session}", status=status, input_data=[session, {"k": None}],
                retry_count=step)  # fmt: skip
        for step in range(3):
            add("workflows", session, step, workflow_id=f"w-{session}", phase=f"phase {step}", completed_steps=step,
                state_data={"n": session} if step else [step], step_results={f"step {step}": session})  # fmt: skip
    for kind, records in rows.items():
        store.store(kind, *records)
    return Settings(data_dir=store.paths.root)


@pytest.fixture(scope="module", params=MODELS)
def built(request: pytest.FixtureRequest, settings: Settings) -> Dataset:
    recipe = Recipe(model=request.param, start=DAY, end=DAY, allow_empty_splits=True, fractions=(0.6, 0.2, 0.2))
    return build_dataset(settings, recipe)


def test_every_split_loads_with_its_types_and_its_rows(built: Dataset, tmp_path: Path) -> None:
    dataset = load_with_datasets(built.folder, tmp_path / "cache", name="default")

    assert {name: len(split) for name, split in dataset.items()} == {
        name: split.rows for name, split in built.splits.items() if split.rows
    }
    for name, split in dataset.items():
        assert split.features == loaded_feature(model_named(built.model).FEATURES)
        lines = (built.folder / f"{name}.jsonl").read_bytes().splitlines()
        assert rows_of(split) == [json.loads(line) for line in lines]


def test_mlcroissant_finds_nothing_wrong_and_reads_every_row(
    built: Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = built.folder / "croissant.json"
    assert croissant_warnings(described, caplog, monkeypatch) == []

    for name, split in built.splits.items():
        if split.rows:
            lines = (built.folder / f"{name}.jsonl").read_bytes().splitlines()
            ids = [json.loads(line)["record_id"] for line in lines]
            assert [row["record_id"] for row in croissant_rows(described, name)] == ids


def test_a_manifest_in_which_a_byte_changed_is_no_manifest(built: Dataset, tmp_path: Path) -> None:
    text = (built.folder / "manifest.json").read_bytes()
    assert find_flaw(text) is None
    for offset in range(0, len(text), 97):
        (tmp_path / "manifest.json").write_bytes(text[:offset] + bytes([text[offset] ^ 128]) + text[offset + 1 :])
        with pytest.raises(SourceMissing):
            read_dataset(tmp_path)
