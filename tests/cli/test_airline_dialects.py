"""160 real runs of an airline agent as tool selection: every call, in every dialect, against the log itself."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import Result

from ingest import Settings
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.manifest import Dataset
from tds_dagster.datasets.recipe import SPLITS, read_recipe
from tests.parts import PROJECT
from tests.stages.dialect_rules import FILE_RULES, OPENAI_RULES, TRL_RULES

AIRLINE_RUNS = PROJECT.parent / "shared" / "data" / "airline_runs.jsonl.gz"
Json = Any
WINDOW = 1000  # more than any run has: every example holds all that was said


@pytest.fixture(scope="module")
def dataset(run_tds: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    settings = Settings(data_dir=tmp_path_factory.mktemp("airline") / "data")
    result = run_tds(settings, "import", AIRLINE_RUNS, "--format", "openai-chat", "--start", "2024-05-15", "--days", 7)
    assert result.exit_code == 0, result.stderr
    return build_dataset(settings, read_recipe("tool_selection", {"redaction": "none", "window": WINDOW}))


def lines(dataset: Dataset, dialect: str = ".") -> Iterator[Json]:
    for split in SPLITS:
        yield from map(json.loads, (dataset.folder / dialect / f"{split}.jsonl").read_bytes().splitlines())


def logged() -> Iterator[tuple[list[Json], Json]]:
    """Each call of the log with the messages before it; the reading here shares nothing with ours."""
    with gzip.open(AIRLINE_RUNS) as runs:
        for run in runs:
            messages = json.loads(run)["traj"]
            for place, message in enumerate(messages):
                for call in message.get("tool_calls") or []:
                    yield messages[:place], call["function"]


def told(before: list[Json], name: str, arguments: Json) -> str:
    """An example in few words: who said what, and which calls with what."""
    parts: list[Json] = [name, arguments]
    for message in before:
        parts.append([message["role"], message["content"] or ""])
        for call in message.get("tool_calls") or []:
            given = call["function"]["arguments"]
            parts.append([call["function"]["name"], json.loads(given) if isinstance(given, str) else given])
    return json.dumps(parts, sort_keys=True)


def test_all_1039_calls_of_the_log_are_examples_with_all_that_was_said_before(dataset: Dataset) -> None:
    expected = Counter(told(before, call["name"], json.loads(call["arguments"])) for before, call in logged())
    found = Counter(
        told(line["messages"][:-1], call["name"], call["arguments"])
        for line in lines(dataset)
        for call in [line["messages"][-1]["tool_calls"][0]["function"]]
    )
    assert sum(expected.values()) == dataset.records == dataset.examples == 1039
    copies = dataset.left_out.get("a copy of an example of another split", 0)
    assert found <= expected
    assert sum(found.values()) + copies == 1039
    assert dataset.no_example == {}


def test_no_session_is_in_two_splits_and_its_14_tools_are_all_there(dataset: Dataset) -> None:
    sessions = {}
    for split in SPLITS:
        rows = (dataset.folder / f"{split}.jsonl").read_bytes().splitlines()
        sessions[split] = {json.loads(row)["session_id"] for row in rows}
    assert sum(map(len, sessions.values())) == len(set().union(*sessions.values())) == 144
    assert {len(line["tools"]) for line in lines(dataset)} == {14}
    assert dataset.facts["tool definitions"] == "0 recorded, 14 inferred from calls"
    assert dataset.facts["tool drift between days"].count("update_reservation_flights: flights[]") == 2


def test_openais_and_trls_published_rules_hold_in_every_line(dataset: Dataset) -> None:
    sizes = "an_example_has_no_more_tokens_than_a_model_takes"  # whole runs may be longer: that is what a window is for
    for dialect, rules in (("openai", OPENAI_RULES), ("trl", TRL_RULES)):
        for line in lines(dataset, dialect):
            assert [found for rule in rules if rule.__name__ != sizes for found in rule(line)] == []
    content = (dataset.folder / "openai" / "train.jsonl").read_bytes().splitlines(keepends=True)
    assert [found for file_rule in FILE_RULES for found in file_rule(content)] == []


def test_plain_text_ends_with_the_call(dataset: Dataset) -> None:
    for text, line in zip(lines(dataset, "prompt_completion"), lines(dataset), strict=True):
        call = line["messages"][-1]["tool_calls"][0]["function"]
        assert json.loads(text["completion"].splitlines()[-1].removeprefix("call: ")) == call
        assert text["prompt"].endswith("\n### assistant\n")
