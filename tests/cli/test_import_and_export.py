"""From a log to JSONL by two commands: what is printed, what is refused, and what a second time adds."""

import gzip
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import redis
from typer.testing import Result

from ingest import Settings, TrainingDataStore
from ingest.pipeline.synapse import stream_key
from tds_dagster.cli.export import Exported
from tds_dagster.cli.import_log import Imported
from tests.parts import RedisServer, csv_rows, wait_until

Tds = Callable[..., Result]
FORMAT = ("--format", "openai-chat")
SPREAD = ("--start", "2024-05-15", "--days", "3")
DAYS = ("--start", "2024-05-15", "--end", "2024-05-17")


def made_up_run(n: int) -> dict[str, object]:
    call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": json.dumps({"n": n})}}
    messages = [
        {"role": "user", "content": f'question {n}, with "quotes",\nlines and \x00'},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "find", "content": str(n)},
        {"role": "assistant", "content": "žluťoučký kůň 🐎", "extra": {"deep": [1.0, 2, None, True]}},
    ]
    return {"task_id": n, "trial": 0, "reward": n % 2, "messages": messages, "model": "made-up", "numbers": [1, 2.5]}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(made_up_run(n)) + "\n" for n in range(9)).encode()))
    return path


def exported(tds: Tds, kind: str, *options: object) -> list[dict[str, object]]:
    result = tds("export", kind, *options)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in Path(result.stdout.splitlines()[-1]).read_bytes().splitlines()]


def test_a_log_comes_back_from_its_exports(log: Path, tds: Tds) -> None:
    result = tds("import", log, *FORMAT, *SPREAD)
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        ["events", "36", "36", "0"], ["tool_executions", "9", "9", "0"],
        ["tasks", "9", "9", "0"], ["feedback", "9", "9", "0"],
    ]  # fmt: skip
    events = exported(tds, "events", *DAYS)
    assert [event["payload"] for event in events] == [m for n in range(9) for m in made_up_run(n)["messages"]]  # type: ignore[attr-defined]
    tasks = exported(tds, "tasks", *DAYS)
    assert [task["task_id"] for task in tasks] == [f"{n}-0" for n in range(9)]
    assert tasks[3]["metadata"] == {"task_id": 3, "trial": 0, "model": "made-up", "numbers": [1, 2.5]}
    assert [call["input_params"] for call in exported(tds, "tool_executions", *DAYS)] == [{"n": n} for n in range(9)]
    assert [feedback["value"] for feedback in exported(tds, "feedback", *DAYS)] == [n % 2 for n in range(9)]


def test_a_log_imported_again_adds_nothing_and_says_so(log: Path, tds: Tds) -> None:
    tds("import", log, *FORMAT, *SPREAD)
    first = exported(tds, "events", *DAYS)
    again = tds("import", log, *FORMAT, "--start", "2024-05-16", "--json")
    assert again.exit_code == 0
    told = msgspec.json.decode(again.stdout, type=Imported)
    assert {kind: (n.in_log, n.stored, n.already_there) for kind, n in told.kinds.items()} == {
        "events": (36, 0, 36), "tool_executions": (9, 0, 9), "tasks": (9, 0, 9), "feedback": (9, 0, 9),
    }  # fmt: skip
    assert exported(tds, "events", *DAYS) == first


def test_a_log_that_grew_adds_its_new_runs(log: Path, tds: Tds) -> None:
    tds("import", log, *FORMAT, *SPREAD)
    log.write_text("".join(json.dumps(made_up_run(n)) + "\n" for n in range(10)))
    told = json.loads(tds("import", log, *FORMAT, *SPREAD, "--json").stdout)
    assert told["kinds"]["events"] == {"in_log": 40, "stored": 4, "already_there": 36}


def test_json_is_one_object_with_the_documented_fields(log: Path, tds: Tds) -> None:
    imported = json.loads(tds("import", log, *FORMAT, *SPREAD, "--json").stdout)
    assert list(imported) == list(Imported.__struct_fields__)
    assert (imported["runs"], imported["first"]) == (9, "2024-05-15T00:00:00.000000Z")
    result = tds("export", "events", *DAYS, "--json")
    told = msgspec.json.decode(result.stdout, type=Exported)
    assert list(json.loads(result.stdout)) == list(Exported.__struct_fields__)
    assert (told.kind, told.start, told.end, told.rows) == ("events", "2024-05-15", "2024-05-17", 36)
    assert told.rebuilt == ["2024-05-15", "2024-05-16", "2024-05-17"]
    assert Path(told.path).stat().st_size == told.bytes
    assert json.loads(Path(told.manifest).read_bytes())["sha256"] == told.sha256


