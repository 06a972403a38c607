"""A dataset of tool calls on disk: its dialects are its splits line for line, listed, and load with the right types."""

import asyncio
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ingest import Settings, TrainingDataStore
from ingest.errors import InvalidRecipe
from tds_dagster.cli.simulation import work
from tds_dagster.datasets import tool_selection, workflow_orchestration
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.dialects import DIALECT_FEATURES, DIALECTS
from tds_dagster.datasets.manifest import Dataset
from tds_dagster.datasets.recipe import SPLITS, read_recipe
from tests.stages.dialect_rules import FILE_RULES, OPENAI_RULES, TRL_RULES
from tests.stages.loading import load_with_datasets, rows_of

Json = Any


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A day of made-up agents at work. Their ids are new each time: cut by time, no split is ever empty."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("lived") / "data")

    async def live() -> None:
        store = TrainingDataStore(settings)
        await work(store, [date(2024, 5, 15)], seed=3, progress=lambda _: None)
        await store.flush()
        await store.close()

    asyncio.run(live())
    return settings


@pytest.fixture(scope="module")
def dataset(lived: Settings) -> Dataset:
    return build_dataset(lived, read_recipe("tool_selection", {"split_by": "time"}))


def lines(path: Path) -> Iterator[Json]:
    return map(json.loads, path.read_bytes().splitlines())


def test_each_dialect_has_the_rows_of_each_split_in_their_order(dataset: Dataset) -> None:
    assert set(DIALECTS) == {"openai", "trl", "prompt_completion"}
    for dialect, convert in DIALECTS.items():
        for split in SPLITS:
            written = list(lines(dataset.folder / dialect / f"{split}.jsonl"))
            assert written == [json.loads(json.dumps(convert(row))) for row in lines(dataset.folder / f"{split}.jsonl")]
            assert len(written) == dataset.splits[split].rows > 0
            assert all(list(line) == list(DIALECT_FEATURES[dialect]) for line in written)


def test_every_line_follows_every_published_rule(dataset: Dataset) -> None:
    for split in SPLITS:
        for dialect, rules in (("openai", OPENAI_RULES), ("trl", TRL_RULES)):
            for line in lines(dataset.folder / dialect / f"{split}.jsonl"):
                assert [found for rule in rules for found in rule(line)] == []
    content = (dataset.folder / "openai" / "train.jsonl").read_bytes().splitlines(keepends=True)
    assert [found for file_rule in FILE_RULES for found in file_rule(content)] == []


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (b"", "a_training_file_has_at_least_ten_examples"),
        (b"\xef\xbb\xbf{}\n" * 10, "a_file_is_utf8_without_byte_order_mark_and_a_line_is_an_example"),
        (b"[]\n" * 10, "a_file_is_utf8_without_byte_order_mark_and_a_line_is_an_example"),
    ],
)
def test_each_rule_of_a_file_sees_a_file_that_breaks_it(broken: bytes, rule: str) -> None:
    by_name = {each.__name__: each for each in FILE_RULES}
    assert list(by_name[rule](broken.splitlines(keepends=True)))


def test_dialects_are_in_the_manifest_and_configs_of_the_card(dataset: Dataset) -> None:
    listed = {file.path for file in dataset.files}
    assert {f"{dialect}/{split}.jsonl" for dialect in DIALECTS for split in SPLITS} <= listed
    card = (dataset.folder / "README.md").read_text()
    assert all(f'config_name: "{config}"' in card for config in ("default", *DIALECTS))
    assert "10 inferred from calls" in card
    assert dataset.facts["tool drift between days"] == "none"


@pytest.mark.parametrize("config", ["default", *DIALECTS])
def test_every_dialect_loads_as_it_was_written(dataset: Dataset, config: str, tmp_path: Path) -> None:
    loaded = load_with_datasets(dataset.folder, tmp_path, name=config)
    assert set(loaded) == set(SPLITS)
    for split in SPLITS:
        folder = dataset.folder if config == "default" else dataset.folder / config
        assert rows_of(loaded[split]) == list(lines(folder / f"{split}.jsonl"))


def test_every_call_of_the_range_is_an_example(dataset: Dataset) -> None:
    assert dataset.records == dataset.examples
    assert dataset.no_example == {}
    assert dataset.facts["tool calls in the range"] == str(dataset.records)


def test_calls_that_nobody_stored_as_executions_are_examples_too_and_the_account_holds(
    settings: Settings, store: TrainingDataStore
) -> None:
    for n in range(40):
        for payload in (
            {"role": "user", "content": "Find it."},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "find", "arguments": json.dumps({"id": n})}},
            ]},
        ):  # fmt: skip
            store.sync.store_agent_event(
                "message", session_id=f"s{n}", payload=payload, timestamp="2024-05-15T08:00:00Z"
            )
    store.sync.flush()
    dataset = build_dataset(settings, read_recipe("tool_selection", {"redaction": "none"}))
    assert dataset.records == dataset.examples == dataset.rows == 40
    ids = {line["messages"][-1]["tool_calls"][0]["function"]["arguments"]["id"] for split in SPLITS
           for line in lines(dataset.folder / f"{split}.jsonl")}  # fmt: skip
    assert ids == set(range(40)), "calls that differ in an id alone are no copies of each other"


def test_event_logs_lie_beside_the_splits_of_a_workflow_dataset(lived: Settings) -> None:
    dataset = build_dataset(lived, read_recipe("workflow_orchestration", {"split_by": "time"}))
    listed = {file.path: file.bytes for file in dataset.files}
    assert listed["process_mining/log.ocel.json"] > 0
    assert listed["process_mining/log.xes"] > 0
    assert dataset.no_example == {workflow_orchestration.FIRST: dataset.records - dataset.examples}
    assert "process_mining" not in (dataset.folder / "README.md").read_text().partition("---\n\n")[0]


def test_a_range_without_workflows_is_an_error_that_says_so_or_empty_logs_if_asked_for(
    settings: Settings, store: TrainingDataStore
) -> None:
    store.sync.store_agent_event("x", timestamp="2024-05-15T08:00:00Z")
    store.sync.flush()
    with pytest.raises(InvalidRecipe, match="0 rows of 0 workflows from 2024-05-15"):
        build_dataset(settings, read_recipe("workflow_orchestration", {}))
    dataset = build_dataset(settings, read_recipe("workflow_orchestration", {"allow_empty_splits": True}))
    log = json.loads((dataset.folder / "process_mining" / "log.ocel.json").read_bytes())
    assert (log["objects"], log["events"], log["eventTypes"]) == ([], [], [])
    assert (dataset.folder / "process_mining" / "log.xes").read_text().endswith("</log>\n")


def test_another_build_of_the_same_records_gives_the_same_dialects(dataset: Dataset, lived: Settings) -> None:
    before = {file.path: file.sha256 for file in dataset.files}
    (dataset.folder / "trl" / "train.jsonl").write_bytes(b"edited by hand\n")
    again = build_dataset(lived, read_recipe("tool_selection", {"split_by": "time"}))
    assert {file.path: file.sha256 for file in again.files} == before
    assert again.version == dataset.version
    assert (again.folder / "trl" / "train.jsonl").read_bytes() != b"edited by hand\n"


def test_the_columns_of_a_row_are_those_of_its_features(dataset: Dataset, lived: Settings) -> None:
    (row, *_) = lines(dataset.folder / "train.jsonl")
    assert list(row) == list(tool_selection.FEATURES)
