"""Turns a question into signs, short texts that are there or not, and signs into the columns of a sparse matrix.

A sign is a fact about the question: `last2:user>find_order`, `priority=low`, `user:refund`. Its column is a hash of
it, so that no word of anybody's text is kept in a model. What is told of:

- the items of the history, or the messages and calls of a conversation, as a sequence of names: its last one to four,
  how often each came, how long the last one has been repeated, how long it took, at what hour;
- the contents of the last items, field by field, and the words of what was said last;
- whether ids were named that no call has used yet: much of what a tool is called for is to look them up;
- the question's own fields.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain, pairwise
from typing import Any

import msgspec

from tds_dagster.training.baselines import called_tools, phase_of

# Signs of another version are other columns: raise it with any change of what is told (a test holds it).
FEATURES_VERSION = 1
COLUMNS = 1 << 20  # that a sign may fall into; two signs of a million share one now and then
MOST_WORDS = 120  # of one text
MOST_FIELDS = 60  # of one document
_MOST_LETTERS = 4096  # of one text that is read
_TOKEN = re.compile(r"<([A-Z_]+):[a-z]+>")  # what redaction puts in a value's place: only what it was counts
_WORD = re.compile(r"<[A-Z_]+>|[^\W\d_]+|\d+|[?!]")
_ID = re.compile(r"<[A-Z_]+:[a-z]+>\w*|\b(?=\w*\d)(?=\w*[^\W\d_])\w{5,40}\b|\b\d{5,40}\b")
_CONTENTS = 2  # items of a history whose contents are read, from the last

Question = Mapping[str, object]


def signs_of(model: str, question: Question) -> list[str]:
    """The signs of a question, each once, in order of the alphabet. Whatever the question holds, it does not raise."""
    return sorted(set(_SIGNS[model](question)))


def matrix(signs: Iterable[Sequence[str]]) -> Any:  # noqa: ANN401 - SciPy ships no types: a csr_matrix of 0 and 1
    """A row a question, a column a sign's hash, 1 where the sign is there."""
    from sklearn.feature_extraction import FeatureHasher

    hasher = FeatureHasher(COLUMNS, input_type="string", alternate_sign=False)
    hashed = hasher.transform(chain([[]], signs)).tocsr()[1:]  # of no rows it makes no matrix
    hashed.data[:] = 1.0
    return hashed


# ---------------------------------------------------------------------------------------- the four models


def _of_event(question: Question) -> Iterator[str]:
    history = _items(question, "history")
    yield from _sequence([_short(item.get("event_type")) for item in history])
    yield from _times(history)
    for place, item in enumerate(reversed(history[-_CONTENTS:])):
        yield f"severity{place}={_short(item.get('severity'))}"
        yield from _document(f"p{place}", item.get("payload"))


def _of_task(question: Question) -> Iterator[str]:
    history = _items(question, "history")
    yield from _sequence([f"{_short(item.get('kind'))}:{_short(item.get('type'))}" for item in history])
    yield from _times([*history, question])
    tasks = [item for item in history if item.get("kind") == "task"]
    yield from _sequence([_short(item.get("status")) for item in tasks], "task")
    yield from (f"had:{status}:{_binned(n)}" for status, n in Counter(
        f"{_short(item.get('kind'))}:{_short(item.get('status'))}" for item in history
    ).items())  # fmt: skip
    fields = {name: question.get(name) for name in ("task_type", "priority", "max_retries", "timeout_seconds")}
    yield from _document("task", fields)
    yield from _document("in", question.get("input"))
    for place, item in enumerate(reversed(history[-_CONTENTS:])):
        yield f"status{place}={_short(item.get('status'))}"
        yield from _document(f"d{place}", item.get("data"))


def _of_workflow(question: Question) -> Iterator[str]:
    history = _items(question, "history")
    kind = _short(question.get("workflow_type"))
    yield f"type={kind}"
    yield from _sequence([phase_of(item)[:80] for item in history])
    yield from _sequence([_short(item.get("current_step")) for item in history], "step")
    yield from _times(history)
    for item in history[-1:]:
        done, total = item.get("completed_steps"), item.get("total_steps")
        yield f"{kind}:{phase_of(item)[:80]}"
        yield f"error={item.get('error') is not None}"
        if isinstance(done, int) and isinstance(total, int):
            yield f"left:{_binned(total - done)}"
        yield from _document("step", {"done": done, "total": total, "error": item.get("error")})
        yield from _document("state", item.get("state_data"))
        yield from _document("result", item.get("step_results"))


def _of_tool(question: Question) -> Iterator[str]:
    messages = [item for item in _items(question, "messages") if item.get("role") != "system"]
    steps = [name[:80] for item in messages for name in called_tools(item) or _spoken(item)]
    tools = [name[:80] for item in messages for name in called_tools(item)]
    yield from _sequence(steps)
    yield from _sequence(tools, "tool")
    yield f"users:{_binned(sum(item.get('role') == 'user' for item in messages))}"
    yield from _since_the_user(messages)
    yield from _unused_ids(messages, tools)
    said = {role: [item for item in messages if item.get("role") == role and item.get("content")]
            for role in ("user", "assistant", "tool")}  # fmt: skip
    user = ["", "", *map(_text, said["user"])]
    yield from _words("first", "".join(user[2:3]))
    yield from _words("before", user[-2])
    yield from _words("user", user[-1], pairs=True)
    yield from _words("agent", "".join(map(_text, said["assistant"][-1:])), pairs=True)
    for item in messages[-1:]:
        role, text = _short(item.get("role")), _text(item)
        failed = "error" in text[:20].lower()
        yield f"last={role}:{''.join(tools[-1:])}:{failed}"
        yield from _words("last", text)
    for item in [item for item in messages if called_tools(item)][-1:]:
        yield from _words("arguments", _json([call.get("function") for call in _items(item, "tool_calls")]))


