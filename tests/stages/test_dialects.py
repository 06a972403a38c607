"""Every line of a dialect follows each rule that its trainer publishes, whatever conversation it was made of."""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tds_dagster.datasets.conversations import SessionRecord, calling_message, history, read_conversation
from tds_dagster.datasets.dialects import Row, openai_row, prompt_completion_row, trl_row
from tds_dagster.datasets.tool_schemas import ToolSchemas
from tests.stages.dialect_rules import OPENAI_RULES, TRL_RULES, Rule

Json = Any
STATED = ("system", "developer", "user", "assistant", "tool", "function", "human", "ai")


def chat(*payloads: Json) -> list[SessionRecord]:
    """Events of one session with these payloads."""
    return [
        SessionRecord("events", f"r{n}", f"2024-05-15T08:30:00.{n:06d}Z", name="message", document=json.dumps(payload))
        for n, payload in enumerate(payloads)
    ]


def rows_of(records: Sequence[SessionRecord], window: int = 20) -> list[Row]:
    """A row for each turn with calls that has something before it."""
    turns, rows, schemas = read_conversation(records).turns, list[Row](), ToolSchemas()
    for turn in turns:
        for call in turn.calls:
            schemas.observe(call.name or "", call.arguments, "2024-05-15")
    for place, turn in enumerate(turns):
        calls = [(call.name, call.arguments) for call in turn.calls if call.name is not None and call.is_json]
        before = history(turns, place, window)
        if calls and any(message["role"] != "system" for message in before):
            names = sorted({name for name, _ in calls})
            message = calling_message(turn.content, calls, before)
            rows.append({"messages": [*before, message], "tools": [schemas.definition(name) for name in names]})
    return rows


def call(name: str, arguments: Json = "{}", call_id: str | None = "call_1") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


HARD = chat(
    {"role": "developer", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Look at"}, {"type": "image_url", "image_url": {"url": "x"}}],
    },
    {
        "role": "assistant",
        "content": "Two at once.",
        "tool_calls": [call("files.read"), call("search", '{"q": "é"}', "b")],
    },
    {"role": "tool", "tool_call_id": "b", "content": "second"},
    {"role": "tool", "tool_call_id": "call_1", "content": "first"},
    {"role": "assistant", "content": None, "tool_calls": [call("search", '{"q": [1, {"deep": null}]}')]},
    {"role": "user", "content": "Never mind that one."},
    {"role": "assistant", "content": None, "function_call": {"name": "search", "arguments": ""}},
    {"role": "function", "name": "search", "content": ""},
    {"role": "tool", "tool_call_id": "of nobody", "content": "stray"},
    {"role": "assistant", "content": None, "tool_calls": [call("a" * 80, '{"x": 1}')]},
)


def test_an_openai_example_of_two_calls_reads_like_this() -> None:
    assert openai_row(rows_of(HARD)[0])["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look at\n[image_url]"},
        {"role": "assistant", "content": "Two at once.", "weight": 1, "tool_calls": [
            call("files_read", "{}", "call00000"), call("search", '{"q":"é"}', "call00001"),
        ]},
    ]  # fmt: skip


def test_a_trl_example_keeps_arguments_as_objects_and_answers_behind_their_calls() -> None:
    example: Json = trl_row(rows_of(HARD)[1])
    assert example["prompt"][2:] == [
        {"role": "assistant", "content": "Two at once.", "tool_calls": [
            call("files_read", {}, "call00000"), call("search", {"q": "é"}, "call00001"),
        ]},
        {"role": "tool", "tool_call_id": "call00000", "name": "files_read", "content": "first"},
        {"role": "tool", "tool_call_id": "call00001", "name": "search", "content": "second"},
    ]  # fmt: skip
    assert example["completion"] == [
        {"role": "assistant", "content": "", "tool_calls": [call("search", {"q": [1, {"deep": None}]}, "call00002")]}
    ]


def test_a_plain_text_example_says_tools_conversation_and_call() -> None:
    example: Json = prompt_completion_row(rows_of(HARD)[1])
    assert example["completion"] == 'call: {"name":"search","arguments":{"q":[1,{"deep":null}]}}\n'
    assert example["prompt"].startswith('### tools\n{"name":"search","description":"","parameters":')
    assert example["prompt"].endswith(
        "### system\nBe brief.\n### user\nLook at\n[image_url]\n### assistant\nTwo at once.\n"
        'call: {"name":"files_read","arguments":{}}\ncall: {"name":"search","arguments":{"q":"é"}}\n'
        "### tool files_read\nfirst\n### tool search\nsecond\n### assistant\n"
    )


