"""Turns sessions into examples of tool selection: the conversation so far and the tools at hand → the tool call.

An example ends with a message in which the assistant called; calls of one message are one decision and one example.
Its tools are those that the session recorded, else those that were called in the range by its agent, their
definitions recorded or inferred (`tool_schemas`). A corrected output for a tool execution takes its call's place; the
conversation goes on as it did.

Sessions are read twice, one at a time: once for the tools, once for the examples. Every call ends up in an example or
in `left_out`, with its reason.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tds_dagster.datasets.conversations import (
    Conversation,
    LoggedCall,
    SessionRecord,
    calling_message,
    corrected_calls,
    history,
    read_conversation,
)
from tds_dagster.datasets.dialects import DIALECT_FEATURES, JsonObject, Message, write_dialects
from tds_dagster.datasets.examples import Example, ExtraFile, encode_row
from tds_dagster.datasets.recipe import SPLITS, Entity, Recipe
from tds_dagster.datasets.sources import entity_of, time_text
from tds_dagster.datasets.tool_schemas import ToolSchemas, definition_name
from tds_dagster.export.features import Features, ListOf

if TYPE_CHECKING:
    from tds_dagster.datasets.sources import Sources

TITLE = "Tool selection"
DESCRIPTION = (
    "The conversation so far and the tools at hand, and the tool call that the agent made next. The last message of "
    "`messages` is the assistant's with the call; everything before it is what the agent knew. The same rows stand in "
    "`openai/`, `trl/` and `prompt_completion/` as those trainers read them."
)
ENTITY: Entity = "session"
ENTITIES: tuple[Entity, ...] = ("session", "agent", "task", "workflow")
FEATURES: Features = {
    "record_id": "string",
    "session_id": "string",
    "agent_id": "string",
    "task_id": "string",
    "timestamp": "timestamp",
    "tool_name": "string",
    "messages": ListOf("json"),
    "tools": ListOf("json"),
}
EXTRA_FEATURES: Mapping[str, Features] = DIALECT_FEATURES

# Which columns of the exports each feature is made of: a row is of a tool execution or, where the call of a message was
# not stored as one, of the event with the message. Corrected outputs of feedback stand for what was logged.
_CALLS = ("tool_executions.tool_name", "tool_executions.input_params", "events.payload", "feedback.corrected_output")
COLUMNS_FROM: Mapping[str, Sequence[str]] = {
    **{
        name: [f"tool_executions.{name}", f"events.{name}"]
        for name in ("record_id", "session_id", "agent_id", "timestamp")
    },
    "task_id": ["tool_executions.task_id"],
    "tool_name": _CALLS,
    "messages": [
        *_CALLS, "events.event_type", "tool_executions.output_result", "tool_executions.error", "tasks.input_data",
    ],
    "tools": [*_CALLS, "events.metadata", "tool_executions.metadata", "tasks.metadata"],
}  # fmt: skip
# Why a tool execution is no example of its own.
SHORT = "less history than the recipe's minimum, or none"
TOGETHER = "called by the same message as another one, in whose example it is"
STRAY = "no message of its session calls it"
UNNAMED = "without a tool's name"
NO_JSON = "its arguments are no JSON"
NO_CALL = "corrected to something that is no call"

_MOST_TOOLS = 128  # that OpenAI takes in one example
_MOST_AGENTS = 1000  # with more of them, tools are told for all agents together: memory does not grow with agents
_MOST_DRIFTS_TOLD = 20


def examples(sources: "Sources", recipe: Recipe) -> Iterator[Example]:
    """Every example of the range, session by session, in order of time within each.

    Fills `sources.left_out` with the tool executions that gave none, by reason, and `sources.notes` with what is known
    of the tools. A call of a message that nobody stored as a tool execution is an example of its event, counted in
    `sources.others`, if the recipe chooses nothing.
    """
    entity = recipe.entity or ENTITY
    tools, calls = _Tools(), 0
    for _, conversation in _conversations(sources, entity):
        tools.add(conversation)
    for name, conversation in _conversations(sources, entity):
        calls += sum(len(turn.calls) for turn in conversation.turns)
        sources.left_out[STRAY] += sum(record.is_target for record in conversation.unmatched)
        yield from _examples_of(name, conversation, tools, sources, recipe)
    sources.notes |= {"tool calls in the range": f"{calls:,}", **tools.notes()}


def extra_files(folder: Path, _sources: "Sources", _recipe: Recipe) -> list[ExtraFile]:
    """Write the dialects beside the split files of a dataset's folder."""
    return list(write_dialects(folder, {split: f"{split}.jsonl" for split in SPLITS}))