_SIGNS = {
    "event_prediction": _of_event,
    "task_completion": _of_task,
    "tool_selection": _of_tool,
    "workflow_orchestration": _of_workflow,
}

# ---------------------------------------------------------------------------------------- what they are made of


def _sequence(names: Sequence[str], of: str = "") -> Iterator[str]:
    """What the names, in their order, tell: how they end, how often each came, how long the last was repeated."""
    yield f"{of}items:{_binned(len(names))}"
    for length in range(1, min(4, len(names)) + 1):
        yield f"{of}last{length}:{'>'.join(names[-length:])}"
    for name, n in Counter(names).items():
        yield f"{of}had:{name}"
        yield f"{of}had:{name}:{_binned(n)}"
    if names:
        repeated = next((n for n, name in enumerate(reversed(names)) if name != names[-1]), len(names))
        yield f"{of}repeated:{names[-1]}:{_binned(repeated)}"


def _times(items: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """The hour of the last item, and how long after the one before it that was."""
    times = [moment for item in items[-2:] if (moment := _moment(item.get("timestamp"))) is not None]
    if times:
        yield f"hour:{times[-1].hour}"
        yield f"weekday:{times[-1].weekday()}"
    if len(times) > 1:
        seconds = abs((times[1] - times[0]).total_seconds())
        yield f"after:{len(str(int(seconds * 10)))}"  # its magnitude


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return None if moment is None or moment.tzinfo is None else moment


def _document(name: str, value: object) -> Iterator[str]:
    """The fields of a document, as `path=value`; of longer texts the words."""
    for place, (path, leaf) in enumerate(_leaves(name, value, 0)):
        if place == MOST_FIELDS:
            return
        if isinstance(leaf, bool) or leaf is None:
            yield f"{path}={leaf}"
        elif isinstance(leaf, int | float):
            yield f"{path}={leaf}"
            yield f"{path}~{'-' * (leaf < 0)}{len(str(abs(int(min(max(leaf, -1e18), 1e18)))))}"
        else:
            text = str(leaf)
            plain = _TOKEN.sub(r"<\1>", text[:80])
            yield f"{path}={plain}"
            yield from _words(path, text)


def _leaves(path: str, value: object, level: int) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and level < 4:
        yield f"{path}.", len(value)
        for key in sorted(value, key=str):
            yield from _leaves(f"{path}.{key}"[:120], value[key], level + 1)
    elif isinstance(value, list) and level < 4:
        yield f"{path}[", len(value)
        for item in value[:5]:
            yield from _leaves(f"{path}[]", item, level + 1)
    elif isinstance(value, dict | list):
        yield path, _json(value)
    else:
        yield path, value


def _words(name: str, text: str, *, pairs: bool = False) -> Iterator[str]:
    """The words of a text in small letters, numbers by how many digits they have; with `pairs` also two in a row."""
    found = _WORD.findall(_TOKEN.sub(r"<\1>", text[:_MOST_LETTERS]))[:MOST_WORDS]
    words = [f"#{min(len(word), 6)}" if word.isdigit() else word.lower() for word in found]
    yield from (f"{name}:{word}" for word in words)
    if pairs:
        yield from (f"{name}:{first} {second}" for first, second in pairwise(words))


def _unused_ids(messages: Sequence[Mapping[str, object]], tools: Sequence[str]) -> Iterator[str]:
    """How many ids the user, or a tool, has named that no call had among its arguments."""
    used = {one for item in messages for call in _items(item, "tool_calls") for one in _ids(_json(call))}
    for role in ("user", "tool"):
        named = [_ids(_text(item)) - used for item in messages if item.get("role") == role]
        in_all, in_last = set().union(*named[-8:]), set().union(*named[-1:])
        yield f"ids:{role}:{_binned(len(in_all))}"
        yield f"last ids:{role}:{_binned(len(in_last))}"
        yield f"last ids:{role}:{_binned(len(in_last))}:{''.join(tools[-1:])}"


def _since_the_user(messages: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """What was called since the user spoke last, and how many calls that were."""
    last = max((place for place, item in enumerate(messages) if item.get("role") == "user"), default=0)
    called = [name[:80] for item in messages[last:] for name in called_tools(item)]
    yield f"since:{_binned(len(called))}"
    yield from (f"since:{name}" for name in called)


def _ids(text: str) -> set[str]:
    return set(_ID.findall(text[:_MOST_LETTERS]))


def _items(question: Mapping[str, object], name: str) -> list[dict[str, object]]:
    found = question.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _spoken(message: Mapping[str, object]) -> list[str]:
    """What stands for a message without calls in the sequence; an answer of a tool follows its call in any case."""
    return [] if message.get("role") == "tool" else [_short(message.get("role"))]


def _text(message: Mapping[str, object]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else _json(content)


def _json(value: object) -> str:
    return "" if value is None else msgspec.json.encode(value).decode()


def _short(value: object) -> str:
    return str(value)[:80] if isinstance(value, str | int | float | None) else "?"


def _binned(n: int) -> str:
    if n < 4:
        return str(n)
    return "4-6" if n < 7 else "7-12" if n < 13 else "13+"
