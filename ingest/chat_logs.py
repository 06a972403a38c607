"""Turns logs of agent conversations (`openai-chat`) into the store calls that keep all of what they say.

A log is JSONL, plain or compressed with gzip or Zstandard: a run a line, an object that holds OpenAI chat
messages in `messages` or `traj`. A run becomes, in this order,

    events            one a message, the message itself as payload, `<role>_message` as event type
    tool_executions   one a tool call, with the tool message that answers it
    tasks             one, its id `<task_id>-<trial>` of the line, the line's other fields as metadata
    feedback          one for each outcome in `reward` or `score`

Nothing is lost: messages are kept as they are, and so is every other field of the line.

**Keys.** A record's idempotency key is made of the line's SHA-256, how often that line came before in the
file, and the record's place in the run. So a log that is imported again adds nothing, and one that grew adds
its new runs.

**Times** come from the log: `timestamp`, `created_at` or `created` of a message, else of its run (there also
`started_at`), as RFC 3339 text or as seconds or milliseconds since 1970. Within a run they strictly increase,
by a microsecond where the log does not say more. Runs without any time are spread evenly over the days that
the caller names.

**A log is refused whole**: `check_log` reads all of it before the first record is stored.

Message format: https://platform.openai.com/docs/api-reference/chat/create (also its older `function_call`).
"""

import gzip
import hashlib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import msgspec

from ingest.errors import InvalidLog

FORMAT = "openai-chat"
CONVERSATIONS = ("messages", "traj")
OUTCOMES = ("reward", "score")
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_TIMES = ("timestamp", "created_at", "created")
_RUN_TIMES = (*_TIMES, "started_at")
_IDS = ("agent_id", "workflow_id", "instance_id", "session_id", "trace_id")
_TICK = timedelta(microseconds=1)
_MARGIN = timedelta(days=1)  # the first and last day that a datetime can hold leave no room for ticks
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS_FROM = 1e11  # as seconds that is the year 5138, as milliseconds March 1973
_GZIP, _ZSTANDARD, _BYTE_ORDER_MARK = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"
_ANY_START = datetime(2000, 1, 1, tzinfo=UTC)  # for runs without a time, where only their length matters

Message = Mapping[str, object]


class ToolCall(msgspec.Struct, frozen=True):
    """One tool call of a conversation and the message that answers it."""

    position: int  # of the calling message, from 0
    index: int  # among the calls of that message, from 0
    name: str
    arguments: object  # parsed if they are JSON, else the text as the model wrote it
    call_id: str | None
    answer: int | None = None  # position of the answering message


class Run(msgspec.Struct, frozen=True):
    """One line of a log, checked."""

    line: int  # from 1
    key: str  # hex of the line's SHA-256, and `-2` when the same line comes a second time
    messages: Sequence[Message]
    calls: Sequence[ToolCall]  # in the order of the conversation
    fields: Mapping[str, object]  # what the line holds beside the conversation
    began: datetime | None  # the run's own time
    times: Sequence[datetime | None]  # each message's own time

    @property
    def name(self) -> str:
        """The key's first 12 hex, and its occurrence: short enough to be read, in ids."""
        return self.key[:12] + self.key[64:]

    @property
    def is_timed(self) -> bool:
        """Whether the log says when the run was."""
        return self.began is not None or any(moment is not None for moment in self.times)


class StoreCall(NamedTuple):
    """One record as `store_record(kind, **fields)` takes it, `timestamp` and `idempotency_key` included."""

    kind: str
    fields: dict[str, object]


class Schedule(msgspec.Struct, frozen=True):
    """When the runs without a time of their own begin: evenly from `start` on."""

    start: datetime
    step: timedelta

    def start_of(self, place: int) -> datetime:
        """The beginning of the run at this place (from 0) among those without a time."""
        return self.start + place * self.step


class CheckedLog(msgspec.Struct, frozen=True):
    """What a whole log holds; made by `check_log`."""

    path: Path
    runs: int
    untimed_runs: int  # of these, without a time of their own
    records: dict[str, int]  # how many of each kind
    schedule: Schedule | None  # None: every run has its own time
    first: datetime | None  # the earliest event time; None for a log without runs
    last: datetime | None  # the latest