def test_an_export_goes_where_it_was_asked_to_go_as_well(log: Path, tds: Tds, tmp_path: Path) -> None:
    tds("import", log, *FORMAT, *SPREAD)
    result = tds("export", "events", *DAYS, "--out", tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_bytes() == Path(result.stdout.splitlines()[-1]).read_bytes()


def test_what_is_selected_of_an_export_is_a_file_of_its_own(log: Path, tds: Tds, settings: Settings) -> None:
    tds("import", log, *FORMAT, *SPREAD)
    whole = exported(tds, "tasks", *DAYS)
    good = exported(tds, "tasks", *DAYS, "--where", "feedback.reward >= 1", "--columns", "task_id,record_id")
    assert good == [{name: task[name] for name in ("task_id", "record_id")} for task in whole[1::2]]
    assert exported(tds, "tasks", *DAYS, "--limit", 2) == whole[:2]
    result = tds("export", "tasks", *DAYS, "--sample", "50%", "--format", "parquet", "--redaction", "full", "--json")
    told = msgspec.json.decode(result.stdout, type=Exported)
    assert (Path(told.path).suffix, told.redaction, told.bytes) == (".parquet", "full", Path(told.path).stat().st_size)
    store = TrainingDataStore(settings)
    path = store.export_for_training("tasks", None, "2024-05-15", "2024-05-17", where="feedback.reward >= 1")
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == whole[1::2]
    assert (settings.data_dir / "training" / "tasks_training.jsonl").read_bytes().count(b"\n") == 9


def test_a_selection_of_nothing_exits_with_0_and_warns_and_one_that_is_none_with_2(log: Path, tds: Tds) -> None:
    tds("import", log, *FORMAT, *SPREAD)
    result = tds("export", "tasks", *DAYS, "--where", "status = 'nowhere'")
    assert (result.exit_code, Path(result.stdout.splitlines()[-1]).read_bytes()) == (0, b"")
    assert result.stderr.startswith("Warning: none of 9 tasks from 2024-05-15 to 2024-05-17 is selected")
    for option, value in {"--where": "status", "--columns": "statu", "--sample": "x", "--format": "csv"}.items():
        result = tds("export", "tasks", *DAYS, option, value)
        assert (result.exit_code, result.stdout) == (2, "")
        assert value in result.stderr


def test_a_range_without_records_exits_with_0_and_warns(tds: Tds) -> None:
    result = tds("export", "workflows", "--start", "2024-05-15", "--end", "2024-05-16", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == 0
    assert result.stderr.startswith("Warning: no workflows from 2024-05-15 to 2024-05-16")


def test_a_day_that_cannot_be_exported_exits_with_1_and_is_left_out_if_that_is_allowed(
    log: Path, tds: Tds, settings: Settings
) -> None:
    tds("import", log, *FORMAT, *SPREAD)
    day_file = settings.data_dir / "training" / "events" / "events_2024-05-16.csv"
    day_file.write_bytes(day_file.read_bytes()[:-100])
    result = tds("export", "events", *DAYS)
    assert result.exit_code == 1
    assert not result.stdout
    assert "2024-05-16" in result.stderr
    assert str(day_file) in result.stderr
    result = tds("export", "events", *DAYS, "--allow-missing", "--json")
    assert result.exit_code == 0
    told = msgspec.json.decode(result.stdout, type=Exported)
    assert (list(told.failed), told.rows) == (["2024-05-16"], 24)
    assert "events 2024-05-16 is left out" in result.stderr


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"messages": [{"role": "user"}]', "line 3: no JSON"),
        ('{"conversation": []}', "line 3: an object with the keys conversation"),
        (json.dumps({**made_up_run(3), "created": "1970-01-02"}), "set TDS_START_DATE=1970-01-02"),
        (json.dumps({**made_up_run(3), "created": "2199-01-01"}), "2199-01-01T00:00:00"),
    ],
)
def test_a_refused_log_exits_with_1_and_nothing_of_it_is_stored(
    line: str, told: str, tds: Tds, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(f"{text}\n" for text in (*(json.dumps(made_up_run(n)) for n in range(2)), line)))
    result = tds("import", path, *FORMAT, *SPREAD)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {path}, line 3")
    assert told in result.stderr
    assert not settings.data_dir.exists()


