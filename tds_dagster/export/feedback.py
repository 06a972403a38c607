"""Turns feedback into columns beside the records that it is about: the nearest target's, and of that the latest.

A record's targets, from the nearest: itself, its task, its session, its workflow. A tool execution is also named by its
execution_id. A record that names no task belongs to the task of its session, if there is just one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingest.records import kind_named
from tds_dagster.curate.sql import literal
from tds_dagster.export.predicate import FEEDBACK, Predicate, quoted

if TYPE_CHECKING:
    import duckdb

_TARGETS = "feedback_of_targets"  # a row for each (target_kind, target_id): a struct for each name, null if not given
_TASKS = "task_of_session"


def latest_feedback(
    connection: "duckdb.DuckDBPyConnection",
    kind: str,
    names: Sequence[str],
    *,
    records: str,
    tasks: str,
    feedback: str,
) -> None:
    """Make the view `feedback_of_records`: `record_id` and a column for each name.

    `records`, `tasks` and `feedback` name relations with the columns of their curated files; `records` is looked up
    when the view is used, so that it may be another day's by then. A name's values are all numbers (DOUBLE), all flags
    (BOOLEAN) or else texts (VARCHAR); a name that was never given, and a value of null, are null.
    Raises UnknownKind.
    """
    columns = kind_named(kind).types
    known = _collect_targets(connection, names, feedback)
    joins, found = list[str](), list[str]()
    if known:
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {_TASKS} AS SELECT session_id, min(task_id) AS task_id FROM {tasks} "
            "WHERE session_id IS NOT NULL GROUP BY session_id HAVING count(DISTINCT task_id) = 1"
        )
        joins.append(f"LEFT JOIN {_TASKS} ON {_TASKS}.session_id = records.session_id")
        of_session = f"{_TASKS}.task_id"
        task = f"coalesce(records.task_id, {of_session})" if "task_id" in columns else of_session
        keys = [("record", "records.record_id")]
        keys += [("record", "records.execution_id")] if "execution_id" in columns else []
        keys += [("task", task), ("session", "records.session_id"), ("workflow", "records.workflow_id")]
        for target, key in keys:
            alias = f"target_{len(found)}"
            found.append(alias)
            joins.append(
                f"LEFT JOIN {_TARGETS} AS {alias} ON {alias}.target_kind = '{target}' AND {alias}.target_id = {key}"
            )
    values = [
        f"coalesce({', '.join(f'{alias}.{quoted(name)}' for alias in found)}).value" if name in known else "NULL"
        for name in names
    ]
    selected = "".join(f", {value} AS {quoted(name)}" for value, name in zip(values, names, strict=True))
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW feedback_of_records AS SELECT records.record_id{selected} "
        f"FROM {records} AS records {' '.join(joins)}"
    )


def matching(predicate: Predicate, records: str, columns: str = "record_id") -> str:
    """Query columns of those rows of `records` for which the predicate is true.

    If it reads feedback, `latest_feedback` must have been called with its names and the same `records`.
    """
    join = f" JOIN feedback_of_records AS {FEEDBACK} USING (record_id)" if predicate.feedback else ""
    return f"SELECT {columns} FROM {records} AS records{join} WHERE {predicate.sql}"


def _collect_targets(connection: "duckdb.DuckDBPyConnection", names: Sequence[str], feedback: str) -> list[str]:
    """Make `feedback_of_targets`; gives those of the names that were ever given."""
    wanted = ", ".join(literal(name) for name in names) or "NULL"
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE latest_feedback AS "
        f"SELECT target_kind, target_id, name, value FROM {feedback} WHERE name IN ({wanted}) "
        "QUALIFY row_number() OVER (PARTITION BY target_kind, target_id, name "
        "ORDER BY timestamp DESC, record_id DESC, value DESC) = 1"
    )
    types = connection.execute(
        "SELECT name, bool_and(type IN ('UBIGINT', 'BIGINT', 'DOUBLE')), bool_and(type = 'BOOLEAN') FROM "
        "(SELECT name, nullif(json_type(value), 'NULL') AS type FROM latest_feedback) GROUP BY name"
    ).fetchall()
    known = {name: "DOUBLE" if numbers else "BOOLEAN" if flags else "VARCHAR" for name, numbers, flags in types}
    columns = [
        f", any_value({{'value': TRY_CAST(value->>'$' AS {of_type})}}) FILTER (name = {literal(name)}) "
        f"AS {quoted(name)}"
        for name, of_type in known.items()
    ]
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {_TARGETS} AS SELECT target_kind, target_id{''.join(columns)} "
        "FROM latest_feedback GROUP BY target_kind, target_id"
    )
    return list(known)
