"""Turns the arguments of the five calls into records in the spool: the hot path, blocking but for microseconds.

`BlockingCalls` is the blocking twin of `TrainingDataStore`, whose calls are made from these, so that parameters and
defaults stand here once. They are those of the store that ours replaces, in its order; what is not given is null.

A call builds the kind's struct and has msgspec encode it. The types of its ids, texts and numbers are looked up as one
tuple in the set of those that need no care, so that a call pays one hash for all its checks. Only a new combination is
examined, and only a document that msgspec refuses takes the slow way of `coercion`.
"""

import functools
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

import msgspec

from ingest.coercion import plain_document, plain_numbers, plain_texts
from ingest.errors import InvalidRecord, shown
from ingest.records import KINDS, Kind, keyed_record_id, kind_named, new_record_id, now_text, timestamp_text
from ingest.settings import Settings

if TYPE_CHECKING:
    from ingest.store import TrainingDataStore

P = ParamSpec("P")
R = TypeVar("R")

_EVENTS, _TASKS, _TOOLS = KINDS["events"], KINDS["tasks"], KINDS["tool_executions"]
_WORKFLOWS, _FEEDBACK = KINDS["workflows"], KINDS["feedback"]
_INTEGER_LIMIT = 2**63  # what an integer column holds in Parquet, SQL and JSON readers
_DEEP = 900  # with fewer brackets nothing is nested too deep: decoders stop at 997 levels
_encode = msgspec.json.Encoder().encode


class BlockingCalls:
    """The calls for code without an event loop. They wait only where TDS_SPOOL_SYNC or TDS_ON_FULL says so."""

    def __init__(self, settings: Settings, append: Callable[[str, bytes, bool], bool]) -> None:
        """`append` puts a kind's record, as JSON, into the spool; the flag says whether it was coerced."""
        self._settings = settings
        self._append_line = append
        self._plain: dict[str, set[tuple[type, ...]]] = {name: set() for name in KINDS}

    def store_agent_event(
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
                self._settings.source if source is None else source,
                severity,
                instance_id,
                trace_id,
                span_id,
                parent_span_id,
            ),
            (payload, metadata),
            timestamp,
            idempotency_key,
        )

    def store_agent_task(
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
                _moment("started_at", started_at),
                _moment("completed_at", completed_at),
                workflow_id,
                session_id,
                trace_id,
                span_id,
                parent_span_id,
                retry_count,
                execution_time_ms,
                max_retries,
                timeout_seconds,
            ),
            (input_data, output_data, metadata),
            timestamp,
            idempotency_key,
        )

    def store_tool_execution(
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
                _moment("completed_at", completed_at),
                workflow_id,
                instance_id,
                session_id,
                trace_id,
                span_id,
                parent_span_id,
                execution_time_ms,
            ),
            (input_params, output_result, metadata),
            timestamp,
            idempotency_key,
        )

    def store_workflow_data(
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
            ),
            (state_data, step_results, assigned_agents, tags, metadata),
            timestamp,
            idempotency_key,
        )

    def store_feedback(
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
            ),
            (value, corrected_output, metadata),
            timestamp,
            idempotency_key,
        )

    def store_record(self, kind: str, /, **fields: object) -> str | None:
        """Store a record of any kind by its columns' names, and `timestamp` and `idempotency_key`; no defaults apply.

        Raises UnknownKind, or InvalidRecord naming a field that the kind does not have; else as `store_agent_event`.
        """
        known = kind_named(kind)
        timestamp, key = fields.pop("timestamp", None), fields.pop("idempotency_key", None)
        if key is not None and not isinstance(key, str):
            raise InvalidRecord(f"idempotency_key={shown(key)}: expected str or None; pass str(idempotency_key)")
        values = [fields.pop(name, None) for name in (*known.texts, *known.numbers)]
        documents = tuple(fields.pop(name, None) for name in known.documents)
        if fields:
            raise InvalidRecord(
                f"{', '.join(fields)}: no columns that a call fills; expected columns of {kind}: "
                f"{', '.join((*known.texts, *known.numbers, *known.documents))}"
            )
        for place, name in enumerate(known.texts):
            if known.types[name] == "timestamp":
                values[place] = _moment(name, values[place])
        return self._store(known, tuple(values), documents, timestamp, key)

    def _store(
        self,
        kind: Kind,
        values: tuple[object, ...],
        documents: tuple[object, ...],
        timestamp: object,
        key: str | None,
    ) -> str | None:
        """Encode and spool one record. `values` are the kind's texts and numbers, `documents` its JSON columns."""
        types = tuple(map(type, values))
        coerced = False
        if types not in self._plain[kind.name]:
            values = self._checked(kind, values)
            coerced = types != tuple(map(type, values))
            if not coerced:
                self._plain[kind.name].add(types)
        for name, choices in kind.choices.items():
            _require_choice(name, values[kind.texts.index(name)], choices)
        for place in kind.integers:
            number = values[place]
            if number is not None and not -_INTEGER_LIMIT <= number < _INTEGER_LIMIT:  # type: ignore[operator]  # an int
                plain_numbers((kind.numbers[place - len(kind.texts)],), (number,), kind.types)  # raises
        record_id = new_record_id() if key is None else keyed_record_id(kind.name, key)
        moment = now_text() if timestamp is None else timestamp_text("timestamp", timestamp)
        record = kind.record(record_id, moment, *values, *documents)
        line = b""
        try:
            line = _encode(record)
            # A line break can only come out of the caller's own Raw JSON.
            is_plain = b"\n" not in line and (len(line) < 2 * _DEEP or not _is_too_deep(line))
        except Exception as err:  # noqa: BLE001 - a value's own code may raise anything
            _raise_if_not_its_fault(record, err)
            is_plain = False
        if not is_plain:
            values, documents = self._checked(kind, values), tuple(plain_document(document) for document in documents)
            coerced = True
            line = _encode(kind.record(record_id, moment, *values, *documents))
        return record_id if self._append_line(kind.name, line, coerced) else None

    def _checked(self, kind: Kind, values: Sequence[object]) -> tuple[object, ...]:
        """Texts and numbers as the columns take them. Raises InvalidRecord for what no column takes."""
        for name, value in zip(kind.required, values, strict=False):
            if value is None:
                raise InvalidRecord(f"{name}=None: expected a value; {kind.name} records cannot do without it")
        split = len(kind.texts)
        texts = plain_texts(kind.texts, values[:split], kind.types)
        return (*texts, *plain_numbers(kind.numbers, values[split:], kind.types))