def read_runs(path: Path) -> Iterator[Run]:
    """The runs of a log, line by line; blank lines are passed over.

    Raises InvalidLog naming file, line, and what was expected, for the first line that is no run.
    """
    seen: dict[bytes, int] = {}
    number = 0
    try:
        for line in _log_lines(path):
            number += 1
            text = line.strip()
            if not text:
                continue
            digest = hashlib.sha256(text).digest()
            seen[digest] = seen.get(digest, 0) + 1
            yield _run(text, number, _run_key(digest, seen[digest]))
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise InvalidLog(
            f"{path}, line {number + 1}: the compressed data breaks here ({err}): expected a whole file; copy it again"
        ) from err
    except _Unexpected as err:
        raise InvalidLog(f"{path}, line {number}: {err}") from err


def check_log(path: Path, *, start: date | None = None, days: int = 1, start_date: date, now: datetime) -> CheckedLog:
    """Read a whole log and find out what it holds and when its records happened; nothing is stored.

    Runs without a time are spread evenly over `days` days from `start` on (00:00 UTC). Raises InvalidLog for
    a line that is no run, for runs without a time when there is no `start`, and for event times before
    `start_date` or more than a day after `now`, which have no partition: then it names the start date to set.
    """
    records: Counter[str] = Counter()
    span = _Span()
    runs = untimed = 0
    length = timedelta()  # of the last run without a time
    for run in read_runs(path):
        runs += 1
        calls = list(run_calls(run, _ANY_START))
        records.update(call.kind for call in calls)
        first, last = _moment(calls[0]), _moment(calls[-1])
        if run.is_timed:
            span.add(run.line, first, last)
        elif start is None:
            raise InvalidLog(
                f"{path}, line {run.line}: the run has no time: expected one in {', '.join(_RUN_TIMES)}, "
                "or in its messages; pass --start with the first run's day, and --days to spread them over"
            )
        else:
            untimed += 1
            length = last - first
    schedule = None
    if untimed and start is not None:
        midnight = datetime.combine(start, time(), UTC)
        schedule = Schedule(midnight, timedelta(days=days) / untimed)
        span.add(0, midnight, schedule.start_of(untimed - 1) + length)
    span.check(path, start_date, now)
    return CheckedLog(path, runs, untimed, dict(records), schedule, span.first, span.last)


def store_calls(log: CheckedLog) -> Iterator[StoreCall]:
    """Every record of a checked log, run by run."""
    untimed = 0
    for run in read_runs(log.path):
        scheduled = None
        if not run.is_timed and log.schedule is not None:
            scheduled = log.schedule.start_of(untimed)
            untimed += 1
        yield from run_calls(run, scheduled)


def run_calls(run: Run, scheduled: datetime | None = None) -> Iterator[StoreCall]:
    """The records of one run, in their order, their event times strictly increasing.

    `scheduled` is when the run begins where the log doesn't say; with neither it is an InvalidLog.
    """
    clock = _Clock(_first_moment(run, scheduled))
    task_id, shared = _task_id(run), _shared_ids(run)
    of_message = defaultdict(list)
    for call in run.calls:
        of_message[call.position].append(call)
    for position, message in enumerate(run.messages):
        event = {"event_type": f"{message['role']}_message", "source": FORMAT, "severity": "info", "payload": message}
        yield _record(run, "events", f"message:{position}", clock.tick(run.times[position]), {
            **shared, **event, "metadata": {"position": position},
        })  # fmt: skip
        for call in of_message[position]:
            yield _record(run, "tool_executions", f"call:{position}.{call.index}", clock.tick(), {
                **shared, "task_id": task_id, **_execution(run, call),
            })  # fmt: skip
    task = {
        "task_id": task_id,
        "task_type": "conversation",
        "status": "completed",
        "metadata": _metadata(run),
    }
    yield _record(run, "tasks", "task", clock.tick(), {
        **shared, **task, "started_at": run.began or run.times[0], "completed_at": run.times[-1],
    })  # fmt: skip
    for name in _outcomes(run):
        target = {"target_kind": "task", "target_id": task_id}
        yield _record(run, "feedback", f"outcome:{name}", clock.tick(), {
            **shared, **target, "name": name, "value": run.fields[name], "source": "code",
        })  # fmt: skip


