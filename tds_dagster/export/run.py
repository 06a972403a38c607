"""Turns the curated rows of one session or task into one run: what happened, in order, and what belongs to what.

    session or task
    ├── workflow states, and events that belong to no task
    └── task: its history of states
        ├── events and messages during it
        │   └── tool executions that the message asked for
        └── tool executions
    feedback stands below what it judges, or at the end

**What belongs to a task**: what names it (`task_id`, also in an event's payload), else everything where there is just
one task, else what lies between the beginning and the end of one task alone.

**A message's calls**: an execution is the one that a message asked for if it has the call's id (`tool_call_id` in its
metadata, or its own id), else the next one of that tool before the following message of the assistant. The tool's
message that repeats its result stands below it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ingest.errors import RedactionLeak, UnknownRun, shown
from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS, Kind
from tds_dagster.curate.engine import engine_errors, open_engine
from tds_dagster.curate.raw import open_raw
from tds_dagster.curate.sql import glob_escaped
from tds_dagster.export.days import Progress, build_days

if TYPE_CHECKING:
    import duckdb

    from ingest.redaction.redactor import Redactor

Subject = Literal["session", "task"]
Row = dict[str, Any]  # a record's columns that are not null, JSON columns decoded

MOST_RECORDS = 20_000  # of a kind in one run: what a person can read is less, what a page can hold not much more
_NEAR_MATCHES = 5
_NEAR = 0.75  # Jaro-Winkler similarity


class Step(msgspec.Struct):
    """One thing that happened, and what belongs to it."""

    kind: str  # of record; "task" for a task with all of its states
    began: str  # RFC 3339
    ended: str
    row: Row  # the record; of a task its latest state
    history: list[Row] = []  # a task's earlier states
    steps: list["Step"] = []  # in order of time


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One session or task; `tds show --json` prints it."""

    subject: Subject
    id: str
    began: str  # RFC 3339, of the first record
    ended: str  # of the last one, or when the last call ended
    records: dict[str, int]  # by kind
    agents: list[str]
    steps: list[Step]
    redaction: str = "none"  # the level at which rows were redacted
    warnings: list[str] = []  # what is left out, and why


def read_run(
    paths: DataPaths,
    subject: Subject,
    run_id: str,
    *,
    redactor: "Redactor | None" = None,
    progress: Progress | None = None,
) -> Run:
    """Curate what changed, and put together the session or task of this id, redacted at the redactor's level.

    Raises UnknownRun with ids that come near where no record names it, RedactionLeak where something is left that the
    level promises to be gone, EngineFailed if DuckDB lacks disk or memory.
    """
    files, warnings = _curated_files(paths, progress)
    with open_engine(paths) as engine, engine_errors(f"{subject} {run_id}"):
        records = _Records(engine.connection, files)
        rows = _session_rows(records, [run_id]) if subject == "session" else _task_rows(records, run_id)
        if not any(rows.values()):
            raise _unknown(records, subject, run_id)
    warnings += [
        f"{kind}: only the first {MOST_RECORDS} records are shown" for kind in rows if len(rows[kind]) >= MOST_RECORDS
    ]
    if redactor is None or redactor.level == "none":
        return build_run(subject, run_id, rows, warnings)
    rows = {kind: [_redacted(redactor, kind, row) for row in rows[kind]] for kind in rows}
    # A policy may name ids too: then the run's own is shown as its rows have it.
    shown_ids = (row[f"{subject}_id"] for kind in rows for row in rows[kind] if row.get(f"{subject}_id"))
    run = build_run(subject, next(shown_ids, run_id), rows, warnings)
    return msgspec.structs.replace(run, redaction=redactor.level)


def _redacted(redactor: "Redactor", kind: str, row: Row) -> Row:
    """A row without what the level promises to be gone."""
    line = redactor.redact_line(kind, msgspec.json.encode(row))
    leaks = redactor.find_leaks(line)
    if leaks:
        raise RedactionLeak(
            f"{kind} record {row.get('record_id')}: {leaks[0].detector} still there at level {redactor.level}; nothing "
            "is shown: correct the policy (TDS_REDACTION_POLICY)"
        )
    return msgspec.json.decode(line, type=Row)


