"""Turns the arguments of the five calls into records in the spool: the hot path.

The calls are written once, as coroutines that never suspend; `blocking` makes the twins for code without an event
loop. Parameters and defaults are those of the store that ours replaces, in its order; what is not given is null.

A call makes the record's CSV row and appends it to the spool, for the writer to copy. With Redis, whose entries anybody
may read, it makes JSON instead: the kind's struct, encoded by msgspec. So it does with what a row would need care for.
What a column does not take as it is, and a document that msgspec refuses, take the slow way of `coercion`.
"""

import functools
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import msgspec
from uuid_utils import uuid7

from ingest.coercion import plain_document, plain_numbers, plain_texts
from ingest.errors import InvalidRecord, shown
from ingest.pipeline.spool import Spool
from ingest.records import (
    KINDS,
    DayNumbers,
    Kind,
    keyed_record_id,
    kind_named,
    now_text,
    timestamp_text,
)

P = ParamSpec("P")
R = TypeVar("R")

_EVENTS, _TASKS, _TOOLS = KINDS["events"], KINDS["tasks"], KINDS["tool_executions"]
_WORKFLOWS, _FEEDBACK = KINDS["workflows"], KINDS["feedback"]
_DEEP = 900  # with fewer brackets nothing is nested too deep: decoders stop at 997 levels
_LINE_FEED = 10  # as a number: looked for as b"\n" it takes 200 ns, of which an inner exception is the most
_encode = msgspec.json.Encoder().encode


class Recorder:
    """Puts records into the spools of one process."""

    def __init__(self, open_spool: Callable[[str], Spool], largest_row: int = 0) -> None:
        """`open_spool` gives a kind's spool, a new one where there is none or the former one is closed.

        Records whose row is larger than `largest_row` bytes are spooled as JSON; with 0 all of them are.
        """
        self.spools: dict[str, Spool] = {}
        self._open_spool = open_spool
        self._largest_row = largest_row
        self._days = DayNumbers()
        for kind in KINDS.values() if largest_row else ():
            _ = kind.plain_row  # compiled now, for a signal handler may store in the middle of a first call

    def store(self, kind: Kind, values: tuple[object, ...], timestamp: object, key: str | None) -> str | None:
        """Encode and spool one record; its id, or None if it was not accepted.

        `values` are those of `kind.fields`. Raises InvalidRecord, or NotAccepted with TDS_ON_FULL=raise.
        """
        record_id = str(uuid7()) if key is None else keyed_record_id(kind.name, key)
        moment = now_text() if timestamp is None else timestamp_text("timestamp", timestamp)
        line, coerced, day, failure = None, False, 0, None
        if self._largest_row and key is None:  # the writer looks a key up in the record
            try:
                line = kind.plain_row(record_id, moment, values)
                if line is not None and (len(line) < 2 * _DEEP or self._is_moderate(line)):
                    day = self._days[moment[:10]]
            except Exception as err:  # noqa: BLE001 - a value's own code may raise anything
                failure = err
        if line is None or not day:
            line, coerced = _json_line(kind, record_id, moment, values)
            if failure is not None and not coerced:
                _raise_if_not_its_fault(lambda: kind.plain_row(record_id, moment, values), failure)
        try:
            spool = self.spools[kind.name]
        except KeyError:
            spool = self._open_spool(kind.name)
        while (accepted := spool.append(line, coerced, day)) is None:  # closed by another thread meanwhile
            spool = self._open_spool(kind.name)
        return record_id if accepted else None

    def _is_moderate(self, row: bytes) -> bool:
        """Whether a row is not too large, and its documents are not nested so deep that they need a closer look."""
        return len(row) <= self._largest_row and row.count(b"[") + row.count(b"{") < _DEEP


class _Caller:
    """What a class with the calls has to have."""

    def __init__(self, source: str | None, recorder: Recorder) -> None:
        """`source` is the default of an event's `source`."""
        self._source = source
        self._store = recorder.store