def _record(run: Run, kind: str, place: str, moment: datetime, fields: dict[str, object]) -> StoreCall:
    return StoreCall(kind, {**fields, "timestamp": moment, "idempotency_key": f"{FORMAT}:{run.key}:{place}"})


# --------------------------------------------------------------------------------------------------- one line


class _Unexpected(Exception):
    """What a line holds and what was expected of it; told as InvalidLog, which adds file and line."""


def _run_key(digest: bytes, occurrence: int) -> str:
    return digest.hex() if occurrence == 1 else f"{digest.hex()}-{occurrence}"


def _run(text: bytes, number: int, key: str) -> Run:
    fields = _object(text)
    holder = next((name for name in CONVERSATIONS if name in fields), None)
    if holder is None:
        raise _Unexpected(
            f"an object with the keys {_some(fields)}: expected `messages` or `traj` with the conversation; "
            f"{FORMAT} is a run a line, an object that holds its chat messages"
        )
    messages = fields.pop(holder)
    if not isinstance(messages, list) or not messages:
        raise _Unexpected(f"{holder} is {_shown(messages)}: expected a list of chat messages, at least one")
    calls = []
    for position, message in enumerate(messages):
        place = f"{holder}[{position}]"
        _check_message(place, message)
        calls += _tool_calls(place, position, message)
    for part in ("task_id", "trial"):
        value = fields.get(part)
        if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
            raise _Unexpected(f"{part} is {_shown(value)}: expected text or a whole number; it names the task")
    times = [_own_time(f"{holder}[{n}]", message, _TIMES) for n, message in enumerate(messages)]
    began = _own_time("the run", fields, _RUN_TIMES)
    return Run(number, key, messages, _paired(messages, calls), fields, began, times)


def _object(text: bytes) -> dict[str, object]:
    try:
        value = json.loads(text.decode())
    except UnicodeDecodeError as err:
        raise _Unexpected(f"byte {err.start} is not UTF-8: expected a JSON object; convert the file to UTF-8") from err
    except json.JSONDecodeError as err:
        raise _Unexpected(f"no JSON ({err}): expected a JSON object, a run a line; see --format") from err
    except RecursionError as err:
        raise _Unexpected("JSON nested too deep to read: expected fewer than 900 levels; shorten that value") from err
    if not isinstance(value, dict):
        hint = "; make it one run a line: jq -c '.[]'" if isinstance(value, list) else ""
        raise _Unexpected(f"{_shown(value)}: expected a JSON object that holds a run{hint}")
    return value


def _check_message(place: str, message: object) -> None:
    if not isinstance(message, dict):
        raise _Unexpected(f"{place} is {_shown(message)}: expected a chat message, an object with `role`")
    if message.get("role") not in ROLES:
        raise _Unexpected(f"{place} has role {_shown(message.get('role'))}: expected one of {', '.join(ROLES)}")
    if not isinstance(message.get("content"), (str, list, type(None))):
        raise _Unexpected(f"{place}.content is {_shown(message['content'])}: expected text, a list of parts or null")


def _tool_calls(place: str, position: int, message: Message) -> list[ToolCall]:
    given = message.get("tool_calls")
    if given is None:
        given = []
    if not isinstance(given, list):
        raise _Unexpected(f"{place}.tool_calls is {_shown(given)}: expected a list of calls or null")
    calls = [_tool_call(f"{place}.tool_calls[{n}]", position, n, call) for n, call in enumerate(given)]
    if message.get("function_call") is not None:  # the older form: one call a message, without an id
        older = {"function": message["function_call"]}
        calls.append(_tool_call(f"{place}.function_call", position, len(calls), older))
    return calls


def _tool_call(place: str, position: int, index: int, call: object) -> ToolCall:
    body: object = None
    if isinstance(call, dict):
        body = call.get("function", call.get("custom"))
    if not isinstance(call, dict) or not isinstance(body, dict) or not isinstance(body.get("name"), str):
        raise _Unexpected(f"{place} is {_shown(call)}: expected an object with `function`, and in it the tool's `name`")
    call_id = call.get("id")
    arguments = _parsed(body["arguments"]) if "arguments" in body else body.get("input")
    return ToolCall(position, index, body["name"], arguments, call_id if isinstance(call_id, str) else None)


