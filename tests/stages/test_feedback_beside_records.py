"""Feedback beside the records that it is about: the nearest target's, and of that the latest."""

import json
from collections.abc import Mapping, Sequence

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.records import KINDS
from tds_dagster.export.feedback import latest_feedback, matching
from tds_dagster.export.predicate import parse_predicate

Row = Mapping[str, object]
SQL_TYPES = {"timestamp": "TIMESTAMPTZ", "integer": "BIGINT", "number": "DOUBLE"}


def load(connection: duckdb.DuckDBPyConnection, name: str, kind: str, rows: Sequence[Mapping[str, object]]) -> None:
    columns = KINDS[kind].types
    definition = ", ".join(f'"{column}" {SQL_TYPES.get(of_type, "VARCHAR")}' for column, of_type in columns.items())
    connection.execute(f"CREATE OR REPLACE TABLE {name} ({definition})")
    for row in rows:
        connection.execute(
            f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", [row.get(column) for column in columns]
        )


def prepared(
    kind: str, records: Sequence[Row], tasks: Sequence[Row], given: Sequence[Row], names: Sequence[str]
) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    stamp = {"timestamp": "2024-05-15T08:30:00.000000Z"}
    load(connection, "records", kind, [{**stamp, **row} for row in records])
    load(connection, "all_tasks", "tasks", [{**stamp, "record_id": str(n), **row} for n, row in enumerate(tasks)])
    load(connection, "given", "feedback", given)
    latest_feedback(connection, kind, names, records="records", tasks="all_tasks", feedback="given")
    return connection


def judged(
    target: str, of: str, value: object, name: str = "reward", at: int = 0, record_id: str = "f"
) -> dict[str, object]:
    stamp = f"2024-05-16T00:00:{at:02}.000000Z"
    return {
        "target_kind": target, "target_id": of, "name": name, "value": json.dumps(value),
        "timestamp": stamp, "record_id": record_id,
    }  # fmt: skip


def matched(text: str, kind: str, records: Sequence[Row], tasks: Sequence[Row], given: Sequence[Row]) -> list[str]:
    predicate = parse_predicate(kind, text)
    with prepared(kind, records, tasks, given, predicate.feedback) as connection:
        return sorted(row[0] for row in connection.execute(matching(predicate, "records")).fetchall())


def test_the_nearest_target_wins_and_then_the_latest_one() -> None:
    record = {"record_id": "r", "task_id": "t", "session_id": "s", "workflow_id": "w"}
    ladder = [judged("workflow", "w", 1, at=9), judged("session", "s", 2, at=8), judged("task", "t", 3, at=7)]
    for number in range(1, 4):
        assert matched(f"feedback.reward = {number}", "tool_executions", [record], [], ladder[:number]) == ["r"]
    own = [judged("record", "r", 4, at=1), judged("record", "r", 5, at=2), judged("record", "r", 6, at=1)]
    assert matched("feedback.reward = 5", "tool_executions", [record], [], [*ladder, *own]) == ["r"]


def test_a_tool_execution_is_meant_by_its_record_id_or_else_by_its_execution_id() -> None:
    record = {"record_id": "r", "execution_id": "x", "task_id": "t"}
    given = [judged("record", "x", 2), judged("task", "t", 1, at=9)]
    assert matched("feedback.reward = 2", "tool_executions", [record], [], given) == ["r"]
    assert matched("feedback.reward = 3", "tool_executions", [record], [], [*given, judged("record", "r", 3)]) == ["r"]


def test_of_one_moment_the_higher_record_id_is_the_latest() -> None:
    both = [judged("record", "r", 1, record_id="b"), judged("record", "r", 2, record_id="a")]
    assert matched("feedback.reward = 1", "events", [{"record_id": "r"}], [], both) == ["r"]


def test_a_record_without_a_task_belongs_to_the_one_task_of_its_session() -> None:
    records = [{"record_id": "r1", "session_id": "s1"}, {"record_id": "r2", "session_id": "s2"}, {"record_id": "r3"}]
    tasks = [
        {"task_id": "t1", "session_id": "s1"}, {"task_id": "t1", "session_id": "s1"},
        {"task_id": "t2", "session_id": "s2"}, {"task_id": "t3", "session_id": "s2"}, {"task_id": "t4"},
    ]  # fmt: skip
    given = [judged("task", task, 1) for task in ("t1", "t2", "t3", "t4")]
    assert matched("feedback.reward >= 1", "events", records, tasks, given) == ["r1"]


