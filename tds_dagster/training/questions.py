"""Turns a dataset's rows into questions: what was known before the answer, and nothing else.

A question has the fields of `QUESTIONS`, in that order, each of them there and null where nothing is known. What is to
be predicted is not in it, nor ids, for a model that learns them knows who it was trained on and nobody else. The
row's `timestamp` is in it only for a task: for the others it is when the answer came, which nobody knows before.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from ingest.errors import InvalidRecord, SourceMissing, shown
from tds_dagster.datasets.examples import DEEPEST, parsed
from tds_dagster.datasets.manifest import ROWS, Dataset
from tds_dagster.datasets.recipe import MODELS

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "event_prediction": ("history",),
    "task_completion": (
        "timestamp", "task_type", "priority", "input", "max_retries", "timeout_seconds", "history",
    ),
    "tool_selection": ("messages", "tools"),
    "workflow_orchestration": ("workflow_type", "history"),
}  # fmt: skip
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "event_prediction": ("event_type", "severity"),
    "task_completion": ("completed", "status", "retry_count"),
    "tool_selection": ("tool_name",),
    "workflow_orchestration": ("phase", "current_step", "completed_steps", "total_steps"),
}
# Fields of a row that are neither.
LEFT_OUT = frozenset({"record_id", "session_id", "agent_id", "task_id", "workflow_id", "timestamp"})
_REQUIRED: Mapping[str, str] = {
    "event_prediction": "history",
    "task_completion": "task_type",
    "tool_selection": "messages",
    "workflow_orchestration": "history",
}
_LISTS = ("history", "messages", "tools")  # of objects
_TEXTS = ("timestamp", "task_type", "priority", "workflow_type")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)

Question = dict[str, object]


class LabelledRow(msgspec.Struct, frozen=True):
    """A question with its answer, and where it comes from."""

    question: Question
    label: str  # the class that is to be predicted
    entity: str  # what is never in two splits: a session, agent, task or workflow id
    record_id: str  # of the record that is predicted
    timestamp: str  # RFC 3339, UTC


class _Entry(msgspec.Struct):
    """What we need of a line of `rows.jsonl`; the entity's column has another name in each dataset."""

    split: str
    record_id: str
    timestamp: str
    label: str
    session_id: str | None = None
    agent_id: str | None = None
    task_id: str | None = None
    workflow_id: str | None = None


def question_of(model: str, row: Mapping[str, object]) -> Question:
    """The question that a row of a dataset answers: the row without its answer and without ids.

    Of `messages` the last one is the answer.
    """
    question = {name: row.get(name) for name in QUESTIONS[model]}
    messages = question.get("messages")
    if isinstance(messages, list):
        question["messages"] = messages[:-1]
    return question


def checked_question(model: str, value: object) -> Question:
    """A question that somebody asks, with null for what it leaves out; a whole row of a dataset is one, too.

    Raises InvalidRecord naming what is missing, what has another type, or a field that no question has.
    """
    if model not in MODELS:
        raise InvalidRecord(f"model={model!r}: expected one of {', '.join(MODELS)}; pass one of these names")
    if not isinstance(value, dict):
        raise InvalidRecord(f"{shown(value)}: expected an object with {_fields(model)}; pass one a line")
    known = {*QUESTIONS[model], *ANSWERS[model], *LEFT_OUT}
    for name, given in value.items():
        if name not in known:
            raise InvalidRecord(f"field {name!r}: expected {_fields(model)}; correct its name or leave it out")
        if name in _LISTS and not (given is None or _is_list_of_objects(given)):
            raise InvalidRecord(f"{name}={shown(given)}: expected a list of objects, as in the dataset's rows; pass it")
        if name in _TEXTS and not (given is None or isinstance(given, str)):
            raise InvalidRecord(f"{name}={shown(given)}: expected a text or null; pass a text")
    required = _REQUIRED[model]
    if value.get(required) is None and (required in _LISTS or required not in value):
        raise InvalidRecord(f"{required} is missing in {shown(value)}: expected {_fields(model)}; add it")
    if "tool_name" in value or model != "tool_selection":
        return question_of(model, value)
    return {name: value.get(name) for name in QUESTIONS[model]}


def read_split(dataset: Dataset, split: str) -> Iterator[LabelledRow]:
    """The rows of a split, one in memory at a time: questions from `<split>.jsonl`, classes from `rows.jsonl`.

    Raises SourceMissing if a file is missing, or if the two do not have the same rows.
    """
    rows, entries = dataset.folder / f"{split}.jsonl", dataset.folder / ROWS
    entity = f"{dataset.recipe.entity}_id"
    try:
        with rows.open("rb") as lines, entries.open("rb") as described:
            of_split = (entry for entry in _entries(described) if entry.split == split)
            for line, entry in zip(lines, of_split, strict=True):
                question = question_of(dataset.model, read_object(line))
                owner = str(getattr(entry, entity, None))
                yield LabelledRow(question, entry.label, owner, entry.record_id, entry.timestamp)
    except FileNotFoundError as err:
        raise SourceMissing(f"{err.filename}: expected a file of the dataset; build the dataset again") from err
    except (msgspec.DecodeError, ValueError) as err:
        raise SourceMissing(
            f"{rows}: expected the rows that {entries.name} beside it lists ({err}); build the dataset again"
        ) from err


def read_object(line: bytes) -> Mapping[str, object]:
    """A line of JSON as an object; what it holds more than `DEEPEST` levels deep is null.

    Raises ValueError (or msgspec.DecodeError, which is one) if it is no object.
    """
    value = parsed(line)
    if isinstance(value, msgspec.Raw):
        value = msgspec.json.decode(_pruned(line))
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is no object")  # noqa: TRY004 - a line's content, not a caller's mistake
    return value


def _entries(lines: Iterable[bytes]) -> Iterator[_Entry]:
    decoder = msgspec.json.Decoder(_Entry)
    return (decoder.decode(line) for line in lines)


def _fields(model: str) -> str:
    required = _REQUIRED[model]
    others = ", ".join(name for name in QUESTIONS[model] if name != required)
    return f"{required!r} and, if known, {others}" if others else repr(required)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _pruned(line: bytes) -> bytes:
    """The document with null for every list or object that lies more than `DEEPEST` levels deep."""
    kept, level, start = [], 0, 0
    for token in _TOKEN.finditer(line):
        sign = token.group()
        if sign in b"[{":
            level += 1
            if level == DEEPEST:
                kept.append(line[start : token.start()] + b"null")
        elif sign in b"]}":
            if level == DEEPEST:
                start = token.end()
            level -= 1
    return b"".join([*kept, line[start:]])