def build_run(subject: Subject, run_id: str, rows: Mapping[str, Sequence[Row]], warnings: Sequence[str] = ()) -> Run:
    """A run of rows by kind, in order of time."""
    everything = [row for kind in rows for row in rows[kind]]
    agents = dict.fromkeys(row["agent_id"] for row in everything if row.get("agent_id"))
    steps = _tree(rows)
    return Run(
        subject=subject,
        id=run_id,
        began=min(step.began for step in steps),
        ended=max(_last(steps)),
        records={kind: len(rows[kind]) for kind in rows if rows[kind]},
        agents=list(agents),
        steps=steps,
        warnings=list(warnings),
    )


# ----------------------------------------------------------------------------------------------------- finding


def _curated_files(paths: DataPaths, progress: Progress | None) -> tuple[dict[str, list[str]], list[str]]:
    """The curated files of every kind that have rows, brought up to date, and why days are missing."""
    files: dict[str, list[str]] = {kind: [] for kind in KINDS}
    warnings: list[str] = []
    for kind in KINDS:
        if not paths.ledger(kind).exists():
            continue
        with open_raw(paths, kind) as raw_days:
            days = raw_days.days()
        for day, curated, _, error in build_days(paths, kind, days, stages=("curated",), progress=progress):
            if curated is not None and curated.rows:
                files[kind].append(str(curated.path))
            if error is not None:
                warnings.append(f"{kind} {day} is left out: {error}")
    return files, warnings


class _Records:
    """The curated rows of all kinds."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection", files: Mapping[str, Sequence[str]]) -> None:
        self._connection, self._files = connection, files

    def rows(self, kind: str, condition: str, *values: object) -> list[Row]:
        """The rows that fulfil a condition, by (timestamp, record_id)."""
        if not self._files[kind]:
            return []
        columns = ", ".join(_column(KINDS[kind]))
        query = f"SELECT {columns} FROM {self._relation(kind)} WHERE {condition} ORDER BY timestamp, record_id"
        found = self._connection.execute(f"{query} LIMIT {MOST_RECORDS}", list(values))
        return [decode_row(KINDS[kind], row) for row in found.fetchall()]

    def near(self, column: str, run_id: str) -> list[str]:
        """Values of an id column that look like this one."""
        kinds = [kind for kind in KINDS if column in KINDS[kind].types and self._files[kind]]
        if not kinds:
            return []
        ids = " UNION ".join(f"SELECT {column} AS id FROM {self._relation(kind)}" for kind in kinds)
        found = self._connection.execute(
            f"SELECT id FROM ({ids}) WHERE jaro_winkler_similarity(id, $1) >= {_NEAR} OR contains(id, $1) "
            f"ORDER BY jaro_winkler_similarity(id, $1) DESC, id LIMIT {_NEAR_MATCHES}",
            [run_id],
        )
        return [near for (near,) in found.fetchall()]

    def _relation(self, kind: str) -> str:
        files = ", ".join("'" + glob_escaped(file).replace("'", "''") + "'" for file in self._files[kind])
        return f"read_parquet([{files}], hive_partitioning = false)"


def _column(kind: Kind) -> list[str]:
    return [
        f"strftime(\"{column.name}\" AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"
        if column.type == "timestamp"
        else f'"{column.name}"'
        for column in kind.columns
    ]


def decode_row(kind: Kind, values: Sequence[Any]) -> Row:
    """A curated row's values, in the order of the kind's columns, without nulls and with JSON columns decoded."""
    return {
        column.name: _document(value) if column.type == "json" else value
        for column, value in zip(kind.columns, values, strict=True)
        if value is not None
    }


def _document(text: str) -> object:
    """A JSON cell's value; its text where it is nested deeper than the decoder goes."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def _session_rows(records: _Records, sessions: Sequence[str]) -> dict[str, list[Row]]:
    """All rows of some sessions, and the feedback about anything in them."""
    of_session = "session_id IN (SELECT unnest($1::VARCHAR[]))"
    rows = {kind: records.rows(kind, of_session, sessions) for kind in ("events", "tasks", "workflows")}
    tasks = _ids(rows["tasks"], "task_id")
    rows["tool_executions"] = records.rows(
        "tool_executions",
        f"{of_session} OR (session_id IS NULL AND task_id IN (SELECT unnest($2::VARCHAR[])))", sessions, tasks,
    )  # fmt: skip
    targets = {"session": list(sessions), "task": tasks, "workflow": _ids(rows["workflows"], "workflow_id")}
    rows["feedback"] = _feedback(records, rows, targets, sessions)
    return rows


