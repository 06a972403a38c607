"""Finds the records of a subject: by id, by a text in them, or by a predicate, and what hangs on them.

Looked at are the curated days, all of which are brought up to date first, so that each record is judged typed and with
its latest feedback. To what matches comes:

- with `whole_sessions`, everything of the sessions that it belongs to, and of tasks of which then nothing is left;
- feedback on a record, task, session or workflow of which nothing is left.

Lines in quarantine are no records and no predicate can judge them. They match by the ids and texts that are asked for.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ingest.errors import DamagedFile, InvalidPredicate
from ingest.pipeline.erasure import Doomed, line_digest
from ingest.pipeline.partitions import DataPaths, day_of
from ingest.records import KINDS, Column, Kind
from tds_dagster.curate.day import read_curated
from tds_dagster.curate.engine import engine_errors, open_engine
from tds_dagster.curate.quarantine import QuarantinedLine
from tds_dagster.curate.raw import open_raw
from tds_dagster.curate.sql import glob_escaped, literal
from tds_dagster.export.days import build_days
from tds_dagster.export.feedback import latest_feedback, matching
from tds_dagster.export.predicate import Predicate, parse_predicate

if TYPE_CHECKING:
    import duckdb

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is

# The column of a kind that feedback on a `target_kind` names; `record_id` is every kind's.
_TARGET_COLUMNS: Mapping[str, str] = {"task": "task_id", "session": "session_id", "workflow": "workflow_id"}
_WORD = rb"[A-Za-z0-9_-]"
_ROW = "(record_id, day_of_file)"  # an id may come twice: a key that is used again later, a file given under two days


class Selector(msgspec.Struct, frozen=True, kw_only=True):
    """Whom or what to erase. A record that matches any one of these matches."""

    agent_ids: tuple[str, ...] = ()
    session_ids: tuple[str, ...] = ()
    record_ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()  # that stand anywhere in a record
    where: str | None = None  # a predicate, for each kind that has its columns
    kinds: tuple[str, ...] = ()  # where to look; what hangs on a match goes from all kinds. Empty: in all of them
    whole_sessions: bool = False


class Found(msgspec.Struct, frozen=True):
    """What an erasure would take."""

    doomed: dict[str, Doomed]  # by kind; only kinds that have something
    unjudged: dict[str, int]  # by kind: lines in quarantine that the predicate could not judge
    searched: list[str]  # the kinds that were searched

    @property
    def records(self) -> dict[str, dict[str, int]]:
        """Records by kind and day."""
        return {kind: {day: len(ids) for day, ids in found.records.items()} for kind, found in self.doomed.items()}


def curate_all(paths: DataPaths, progress: Progress) -> None:
    """Bring every curated day up to date. Raises the first error of a day that cannot be curated."""
    for kind in KINDS:
        if not paths.ledger(kind).exists():
            continue
        with open_raw(paths, kind) as raw_days:
            days = raw_days.days()
        for _, _, _, error in build_days(paths, kind, days, stages=("curated",), progress=progress):
            if error is not None:
                raise error


def find_doomed(paths: DataPaths, selector: Selector, progress: Progress) -> Found:
    """Find what the selector means, over all days.

    Raises InvalidPredicate for a predicate that no kind understands, and the error of a day that cannot be curated.
    """
    predicates = parsed_predicates(selector)
    curate_all(paths, progress)
    kinds = [KINDS[name] for name in selector.kinds or KINDS]
    with open_engine(paths) as engine, engine_errors("erasure"):
        connection = engine.connection
        connection.execute("CREATE TEMP TABLE doomed (kind VARCHAR, day_of_file VARCHAR, record_id VARCHAR)")
        for kind in KINDS.values():
            connection.execute(_view(paths, kind))
        for kind in kinds:
            _find(connection, kind, selector, predicates.get(kind.name))
        sessions = _widen_to_sessions(connection, selector) if selector.whole_sessions else list(selector.session_ids)
        _add_feedback_on_nothing(connection)
        records, shared = _by_kind_and_day(connection), _shared_ids(connection)
    names = [kind.name for kind in kinds if kind.name in predicates or selector.where is None or _has_ids(selector)]
    lines, unjudged = _doomed_lines(paths, names, selector, sessions)
    doomed = {
        kind: Doomed(records.get(kind, {}), lines.get(kind, {}), shared.get(kind, {}))
        for kind in KINDS
        if records.get(kind) or lines.get(kind)
    }
    return Found(doomed, unjudged, names)


def _has_ids(selector: Selector) -> bool:
    return bool(selector.agent_ids or selector.session_ids or selector.record_ids or selector.texts)


def parsed_predicates(selector: Selector) -> dict[str, Predicate]:
    """The predicate for each kind that understands it. Raises InvalidPredicate if none does, or a named one not."""
    if selector.where is None:
        return {}
    understood, refused = {}, []
    for kind in selector.kinds or KINDS:
        try:
            understood[kind] = parse_predicate(kind, selector.where)
        except InvalidPredicate as err:
            if selector.kinds:
                raise
            refused.append(err)
    if not understood:
        raise refused[0]
    return understood


def _view(paths: DataPaths, kind: Kind) -> str:
    """The SQL of a view over a kind's curated days, with the day as `day_of_file`."""
    files = []
    if paths.ledger(kind.name).exists():
        with open_raw(paths, kind.name) as raw_days:
            days = raw_days.days()
        curated = [read_curated(paths, kind.name, day) for day in days]
        files = [built.path for built in curated if built is not None and built.rows]
    if not files:
        columns = ", ".join(f'NULL::{_sql_type(column)} AS "{column.name}"' for column in kind.columns)
        return f"CREATE TEMP VIEW {kind.name} AS SELECT {columns}, NULL::VARCHAR AS day_of_file WHERE FALSE"
    names = ", ".join(f'"{column.name}"' for column in kind.columns)
    paths_text = ", ".join(literal(glob_escaped(file)) for file in files)
    return (
        f"CREATE TEMP VIEW {kind.name} AS SELECT {names}, "
        "regexp_extract(filename, '([0-9]{4}-[0-9]{2}-[0-9]{2})\\.parquet$', 1) AS day_of_file "
        f"FROM read_parquet([{paths_text}], filename = true, hive_partitioning = false)"
    )


