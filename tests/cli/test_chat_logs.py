"""What a log of conversations becomes, and which logs are refused."""

import gzip
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import zstandard

from ingest.chat_logs import CheckedLog, StoreCall, check_log, read_runs, store_calls
from ingest.errors import InvalidLog

NOW = datetime(2024, 6, 1, tzinfo=UTC)
START = date(2024, 5, 15)


def call(name: str, arguments: object, call_id: str | None = "call_1") -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def asks(*calls: object) -> dict[str, object]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def answers(content: str, call_id: str | None = "call_1") -> dict[str, object]:
    return {"role": "tool", "tool_call_id": call_id, "name": "any", "content": content}


def run(*messages: object, **fields: object) -> dict[str, object]:
    return {"messages": list(messages), **fields}


HELLO = {"role": "user", "content": "hello"}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "runs.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def checked(path: Path, days: int = 1, start: date | None = START) -> CheckedLog:
    return check_log(path, start=start, days=days, start_date=date(2024, 1, 1), now=NOW)


def records(path: Path, kind: str = "", **options: object) -> list[StoreCall]:
    return [call for call in store_calls(checked(path, **options)) if kind in {"", call.kind}]  # type: ignore[arg-type]


def refusal(path: Path, start: date | None = START) -> str:
    with pytest.raises(InvalidLog) as caught:
        checked(path, start=start)
    return str(caught.value)


def test_a_run_becomes_an_event_a_message_a_tool_execution_a_call_one_task_and_its_outcome(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        run(HELLO, asks(call("find", '{"q": 1}')), answers("found"), task_id=7, trial=2, reward=1.0, info={"a": [1]}),
    )
    events, executions = records(path, "events"), records(path, "tool_executions")
    (task,), (feedback,) = records(path, "tasks"), records(path, "feedback")
    assert [event.fields["event_type"] for event in events] == ["user_message", "assistant_message", "tool_message"]
    assert [event.fields["payload"] for event in events] == json.loads(path.read_text())["messages"]
    (execution,) = executions
    assert execution.fields["tool_name"] == "find"
    assert execution.fields["input_params"] == {"q": 1}
    assert execution.fields["output_result"] == "found"
    assert task.fields["task_id"] == execution.fields["task_id"] == feedback.fields["target_id"] == "7-2"
    assert task.fields["metadata"] == {"task_id": 7, "trial": 2, "info": {"a": [1]}}
    assert (feedback.fields["name"], feedback.fields["value"]) == ("reward", 1.0)
    sessions = {record.fields["session_id"] for record in (*events, *executions, task, feedback)}
    assert len(sessions) == 1


def test_a_run_without_a_task_id_gets_one_from_its_content(tmp_path: Path) -> None:
    path = write(tmp_path, run(HELLO), {"traj": [HELLO], "score": 3})
    first, second = (str(task.fields["task_id"]) for task in records(path, "tasks"))
    assert first != second
    assert first.startswith("run-")
    assert [(f.fields["name"], f.fields["value"]) for f in records(path, "feedback")] == [("score", 3)]


def test_ids_of_the_line_become_the_ids_of_its_records(tmp_path: Path) -> None:
    path = write(tmp_path, run(HELLO, agent_id="a", session_id="s", workflow_id=5))
    event, task = records(path)
    assert (event.fields["agent_id"], event.fields["session_id"]) == ("a", "s")
    assert "workflow_id" not in event.fields
    assert task.fields["metadata"] == {"workflow_id": 5}, "what is no text stays as it is"


def test_an_outcome_that_is_no_score_stays_in_the_metadata(tmp_path: Path) -> None:
    path = write(tmp_path, run(HELLO, reward={"a": 1}), run(HELLO, reward=None), run(HELLO, reward=False))
    assert [task.fields["metadata"] for task in records(path, "tasks")] == [
        {"reward": {"a": 1}},
        {"reward": None},
        None,
    ]
    assert [feedback.fields["value"] for feedback in records(path, "feedback")] == [False]


def paired(path: Path) -> list[tuple[object, object, object]]:
    return [
        (call.fields["tool_name"], call.fields["output_result"], call.fields["status"])
        for call in records(path, "tool_executions")
    ]


def test_an_id_that_repeats_means_the_nearest_call_before_the_answer(tmp_path: Path) -> None:
    path = write(tmp_path, run(asks(call("a", "{}")), answers("1"), asks(call("b", "{}")), answers("2")))
    assert paired(path) == [("a", "1", "completed"), ("b", "2", "completed")]
    path = write(tmp_path, run(asks(call("a", "{}")), asks(call("b", "{}")), answers("2")))
    assert paired(path) == [("a", None, "pending"), ("b", "2", "completed")]


def test_answers_to_parallel_calls_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    asked = asks(call("a", "{}", "x"), call("b", "{}", "y"))
    path = write(tmp_path, run(asked, answers("to b", "y"), answers("to a", "x")))
    assert paired(path) == [("a", "to a", "completed"), ("b", "to b", "completed")]