def _task_rows(records: _Records, task_id: str) -> dict[str, list[Row]]:
    """All rows of a task; of its session's events those that belong to it."""
    rows = {kind: records.rows(kind, "task_id = $1", task_id) for kind in ("tasks", "tool_executions")}
    sessions = _ids([*rows["tasks"], *rows["tool_executions"]], "session_id")
    whole = _session_rows(records, sessions) if sessions else {kind: [] for kind in KINDS}
    others = {row["task_id"] for row in [*whole["tasks"], *whole["tool_executions"]] if row.get("task_id")}
    if sessions and others == {task_id}:
        return whole
    nodes = _task_nodes([*rows["tasks"], *whole["tasks"]], [*rows["tool_executions"], *whole["tool_executions"]])
    rows["events"] = [row for row in whole["events"] if _task_of(row, nodes) == task_id]
    rows["feedback"] = _feedback(records, rows, {"task": [task_id]}, ())
    return rows


def _feedback(
    records: _Records, rows: Mapping[str, Sequence[Row]], targets: Mapping[str, Sequence[str]], sessions: Sequence[str]
) -> list[Row]:
    """The feedback about any of the targets, about one of the rows, or of one of the sessions."""
    about = {**targets, "record": [row["record_id"] for kind in rows for row in rows[kind]]}
    pairs = [(target_kind, target_id) for target_kind, ids in about.items() for target_id in ids]
    return records.rows(
        "feedback",
        "(target_kind, target_id) IN (SELECT unnest($1::VARCHAR[]), unnest($2::VARCHAR[])) "
        "OR session_id IN (SELECT unnest($3::VARCHAR[]))",
        [target_kind for target_kind, _ in pairs], [target_id for _, target_id in pairs], list(sessions),
    )  # fmt: skip


def _ids(rows: Iterable[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows if row.get(column)))


def _unknown(records: _Records, subject: Subject, run_id: str) -> UnknownRun:
    near = records.near(f"{subject}_id", run_id)
    advice = f"did you mean {', '.join(near)}?" if near else "`tds status` shows which days have records"
    return UnknownRun(
        f"{subject}_id={shown(run_id)}: expected the id of a stored {subject}, no record has it; {advice}"
    )


# ---------------------------------------------------------------------------------------------------- the tree


def _tree(rows: Mapping[str, Sequence[Row]]) -> list[Step]:
    """The steps of a run: tasks, what belongs to them, and what belongs to none."""
    nodes = _task_nodes(rows.get("tasks", ()), rows.get("tool_executions", ()))
    top: list[Step] = list(nodes.values())
    by_record: dict[str, Step] = {}
    for kind in ("events", "tool_executions", "workflows"):
        for row in rows.get(kind, ()):
            step = by_record[row["record_id"]] = _step(kind, row)
            owner = None if kind == "workflows" else nodes.get(_task_of(row, nodes) or "")
            (top if owner is None else owner.steps).append(step)
    for siblings in [top, *(node.steps for node in nodes.values())]:
        siblings.sort(key=_by_time)
        _attach_calls(siblings)
    for node in nodes.values():
        by_record |= dict.fromkeys((state.get("record_id", "") for state in [*node.history, node.row]), node)
        _span(node)
    for row in rows.get("feedback", ()):
        step = _step("feedback", row)
        judged = nodes if row.get("target_kind") == "task" else by_record
        target = judged.get(row.get("target_id", ""))
        (top if target is None else target.steps).append(step)
    top.sort(key=_by_time)
    return top


def _step(kind: str, row: Row) -> Step:
    return Step(kind, row["timestamp"], max(row["timestamp"], _time(row, "completed_at")), row, [], [])


def _time(row: Row, column: str) -> str:
    """The time in a column, or else that of the record."""
    return str(row.get(column, row["timestamp"]))


def _task_nodes(tasks: Sequence[Row], executions: Sequence[Row]) -> dict[str, Step]:
    """A step for each task that a row is of, or that an execution names."""
    nodes: dict[str, Step] = {}
    for row in tasks:
        task_id = row.get("task_id", "")  # null in what other programs wrote into a day file
        node = nodes.get(task_id)
        if node is None:
            node = nodes[task_id] = Step("task", row["timestamp"], row["timestamp"], row, [], [])
        elif row["record_id"] not in {state["record_id"] for state in [*node.history, node.row]}:
            node.history.append(node.row)
            node.row = row
        node.began = min(node.began, row["timestamp"], _time(row, "started_at"))
        node.ended = max(node.ended, row["timestamp"], _time(row, "completed_at"))
    for row in executions:
        if row.get("task_id") and row["task_id"] not in nodes:
            task_id = row["task_id"]
            nodes[task_id] = Step("task", row["timestamp"], row["timestamp"], {"task_id": task_id}, [], [])
    return nodes


