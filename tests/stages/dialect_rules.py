"""The published rules of the dialects, each as a check that names what breaks it.

OpenAI: the API reference (`FineTuneChatRequestInput`, `ChatCompletionTool`, the message types), the guide "Supervised
fine-tuning", and the checks of the cookbook's "Data preparation and analysis for chat model fine-tuning", whose names
are in parentheses. TRL 1.x: "Dataset formats and types", and `SFTTrainer`, "Tool calling with SFT".

A rule takes one example and gives the places that break it; `FILE_RULES` take all lines of a file.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Example = Any  # JSON as it was read: what the rules are there to find out
Rule = Callable[[Example], Iterator[str]]

_OPENAI_KEYS = {"messages", "tools", "parallel_tool_calls"}
_OPENAI_MESSAGE_KEYS = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "refusal", "audio", "tool_calls", "function_call", "weight"},
    "tool": {"role", "content", "tool_call_id"},
}
_TOKENS_AN_EXAMPLE = 65_536
_LEAST_EXAMPLES = 10
_FILE_BYTES = 512 * 1024 * 1024


def calls_of(message: Example) -> list[Example]:
    return message.get("tool_calls") or []


def _function_problems(tool: Example) -> Iterator[str]:
    if set(tool) != {"type", "function"} or tool.get("type") != "function":
        yield f"tool {tool}"
        return
    function = tool["function"]
    if set(function) - {"name", "description", "parameters", "strict"}:
        yield f"keys of {function}"
    if not isinstance(function.get("name"), str) or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", function["name"]):
        yield f"name {function.get('name')!r}"
    parameters = function.get("parameters", {})
    if not isinstance(parameters, dict) or (parameters and parameters.get("type") != "object"):
        yield f"parameters {parameters!r}"


# ------------------------------------------------------------------------------------------------------- OpenAI


def an_example_is_an_object_of_known_keys(example: Example) -> Iterator[str]:
    """(data_type)"""
    if not isinstance(example, dict) or set(example) - _OPENAI_KEYS:
        yield "example"


def an_example_has_messages(example: Example) -> Iterator[str]:
    """(missing_messages_list)"""
    if not isinstance(example.get("messages"), list) or not example["messages"]:
        yield "messages"


def every_message_has_role_and_content(example: Example) -> Iterator[str]:
    """(message_missing_key)"""
    for n, message in enumerate(example["messages"]):
        if not {"role", "content"} <= set(message):
            yield f"messages[{n}]"


def every_role_is_known(example: Example) -> Iterator[str]:
    """(unrecognized_role)"""
    for n, message in enumerate(example["messages"]):
        if message["role"] not in _OPENAI_MESSAGE_KEYS:
            yield f"messages[{n}] {message['role']}"


def no_message_has_keys_that_its_role_does_not_know(example: Example) -> Iterator[str]:
    """(message_unrecognized_key)"""
    for n, message in enumerate(example["messages"]):
        if set(message) - _OPENAI_MESSAGE_KEYS[message["role"]]:
            yield f"messages[{n}] {sorted(message)}"


def content_is_text_and_only_calls_may_stand_without(example: Example) -> Iterator[str]:
    """(missing_content)"""
    for n, message in enumerate(example["messages"]):
        content = message["content"]
        if message["role"] == "tool":
            is_good = isinstance(content, str)
        else:
            is_good = (isinstance(content, str) and content != "") or (content is None and bool(calls_of(message)))
        if not is_good:
            yield f"messages[{n}] {content!r}"


def the_assistant_speaks_and_has_the_last_word(example: Example) -> Iterator[str]:
    """(example_missing_assistant_message)"""
    if example["messages"][-1]["role"] != "assistant":
        yield "messages[-1]"


def tool_calls_are_a_list_of_functions_with_id_and_type(example: Example) -> Iterator[str]:
    for n, message in enumerate(example["messages"]):
        if "tool_calls" in message and not message["tool_calls"]:
            yield f"messages[{n}].tool_calls is empty"
        for call in calls_of(message):
            is_good = set(call) == {"id", "type", "function"} and isinstance(call["id"], str) and call["id"]
            if not is_good or call["type"] != "function" or set(call["function"]) != {"name", "arguments"}:
                yield f"messages[{n}] {call}"


def arguments_are_a_json_text_of_an_object(example: Example) -> Iterator[str]:
    for n, message in enumerate(example["messages"]):
        for call in calls_of(message):
            arguments = call["function"]["arguments"]
            try:
                is_good = isinstance(arguments, str) and isinstance(json.loads(arguments), dict)
            except ValueError:
                is_good = False
            if not is_good:
                yield f"messages[{n}] {arguments!r}"


def names_of_functions_are_up_to_64_letters_digits_dashes(example: Example) -> Iterator[str]:
    for n, message in enumerate(example["messages"]):
        for call in calls_of(message):
            if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", call["function"]["name"]):
                yield f"messages[{n}] {call['function']['name']!r}"


def every_call_is_answered_before_the_next_turn(example: Example) -> Iterator[str]:
    """A message with `tool_calls` must be followed by tool messages that respond to each `tool_call_id`."""
    messages = example["messages"]
    for n, message in enumerate(messages[:-1]):
        open_ids = [call["id"] for call in calls_of(message)]
        for answer in messages[n + 1 : n + 1 + len(open_ids)]:
            if answer["role"] == "tool" and answer["tool_call_id"] in open_ids:
                open_ids.remove(answer["tool_call_id"])
        if open_ids:
            yield f"messages[{n}] {open_ids}"


def every_tool_message_answers_a_call_before_it(example: Example) -> Iterator[str]:
    """Messages with role tool must be a response to a preceding message with `tool_calls`."""
    open_ids: list[str] = []
    for n, message in enumerate(example["messages"]):
        if message["role"] == "tool":
            if message.get("tool_call_id") not in open_ids:
                yield f"messages[{n}]"
            else:
                open_ids.remove(message["tool_call_id"])
        else:
            open_ids = [call["id"] for call in calls_of(message)]


def tools_are_functions_with_a_json_schema(example: Example) -> Iterator[str]:
    for tool in example["tools"]:
        yield from _function_problems(tool)


def there_are_at_most_128_tools(example: Example) -> Iterator[str]:
    if len(example["tools"]) > 128:
        yield f"{len(example['tools'])} tools"


def every_function_that_is_called_is_among_the_tools(example: Example) -> Iterator[str]:
    names = {tool["function"]["name"] for tool in example["tools"]}
    if example["messages"][-1].get("tool_calls"):
        yield from (
            call["function"]["name"]
            for call in example["messages"][-1]["tool_calls"]
            if call["function"]["name"] not in names
        )


def parallel_tool_calls_is_a_flag_that_fits_the_calls(example: Example) -> Iterator[str]:
    most = max(len(calls_of(message)) for message in example["messages"])
    if not isinstance(example["parallel_tool_calls"], bool) or (most > 1 and not example["parallel_tool_calls"]):
        yield f"{example['parallel_tool_calls']!r} with {most} calls"


def only_the_assistant_has_a_weight_of_0_or_1(example: Example) -> Iterator[str]:
    for n, message in enumerate(example["messages"]):
        if "weight" in message and (
            message["role"] != "assistant" or message["weight"] not in {0, 1} or isinstance(message["weight"], bool)
        ):
            yield f"messages[{n}]"
    if not any(message.get("weight", 1) for message in example["messages"] if message["role"] == "assistant"):
        yield "no message to learn"


def an_example_has_no_more_tokens_than_a_model_takes(example: Example) -> Iterator[str]:
    """No token has less than one byte, so this many bytes are at most as many tokens."""
    size = len(json.dumps(example, ensure_ascii=False).encode())
    if size > _TOKENS_AN_EXAMPLE:
        yield f"{size} bytes"


OPENAI_RULES: Sequence[Rule] = (
    an_example_is_an_object_of_known_keys,
    an_example_has_messages,
    every_message_has_role_and_content,
    every_role_is_known,
    no_message_has_keys_that_its_role_does_not_know,
    content_is_text_and_only_calls_may_stand_without,
    the_assistant_speaks_and_has_the_last_word,
    tool_calls_are_a_list_of_functions_with_id_and_type,
    arguments_are_a_json_text_of_an_object,
    names_of_functions_are_up_to_64_letters_digits_dashes,
    every_call_is_answered_before_the_next_turn,
    every_tool_message_answers_a_call_before_it,
    tools_are_functions_with_a_json_schema,
    there_are_at_most_128_tools,
    every_function_that_is_called_is_among_the_tools,
    parallel_tool_calls_is_a_flag_that_fits_the_calls,
    only_the_assistant_has_a_weight_of_0_or_1,
    an_example_has_no_more_tokens_than_a_model_takes,
)


def a_training_file_has_at_least_ten_examples(lines: Sequence[bytes]) -> Iterator[str]:
    if len(lines) < _LEAST_EXAMPLES:
        yield f"{len(lines)} examples"


def a_file_has_at_most_512_mib(lines: Sequence[bytes]) -> Iterator[str]:
    if sum(map(len, lines)) > _FILE_BYTES:
        yield "size"


def a_file_is_utf8_without_byte_order_mark_and_a_line_is_an_example(lines: Sequence[bytes]) -> Iterator[str]:
    for n, line in enumerate(lines):
        if line.startswith(b"\xef\xbb\xbf") or not line.endswith(b"}\n") or not isinstance(json.loads(line), dict):
            yield f"line {n + 1}"


FILE_RULES: Sequence[Callable[[Sequence[bytes]], Iterator[str]]] = (
    a_training_file_has_at_least_ten_examples,
    a_file_has_at_most_512_mib,
    a_file_is_utf8_without_byte_order_mark_and_a_line_is_an_example,
)

# ---------------------------------------------------------------------------------------------------------- TRL


def columns_are_those_of_a_prompt_completion_dataset_with_tools(example: Example) -> Iterator[str]:
    if set(example) != {"prompt", "completion", "tools"}:
        yield f"{sorted(example)}"


def prompt_and_completion_are_conversational(example: Example) -> Iterator[str]:
    for name in ("prompt", "completion"):
        is_list = isinstance(example[name], list) and example[name]
        if not is_list or not all({"role", "content"} <= set(message) for message in example[name]):
            yield name


def every_message_has_a_role_of_chat_templates_and_text(example: Example) -> Iterator[str]:
    for message in [*example["prompt"], *example["completion"]]:
        if message["role"] not in {"system", "user", "assistant", "tool"} or not isinstance(message["content"], str):
            yield f"{message}"


def a_prompt_ends_where_a_template_can_go_on(example: Example) -> Iterator[str]:
    """`apply_chat_template` refuses a prompt whose last message is none of these."""
    if example["prompt"][-1]["role"] not in {"user", "tool", "assistant"}:
        yield example["prompt"][-1]["role"]


def a_completion_is_the_assistants(example: Example) -> Iterator[str]:
    if [message["role"] for message in example["completion"]] != ["assistant"]:
        yield "completion"


def tool_calls_have_their_arguments_as_an_object(example: Example) -> Iterator[str]:
    for message in [*example["prompt"], *example["completion"]]:
        for call in calls_of(message):
            if call.get("type") != "function" or not isinstance(call["function"].get("arguments"), dict):
                yield f"{call}"


def absent_keys_are_absent_and_not_null(example: Example) -> Iterator[str]:
    """A key that is there and null is a value to a template: `message.tool_calls is defined`."""
    for message in [*example["prompt"], *example["completion"]]:
        if None in message.values() or message.get("tool_calls") == []:
            yield f"{message}"


def tool_messages_name_their_tool(example: Example) -> Iterator[str]:
    for message in example["prompt"]:
        if message["role"] == "tool" and not message.get("name"):
            yield f"{message}"


def tools_are_a_list_of_json_schemas(example: Example) -> Iterator[str]:
    if not isinstance(example["tools"], list) or not example["tools"]:
        yield "tools"
    for tool in example["tools"]:
        yield from _function_problems(tool)


TRL_RULES: Sequence[Rule] = (
    columns_are_those_of_a_prompt_completion_dataset_with_tools,
    prompt_and_completion_are_conversational,
    every_message_has_a_role_of_chat_templates_and_text,
    a_prompt_ends_where_a_template_can_go_on,
    a_completion_is_the_assistants,
    tool_calls_have_their_arguments_as_an_object,
    absent_keys_are_absent_and_not_null,
    tool_messages_name_their_tool,
    tools_are_a_list_of_json_schemas,
)
