"""`tds show`: one session or task as it was, each record once, in order, below what it belongs to."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from ingest import Settings, TrainingDataStore
from ingest.errors import RedactionLeak
from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS
from tds_dagster.cli.screen import columns_of
from tds_dagster.export.run import Run, Step, build_run, read_run
from tests.cli.story import ANSWER, DAY, HOSTILE, SESSION, tell_story
from tests.parts import run_python

Tds = Callable[..., Result]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One data folder for the tests that only look."""
    return Settings(data_dir=tmp_path_factory.mktemp("story") / "data")


@pytest.fixture(scope="module")
def story(settings: Settings) -> DataPaths:
    store = TrainingDataStore(settings)
    tell_story(store)
    store.sync.close()
    return DataPaths(settings.data_dir)


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    """A data folder for a test that stores something else."""
    return Settings(data_dir=tmp_path / "data")


def stored(settings: Settings, tell: Callable[[TrainingDataStore], object]) -> DataPaths:
    store = TrainingDataStore(settings)
    tell(store)
    store.sync.flush(30)
    store.sync.close()
    return DataPaths(settings.data_dir)


def outline(steps: list[Step]) -> list[Any]:
    """What stands below what, by the name of each step."""
    return [[name_of(step), *([outline(step.steps)] if step.steps else [])] for step in steps]


def name_of(step: Step) -> str:
    row = step.row
    return str({"events": row.get("event_type"), "feedback": row.get("name"), "task": row.get("task_id")}.get(
        step.kind, row.get("tool_name") or row.get("workflow_id")
    ))  # fmt: skip


def records_in(steps: list[Step]) -> Iterator[str]:
    for step in steps:
        yield from (state["record_id"] for state in [*step.history, step.row] if "record_id" in state)
        yield from records_in(step.steps)


def curated_records(paths: DataPaths) -> list[str]:
    """The record ids in all curated files of the day."""
    files = [paths.curated(kind, DAY) for kind in KINDS]
    return [record for file in files for record in pq.read_table(file)["record_id"].to_pylist() if record]


def test_everything_stands_in_order_below_what_it_belongs_to(story: DataPaths) -> None:
    run = read_run(story, "session", SESSION)
    assert outline(run.steps) == [
        ["agent_started"],
        ["task-1", [
            ["system_message"],
            ["user_message"],
            ["assistant_message", [["find_order", [["tool_message"]]]]],
            ["assistant_message", [["better"]]],
            ["user_message"],
        ]],
        ["task-2", [["issue_refund"], ["refund_tried"], ["reward"]]],
        ["flow-1"],
        ["quality"],
    ]  # fmt: skip
    task = run.steps[1]
    assert [state["status"] for state in [*task.history, task.row]] == ["pending", "running", "completed"]
    assert (task.began, task.ended) == (f"{DAY}T08:30:01.000000Z", f"{DAY}T08:30:09.000000Z")
    assert run.agents == ["support-1"]
    assert run.records == {"events": 8, "tasks": 4, "workflows": 1, "tool_executions": 2, "feedback": 3}


def test_every_record_of_a_session_is_in_its_run_once(story: DataPaths) -> None:
    run = read_run(story, "session", SESSION)
    assert sorted(records_in(run.steps)) == sorted(curated_records(story))


def test_a_task_has_its_own_events_calls_and_feedback_and_no_others(story: DataPaths) -> None:
    assert outline(read_run(story, "task", "task-2").steps) == [
        ["task-2", [["issue_refund"], ["refund_tried"], ["reward"]]]
    ]  # fmt: skip
    assert len(list(records_in(read_run(story, "task", "task-1").steps))) == 3 + 6 + 1 + 1


def test_the_one_task_of_a_session_has_all_of_it(own: Settings) -> None:
    def tell(store: TrainingDataStore) -> None:
        store.sync.store_agent_event("before", session_id="s", timestamp=f"{DAY}T01:00:00Z")
        store.sync.store_agent_task("t", session_id="s", timestamp=f"{DAY}T02:00:00Z")
        store.sync.store_agent_event("after", session_id="s", timestamp=f"{DAY}T03:00:00Z")

    paths = stored(own, tell)
    assert outline(read_run(paths, "session", "s").steps) == [["t", [["before"], ["after"]]]]
    assert outline(read_run(paths, "task", "t").steps) == [["t", [["before"], ["after"]]]]


def test_records_that_came_since_are_written_and_curated_first(own: Settings, run_tds: Tds) -> None:
    stored(own, lambda store: store.sync.store_agent_event("first", session_id="s", timestamp=f"{DAY}T01:00:00Z"))
    assert "first" in run_tds(own, "show", "--session-id", "s").stdout
    dying = "import os, ingest; ingest.get_training_data_store().sync.store_agent_event('late', session_id='s')"
    assert run_python(f"{dying}; os._exit(0)", own).returncode == 0
    assert "late" in run_tds(own, "show", "--session-id", "s").stdout