def _sql_type(column: Column) -> str:
    return {"integer": "BIGINT", "number": "DOUBLE", "timestamp": "TIMESTAMPTZ"}.get(column.type, "VARCHAR")


def _find(connection: "duckdb.DuckDBPyConnection", kind: Kind, selector: Selector, predicate: Predicate | None) -> None:
    """Put the records of a kind that match the selector itself into `doomed`."""
    conditions = []
    for column, ids in (
        ("agent_id", selector.agent_ids),
        ("session_id", selector.session_ids),
        ("record_id", selector.record_ids),
    ):
        if ids:
            conditions.append(f"{column} IN ({', '.join(literal(value) for value in ids)})")
    conditions += [_contains(kind, text) for text in selector.texts]
    if predicate is not None:
        if predicate.feedback:
            latest_feedback(
                connection, kind.name, predicate.feedback, records=kind.name, tasks="tasks", feedback="feedback"
            )
        conditions.append(f"{_ROW} IN ({matching(predicate, kind.name, _ROW)})")
    if conditions:
        _doom(connection, kind.name, " OR ".join(f"coalesce({condition}, FALSE)" for condition in conditions))


def _doom(connection: "duckdb.DuckDBPyConnection", kind: str, condition: str) -> int:
    """Add the records of a kind for which a condition holds; gives how many are new."""
    row = connection.execute(
        f"INSERT INTO doomed SELECT {literal(kind)}, day_of_file, record_id FROM {kind} WHERE ({condition}) "
        f"AND {_ROW} NOT IN (SELECT {_ROW} FROM doomed WHERE kind = {literal(kind)})"
    ).fetchone()
    return 0 if row is None else int(row[0])


def _contains(kind: Kind, text: str) -> str:
    """The condition that a text stands in any column of a record."""
    columns = [column.name for column in kind.columns if column.type in {"id", "text", "json"}]
    return " OR ".join(
        f'coalesce(contains("{column}", {literal(form)}), FALSE)' for column in columns for form in _forms(text)
    )


def _forms(text: str) -> list[str]:
    """A text as it may stand in a JSON column: as it is, escaped, or escaped in a JSON text within a JSON text."""
    forms = {text}
    for _ in range(2):
        forms |= {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in forms for ascii_only in (False, True)}
    return sorted(forms)


def _widen_to_sessions(connection: "duckdb.DuckDBPyConnection", selector: Selector) -> list[str]:
    """Add everything of the sessions that a doomed record belongs to, and of tasks that went; gives the sessions."""
    parts = [
        f"SELECT session_id FROM {kind} JOIN doomed USING {_ROW} WHERE doomed.kind = {literal(kind)}" for kind in KINDS
    ]
    doomed_feedback = f"(SELECT target_kind, target_id FROM feedback JOIN doomed USING {_ROW} WHERE kind = 'feedback')"
    parts += [
        f"SELECT target_id FROM {doomed_feedback} WHERE target_kind = 'session'",
        f"SELECT session_id FROM tasks JOIN {doomed_feedback} ON target_kind = 'task' AND target_id = task_id",
        *(
            f"SELECT session_id FROM {kind} JOIN {doomed_feedback} ON target_kind = 'record' AND target_id = record_id"
            for kind in KINDS
            if kind != "feedback"
        ),
    ]
    connection.execute(
        f"CREATE TEMP TABLE doomed_sessions AS SELECT DISTINCT session_id FROM ({' UNION ALL '.join(parts)}) "
        "WHERE session_id IS NOT NULL"
    )
    for name in KINDS:
        _doom(connection, name, "session_id IN (SELECT session_id FROM doomed_sessions)")
    for name, kind in KINDS.items():
        if "task_id" in kind.types:
            _doom(connection, name, f"session_id IS NULL AND task_id IN ({_gone('task_id', ('tasks',))})")
    found = connection.execute("SELECT session_id FROM doomed_sessions ORDER BY ALL").fetchall()
    return sorted({*selector.session_ids, *(row[0] for row in found)})