def test_a_call_that_nobody_answered_is_an_example_but_no_history() -> None:
    third = rows_of(HARD)[2]["messages"]
    assert [message["content"] for message in third if message["role"] != "tool"] == [
        "Be brief.", "Look at\n[image_url]", "Two at once.", "Never mind that one.", "",
    ]  # fmt: skip


def test_a_window_never_begins_with_an_answer_and_keeps_the_system_message() -> None:
    for window in range(1, 8):
        for row in rows_of(HARD, window):
            messages = row["messages"]
            assert messages[0]["role"] == "system"
            assert messages[1]["role"] != "tool"
            assert len(messages) <= window + 2


def test_an_answer_that_came_after_a_call_is_not_in_its_history() -> None:
    rows = rows_of(chat(
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": None, "tool_calls": [call("slow", "{}", "a")]},
        {"role": "assistant", "content": None, "tool_calls": [call("quick", "{}", "b")]},
        {"role": "tool", "tool_call_id": "b", "content": "quick answer"},
        {"role": "tool", "tool_call_id": "a", "content": "slow answer"},
        {"role": "assistant", "content": None, "tool_calls": [call("last", "{}", "c")]},
    ))  # fmt: skip
    said = [[message["content"] or message["role"] for message in row["messages"]] for row in rows]
    assert said == [
        ["Go.", "assistant"],
        ["Go.", "assistant"],
        ["Go.", "assistant", "slow answer", "assistant", "quick answer", "assistant"],
    ]


def test_an_answer_whose_id_fits_no_call_answers_the_last_message_that_called() -> None:
    messages = rows_of(chat(
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": None, "tool_calls": [call("find", "{}", "a"), call("weigh", "{}", "a")]},
        {"role": "tool", "tool_call_id": "other", "content": "first"},
        {"role": "function", "name": "weigh", "content": "second"},
        {"role": "assistant", "content": None, "tool_calls": [call("last")]},
    ))[1]["messages"]  # fmt: skip
    assert [(m.get("name"), m["content"]) for m in messages if m["role"] == "tool"] == [
        ("find", "first"), ("weigh", "second"),
    ]  # fmt: skip