def call(call_id: str | None, name: str = "find") -> dict[str, object]:
    return {"id": call_id, "function": {"name": name, "arguments": "{}"}}


def event(second: int, payload: object) -> dict[str, Any]:
    return {"record_id": f"e{second}", "timestamp": f"{DAY}T00:00:{second:02}Z", "event_type": "m", "payload": payload}


def execution(second: int, call_id: str | None, output: object, tool: str = "find") -> dict[str, Any]:
    metadata = {"tool_call_id": call_id}
    return {
        "record_id": f"x{second}", "timestamp": f"{DAY}T00:00:{second:02}Z", "execution_id": f"x{second}",
        "tool_name": tool, "output_result": output, "metadata": metadata,
    }  # fmt: skip


def test_calls_of_one_message_find_their_executions_and_answers_also_where_ids_repeat() -> None:
    """Real logs use an id again and again; an id means the nearest call."""
    rounds = [
        (0, [call("c"), call("d")], ["one", "two"]),
        (10, [call("c")], ["three"]),
        (20, [call(None, "sum")], ["four"]),
    ]  # fmt: skip
    events, executions = [], []
    for start, calls, outputs in rounds:
        events.append(event(start, {"role": "assistant", "content": None, "tool_calls": calls}))
        for place, (asked, output) in enumerate(zip(calls, outputs, strict=True), 1):
            name = str(asked["function"]["name"])  # type: ignore[index]  # made above
            executions.append(execution(start + place, asked["id"], output, name))  # type: ignore[arg-type]  # made above
            events.append(event(start + place + 4, {"role": "tool", "tool_call_id": asked["id"], "content": output}))
    run = build_run("session", "s", {"events": events, "tool_executions": executions})
    told = [
        [
            (below.row["output_result"], [answer.row["payload"]["content"] for answer in below.steps])
            for below in step.steps
        ]
        for step in run.steps
    ]
    assert told == [[("one", ["one"]), ("two", ["two"])], [("three", ["three"])], [("four", ["four"])]]


def test_the_calls_id_counts_for_more_than_the_order() -> None:
    message = event(0, {"role": "assistant", "content": None, "tool_calls": [call("c"), call("d")]})
    executions = [execution(1, "d", "second"), execution(2, "c", "first")]
    run = build_run("session", "s", {"events": [message], "tool_executions": executions})
    assert [below.row["output_result"] for below in run.steps[0].steps] == ["first", "second"]


def test_a_tools_message_that_says_something_else_stays_where_it_was() -> None:
    events = [
        event(0, {"role": "assistant", "content": "x", "tool_calls": [call("c")]}),
        event(2, {"role": "tool", "tool_call_id": "c", "content": "shortened"}),
    ]
    run = build_run("session", "s", {"events": events, "tool_executions": [execution(1, "c", "the whole")]})
    assert [len(step.steps) for step in run.steps] == [1, 0]


# ------------------------------------------------------------------------------------------------ the terminal


def test_a_person_reads_who_said_what_and_what_the_tools_did(story: DataPaths, tds: Tds) -> None:
    told = tds("show", "--session-id", SESSION).stdout
    assert told.startswith(
        f"session {SESSION}\n{DAY} 08:30:00.000 UTC, 32 s\n8 events, 2 tasks, 2 tool executions, 1 workflow state\n"
        "agents: support-1\nbetter (human, on the record); reward: 0 (code, on the task); "
    )
    passages = [
        "08:30:02.000  user\n        Where is my parcel A-17?\n",
        "08:30:03.000  assistant\n        08:30:03.100  find_order · database · completed · 850 ms\n",
        '            input: {"order_id": "A-17"}\n            output: {"order_id": "A-17", "status": "delayed", ',
        "It is late, two days more. Sorry!\n        08:30:32.000  better · human · on the record\n",
        "            no date\n            better: It comes on Friday.\n",
        "08:30:12.000  task task-2 · refund · failed · 2 of 3 retries\n    error: refund refused\n",
        "states: pending 08:30:01.000 → running 08:30:01.200 → completed 08:30:09.000\n",
        "workflow parcel · done · step 2 · 2 of 2 steps done\n",
    ]
    places = [told.find(passage) for passage in passages]
    assert -1 not in places, passages[places.index(-1)]
    assert told.count(ANSWER) == 1