def _gone(column: str, kinds: tuple[str, ...]) -> str:
    """Query the values of a column that doomed records have, and no record that stays."""
    rows = " UNION ALL ".join(
        f"SELECT {column}, {_ROW} IN (SELECT {_ROW} FROM doomed WHERE kind = {literal(kind)}) AS is_doomed "
        f"FROM {kind} WHERE {column} IS NOT NULL"
        for kind in kinds
    )
    return f"SELECT {column} FROM ({rows}) GROUP BY {column} HAVING bool_and(is_doomed)"


def _add_feedback_on_nothing(connection: "duckdb.DuckDBPyConnection") -> None:
    """Add feedback whose target is gone, as long as there is some: feedback may be on feedback."""
    others = tuple(kind for kind in KINDS if kind != "feedback")
    conditions = ["(target_kind = 'record' AND target_id IN (SELECT record_id FROM doomed))"]
    conditions.append(
        "(target_kind = 'record' AND target_id IN (SELECT execution_id FROM tool_executions JOIN doomed "
        f"USING {_ROW} WHERE kind = 'tool_executions'))"
    )
    for target, column in _TARGET_COLUMNS.items():
        having = tuple(kind for kind in others if column in KINDS[kind].types)
        if target == "task":
            having = ("tasks",)
        conditions.append(f"(target_kind = '{target}' AND target_id IN ({_gone(column, having)}))")
    while _doom(connection, "feedback", " OR ".join(conditions)):
        pass


def _by_kind_and_day(connection: "duckdb.DuckDBPyConnection") -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    rows = connection.execute(
        "SELECT kind, day_of_file, list(record_id ORDER BY record_id) FROM doomed GROUP BY ALL ORDER BY ALL"
    )
    for kind, day, ids in rows.fetchall():
        found.setdefault(kind, {})[day] = ids
    return found


def _shared_ids(connection: "duckdb.DuckDBPyConnection") -> dict[str, dict[str, list[str]]]:
    """By kind and doomed record id, the other days in which a record of that id stays."""
    rows = " UNION ALL ".join(
        f"SELECT {literal(kind)} AS kind, record_id, day_of_file FROM {kind} "
        f"WHERE record_id IN (SELECT record_id FROM doomed WHERE doomed.kind = {literal(kind)})"
        for kind in KINDS
    )
    found = connection.execute(
        f"SELECT kind, record_id, list(day_of_file ORDER BY day_of_file) FROM ({rows}) ANTI JOIN doomed "
        "USING (kind, record_id, day_of_file) GROUP BY ALL ORDER BY ALL"
    )
    shared: dict[str, dict[str, list[str]]] = {}
    for kind, record_id, days in found.fetchall():
        shared.setdefault(kind, {})[record_id] = days
    return shared


def _doomed_lines(
    paths: DataPaths, kinds: list[str], selector: Selector, sessions: list[str]
) -> tuple[dict[str, dict[str, list[str]]], dict[str, int]]:
    """Lines in quarantine that hold what is asked for, by kind and day; and how many a predicate could not judge."""
    found: dict[str, dict[str, list[str]]] = {}
    unjudged: dict[str, int] = {}
    is_asked = mentions([*selector.agent_ids, *sessions, *selector.record_ids], selector.texts)
    for kind in kinds:
        for day, line in _quarantined(paths, kind):
            if is_asked(line):
                found.setdefault(kind, {}).setdefault(day, []).append(line_digest(line))
            elif selector.where is not None:
                unjudged[kind] = unjudged.get(kind, 0) + 1
    return found, unjudged


def mentions(ids: list[str], texts: tuple[str, ...]) -> Callable[[bytes], bool]:
    """A test whether a line holds one of the ids as a whole word, or one of the texts anywhere."""
    parts = [rb"(?<!%s)%s(?!%s)" % (_WORD, re.escape(form.encode()), _WORD) for name in ids for form in _forms(name)]
    parts += [re.escape(form.encode()) for text in texts for form in _forms(text)]
    if not parts:
        return lambda _: False
    pattern = re.compile(b"|".join(parts))
    return lambda line: pattern.search(line.replace(b'""', b'"')) is not None or pattern.search(line) is not None


def _quarantined(paths: DataPaths, kind: str) -> Iterator[tuple[str, bytes]]:
    """The lines of a kind's quarantine files, each with its day."""
    for path in sorted(paths.quarantine(kind, "").parent.glob(f"{kind}_????-??-??.jsonl")):
        for line in quarantined_lines(path):
            yield day_of(path), line


def quarantined_lines(path: Path) -> Iterator[bytes]:
    """The lines that a quarantine file shows, as they stood. Raises DamagedFile."""
    with path.open("rb") as source:
        for number, text in enumerate(source, 1):
            try:
                shown = msgspec.json.decode(text, type=QuarantinedLine)
            except msgspec.DecodeError as err:
                raise DamagedFile(
                    f"{path}: line {number}: {err}: expected a line as curation writes it; remove the file, which "
                    "is made anew then, and run this again"
                ) from err
            yield shown.line.encode() if shown.encoding is None else base64.b64decode(shown.line)