def _task_of(row: Row, nodes: Mapping[str, Step]) -> str | None:
    """The task that a row belongs to; None if it cannot be told."""
    payload = row.get("payload")
    for named in (row.get("task_id"), payload.get("task_id") if isinstance(payload, dict) else None):
        if isinstance(named, str) and named in nodes:
            return named
    if len(nodes) == 1:
        return next(iter(nodes))
    during = [task_id for task_id, node in nodes.items() if node.began <= row["timestamp"] <= node.ended]
    return during[0] if len(during) == 1 else None


def _attach_calls(steps: list[Step]) -> None:
    """Move executions below the message that asked for them, and a tool's message below its execution."""
    moved: set[int] = set()
    for place, step in enumerate(steps):
        calls = tool_calls(step.row.get("payload")) if step.kind == "events" else []
        if not calls:
            continue
        ahead = list(_until_next_call(steps, place + 1))
        for call_id, name in calls:
            execution = _execution_of(call_id, name, [n for n in ahead if id(n) not in moved])
            if execution is None:
                continue
            moved.add(id(execution))
            step.steps.append(execution)
            output = execution.row.get("output_result")
            for answer in ahead:
                if id(answer) not in moved and repeats(answer, output, call_id):
                    moved.add(id(answer))
                    execution.steps.append(answer)
                    execution.ended = max(execution.ended, answer.ended)
                    break
    steps[:] = [step for step in steps if id(step) not in moved]


def _until_next_call(steps: Sequence[Step], start: int) -> Iterator[Step]:
    """The steps up to the assistant's next message."""
    for step in steps[start:]:
        if step.kind == "events" and (message := chat_message(step.row)) is not None and message["role"] == "assistant":
            return
        yield step


def _execution_of(call_id: str | None, name: str, steps: Sequence[Step]) -> Step | None:
    executions = [step for step in steps if step.kind == "tool_executions"]
    by_id = [step for step in executions if call_id is not None and call_id in _call_ids(step.row)]
    by_name = [step for step in executions if step.row.get("tool_name") == name]
    return next(iter([*by_id, *by_name]), None)


def _call_ids(row: Row) -> tuple[object, object]:
    metadata = row.get("metadata")
    return row.get("execution_id"), metadata.get("tool_call_id") if isinstance(metadata, dict) else None


def chat_message(row: Row) -> Mapping[str, Any] | None:
    """The chat message that an event's payload is (https://platform.openai.com/docs/api-reference/chat); else None."""
    payload = row.get("payload")
    if (
        isinstance(payload, dict)
        and isinstance(payload.get("role"), str)
        and ("content" in payload or "tool_calls" in payload)
    ):
        return payload
    return None


def tool_calls(payload: object) -> list[tuple[str | None, str]]:
    """Id and tool of each call that a chat message asks for."""
    if not isinstance(payload, dict):
        return []
    given = payload.get("tool_calls")
    calls = [call for call in given if isinstance(call, dict)] if isinstance(given, list) else []
    if isinstance(payload.get("function_call"), dict):
        calls.append({"function": payload["function_call"]})
    found = []
    for call in calls:
        body = call.get("function", call.get("custom"))
        call_id = call.get("id")
        if isinstance(body, dict) and isinstance(body.get("name"), str):
            found.append((call_id if isinstance(call_id, str) else None, body["name"]))
    return found


def repeats(step: Step, output: object, call_id: str | None) -> bool:
    """Whether a step is a tool's message that says what its execution has as output already."""
    message = chat_message(step.row) if step.kind == "events" else None
    if message is None or message["role"] not in {"tool", "function"}:
        return False
    answered = message.get("tool_call_id")
    return message.get("content") == output and (answered is None or call_id is None or answered == call_id)


def _span(node: Step) -> None:
    """Let a task last from its first step to its last."""
    node.began = min([node.began, *(step.began for step in node.steps)])
    node.ended = max([node.ended, *_last(node.steps)])


def _last(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        yield step.ended
        yield from _last(step.steps)


def _by_time(step: Step) -> tuple[str, str]:
    return step.began, step.row.get("record_id", "")
