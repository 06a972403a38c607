"""Turns rows of tool_selection into the dialects that trainers read: OpenAI fine-tuning, TRL, plain prompt/completion.

A row has `messages`, a conversation whose last message is the assistant's with the tool calls to learn, and `tools`,
the definitions at hand. Each dialect is a folder beside the splits with the same splits, line for line.

| folder | a line | in its own way |
|---|---|---|
| `openai/` | messages, tools, parallel_tool_calls | arguments are JSON text; earlier turns of the assistant weigh 0 |
| `trl/` | prompt, completion, tools | arguments are objects; the last message is the completion |
| `prompt_completion/` | prompt, completion | plain text, see `prompt_text` |

Sources of the formats: OpenAI's API reference, `FineTuneChatRequestInput`
(https://platform.openai.com/docs/api-reference/fine-tuning/chat-input); TRL's "Dataset formats and types"
(https://huggingface.co/docs/trl/dataset_formats).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, TypedDict, cast

import msgspec

from ingest.pipeline.partitions import make_folder, replacing
from tds_dagster.datasets.examples import ExtraFile
from tds_dagster.export.features import Features, ListOf

JsonObject = dict[str, object]


class Function(TypedDict):
    """What is called and with what; a call that was no object of arguments has it under `input`."""

    name: str
    arguments: JsonObject


class Call(TypedDict):
    """A call of a tool, its id unique in the conversation."""

    id: str
    type: Literal["function"]
    function: Function


class _Spoken(TypedDict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Message(_Spoken, total=False):
    """A chat message as rows have it."""

    tool_calls: list[Call]  # of the assistant, never empty
    tool_call_id: str  # of a tool: the call that it answers
    name: str  # of a tool: which one


class Row(TypedDict):
    """The part of a row that dialects are made of."""

    messages: list[Message]
    tools: list[JsonObject]


# `list of json` and not a struct of fixed keys: that one fills absent keys with null on loading, which chat templates
# then take for a tool call (seen with datasets 5.2; TRL asks for the JSON type since its 1.0).
_DOCUMENTS = ListOf("json")
DIALECT_FEATURES: Mapping[str, Features] = {
    "openai": {"messages": _DOCUMENTS, "tools": _DOCUMENTS, "parallel_tool_calls": "bool"},
    "trl": {"prompt": _DOCUMENTS, "completion": _DOCUMENTS, "tools": _DOCUMENTS},
    "prompt_completion": {"prompt": "string", "completion": "string"},
}


def write_dialects(folder: Path, splits: Mapping[str, str]) -> Iterator[ExtraFile]:
    """Write every dialect of a dataset's splits into its folder; `splits` gives each one's file, such as train.jsonl.

    Line by line, so that the longest row is all that memory holds.
    """
    for dialect, convert in DIALECTS.items():
        make_folder(folder / dialect)
        for split, name in splits.items():
            rows = 0
            with (folder / name).open("rb") as lines, replacing(folder / dialect / name) as out:
                for line in lines:
                    out.write(msgspec.json.encode(convert(cast("Row", msgspec.json.decode(line)))) + b"\n")
                    rows += 1
            yield ExtraFile(dialect, split, f"{dialect}/{name}", rows)


# ------------------------------------------------------------------------------------------------------- OpenAI


def openai_row(row: Row) -> JsonObject:
    """A row as one example of OpenAI's supervised fine-tuning.

    The assistant's earlier messages have weight 0: each of its calls is the end of an example of its own.
    """
    messages = row["messages"]
    last = len(messages) - 1
    several = any(len(message.get("tool_calls", ())) > 1 for message in messages)
    return {
        "messages": [_openai_message(message, is_last=place == last) for place, message in enumerate(messages)],
        "tools": row["tools"],
        "parallel_tool_calls": several,
    }


def _openai_message(message: Message, *, is_last: bool) -> JsonObject:
    if message["role"] == "tool":
        return {"role": "tool", "tool_call_id": message["tool_call_id"], "content": message["content"]}
    turn: JsonObject = {"role": message["role"], "content": message["content"]}
    if message["role"] == "assistant":
        if "tool_calls" in message:
            turn["content"] = message["content"] or None
            turn["tool_calls"] = [_openai_call(call) for call in message["tool_calls"]]
        turn["weight"] = int(is_last)
    return turn


def _openai_call(call: Call) -> JsonObject:
    arguments = msgspec.json.encode(call["function"]["arguments"]).decode()
    return {"id": call["id"], "type": "function", "function": {**call["function"], "arguments": arguments}}


# ---------------------------------------------------------------------------------------------------------- TRL


def trl_row(row: Row) -> JsonObject:
    """A row as a conversational prompt-completion example with tools: the loss is on the completion alone."""
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:], "tools": row["tools"]}


# --------------------------------------------------------------------------------------------------- plain text


def prompt_completion_row(row: Row) -> JsonObject:
    """A row as two texts; the prompt ends where the assistant's turn begins."""
    return {"prompt": prompt_text(row), "completion": _assistant_text(row["messages"][-1])}


def prompt_text(row: Row) -> str:
    """The tools and the conversation before the last message as one text.

        ### tools
        {"name":"find_order","description":"","parameters":{…}}      a tool a line
        ### user
        Where is my parcel?
        ### assistant
        call: {"name":"find_order","arguments":{"id":"A1"}}
        ### tool find_order
        {"status":"sent"}
        ### assistant

    The completion goes on there: what the assistant says, then a `call:` line for each call.
    """
    tools = [msgspec.json.encode(tool["function"]).decode() for tool in row["tools"]]
    sections = ["\n".join(["### tools", *tools]), *(_section(message) for message in row["messages"][:-1])]
    return "\n".join(sections) + "\n### assistant\n"


def _section(message: Message) -> str:
    if message["role"] == "assistant":
        return "### assistant\n" + _assistant_text(message).removesuffix("\n")
    title = f"tool {message['name']}" if "name" in message else message["role"]
    return f"### {title}\n{message['content']}"


def _assistant_text(message: Message) -> str:
    lines = [message["content"]] if message["content"] else []
    lines += ["call: " + msgspec.json.encode(call["function"]).decode() for call in message.get("tool_calls", ())]
    return "\n".join(lines) + "\n"


DIALECTS: Mapping[str, Callable[[Row], JsonObject]] = {
    "openai": openai_row,
    "trl": trl_row,
    "prompt_completion": prompt_completion_row,
}
