"""Turns the records of one session into the conversation an agent had: chat messages, and the tool calls in them.

| record | becomes |
|---|---|
| event whose payload is a chat message (`role`, and `content` or `tool_calls`) | that message |
| event whose payload has a `text`, `content` or `message`, or is a text, and whose type tells who spoke | a message |
| tool execution, where no message holds calls | the assistant's call, and the tool's answer |
| tool execution, where messages hold calls | the record of a call of its name; its answer if none is told |
| first task with an input, where no message is the user's | the user's message |

An event's type tells by its first word that names a speaker or what one says: `request_received` is the user's,
`answer_given` the assistant's, `tool_chosen` nobody's.

A call's record is the first one that has its name and its arguments, else the first one left that has its name.

Roles are those that every chat template knows: `developer` is told as system, `function` as tool. Parts of a content
that are no text become `[image_url]` and the like. Arguments are objects; what is none goes under `input`, as its JSON
text if it is too deep to be read. A payload that is too deep is no message. An answer
stands behind its call even if it was stored later, and one without a call is left out, as chat formats ask.
"""

import re
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from tds_dagster.datasets.dialects import Call, JsonObject, Message
from tds_dagster.datasets.examples import parsed
from tds_dagster.datasets.tool_schemas import definition_name, tool_definition, tool_name

Role = Literal["system", "user", "assistant", "tool"]

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}
_SPEAKERS: Mapping[str, Role | None] = {
    **dict.fromkeys(("user", "human", "customer", "request", "question", "prompt"), "user"),
    **dict.fromkeys(("assistant", "ai", "answer", "response", "reply"), "assistant"),
    **dict.fromkeys(("system", "instruction", "instructions"), "system"),
    "tool": None,  # a `tool_response` is nobody's: its call is stored as a tool execution
}
_TEXTS = ("text", "content", "message")
_INPUTS = ("request", "text", "prompt", "question", "query", "instruction", "input", "message", "content")
_UNNAMED = "unknown"  # what the store files for a tool whose name was not given


class SessionRecord(msgspec.Struct, frozen=True):
    """What a conversation needs of a record; documents are JSON text."""

    kind: Literal["events", "tasks", "tool_executions"]
    record_id: str
    timestamp: str  # RFC 3339
    agent_id: str | None = None
    session_id: str | None = None
    task_id: str | None = None
    workflow_id: str | None = None
    name: str | None = None  # event_type, task_type or tool_name
    document: str | None = None  # payload, input_data or input_params
    result: str | None = None  # output_result
    error: str | None = None
    metadata: str | None = None
    corrected: str | None = None  # of a tool execution: the better output that feedback holds
    is_target: bool = False  # of a tool execution: whether it may be predicted


class LoggedCall(msgspec.Struct):
    """A tool call as it was logged."""

    name: str | None  # None: there is none that a tool can have
    arguments: JsonObject
    is_json: bool = True  # False: the model wrote arguments that are no JSON
    call_id: str | None = None  # the log's own; they repeat in real logs
    execution: SessionRecord | None = None  # the call's own record
    answer: int | None = None  # the turn that answers it


class Turn(msgspec.Struct):
    """One message, before it gets its place in an example."""

    role: Role
    content: str
    record: SessionRecord
    calls: list[LoggedCall] = []
    answers: str | None = None  # of a tool: the log's id of the call


class Conversation(msgspec.Struct, frozen=True):
    """A session as a chat."""

    turns: Sequence[Turn]
    definitions: Sequence[tuple[JsonObject, str]]  # tools that the session recorded with their definition, and the day
    tool_names: Sequence[str]  # tools that it recorded, in order, with or without
    unmatched: Sequence[SessionRecord]  # tool executions of a chat whose messages do not have the call


def read_conversation(records: Sequence[SessionRecord]) -> Conversation:
    """The conversation in one session's records, which come in order of (timestamp, record_id)."""
    turns = [turn for record in records if record.kind == "events" and (turn := _event_turn(record))]
    executions = [record for record in records if record.kind == "tool_executions"]
    if any(turn.calls for turn in turns):
        unmatched = _attach_executions(turns, executions)
    else:
        unmatched = []
        called = [turn for record in executions for turn in _execution_turns(record)]
        turns = sorted([*turns, *called], key=_moment)
    _pair_answers(turns)
    turns = _with_answers_of_executions(turns)
    if not any(turn.role == "user" for turn in turns):
        turns = _with_request(turns, records)
    definitions, names = _recorded_tools(records)
    return Conversation(turns, definitions, names, unmatched)