def _examples_of(
    entity: str, conversation: Conversation, tools: "_Tools", sources: "Sources", recipe: Recipe
) -> Iterator[Example]:
    takes_all = not (recipe.where or recipe.include or recipe.exclude)
    for place, turn in enumerate(conversation.turns):
        chosen = [call for call in turn.calls if (takes_all if call.execution is None else call.execution.is_target)]
        if not chosen:
            continue
        before = history(conversation.turns, place, recipe.window)
        has_history = sum(message["role"] != "system" for message in before) >= max(recipe.minimum_history, 1)
        wanted: list[LoggedCall] = []
        executions: list[SessionRecord] = []
        for call in chosen:
            better, reason = _wanted(call, has_history=has_history)
            wanted += better
            if call.execution is not None:
                if better:
                    executions.append(call.execution)
                else:
                    sources.left_out[reason] += 1
        if not wanted:
            continue
        if executions:
            sources.left_out[TOGETHER] += len(executions) - 1
        else:
            sources.others += 1
        record = executions[0] if executions else turn.record
        target = calling_message(turn.content, [(call.name or "", call.arguments) for call in wanted], before)
        yield _example(entity, record, [*before, target], tools.at_hand(conversation, record.agent_id, target))


def _wanted(call: LoggedCall, *, has_history: bool) -> tuple[list[LoggedCall], str]:
    """What is to be learned in place of a logged call: itself, or better ones; if nothing, the reason."""
    if not has_history:
        return [], SHORT
    if call.execution is not None and call.execution.corrected is not None:
        return corrected_calls(call.execution.corrected), NO_CALL
    if call.name is None:
        return [], UNNAMED
    return ([call], "") if call.is_json else ([], NO_JSON)


def _example(
    entity: str, record: SessionRecord, messages: Sequence[Message], tools: Sequence[Mapping[str, object]]
) -> Example:
    tool = messages[-1]["tool_calls"][0]["function"]["name"]
    row = encode_row({
        "record_id": record.record_id, "session_id": record.session_id, "agent_id": record.agent_id,
        "task_id": record.task_id, "timestamp": record.timestamp, "tool_name": tool,
        "messages": messages, "tools": tools,
    })  # fmt: skip
    return Example(record_id=record.record_id, entity=entity, timestamp=record.timestamp, label=tool, row=row)


# ---------------------------------------------------------------------------------------------------- tools