def test_in_a_pipe_it_is_plain_text_that_commands_no_terminal(story: DataPaths, tds: Tds) -> None:
    told = tds("show", "--session-id", SESSION, "--full").stdout
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", told)
    assert not re.search(" $", told, re.MULTILINE)


def test_whoever_an_agent_or_a_verdict_is_named_after_commands_no_terminal_either(own: Settings, run_tds: Tds) -> None:
    def tell(store: TrainingDataStore) -> None:
        store.sync.store_agent_task("t", HOSTILE, status="completed", session_id="s")
        store.sync.store_feedback("task", "t", HOSTILE, HOSTILE)

    stored(own, tell)

    told = run_tds(own, "show", "--task-id", "t", "--full").stdout

    assert "␛[2J" in told
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", told)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_is_as_wide_as_asked(width: int, story: DataPaths, tds: Tds) -> None:
    for line in tds("show", "--session-id", SESSION, "--width", width, "--full").stdout.splitlines():
        is_heading = re.match(r" *\d\d:\d\d:\d\d\.\d{3}  ", line)
        assert columns_of(line) <= width or is_heading, line


def test_long_values_are_cut_and_shown_in_full_when_asked(story: DataPaths, tds: Tds) -> None:
    cut, full = (tds("show", "--session-id", SESSION, *more).stdout for more in ([], ["--full"]))
    assert "lines more (--full)" in cut
    assert "\n                    59\n" not in cut
    assert re.search(r"^ +59$", full, re.MULTILINE)
    assert "lines more" not in full
    assert '"tool_call_id": "call-1"' in full


def test_json_is_the_run_as_one_object(story: DataPaths, tds: Tds) -> None:
    found = json.loads(tds("show", "--task-id", "task-2", "--json").stdout)
    assert (found["subject"], found["id"], found["redaction"]) == ("task", "task-2", "none")
    assert found["steps"][0]["steps"][0]["row"]["input_params"]["said"] == HOSTILE


def test_an_unknown_id_exits_with_1_and_names_those_that_come_near(story: DataPaths, tds: Tds) -> None:
    result = tds("show", "--session-id", "sesion-42")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: session_id='sesion-42': expected the id of a stored session, no record has it; "
        f"did you mean {SESSION}?\n"
    )
    result = tds("show", "--task-id", "nothing like it")
    assert (result.exit_code, "tds status" in result.stderr) == (1, True)


def test_without_any_record_an_id_is_unknown_too(own: Settings, run_tds: Tds) -> None:
    assert run_tds(own, "show", "--session-id", "x").exit_code == 1


@pytest.mark.parametrize(
    "arguments", [[], ["--session-id", "a", "--task-id", "b"], ["--session-id", "a", "--redaction", "x"]]
)
def test_wrong_usage_exits_with_2_and_says_what_to_pass(arguments: list[str], tds: Tds) -> None:
    result = tds("show", *arguments)
    assert (result.exit_code, "expected" in result.stderr) == (2, True)


def test_a_day_that_cannot_be_curated_is_named_and_the_rest_is_shown(own: Settings, run_tds: Tds) -> None:
    def tell(store: TrainingDataStore) -> None:
        store.sync.store_agent_event("seen", session_id="s", timestamp=f"{DAY}T01:00:00Z")
        store.sync.store_agent_event("lost", session_id="s", timestamp="2024-05-16T01:00:00Z")

    path = stored(own, tell).training("events", "2024-05-16")
    path.write_bytes(path.read_bytes()[:-20])
    result = run_tds(own, "show", "--session-id", "s")
    assert (result.exit_code, "seen" in result.stdout, "lost" in result.stdout) == (0, True, False)
    assert f"Warning: events 2024-05-16 is left out: {path}: ends at byte" in result.stderr


# ------------------------------------------------------------------------------------------------- redaction

KEY = "sk-proj-" + "Ab3dE6gH9jK2mN5pQ8sT" * 2