def test_what_the_user_asked_for_last_is_never_cut_off() -> None:
    work = [
        {"role": "assistant", "content": None, "tool_calls": [call("step")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    asked = [
        {"role": "user", "content": "Old."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Do it."},
    ]
    row = rows_of(chat(*asked, *(work * 10)), window=4)[-1]
    assert [message["content"] or message["role"] for message in row["messages"]] == [
        "Do it.", "assistant", "done", "assistant",
    ]  # fmt: skip
    row = rows_of(chat(*asked, *(work * 10)), window=5)[-1]
    assert [message["content"] or message["role"] for message in row["messages"]] == [
        "Do it.", "assistant", "done", "assistant", "done", "assistant",
    ]  # fmt: skip


def test_a_system_message_right_before_a_call_comes_before_what_was_said_ahead_of_it() -> None:
    asked = [{"role": "user", "content": "Do it."}, {"role": "system", "content": "Be quick."}]
    (row,) = rows_of(chat(*asked, {"role": "assistant", "content": None, "tool_calls": [call("step")]}))
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]


@pytest.mark.parametrize("rule", OPENAI_RULES, ids=lambda rule: rule.__name__)
def test_openai_examples_follow_the_published_rule(rule: Rule) -> None:
    assert [list(rule(json.loads(json.dumps(openai_row(row))))) for row in rows_of(HARD)] == [[]] * 4


@pytest.mark.parametrize("rule", TRL_RULES, ids=lambda rule: rule.__name__)
def test_trl_examples_follow_the_published_rule(rule: Rule) -> None:
    assert [list(rule(json.loads(json.dumps(trl_row(row))))) for row in rows_of(HARD)] == [[]] * 4


contents = st.none() | st.text(max_size=3) | st.just([{"type": "text", "text": "x"}, {"type": "image_url"}])
ids = st.sampled_from(["a", "b", None])
arguments = st.sampled_from(["{}", '{"x": 1}', "[1]", "not json", "", {"x": 1}, None, 3, '{"x": "\\ud800"}'])
calls = st.lists(
    st.builds(call, st.sampled_from(["find", "files.read", "", "unknown", "n" * 99]), arguments, ids)
    | st.sampled_from([None, 3, {}, {"function": 3}, {"custom": {"name": "shell", "input": "ls"}}]),
    max_size=3,
)
payloads = st.fixed_dictionaries(
    {"role": st.sampled_from(STATED)},
    optional={"content": contents, "tool_calls": calls | st.none(), "tool_call_id": ids},
)


@given(st.lists(payloads, max_size=12), st.integers(1, 6))
def test_any_conversation_at_all_becomes_examples_that_follow_every_rule(given: list[Json], window: int) -> None:
    for row in rows_of(chat(*given), window):
        for rules, example in ((OPENAI_RULES, openai_row(row)), (TRL_RULES, trl_row(row))):
            read = json.loads(json.dumps(example))
            broken = {rule.__name__: list(rule(read)) for rule in rules}
            assert {name: found for name, found in broken.items() if found} == {}
        text = prompt_completion_row(row)
        assert text["prompt"]
        assert text["completion"]


def at(*path: str | int) -> Callable[[Json], Json]:
    def value(example: Json) -> Json:
        for part in path:
            example = example[part]
        return example

    return value


def changed(path: Sequence[str | int], value: Json) -> Callable[[Json], None]:
    def change(example: Json) -> None:
        at(*path[:-1])(example)[path[-1]] = value

    return change


def without(*path: str | int) -> Callable[[Json], None]:
    def change(example: Json) -> None:
        del at(*path[:-1])(example)[path[-1]]

    return change


LAST_CALL = ("messages", -1, "tool_calls", 0)
BREAKS_OPENAI = {
    "an_example_is_an_object_of_known_keys": changed(["extra"], 1),
    "an_example_has_messages": changed(["messages"], []),
    "every_message_has_role_and_content": without("messages", 1, "content"),
    "every_role_is_known": changed(["messages", 0, "role"], "bot"),
    "no_message_has_keys_that_its_role_does_not_know": changed(["messages", 3, "name"], "search"),
    "content_is_text_and_only_calls_may_stand_without": changed(["messages", 1, "content"], ""),
    "the_assistant_speaks_and_has_the_last_word": lambda example: example["messages"].pop(),
    "tool_calls_are_a_list_of_functions_with_id_and_type": without(*LAST_CALL, "type"),
    "arguments_are_a_json_text_of_an_object": changed([*LAST_CALL, "function", "arguments"], {"q": 1}),
    "names_of_functions_are_up_to_64_letters_digits_dashes": changed([*LAST_CALL, "function", "name"], "files.read"),
    "every_call_is_answered_before_the_next_turn": lambda example: example["messages"].pop(3),
    "every_tool_message_answers_a_call_before_it": changed(["messages", 3, "tool_call_id"], "of nobody"),
    "tools_are_functions_with_a_json_schema": changed(["tools", 0, "function", "parameters"], {"q": "string"}),
    "there_are_at_most_128_tools": lambda example: example["tools"].extend(example["tools"] * 128),
    "every_function_that_is_called_is_among_the_tools": changed([*LAST_CALL, "function", "name"], "other"),
    "parallel_tool_calls_is_a_flag_that_fits_the_calls": changed(["parallel_tool_calls"], False),
    "only_the_assistant_has_a_weight_of_0_or_1": changed(["messages", 1, "weight"], 1),
    "an_example_has_no_more_tokens_than_a_model_takes": changed(["messages", 1, "content"], "é" * 40_000),
}
BREAKS_TRL = {
    "columns_are_those_of_a_prompt_completion_dataset_with_tools": changed(["messages"], []),
    "prompt_and_completion_are_conversational": changed(["prompt"], []),
    "every_message_has_a_role_of_chat_templates_and_text": changed(["prompt", 0, "role"], "developer"),
    "a_prompt_ends_where_a_template_can_go_on": changed(["prompt", -1, "role"], "system"),
    "a_completion_is_the_assistants": lambda example: example["completion"].append(example["prompt"][1]),
    "tool_calls_have_their_arguments_as_an_object": changed(
        ["completion", 0, "tool_calls", 0, "function", "arguments"], "{}"
    ),
    "absent_keys_are_absent_and_not_null": changed(["prompt", 0, "tool_calls"], None),
    "tool_messages_name_their_tool": without("prompt", 3, "name"),
    "tools_are_a_list_of_json_schemas": changed(["tools"], []),
}


@pytest.mark.parametrize(
    ("rules", "convert", "breaks"), [(OPENAI_RULES, openai_row, BREAKS_OPENAI), (TRL_RULES, trl_row, BREAKS_TRL)]
)
def test_each_rule_sees_an_example_that_breaks_it(
    rules: Sequence[Rule], convert: Callable[[Row], Json], breaks: dict[str, Callable[[Json], Json]]
) -> None:
    by_name = {rule.__name__: rule for rule in rules}
    assert by_name.keys() == breaks.keys()
    for name, break_it in breaks.items():
        example = copy.deepcopy(json.loads(json.dumps(convert(rows_of(HARD)[1]))))
        break_it(example)
        assert list(by_name[name](example)), name