class Calls(_Caller):
    """The calls as coroutines. None of them suspends; where one may wait, the store runs its twin beside the loop."""

    async def store_agent_event(
        self,
        event_type: str,
        agent_id: str | None = None,
        workflow_id: str | None = None,
        session_id: str | None = None,
        source: str | None = None,
        payload: object = None,
        severity: str | None = "info",
        *,
        timestamp: datetime | str | None = None,
        instance_id: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_span_id: str | None = None,
        metadata: object = None,
        idempotency_key: str | None = None,
    ) -> str | None:
        """Store what an agent did or met, as it happened. `source` defaults to TDS_SOURCE, `payload` is any JSON value.

        Gives the record's id, or None if it was not accepted (counted as dropped). Raises InvalidRecord for a wrong
        call, NotAccepted only with TDS_ON_FULL=raise.
        """
        return self._store(
            _EVENTS,
            (
                event_type,
                agent_id,
                workflow_id,
                session_id,
                self._source if source is None else source,
                severity,
                instance_id,
                trace_id,
                span_id,
                parent_span_id,
                payload,
                metadata,
            ),
            timestamp,
            idempotency_key,
        )

    async def store_agent_task(
        self,
        task_id: str,
        agent_id: str | None = None,
        instance_id: str | None = None,
        task_type: str | None = "unknown",
        priority: str | None = "normal",
        status: str | None = "pending",
        input_data: object = None,
        output_data: object = None,
        error: str | None = None,
        retry_count: int | None = 0,
        max_retries: int | None = 3,
        timeout_seconds: int | None = 300,
        execution_time_ms: float | None = None,
        started_at: datetime | str | None = None,
        completed_at: datetime | str | None = None,
        *,
        timestamp: datetime | str | None = None,
        session_id: str | None = None,
        workflow_id: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_span_id: str | None = None,
        metadata: object = None,
        idempotency_key: str | None = None,
    ) -> str | None:
        """Store a task's state. Each call is a row: the rows of a task are its history, the latest one holds.

        Returns and raises as `store_agent_event`.
        """
        return self._store(
            _TASKS,
            (
                task_id,
                agent_id,
                instance_id,
                task_type,
                priority,
                status,
                error,
                None if started_at is None else timestamp_text("started_at", started_at),
                None if completed_at is None else timestamp_text("completed_at", completed_at),
                workflow_id,
                session_id,
                trace_id,
                span_id,
                parent_span_id,
                retry_count,
                execution_time_ms,
                max_retries,
                timeout_seconds,
                input_data,
                output_data,
                metadata,
            ),
            timestamp,
            idempotency_key,
        )

    async def store_tool_execution(
        self,
        execution_id: str,
        agent_id: str | None = None,
        task_id: str | None = None,
        tool_name: str | None = "unknown",
        tool_category: str | None = None,
        input_params: object = None,
        output_result: object = None,
        status: str | None = "completed",
        error: str | None = None,
        execution_time_ms: float | None = None,
        completed_at: datetime | str | None = None,
        *,
        timestamp: datetime | str | None = None,
        session_id: str | None = None,
        workflow_id: str | None = None,
        instance_id: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_span_id: str | None = None,
        metadata: object = None,
        idempotency_key: str | None = None,
    ) -> str | None:
        """Store one call of a tool: what went in, what came out, how long it took.

        Returns and raises as `store_agent_event`.
        """
        return self._store(
            _TOOLS,
            (
                execution_id,
                agent_id,
                task_id,
                tool_name,
                tool_category,
                status,
                error,
                None if completed_at is None else timestamp_text("completed_at", completed_at),
                workflow_id,
                instance_id,
                session_id,
                trace_id,
                span_id,
                parent_span_id,
                execution_time_ms,
                input_params,
                output_result,
                metadata,
            ),
            timestamp,
            idempotency_key,
        )

    async def store_workflow_data(
        self,
        workflow_id: str,
        workflow_type: str | None = None,
        phase: str | None = None,
        state_data: object = None,
        step_results: object = None,
        error: str | None = None,
        name: str | None = None,
        description: str | None = None,
        current_step: str | None = None,
        total_steps: int | None = 0,
        completed_steps: int | None = 0,
        assigned_agents: object = None,
        metadata: object = None,
        tags: object = None,
        *,
        timestamp: datetime | str | None = None,
        session_id: str | None = None,
        agent_id: str | None = None,
        instance_id: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_span_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> str | None:
        """Store a workflow's state at one moment. Returns and raises as `store_agent_event`."""
        return self._store(
            _WORKFLOWS,
            (
                workflow_id,
                workflow_type,
                phase,
                error,
                name,
                description,
                current_step,
                agent_id,
                instance_id,
                session_id,
                trace_id,
                span_id,
                parent_span_id,
                total_steps,
                completed_steps,
                state_data,
                step_results,
                assigned_agents,
                tags,
                metadata,
            ),
            timestamp,
            idempotency_key,
        )

    async def store_feedback(
        self,
        target_kind: Literal["record", "task", "session", "workflow"],
        target_id: str,
        name: str,
        value: float | bool | str | None = None,  # noqa: FBT001 - a label may be true or false
        source: Literal["human", "judge", "code"] = "human",
        corrected_output: object = None,
        comment: str | None = None,
        *,
        timestamp: datetime | str | None = None,
        session_id: str | None = None,
        agent_id: str | None = None,
        workflow_id: str | None = None,
        instance_id: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_span_id: str | None = None,
        metadata: object = None,
        idempotency_key: str | None = None,
    ) -> str | None:
        """Store a score, a label or a better answer for something stored earlier; the latest one holds.

        Returns and raises as `store_agent_event`.
        """
        if not isinstance(value, (int, float, str, type(None))):
            raise InvalidRecord(
                f"value={shown(value)} ({type(value).__name__}): expected a number, a bool, a str or None; "
                "pass a better answer as corrected_output"
            )
        return self._store(
            _FEEDBACK,
            (
                target_kind,
                target_id,
                name,
                source,
                comment,
                agent_id,
                workflow_id,
                instance_id,
                session_id,
                trace_id,
                span_id,
                parent_span_id,
                value,
                corrected_output,
                metadata,
            ),
            timestamp,
            idempotency_key,
        )

    async def store_record(self, kind: str, /, **fields: object) -> str | None:
        """Store a record of any kind by its columns' names, and `timestamp` and `idempotency_key`; no defaults apply.

        Raises UnknownKind, or InvalidRecord naming a field that the kind does not have; else as `store_agent_event`.
        """
        known = kind_named(kind)
        timestamp, key = fields.pop("timestamp", None), fields.pop("idempotency_key", None)
        if key is not None and not isinstance(key, str):
            raise InvalidRecord(f"idempotency_key={shown(key)}: expected str or None; pass str(idempotency_key)")
        values = {name: fields.pop(name, None) for name in known.fields}
        if fields:
            raise InvalidRecord(
                f"{', '.join(fields)}: no columns that a call fills; expected columns of {kind}: "
                f"{', '.join(known.fields)}"
            )
        for name, value in values.items():
            if known.types[name] == "timestamp" and value is not None:
                values[name] = timestamp_text(name, value)
        return self._store(known, tuple(values.values()), timestamp, key)


def _json_line(kind: Kind, record_id: str, moment: str, values: tuple[object, ...]) -> tuple[bytes, bool]:
    """A record as JSON, and whether any of its values had to be changed for that. Raises InvalidRecord."""
    record, coerced = kind.plain_record(record_id, moment, values), False
    if record is None:
        record, coerced = _checked_record(kind, record_id, moment, values)
    try:
        line = _encode(record)
        # A line break can only come out of the caller's own Raw JSON.
        if _LINE_FEED in line or (len(line) >= 2 * _DEEP and _is_too_deep(line)):
            return _coerced_line(kind, record), True
    except Exception as err:  # noqa: BLE001 - a value's own code may raise anything
        _raise_if_not_its_fault(lambda: _encode(record), err)
        return _coerced_line(kind, record), True
    return line, coerced


def _checked_record(kind: Kind, record_id: str, moment: str, values: tuple[object, ...]) -> tuple[msgspec.Struct, bool]:
    """The record of values that need care, and whether any of them had to be changed. Raises InvalidRecord."""
    texts, numbers = len(kind.texts), len(kind.texts) + len(kind.numbers)
    for name, value in zip(kind.required, values, strict=False):
        if value is None:
            raise InvalidRecord(f"{name}=None: expected a value; {kind.name} records cannot do without it")
    plain = (
        *plain_texts(kind.texts, values[:texts], kind.types),
        *plain_numbers(kind.numbers, values[texts:numbers], kind.types),
    )
    for name, choices in kind.choices.items():
        value = plain[kind.texts.index(name)]
        if value is not None and value not in choices:
            raise InvalidRecord(f"{name}={shown(value)}: expected one of {', '.join(choices)}")
    coerced = tuple(map(type, plain)) != tuple(map(type, values[:numbers]))
    return kind.record(record_id, moment, *plain, *values[numbers:]), coerced


def _coerced_line(kind: Kind, record: msgspec.Struct) -> bytes:
    """The line of a record that cannot be encoded as it is: its texts made whole, its documents plain."""
    record_id, moment, *values = msgspec.structs.astuple(record)
    texts, numbers = len(kind.texts), len(kind.texts) + len(kind.numbers)
    return _encode(
        kind.record(
            record_id,
            moment,
            *plain_texts(kind.texts, values[:texts], kind.types),
            *values[texts:numbers],
            *map(plain_document, values[numbers:]),
        )
    )


def blocking(call: Callable[Concatenate[Calls, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[_Caller, P], R]:
    """The same call for code without an event loop."""

    @functools.wraps(call)
    def run(self: _Caller, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            call(self, *args, **kwargs).send(None)  # type: ignore[arg-type]  # a `cast` takes 60 ns
        except StopIteration as done:
            value: R = done.value
            return value
        raise RuntimeError("a call suspended: it has to run to its end at once")

    return run


class BlockingCalls(_Caller):
    """The same calls for code without an event loop. They wait only where TDS_SPOOL_SYNC or TDS_ON_FULL says so."""

    store_agent_event = blocking(Calls.store_agent_event)
    store_agent_task = blocking(Calls.store_agent_task)
    store_tool_execution = blocking(Calls.store_tool_execution)
    store_workflow_data = blocking(Calls.store_workflow_data)
    store_feedback = blocking(Calls.store_feedback)
    store_record = blocking(Calls.store_record)


def _is_too_deep(line: bytes) -> bool:
    """Whether a decoder of the writer may refuse a line for its nesting, some frames of its own included."""
    if line.count(b"[") + line.count(b"{") < _DEEP:
        return False
    try:
        msgspec.json.decode(b"[" * 50 + line + b"]" * 50, type=msgspec.Raw)
    except RecursionError:
        return True
    return False


def _raise_if_not_its_fault(encode: Callable[[], object], err: Exception) -> None:
    """Raise an exception that came while a record was encoded, but out of a signal handler and not of the record."""
    try:
        encode()
    except Exception:  # noqa: BLE001 - it is the record's own
        return
    raise err


async def beside_the_loop(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a call that blocks in a thread, while the event loop goes on."""
    import asyncio  # 30 ms to import, in a program without an event loop

    return await asyncio.to_thread(call, *args, **kwargs)