def history(turns: Sequence[Turn], place: int, window: int) -> list[Message]:
    """The messages before the turn at `place`: the opening system messages, then the last `window` at most.

    A call stays together with its answers. One that had no answer by then is left out, and so is an answer whose call
    is cut off. If all messages of the user are cut off, the last of them takes the place of the oldest that is left: it
    is what the agent works on, and some chat templates refuse a conversation without one. System messages at the end
    come before the last other turn: a template goes on only behind a user, an assistant or a tool.
    Ids of calls are counted from `call00000`: nine letters and digits, which every template takes.
    """
    opening = next((n for n, turn in enumerate(turns[:place]) if turn.role != "system"), place)
    messages: list[Message] = [{"role": "system", "content": turn.content} for turn in turns[:opening] if turn.content]
    for turn, calls in _ending_with_no_system_message(list(_last_turns(turns, opening, place, window))):
        messages += _messages(turns, turn, calls, _count_calls(messages))
    return messages


def _last_turns(
    turns: Sequence[Turn], opening: int, place: int, window: int
) -> Iterable[tuple[Turn, Sequence[LoggedCall]]]:
    """The last turns before `place` that have room in the window, each with those of its calls that were answered."""
    kept: deque[tuple[Turn, Sequence[LoggedCall]]] = deque()
    room = window
    for turn in reversed(turns[opening:place]):
        calls = [call for call in turn.calls if call.answer is not None and call.answer < place and call.name]
        if turn.role == "tool" or not (turn.content or calls):
            continue
        if 1 + len(calls) > room:
            break
        room -= 1 + len(calls)
        kept.appendleft((turn, calls))
    if not any(turn.role == "user" for turn, _ in kept):
        asked = next((turn for turn in reversed(turns[opening:place]) if turn.role == "user" and turn.content), None)
        while asked is not None and not room:
            room += 1 + len(kept.popleft()[1])
        if asked is not None:
            kept.appendleft((asked, []))
    return kept


def _ending_with_no_system_message(
    kept: list[tuple[Turn, Sequence[LoggedCall]]],
) -> Sequence[tuple[Turn, Sequence[LoggedCall]]]:
    last = next((n for n in reversed(range(len(kept))) if kept[n][0].role != "system"), None)
    return kept if last is None else [*kept[:last], *kept[last + 1 :], kept[last]]


def corrected_calls(corrected: str) -> list[LoggedCall]:
    """The calls in a better output: a chat message with `tool_calls`, or one call by its name and its arguments.

    Names are `name` or `tool_name`, arguments `arguments`, `input_params` or `parameters`. None for anything else: an
    answer in words, or a better result of the tool.
    """
    given = _decoded(corrected)
    if not isinstance(given, Mapping):
        return []
    name = given.get("name", given.get("tool_name"))
    arguments = next((given[key] for key in ("arguments", "input_params", "parameters") if key in given), None)
    if isinstance(name, str) and arguments is not None:
        given = {"tool_calls": [{"function": {"name": name, "arguments": arguments}}]}
    return [call for call in _logged_calls(given) if call.name is not None and call.is_json]


def calling_message(content: str, calls: Sequence[tuple[str, JsonObject]], before: Sequence[Message]) -> Message:
    """The assistant's message with these calls (name, arguments), as the next one after `before`."""
    return {"role": "assistant", "content": content, "tool_calls": _numbered(calls, _count_calls(before))}


def _messages(turns: Sequence[Turn], turn: Turn, calls: Sequence[LoggedCall], number: int) -> Iterator[Message]:
    if not calls:
        yield {"role": turn.role, "content": turn.content}
        return
    numbered = _numbered([(call.name or "", call.arguments) for call in calls], number)
    yield {"role": "assistant", "content": turn.content, "tool_calls": numbered}
    for call, told in zip(calls, numbered, strict=True):
        content = turns[call.answer or 0].content
        yield {"role": "tool", "tool_call_id": told["id"], "name": told["function"]["name"], "content": content}