def test_a_log_without_times_needs_a_start(log: Path, tds: Tds) -> None:
    result = tds("import", log, *FORMAT)
    assert result.exit_code == 1
    assert "pass --start" in result.stderr


def test_a_start_that_is_not_needed_is_told(tds: Tds, tmp_path: Path) -> None:
    path = tmp_path / "timed.jsonl"
    path.write_text(json.dumps({**made_up_run(1), "created": 1716192060}) + "\n")
    result = tds("import", path, *FORMAT, "--start", "2024-01-02")
    assert result.exit_code == 0
    assert "--start and --days are not used" in result.stderr


def test_an_empty_log_is_imported_with_a_warning(tds: Tds, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    result = tds("import", tmp_path / "empty.jsonl", *FORMAT)
    assert result.exit_code == 0
    assert "holds no runs" in result.stderr


def test_an_import_stops_at_the_first_record_that_the_spool_cannot_take(
    log: Path, tds: Tds, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDS_MAX_RECORD_BYTES", "350")
    result = tds("import", log, *FORMAT, *SPREAD)
    assert result.exit_code == 1
    assert "TDS_MAX_RECORD_BYTES=350" in result.stderr
    monkeypatch.delenv("TDS_MAX_RECORD_BYTES")
    told = json.loads(tds("import", log, *FORMAT, *SPREAD, "--json").stdout)
    assert 0 < told["kinds"]["events"]["already_there"] < 36
    assert len(csv_rows(settings, "events")) == 36


def test_an_import_keeps_to_its_rate(log: Path, tds: Tds) -> None:
    began = time.monotonic()
    assert tds("import", log, *FORMAT, *SPREAD, "--rate", 100).exit_code == 0
    assert 0.62 < time.monotonic() - began < 5  # 63 records


def test_an_import_that_is_killed_is_completed_by_the_next_one(
    log: Path, tds: Tds, settings: Settings, start_tds: Callable[..., subprocess.Popen[str]]
) -> None:
    slow = start_tds("import", log, *FORMAT, *SPREAD, "--rate", 60)
    wait_until((settings.data_dir / "training" / "events").exists, "the first event is written")
    slow.kill()
    slow.wait()
    told = json.loads(tds("import", log, *FORMAT, *SPREAD, "--json").stdout)
    assert 0 < told["kinds"]["events"]["already_there"] < 36
    assert len({row["record_id"] for row in csv_rows(settings, "events")}) == len(csv_rows(settings, "events")) == 36


def test_a_log_goes_through_redis_to_the_same_rows(
    log: Path, tds: Tds, settings: Settings, redis_server: RedisServer, tmp_path: Path,
    start_tds: Callable[..., subprocess.Popen[str]],
) -> None:  # fmt: skip
    through_redis = msgspec.structs.replace(settings, data_dir=tmp_path / "other", redis_url=redis_server.url)
    importing = start_tds("import", log, *FORMAT, *SPREAD, settings=through_redis)
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: bool(client.exists(stream_key("feedback"))), "the last kind is in Redis")
    with pytest.raises(subprocess.TimeoutExpired):
        importing.wait(0.5)  # it is not done before the records are written
    start_tds("writer", settings=through_redis)
    assert importing.wait(30) == 0
    tds("import", log, *FORMAT, *SPREAD)
    for kind in ("events", "tool_executions", "tasks", "feedback"):
        rows = sorted(csv_rows(through_redis, kind), key=lambda row: str(row["timestamp"]))
        assert rows == sorted(csv_rows(settings, kind), key=lambda row: str(row["timestamp"]))
        assert rows


def test_what_a_killed_process_left_in_the_spool_is_exported(
    tds: Tds, settings: Settings, store: TrainingDataStore
) -> None:
    from tests.parts import run_python

    code = (
        "import os\nfrom ingest import get_training_data_store\n"
        "store = get_training_data_store()\n"
        "for n in range(5):\n"
        "    store.sync.store_agent_event('e', payload={'n': n}, timestamp='2024-05-15T08:00:00Z')\n"
        "os._exit(9)\n"
    )
    run_python(code, settings)
    events = exported(tds, "events", "--start", "2024-05-15", "--end", "2024-05-15")
    assert sorted(event["payload"]["n"] for event in events) == list(range(5))  # type: ignore[index]
