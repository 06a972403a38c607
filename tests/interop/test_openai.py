"""OpenAI's package finds every line to be what its API takes."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from pydantic import TypeAdapter, ValidationError

Json = Any


@pytest.fixture(scope="session")
def examples(dataset: Path) -> list[Json]:
    return [
        json.loads(line)
        for split in ("train", "validation", "test")
        for line in (dataset / "openai" / f"{split}.jsonl").read_bytes().splitlines()
    ]


def consumed(value: Json) -> Json:
    """Whatever the package checks only when it is read, read."""
    if isinstance(value, Mapping):
        return {key: consumed(item) for key, item in value.items()}
    return [consumed(item) for item in value] if isinstance(value, Iterable) and not isinstance(value, str) else value


MESSAGES = TypeAdapter(list[ChatCompletionMessageParam])
TOOLS = TypeAdapter(list[ChatCompletionFunctionToolParam])


def test_messages_are_the_packages_message_types(examples: list[Json]) -> None:
    assert len(examples) > 100
    for example in examples:
        # `weight` is fine-tuning's alone: the package has types for requests and none for training lines.
        messages = [
            {key: value for key, value in message.items() if key != "weight"} for message in example["messages"]
        ]
        assert consumed(MESSAGES.validate_python(messages)) == messages


def test_tools_are_the_packages_tool_type(examples: list[Json]) -> None:
    for example in examples:
        assert consumed(TOOLS.validate_python(example["tools"])) == example["tools"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x"},
        {"role": "bot", "content": "x"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}],
        },
        {"role": "assistant", "content": 3},
    ],
)
def test_the_packages_types_do_refuse_what_is_wrong(message: Json) -> None:
    with pytest.raises(ValidationError):
        consumed(MESSAGES.validate_python([message]))