def _numbered(calls: Iterable[tuple[str, JsonObject]], number: int) -> list[Call]:
    return [
        {"id": f"call{n:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(calls, number)
    ]


def _count_calls(messages: Sequence[Message]) -> int:
    return sum(len(message.get("tool_calls", ())) for message in messages)


# ------------------------------------------------------------------------------------------ records to turns


def _event_turn(record: SessionRecord) -> Turn | None:
    payload = _decoded(record.document)
    if isinstance(payload, str):
        payload = {"text": payload}
    if not isinstance(payload, Mapping):
        return None
    role = _ROLES.get(str(payload.get("role", "")).lower())
    if role is None:
        text = next((payload[key] for key in _TEXTS if isinstance(payload.get(key), str)), None)
        role = _speaker(record.name or "")
        return None if text is None or role is None else Turn(role, text, record)
    answers = payload.get("tool_call_id")
    calls = list(_logged_calls(payload)) if role == "assistant" else []
    content = _content_text(payload.get("content", payload.get("text")))
    return Turn(role, content, record, calls, answers if isinstance(answers, str) else None)


def _speaker(event_type: str) -> Role | None:
    """Who spoke, by the first word of the event's type that tells."""
    words = re.split(r"[^a-z]+", event_type.lower())
    return next((_SPEAKERS[word] for word in words if word in _SPEAKERS), None)


def _content_text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(_part_text(part) for part in content)
    if content is None or isinstance(content, str):
        return content or ""
    return msgspec.json.encode(content).decode()


def _part_text(part: object) -> str:
    if isinstance(part, Mapping):
        text = part.get("text", part.get("refusal"))
        return text if isinstance(text, str) else f"[{part.get('type', 'part')}]"
    return str(part)


def _logged_calls(message: Mapping[str, object]) -> Iterator[LoggedCall]:
    given = message.get("tool_calls")
    calls = list(given) if isinstance(given, list) else []
    if isinstance(message.get("function_call"), Mapping):  # the older form: one call a message, without an id
        calls.append({"function": message["function_call"]})
    for call in calls:
        body = call.get("function", call.get("custom")) if isinstance(call, Mapping) else None
        if not isinstance(body, Mapping):
            yield LoggedCall(None, {})
            continue
        arguments, is_json = _arguments(body)
        call_id = call.get("id")
        yield LoggedCall(
            _called_name(body.get("name")), arguments, is_json, call_id if isinstance(call_id, str) else None
        )


def _arguments(body: Mapping[str, object]) -> tuple[JsonObject, bool]:
    """A call's arguments as an object, and whether they were what the format asks for."""
    if "arguments" not in body:
        return _as_object(body.get("input")), True
    text = body["arguments"]
    if not isinstance(text, str):
        return _as_object(text), True
    try:
        return _as_object(parsed(text) if text.strip() else None), True
    except msgspec.DecodeError:
        return {"input": text}, False


def _as_object(arguments: object) -> JsonObject:
    if arguments is None:
        return {}
    if isinstance(arguments, msgspec.Raw):
        arguments = bytes(arguments).decode()
    return arguments if isinstance(arguments, dict) else {"input": arguments}


def _called_name(given: object) -> str | None:
    return tool_name(given) if isinstance(given, str) and given != _UNNAMED else None


def _execution_turns(record: SessionRecord) -> list[Turn]:
    """A tool execution as a call and its answer; without result and error there is no answer."""
    call = LoggedCall(_called_name(record.name), _recorded_arguments(record), execution=record)
    return [Turn("assistant", "", record, [call]), *_execution_answer(record)]


def _execution_answer(record: SessionRecord) -> list[Turn]:
    if record.result is not None:
        return [Turn("tool", _content_text(_decoded(record.result)), record)]
    return [] if record.error is None else [Turn("tool", f"error: {record.error}", record)]


def _attach_executions(turns: Sequence[Turn], executions: Sequence[SessionRecord]) -> list[SessionRecord]:
    """Give each call of the messages its record; gives the records that are left.

    By name and arguments first, for parallel calls of a tool end in any order. What is left by name, in order: a tool
    may record what it made of its arguments.
    """
    called = [(call, (call.name, _canonical(call.arguments))) for turn in turns for call in turn.calls]
    left = _attach_in_order(
        called,
        [(record, (_called_name(record.name), _canonical(_recorded_arguments(record)))) for record in executions],
    )
    return _attach_in_order(
        [(call, call.name) for call, _ in called if call.execution is None],
        [(record, _called_name(record.name)) for record in left],
    )


def _attach_in_order(
    calls: Iterable[tuple[LoggedCall, Hashable]], records: Sequence[tuple[SessionRecord, Hashable]]
) -> list[SessionRecord]:
    """Give each call the first record of its key that no other call has; gives the records that are left, in order."""
    waiting: defaultdict[Hashable, deque[int]] = defaultdict(deque)  # places of the records of a key
    for place, (_, key) in enumerate(records):
        waiting[key].append(place)
    attached: set[int] = set()
    for call, key in calls:
        if waiting[key]:
            place = waiting[key].popleft()
            call.execution = records[place][0]
            attached.add(place)
    return [record for place, (record, _) in enumerate(records) if place not in attached]


def _recorded_arguments(record: SessionRecord) -> JsonObject:
    return _as_object(_decoded(record.document))


def _canonical(arguments: JsonObject) -> bytes:
    return msgspec.json.encode(arguments, order="sorted")


def _pair_answers(turns: Sequence[Turn]) -> None:
    """Give each call the turn that answers it: by id among the open calls, the latest first; else the oldest open one.

    A message whose id fits no call, or that has none, answers a call of the last message that called.
    """
    calls: list[LoggedCall] = []  # open ones
    latest: list[LoggedCall] = []  # those of the last message that called
    for place, turn in enumerate(turns):
        if turn.calls:
            calls += turn.calls
            latest = turn.calls
        elif turn.role == "tool":
            named = [call for call in calls if turn.answers is not None and call.call_id == turn.answers]
            nearest = [call for call in named if call in latest] or named[-1:]
            fitting = nearest or [call for call in latest if call.answer is None]
            if fitting:
                fitting[0].answer = place
                calls = [call for call in calls if call is not fitting[0]]


def _with_answers_of_executions(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with the answers that only tool executions tell: each at its time, but behind its call."""
    moments = [_moment(turn) for turn in turns]
    coming: defaultdict[int, list[tuple[Turn, LoggedCall]]] = defaultdict(list)  # by the place they come before
    for place, turn in enumerate(turns):
        for call in turn.calls:
            if call.answer is None and call.execution is not None:
                for answer in _execution_answer(call.execution):
                    coming[max(place + 1, bisect_right(moments, _moment(answer)))].append((answer, call))
    told: list[Turn] = []
    places: list[int] = []  # where each turn is now
    answered: list[tuple[LoggedCall, int]] = []
    for place in range(len(turns) + 1):
        for answer, call in sorted(coming[place], key=lambda each: _moment(each[0])):
            answered.append((call, len(told)))
            told.append(answer)
        places.append(len(told))
        told += turns[place : place + 1]
    for turn in turns:
        for call in turn.calls:
            call.answer = None if call.answer is None else places[call.answer]
    for call, place in answered:
        call.answer = place
    return told


def _moment(turn: Turn) -> tuple[str, str]:
    return turn.record.timestamp, turn.record.record_id


def _with_request(turns: Sequence[Turn], records: Sequence[SessionRecord]) -> list[Turn]:
    """The turns with the first task's input as the user's message, behind the opening system messages."""
    asked = next((record for record in records if record.kind == "tasks" and record.document is not None), None)
    if asked is None:
        return list(turns)
    given = _decoded(asked.document)
    if isinstance(given, Mapping):
        given = next((given[key] for key in _INPUTS if isinstance(given.get(key), str)), given)
    opening = next((n for n, turn in enumerate(turns) if turn.role != "system"), len(turns))
    for turn in turns:
        for call in turn.calls:
            call.answer = None if call.answer is None else call.answer + (call.answer >= opening)
    return [*turns[:opening], Turn("user", _content_text(given), asked), *turns[opening:]]


def _recorded_tools(records: Sequence[SessionRecord]) -> tuple[list[tuple[JsonObject, str]], list[str]]:
    """The tools in `tools` (or `functions`) of payloads, inputs and metadata: definitions, and all names in order.

    What a session records anywhere holds for all of it: the import of a log stores them with the task, at the end.
    """
    definitions: dict[str, tuple[JsonObject, str]] = {}
    names: dict[str, None] = {}
    for record in records:
        if record.kind == "tool_executions":
            continue
        for document in (_decoded(record.document), _decoded(record.metadata)):
            given = document.get("tools", document.get("functions")) if isinstance(document, Mapping) else None
            for tool in given if isinstance(given, list) else ():
                definition = tool_definition(tool)
                name = _called_name(tool) if definition is None else definition_name(definition)
                if name is not None:
                    names[name] = None
                    if definition is not None:
                        definitions.setdefault(name, (definition, record.timestamp[:10]))
    return list(definitions.values()), list(names)


def _decoded(text: str | None) -> object:
    return None if text is None else parsed(text)