def _parsed(arguments: object) -> object:
    """Arguments are JSON text by the format; what a model wrote wrongly is kept as text."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return cast("object", json.loads(arguments))
    except (ValueError, RecursionError):
        return arguments


def _paired(messages: Sequence[Message], calls: Sequence[ToolCall]) -> list[ToolCall]:
    """Give each call its answer: the tool message behind it that has its id, or else the one in its place.

    Ids repeat in real logs (131 over 1,039 calls), so an id means the nearest open call before the message.
    A message whose id fits no open call answers the first open one of the last message that called.
    """
    answers: dict[int, int] = {}
    open_by_id: defaultdict[str | None, list[int]] = defaultdict(list)
    strays: list[tuple[int, int]] = []  # position, and that of the last message that called before it
    ahead = list(enumerate(calls))[::-1]
    calling = -1
    for position, message in enumerate(messages):
        while ahead and ahead[-1][1].position == position:
            n, call = ahead.pop()
            open_by_id[call.call_id].append(n)
            calling = position
        if message.get("role") in {"tool", "function"}:
            call_id = message.get("tool_call_id")
            fitting = open_by_id.get(call_id) if isinstance(call_id, str) else None
            if fitting:
                nearest = calls[fitting[-1]].position
                n = next(n for n in fitting if calls[n].position == nearest)
                fitting.remove(n)
                answers[n] = position
            else:
                strays.append((position, calling))
    by_position = defaultdict(list)
    for n, call in enumerate(calls):
        if n not in answers:
            by_position[call.position].append(n)
    for position, calling in strays:
        if by_position[calling]:
            answers[by_position[calling].pop(0)] = position
    return [msgspec.structs.replace(call, answer=answers.get(n)) for n, call in enumerate(calls)]


def _own_time(place: str, fields: Message, names: Sequence[str]) -> datetime | None:
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        return None
    value = fields[name]
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            return aware - _MARGIN + _MARGIN
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            seconds = value / 1000 if abs(value) >= _MILLISECONDS_FROM else value
            return _EPOCH + timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        pass  # told below, in the same words as a value of another type
    raise _Unexpected(
        f"{place} has {name} {_shown(value)}: expected RFC 3339 text such as 2024-05-15T08:30:00Z, or "
        "seconds or milliseconds since 1970"
    )


# -------------------------------------------------------------------------------------------- a run's records


def _execution(run: Run, call: ToolCall) -> dict[str, object]:
    answered = call.answer is not None
    asked_at = run.times[call.position]
    ended_at = None if call.answer is None else run.times[call.answer]
    took_ms = None
    if asked_at is not None and ended_at is not None and ended_at >= asked_at:
        took_ms = (ended_at - asked_at) / timedelta(milliseconds=1)
    return {
        "execution_id": f"call-{run.name}-{call.position}.{call.index}",  # the call's own id may repeat
        "tool_name": call.name,
        "status": "completed" if answered else "pending",
        "input_params": call.arguments,
        "output_result": None if call.answer is None else run.messages[call.answer].get("content"),
        "completed_at": ended_at,
        "execution_time_ms": took_ms,
        "metadata": {"tool_call_id": call.call_id, "position": call.position, "answer_position": call.answer},
    }


def _task_id(run: Run) -> str:
    names = [str(run.fields[key]) for key in ("task_id", "trial") if run.fields.get(key) is not None]
    return "-".join(names) if run.fields.get("task_id") is not None else f"run-{run.name}"


def _shared_ids(run: Run) -> dict[str, object]:
    """The ids that all records of the run have: those of the line, and a session in any case."""
    given = {name: run.fields[name] for name in _IDS if isinstance(run.fields.get(name), str)}
    return {"session_id": f"chat-{run.name}"} | given


def _outcomes(run: Run) -> list[str]:
    return [name for name in OUTCOMES if isinstance(run.fields.get(name), (bool, int, float, str))]


def _metadata(run: Run) -> dict[str, object] | None:
    """The line's fields that stand, as they are, in no column of its records."""
    elsewhere = {*_outcomes(run), *(name for name in _IDS if isinstance(run.fields.get(name), str))}
    return {name: value for name, value in run.fields.items() if name not in elsewhere} or None