class _Tools:
    """The tools of the range: their definitions, and how often each agent called which."""

    def __init__(self) -> None:
        self._schemas = ToolSchemas()
        self._calls: Counter[str] = Counter()
        self._calls_of: defaultdict[str | None, Counter[str]] = defaultdict(Counter)

    def add(self, conversation: Conversation) -> None:
        for turn in conversation.turns:
            for call in turn.calls:
                record = call.execution or turn.record
                better = [] if record.corrected is None else corrected_calls(record.corrected)
                for each in (call, *better):
                    if each.name is not None and each.is_json:
                        self._add_call(each.name, each.arguments, record)
        for definition, day in conversation.definitions:
            self._schemas.record(definition, day)

    def _add_call(self, name: str, arguments: JsonObject, record: SessionRecord) -> None:
        self._schemas.observe(name, arguments, record.timestamp[:10])
        self._calls[name] += 1
        if len(self._calls_of) <= _MOST_AGENTS:
            self._calls_of[record.agent_id][name] += 1

    def at_hand(self, conversation: Conversation, agent_id: str | None, target: Message) -> list[JsonObject]:
        """The definitions that an example shows: those of the tools it calls among them, 128 at most, by name."""
        called = [call["function"]["name"] for call in target["tool_calls"]]
        known = self._calls if len(self._calls_of) > _MOST_AGENTS else self._calls_of[agent_id]
        others = conversation.tool_names or [name for name, _ in sorted(known.items(), key=_most_first)]
        names = sorted(list(dict.fromkeys([*called, *others]))[:_MOST_TOOLS])
        own = {definition_name(definition): definition for definition, _ in conversation.definitions}
        return [own.get(name) or self._schemas.definition(name) for name in names]

    def notes(self) -> dict[str, str]:
        """What the card and the manifest say of the tools."""
        names, inferred, drifts = self._schemas.names, self._schemas.inferred, self._schemas.drifts()
        told = [str(drift) for drift in drifts[:_MOST_DRIFTS_TOLD]]
        if len(drifts) > len(told):
            told.append(f"and {len(drifts) - len(told)} more")
        return {
            "tools": ", ".join(f"{name} ({self._calls[name]:,} calls)" for name in names) or "none",
            "tool definitions": f"{len(names) - len(inferred)} recorded, {len(inferred)} inferred from calls",
            "tool drift between days": "; ".join(told) or "none",
        }


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    name, calls = item
    return -calls, name


# ---------------------------------------------------------------------------------------------------- records


class _Part(NamedTuple):
    """How one kind's rows become those of `SessionRecord`."""

    kind: str
    conversation: str  # SQL: which conversation of its entity a row belongs to
    columns: Mapping[str, str]  # SQL by field; what is not named is null


_SHARED = ("record_id", "agent_id", "session_id", "workflow_id", "metadata")
_PARTS = (
    _Part("events", "session_id", {"name": "event_type", "document": "payload"}),
    _Part("tasks", "coalesce(session_id, task_id)", {
        "task_id": "task_id", "name": "task_type", "document": "input_data",
    }),
    _Part("tool_executions", "coalesce(session_id, task_id, record_id)", {
        "task_id": "task_id", "name": "tool_name", "document": "input_params", "result": "output_result",
        "error": "error",
    }),
)  # fmt: skip


def _conversations(sources: "Sources", entity: Entity) -> Iterator[tuple[str, Conversation]]:
    """Each conversation with its entity, ordered by both; a session of several entities is one for each of them.

    Tool executions and tasks without a session belong to that of their task. Events without one belong to none.
    """
    corrected = sources.corrected_outputs("tool_executions")
    selects = " UNION ALL BY NAME ".join(_select(part, entity) for part in _PARTS)
    # `IN` and not a join: the hash table of a join with all targets beside the sort ran out of memory at 4.8 M rows.
    query = (
        "SELECT r.*, c.corrected_output AS corrected, r.record_id IN (FROM targets) AS is_target "
        f"FROM ({selects}) AS r LEFT JOIN {corrected} AS c ON c.record_id = r.record_id "
        "ORDER BY r.entity, r.conversation, r.timestamp, r.record_id"
    )
    rows = sources.rows(query)
    for (name, _), group in groupby(rows, key=itemgetter("entity", "conversation")):
        yield str(name), read_conversation([msgspec.convert(row, SessionRecord) for row in group])


def _select(part: _Part, entity: Entity) -> str:
    columns = {name: name for name in _SHARED} | dict(part.columns)
    fields = ", ".join(f"{column} AS {name}" for name, column in columns.items())
    return (
        f"SELECT '{part.kind}' AS kind, {entity_of(part.kind, entity)} AS entity, {part.conversation} AS conversation, "
        f"{time_text('timestamp')} AS timestamp, {fields} FROM {part.kind} WHERE {part.conversation} IS NOT NULL"
    )