def test_answers_without_a_fitting_id_are_taken_in_their_order(tmp_path: Path) -> None:
    asked = asks(call("a", "{}", "x"), call("b", "{}", None), call("c", "{}", "z"))
    path = write(tmp_path, run(asked, answers("to b", None), answers("to a", "x"), answers("to c", "strange")))
    assert [output for _, output, _ in paired(path)] == ["to a", "to b", "to c"]


def test_an_answer_is_never_given_to_a_call_behind_it_nor_twice(tmp_path: Path) -> None:
    path = write(tmp_path, run(answers("early"), asks(call("a", "{}")), answers("1"), answers("2")))
    assert paired(path) == [("a", "1", "completed")]


def test_the_older_function_call_and_custom_calls_are_tool_executions_too(tmp_path: Path) -> None:
    older = {"role": "assistant", "content": None, "function_call": {"name": "old", "arguments": "[1]"}}
    custom = asks({"id": "c", "type": "custom", "custom": {"name": "new", "input": "x = 1"}})
    path = write(tmp_path, run(older, {"role": "function", "name": "old", "content": "1"}, custom, answers("2", "c")))
    assert paired(path) == [("old", "1", "completed"), ("new", "2", "completed")]
    assert [c.fields["input_params"] for c in records(path, "tool_executions")] == [[1], "x = 1"]


def test_arguments_that_are_no_json_are_kept_as_the_model_wrote_them(tmp_path: Path) -> None:
    path = write(tmp_path, run(asks(call("a", '{"q": 1'), call("b", {"q": 1}), call("c", None))))
    assert [c.fields["input_params"] for c in records(path, "tool_executions")] == ['{"q": 1', {"q": 1}, None]


def times(calls: list[StoreCall]) -> list[datetime]:
    return [call.fields["timestamp"] for call in calls]  # type: ignore[misc]  # datetimes, by StoreCall


def test_times_strictly_increase_by_a_microsecond_and_runs_are_spread_evenly(tmp_path: Path) -> None:
    path = write(tmp_path, *(run(HELLO, asks(call("a", "{}")), answers("1"), reward=n) for n in range(4)))
    every = times(records(path, days=2))
    midnight = datetime(2024, 5, 15, tzinfo=UTC)
    starts = [midnight + n * timedelta(hours=12) for n in range(4)]
    assert every == [start + n * timedelta(microseconds=1) for start in starts for n in range(6)]


def test_times_of_the_log_are_kept_and_the_rest_fits_between_them(tmp_path: Path) -> None:
    timed = {**HELLO, "timestamp": "2024-05-20T10:00:00+02:00"}
    asked = {**asks(call("a", "{}")), "created_at": 1716192060.5}
    answer = {**answers("1"), "created": 1716192061000}
    path = write(tmp_path, run({"role": "system", "content": "s"}, timed, asked, answer, HELLO))
    log = checked(path, start=None)
    moments = times(list(store_calls(log)))
    at_eight = datetime(2024, 5, 20, 8, 0, 0, tzinfo=UTC)
    assert moments[:3] == [at_eight - timedelta(microseconds=1), at_eight, at_eight + timedelta(seconds=60.5)]
    assert moments[4:] == [at_eight + timedelta(seconds=61, microseconds=n) for n in range(3)]
    (execution,) = records(path, "tool_executions", start=None)
    assert execution.fields["execution_time_ms"] == 500.0
    assert execution.fields["completed_at"] == at_eight + timedelta(seconds=61)
    assert (log.first, log.last) == (min(moments), max(moments))


def test_a_time_of_the_run_is_where_its_messages_begin(tmp_path: Path) -> None:
    path = write(tmp_path, run(HELLO, HELLO, started_at="2024-05-20T08:00:00"))
    began = datetime(2024, 5, 20, 8, tzinfo=UTC)
    assert times(records(path, start=None)) == [began + timedelta(microseconds=n) for n in range(3)]
    assert records(path, "tasks", start=None)[0].fields["started_at"] == began


def test_times_that_run_backwards_are_put_in_order(tmp_path: Path) -> None:
    later, earlier = ({**HELLO, "timestamp": f"2024-05-20T08:00:0{second}"} for second in (5, 1))
    moments = times(records(write(tmp_path, run(later, earlier)), start=None))
    assert moments == sorted(set(moments))


def keys(path: Path) -> list[tuple[str, object]]:
    return [(call.kind, call.fields["idempotency_key"]) for call in records(path)]


def test_keys_depend_on_the_line_its_occurrence_and_the_place_and_on_nothing_else(tmp_path: Path) -> None:
    one, other = run(HELLO, reward=1), run(HELLO, reward=0)
    first = keys(write(tmp_path, one, other))
    assert len(set(first)) == len(first) == 6
    assert keys(write(tmp_path, one, other)) == first
    assert keys(write(tmp_path, other, "\n  \n", one, run(HELLO, new=1)))[:6] == first[3:] + first[:3]
    twice = keys(write(tmp_path, one, one))
    assert twice[:3] == first[:3]
    assert len(set(twice)) == 6
    tasks = records(write(tmp_path, one, one), "tasks")
    assert tasks[0].fields["session_id"] != tasks[1].fields["session_id"]


