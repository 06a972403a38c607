"""160 real runs of an airline agent, there and back: every field of every export against the log itself.

The reading of the log here shares nothing with `ingest.chat_logs`.
"""

import functools
import gzip
import itertools
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import Result

from ingest import Settings
from ingest.records import KINDS
from tests.parts import PROJECT

AIRLINE_RUNS = PROJECT.parent / "shared" / "data" / "airline_runs.jsonl.gz"
DAYS = ("--start", "2024-05-15", "--end", "2024-05-21")
COUNTS = {"events": 4652, "tasks": 160, "tool_executions": 1039, "workflows": 0, "feedback": 160}
Row = dict[str, object]
Tds = Callable[..., Result]


def import_runs(tds: Tds) -> None:
    result = tds("import", AIRLINE_RUNS, "--format", "openai-chat", "--start", "2024-05-15", "--days", 7)
    assert result.exit_code == 0, result.stderr


def export_all(tds: Tds) -> dict[str, bytes]:
    files = {}
    for kind in KINDS:
        result = tds("export", kind, *DAYS)
        assert result.exit_code == 0, result.stderr
        files[kind] = Path(result.stdout.splitlines()[-1]).read_bytes()
    return files


@pytest.fixture(scope="module")
def airline_tds(run_tds: Tds, tmp_path_factory: pytest.TempPathFactory) -> Tds:
    return functools.partial(run_tds, Settings(data_dir=tmp_path_factory.mktemp("airline") / "data"))


@pytest.fixture(scope="module")
def exports(airline_tds: Tds) -> dict[str, bytes]:
    import_runs(airline_tds)
    return export_all(airline_tds)


def rows_of(data: bytes) -> list[Row]:
    return [json.loads(line) for line in data.splitlines()]


def differences(expected: Row, row: Row) -> list[str]:
    """The columns in which a row is not what the log says; columns that are not named have to be null."""
    return [
        f"{name}: {row[name]!r}, not {expected.get(name)!r}"
        for name in row
        if repr(row[name]) != repr(expected.get(name))  # 1 and 1.0 and true are not the same
    ]


def expected_rows() -> dict[str, list[Row]]:
    """What the log says, run by run, without the times and the ids that the import gives."""
    rows: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    with gzip.open(AIRLINE_RUNS) as lines:
        for line in lines:
            run = json.loads(line)
            task_id = f"{run['task_id']}-{run['trial']}"
            for position, message in enumerate(run["traj"]):
                rows["events"].append({
                    "event_type": f"{message['role']}_message", "source": "openai-chat", "severity": "info",
                    "payload": message, "metadata": {"position": position},
                })  # fmt: skip
                for tool_call in message.get("tool_calls") or []:
                    answer = run["traj"][position + 1]
                    assert answer["tool_call_id"] == tool_call["id"]
                    rows["tool_executions"].append({
                        "task_id": task_id, "tool_name": tool_call["function"]["name"], "status": "completed",
                        "input_params": json.loads(tool_call["function"]["arguments"]),
                        "output_result": answer["content"],
                        "metadata": {
                            "tool_call_id": tool_call["id"], "position": position, "answer_position": position + 1,
                        },
                    })  # fmt: skip
            rest = {name: value for name, value in run.items() if name not in {"traj", "reward"}}
            rows["tasks"].append(
                {"task_id": task_id, "task_type": "conversation", "status": "completed", "metadata": rest}
            )
            rows["feedback"].append({
                "target_kind": "task", "target_id": task_id, "name": "reward", "value": run["reward"], "source": "code",
            })  # fmt: skip
    return rows


def test_every_field_of_every_line_is_what_the_log_says(exports: dict[str, bytes]) -> None:
    found: list[str] = []
    for kind, expected in expected_rows().items():
        rows = rows_of(exports[kind])
        assert len(rows) == len(expected) == COUNTS[kind]
        given = {"record_id", "event_id", "execution_id", "session_id", "timestamp"}
        for n, (row, wanted) in enumerate(zip(rows, expected, strict=True)):
            assert list(row) == [column.name for column in KINDS[kind].columns]
            found += [
                f"{kind} {n}: {text}" for text in differences(wanted | {k: row[k] for k in given & set(row)}, row)
            ]
    assert not found, f"{len(found)} differences, the first ones: {found[:5]}"


def test_the_log_can_be_made_again_from_the_exports(exports: dict[str, bytes]) -> None:
    runs: dict[str, Row] = {}
    for task in rows_of(exports["tasks"]):
        metadata = task["metadata"]
        assert isinstance(metadata, dict)
        runs[str(task["session_id"])] = {**metadata, "traj": []}
    for feedback in rows_of(exports["feedback"]):
        runs[str(feedback["session_id"])]["reward"] = feedback["value"]
    for event in rows_of(exports["events"]):
        runs[str(event["session_id"])]["traj"].append(event["payload"])  # type: ignore[attr-defined]  # the list above
    with gzip.open(AIRLINE_RUNS) as lines:
        log = [json.loads(line) for line in lines]
    assert list(runs.values()) == log


def test_ids_are_unique_and_times_strictly_increase_over_seven_days(exports: dict[str, bytes]) -> None:
    executions = rows_of(exports["tool_executions"])
    assert len({row["execution_id"] for row in executions}) == 1039
    assert len({row["metadata"]["tool_call_id"] for row in executions}) == 131  # type: ignore[index]
    everything = [row for data in exports.values() for row in rows_of(data)]
    times = sorted(datetime.fromisoformat(str(row["timestamp"])) for row in everything)
    assert len(set(times)) == len(times) == sum(COUNTS.values())
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) == timedelta(microseconds=1)
    assert {moment.date().isoformat() for moment in times} == {f"2024-05-{day}" for day in range(15, 22)}
    assert sum(row["value"] == 1.0 for row in rows_of(exports["feedback"])) == 59


def test_imported_twice_every_export_stays_byte_identical(exports: dict[str, bytes], airline_tds: Tds) -> None:
    import_runs(airline_tds)
    assert export_all(airline_tds) == exports