def test_a_page_is_redacted_like_an_export_and_the_terminal_is_not(
    own: Settings, run_tds: Tds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"my key is {KEY} and I am anna@example.com"
    stored(own, lambda store: store.sync.store_agent_event(
        "user_message", session_id="s", payload={"role": "user", "content": said}, timestamp=f"{DAY}T01:00:00Z"
    ))  # fmt: skip
    page = tmp_path / "run.html"
    show = functools.partial(run_tds, own, "show", "--session-id", "s")
    assert KEY in show().stdout
    assert KEY not in show("--redaction", "secrets").stdout
    assert show("--html", page).stdout == f"{page}\n"
    text = page.read_text(encoding="utf-8")
    assert (KEY in text, "my key is" in text, "redacted: secrets" in text) == (False, True, True)
    assert "anna@example.com" in text
    assert show("--html", page, "--redaction", "none").exit_code == 0
    assert KEY in page.read_text(encoding="utf-8")
    monkeypatch.setenv("TDS_REDACTION", "full")
    assert "anna@example.com" in show().stdout
    assert show("--html", page).exit_code == 0
    assert "anna@example.com" not in page.read_text(encoding="utf-8")


def test_a_run_in_which_something_is_left_is_not_shown(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest.redaction.redactor import open_redactor

    paths = stored(own, lambda store: store.sync.store_agent_event("anna@example.com", session_id="s"))
    redactor = open_redactor(own, "full")
    assert "anna" not in str(read_run(paths, "session", "s", redactor=redactor).steps)
    monkeypatch.setattr(redactor, "redact_line", lambda _kind, line: line)
    with pytest.raises(RedactionLeak, match="still there at level full") as raised:
        read_run(paths, "session", "s", redactor=redactor)
    assert "anna" not in str(raised.value)


# ------------------------------------------------------------------------------------------------- the page


def test_a_page_has_no_script_and_loads_nothing(story: DataPaths, tds: Tds, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    assert tds("show", "--session-id", SESSION, "--html", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    tags = set(re.findall(r"<([a-z0-9]+)", text))
    assert tags <= {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "ul", "li", "svg", "a", "rect", "article",
        "header", "time", "b", "span", "div", "pre", "details", "summary",
    }  # fmt: skip
    assert not re.search(r"<[^>]+\s(on\w+|src|style)=", text)
    assert set(re.findall(r'href="([^"]*)"', text)) <= {f"#s{number}" for number in range(1, 30)}
    assert "default-src &#x27;none&#x27;" in text
    assert page.stat().st_mode & 0o777 == 0o600


def test_a_step_without_any_of_its_columns_stands_there_too() -> None:
    """Other programs may have appended rows to a day file."""
    from tds_dagster.cli.page import page_of

    bare = {"record_id": "r", "timestamp": f"{DAY}T00:00:00.000000Z", "session_id": "s"}
    run = build_run("session", "s", {kind: [bare] for kind in KINDS})
    assert sorted(step.kind for step in run.steps) == ["feedback", "task", "workflows"]
    assert page_of(run).count("<article") == 5


@pytest.mark.parametrize("depth", [100, 900])
def test_a_document_of_any_depth_is_shown_or_said_to_be_too_deep(depth: int, own: Settings, run_tds: Tds) -> None:
    payload: object = "found me"
    for _ in range(depth):
        payload = [payload]
    stored(own, lambda store: store.sync.store_agent_event(
        "deep", session_id="s", payload=payload, timestamp=f"{DAY}T01:00:00Z"
    ))  # fmt: skip
    for more in (["--full"], ["--json"], ["--html", own.data_dir / "run.html"]):
        result = run_tds(own, "show", "--session-id", "s", *more)
        assert result.exit_code == 0, result.stderr
    assert re.search("found me|nested too deep", (own.data_dir / "run.html").read_text(encoding="utf-8"))


def test_what_the_encoder_cannot_follow_is_said_to_be_too_deep() -> None:
    from tds_dagster.cli.narration import document_text

    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    assert document_text(deep) == document_text(deep, indent=2) == "(nested too deep to be shown; `tds export` has it)"
    assert document_text({"é": [1]}) == '{"é": [1]}'


ANY_VALUES: tuple[object, ...] = (
    None, True, 10**30, [], {}, "", "\r\n", ["<i>"], {"<i>": "\ud800"}, {"role": "user", "content": ["<i>"]},
    {"role": "<i>", "content": [{"type": "text", "text": "<i>"}, {"type": "image"}]}, {"role": "tool", "content": 3},
)  # fmt: skip


@pytest.mark.parametrize("value", ANY_VALUES)
@pytest.mark.parametrize("kind", ["events", "task", "tool_executions", "workflows", "feedback"])
def test_a_step_of_any_values_stands_on_the_page_as_text(kind: str, value: object) -> None:
    from tds_dagster.cli.page import page_of

    time = f"{DAY}T00:00:00Z"
    names = ("payload", "input_data", "output_data", "input_params", "output_result", "state_data", "value", "metadata")
    ids = dict.fromkeys(("event_type", "task_id", "workflow_id", "name", "target_kind", "status"), "\x00<i>\ud800")
    step = Step(kind, time, time, {**ids, **dict.fromkeys(names, value)})
    run = Run(subject="session", id="<i>\ud800", began=time, ended=time, records={}, agents=["<i>"], steps=[step])
    text = page_of(run)
    assert text.encode().decode() == text
    assert "<i>" not in text
    assert "&lt;i&gt;" in text