# ------------------------------------------------------------------------------------------------------ times


class _Clock:
    """A run's event times: the log's own where it has them, else a microsecond on."""

    def __init__(self, first: datetime) -> None:
        self._next = first

    def tick(self, own: datetime | None = None) -> datetime:
        moment = self._next if own is None else max(own, self._next)
        self._next = moment + _TICK
        return moment


def _first_moment(run: Run, scheduled: datetime | None) -> datetime:
    """The time of the run's first record, such that the first message with a time gets just that time."""
    for position, own in enumerate(run.times):
        if own is not None:
            return own - (position + sum(call.position < position for call in run.calls)) * _TICK
    moment = run.began or scheduled
    if moment is None:
        raise InvalidLog(f"line {run.line}: the run has no time: expected one in the log; pass `scheduled`")
    return moment


def _moment(call: StoreCall) -> datetime:
    return cast("datetime", call.fields["timestamp"])


class _Span:
    """The earliest and the latest event time, and the line of each."""

    def __init__(self) -> None:
        self.first: datetime | None = None
        self.last: datetime | None = None
        self._first_line = self._last_line = 0

    def add(self, line: int, first: datetime, last: datetime) -> None:
        if self.first is None or first < self.first:
            self.first, self._first_line = first, line
        if self.last is None or last > self.last:
            self.last, self._last_line = last, line

    def check(self, path: Path, start_date: date, now: datetime) -> None:
        """Raise InvalidLog for times that have no partition."""
        if self.first is not None and self.first.date() < start_date:
            raise InvalidLog(
                f"{path}{_line(self._first_line)}: the earliest event time is {self.first.isoformat()}: "
                f"expected none before TDS_START_DATE={start_date}; "
                f"set TDS_START_DATE={self.first.date()} and import again"
            )
        if self.last is not None and self.last > now + timedelta(days=1):
            raise InvalidLog(
                f"{path}{_line(self._last_line)}: the latest event time is {self.last.isoformat()}: "
                "expected none more than a day ahead; correct the log's times, or pass an earlier --start or "
                "fewer --days"
            )


def _line(number: int) -> str:
    return f", line {number}" if number else ""


# ------------------------------------------------------------------------------------------------------ files


def _log_lines(path: Path) -> Iterator[bytes]:
    """The log's lines, decompressed: the first bytes say how, for names may lie."""
    with path.open("rb") as source, gzip.GzipFile(fileobj=source) as unzipped:
        magic = source.read(4)
        source.seek(0)
        lines: Iterable[bytes] = source
        if magic.startswith(_GZIP):
            lines = unzipped
        elif magic == _ZSTANDARD:
            lines = _zstandard_lines(path, source)
        for number, line in enumerate(lines):
            yield line if number else line.removeprefix(_BYTE_ORDER_MARK)


class _CutOff(EOFError):
    """A Zstandard file that ends too early or is damaged; gzip says EOFError itself."""


def _zstandard_lines(path: Path, source: BinaryIO) -> Iterator[bytes]:
    """The lines of a Zstandard file, frame by frame: the package's reader takes a cut file for a whole."""
    try:
        import zstandard
    except ModuleNotFoundError as err:
        raise InvalidLog(
            f"{path}: compressed with Zstandard: expected the package zstandard to be installed; "
            "run pip install 'training-data-store[platform]', or decompress the file first"
        ) from err
    frame = zstandard.ZstdDecompressor().decompressobj()
    rest = b""
    try:
        while chunk := source.read(1 << 17):
            while chunk:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                rest += frame.decompress(chunk)
                chunk = frame.unused_data
            *lines, rest = rest.split(b"\n")
            yield from lines
    except zstandard.ZstdError as err:
        raise _CutOff(str(err)) from err
    if not frame.eof:
        raise _CutOff("it ends within a frame")
    yield rest


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def _some(fields: Mapping[str, object]) -> str:
    names = ", ".join(list(fields)[:8])
    return (names or "(none)") + (", …" if len(fields) > 8 else "")