def asynchronous(
    call: Callable[Concatenate[BlockingCalls, P], R],
) -> Callable[Concatenate["TrainingDataStore", P], Coroutine[Any, Any, R]]:
    """The same call for an event loop: it runs in place, unless the settings say that it may wait."""

    async def awaited(self: "TrainingDataStore", /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.may_wait:
            return await beside_the_loop(call, self.sync, *args, **kwargs)
        return call(self.sync, *args, **kwargs)

    functools.update_wrapper(awaited, call)
    return awaited


def _is_too_deep(line: bytes) -> bool:
    """Whether a decoder of the writer may refuse a line for its nesting, some frames of its own included."""
    if line.count(b"[") + line.count(b"{") < _DEEP:
        return False
    try:
        msgspec.json.decode(b"[" * 50 + line + b"]" * 50, type=msgspec.Raw)
    except RecursionError:
        return True
    return False


def _raise_if_not_its_fault(record: msgspec.Struct, err: Exception) -> None:
    """Raise an exception that came while a record was encoded, but out of a signal handler and not of the record."""
    try:
        _encode(record)
    except Exception:  # noqa: BLE001 - it is the record's own
        return
    raise err


async def beside_the_loop(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a call that blocks in a thread, while the event loop goes on."""
    import asyncio  # 30 ms to import, in a program without an event loop

    return await asyncio.to_thread(call, *args, **kwargs)


def _moment(name: str, value: object) -> str | None:
    return None if value is None else timestamp_text(name, value)


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InvalidRecord(f"{name}={shown(value)}: expected one of {', '.join(choices)}")