def test_a_compressed_log_is_the_same_log_whatever_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, *(run(HELLO, n=n) for n in range(3)))
    plain = path.read_bytes()
    expected = records(path)
    compress = zstandard.ZstdCompressor().compress
    for data in (
        gzip.compress(plain), gzip.compress(plain[:30]) + gzip.compress(plain[30:]),
        compress(plain), compress(plain[:30]) + compress(plain[30:]), plain.rstrip(b"\n"), b"\xef\xbb\xbf" + plain,
    ):  # fmt: skip
        path.write_bytes(data)
        assert records(path) == expected


def test_a_compressed_log_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, *(run({"role": "user", "content": f"{n} {n * n}"}) for n in range(3000)))
    plain = path.read_bytes()
    for data in (gzip.compress(plain), zstandard.ZstdCompressor().compress(plain)):
        for end in (len(data) // 2, len(data) - 1):
            path.write_bytes(data[:end])
            assert "copy it again" in refusal(path)
        path.write_bytes(data[: len(data) // 2] + b"strange" + data[len(data) // 2 :])
        refusal(path)  # it decompresses to something else before the error is noticed


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("not json\n", "no JSON"),
        ('{"messages": [\n', "no JSON"),
        ([run(HELLO)], "a JSON object that holds a run; make it one run a line"),
        ("3\n", "expected a JSON object"),
        ({"conversations": []}, "the keys conversations: expected `messages` or `traj`"),
        ({"messages": []}, "at least one"),
        ({"messages": {}}, "expected a list of chat messages"),
        (run("hello"), r"messages[1] is 'hello' (str)"),
        (run({"from": "human", "value": "x"}), "messages[1] has role None"),
        (run({"role": "human", "content": "x"}), "expected one of system, developer, user"),
        (run({"role": "user", "content": 5}), "messages[1].content is 5 (int)"),
        (run({"role": "assistant", "tool_calls": {}}), "messages[1].tool_calls is {} (dict)"),
        (run(asks({"id": "x"})), "messages[1].tool_calls[0] is {'id': 'x'} (dict)"),
        (run({"role": "assistant", "function_call": "x"}), "function_call"),
        (run(HELLO, task_id=1.5), "task_id is 1.5 (float)"),
        (run(HELLO, task_id="a", trial=True), "trial is True (bool)"),
        (run(HELLO, timestamp="yesterday"), "has timestamp 'yesterday' (str): expected RFC 3339"),
        (run({**HELLO, "created": [1]}), "messages[1] has created [1] (list)"),
        (run(HELLO, created_at=1e300), "expected RFC 3339"),
        (run(HELLO, created_at="0001-01-01"), "expected RFC 3339"),
        ('{"messages": ' + "[" * 100_000 + "\n", "nested too deep"),
    ],
)
def test_a_line_that_is_no_run_is_refused_by_file_line_and_expectation(line: object, told: str, tmp_path: Path) -> None:
    if isinstance(line, dict) and isinstance(line.get("messages"), list) and line["messages"]:
        line = {**line, "messages": [HELLO, *line["messages"]]}
    path = write(tmp_path, run(HELLO), line)
    message = refusal(path)
    assert message.startswith(f"{path}, line 2: ")
    assert told in message
    assert "expected" in message


def test_a_line_that_is_not_utf_8_is_refused_by_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"messages": [{"role": "user", "content": "caf\xe9"}]}\n')
    assert "line 1: byte 46 is not UTF-8" in refusal(path)


def test_runs_without_a_time_need_a_start(tmp_path: Path) -> None:
    path = write(tmp_path, run(HELLO, created=1716192060), run(HELLO))
    assert "line 2: the run has no time" in refusal(path, start=None)
    assert "--start" in refusal(path, start=None)


def test_times_without_a_partition_are_refused_and_the_start_date_to_set_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, run(HELLO, created=1716192060), run(HELLO, created_at="1970-01-02"), run(HELLO))
    assert "line 2" in refusal(path)
    assert "set TDS_START_DATE=1970-01-02" in refusal(path)
    assert "set TDS_START_DATE=2023-12-31" in refusal(write(tmp_path, run(HELLO)), start=date(2023, 12, 31))
    assert "2199" in refusal(write(tmp_path, run(HELLO, created_at="2199-01-01")))
    assert "more than a day ahead" in refusal(write(tmp_path, run(HELLO)), start=NOW.date() + timedelta(days=2))


def test_an_empty_log_has_no_runs_and_is_no_error(tmp_path: Path) -> None:
    log = checked(write(tmp_path, "\n"), start=None)
    assert (log.runs, log.records, log.first) == (0, {}, None)
    assert not list(read_runs(log.path))
    assert not list(store_calls(log))