def test_a_value_of_null_takes_an_earlier_one_back() -> None:
    given = [judged("record", "r", 1, at=1), judged("record", "r", None, at=2), judged("session", "s", 1)]
    assert not matched("feedback.reward = 1", "events", [{"record_id": "r", "session_id": "s"}], [], given)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("feedback.mark >= 1", ["number", "text number"]),
        ("feedback.mark = 'good'", ["text"]),
        ("feedback.mark", ["flag"]),
        ("feedback.mark LIKE '%o%'", ["text"]),
        ("feedback.mark IS NULL", ["nothing"]),
        ("coalesce(feedback.mark, 7) = 7", ["flag", "nothing", "text"]),
        ("feedback.nobody_gave_this >= 1 OR feedback.nor_this LIKE 'a'", []),
    ],
)
def test_mixed_values_are_read_as_what_they_stand_beside(text: str, expected: list[str]) -> None:
    values = {"number": 2, "text": "good", "flag": True, "text number": "1.5"}
    given = [judged("record", of, value, name="mark") for of, value in values.items()]
    records = [{"record_id": name} for name in [*values, "nothing"]]
    assert matched(text, "events", records, [], given) == expected


def test_values_of_one_type_keep_it() -> None:
    given = [judged("record", "r", 0.25, "a"), judged("record", "r", 3, "b"), judged("record", "r", False, "c")]
    given += [judged("record", "r", 'say "é"', 'odd "name"')]
    names = ["a", "b", "c", 'odd "name"', "absent"]
    with prepared("events", [{"record_id": "r"}], [], given, names) as connection:
        row = connection.execute("FROM feedback_of_records").fetchone()
    assert row == ("r", 0.25, 3.0, False, 'say "é"', None)
    assert type(row[2]) is float


def test_the_view_follows_when_records_becomes_another_day() -> None:
    given = [judged("record", "later", 1)]
    predicate = parse_predicate("events", "feedback.reward = 1")
    with prepared("events", [{"record_id": "r"}], [], given, predicate.feedback) as connection:
        load(connection, "records", "events", [{"record_id": "later", "timestamp": "2024-05-16T00:00:00.000000Z"}])
        assert connection.execute(matching(predicate, "records")).fetchall() == [("later",)]


few = st.sampled_from(["1", "2", "3", None])
record_rows = st.lists(
    st.fixed_dictionaries({"task_id": few, "session_id": few, "workflow_id": few}), min_size=1, max_size=6
).map(lambda rows: [{**row, "record_id": str(number)} for number, row in enumerate(rows, 1)])
task_rows = st.lists(
    st.fixed_dictionaries({"task_id": st.sampled_from(["1", "2", "3"]), "session_id": few}), max_size=5
)
given_rows = st.lists(
    st.builds(
        judged,
        st.sampled_from(["record", "task", "session", "workflow"]),
        st.sampled_from(["1", "2", "3"]),
        st.sampled_from([0, 1, 0.5, None]),
        name=st.sampled_from(["reward", "cost"]),
        at=st.integers(0, 3),
        record_id=st.sampled_from(["a", "b"]),
    ),
    max_size=12,
    unique_by=lambda row: (row["target_kind"], row["target_id"], row["name"], row["timestamp"], row["record_id"]),
)


def naive(kind: str, record: Row, tasks: Sequence[Row], given: Sequence[Row], name: str) -> float | None:
    of_session = {task["task_id"] for task in tasks if task["session_id"] == record["session_id"] is not None}
    task = record["task_id"] if kind == "tool_executions" else None
    if task is None and len(of_session) == 1:
        (task,) = of_session
    targets = {"record": record["record_id"], "task": task, "session": record["session_id"]}
    for target, of in {**targets, "workflow": record["workflow_id"]}.items():
        found = [row for row in given if (row["target_kind"], row["target_id"], row["name"]) == (target, of, name)]
        if found and of is not None:
            value = json.loads(str(max(found, key=lambda row: (str(row["timestamp"]), str(row["record_id"])))["value"]))
            return None if value is None else float(value)
    return None


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["events", "tool_executions"]), records=record_rows, tasks=task_rows, given_rows=given_rows)
def test_it_is_what_a_search_by_hand_finds(
    kind: str, records: list[Row], tasks: list[Row], given_rows: list[Row]
) -> None:
    with prepared(kind, records, tasks, given_rows, ["reward", "cost"]) as connection:
        found = connection.execute("FROM feedback_of_records ORDER BY record_id").fetchall()
    expected = [
        (record["record_id"], *(naive(kind, record, tasks, given_rows, name) for name in ("reward", "cost")))
        for record in records
    ]
    assert found == expected
