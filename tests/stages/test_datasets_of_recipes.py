"""A dataset is what its recipe says: whole, without leakage, accounted for, and the same bytes whenever it is built."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ingest import Settings
from ingest.errors import (
    DamagedFile,
    InvalidPredicate,
    InvalidRange,
    InvalidRecipe,
    RedactionLeak,
    SourceMissing,
    TdsError,
)
from ingest.records import KINDS
from ingest.redaction.redactor import Redactor
from tds_dagster.datasets import event_prediction, task_completion
from tds_dagster.datasets.build import build_dataset, model_named
from tds_dagster.datasets.diff import compare_datasets
from tds_dagster.datasets.examples import Example
from tds_dagster.datasets.manifest import Dataset, find_dataset, read_dataset
from tds_dagster.datasets.recipe import MODELS, SPLITS, read_recipe, read_recipe_file
from tds_dagster.datasets.sources import build_shards
from tests.parts import PROJECT, environment
from tests.stages.conftest import DAY, RawStore
from tests.stages.loading import croissant_warnings, load_with_datasets, loaded_feature, plain

NEXT_DAY = "2024-05-16"
Row = dict[str, object]
Build = Callable[..., Dataset]
EVENTS = ("agent_started", "request_received", "answer_given", "agent_stopped")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with thirty sessions of four events, three states of a task and a tool call, all on one day."""
    prepared = RawStore(tmp_path_factory.mktemp("prepared") / "data")
    store_sessions(prepared, range(30))
    build_shards(settings_of(prepared), read_recipe("event_prediction", {}))
    return prepared.paths.root


@pytest.fixture
def store(raw_store: RawStore, prepared: Path) -> RawStore:
    shutil.copytree(prepared, raw_store.paths.root)
    return raw_store


@pytest.fixture
def build(raw_store: RawStore) -> Build:
    def build(model: str = "event_prediction", **recipe: object) -> Dataset:
        return build_dataset(settings_of(raw_store), read_recipe(model, recipe))

    return build


def settings_of(raw_store: RawStore, **more: object) -> Settings:
    return Settings(data_dir=raw_store.paths.root, redaction_key="a key for tests only", **more)  # type: ignore[arg-type]


def at_second(second: int) -> Row:
    """When something is stored, in seconds after eight."""
    return {"timestamp": f"{DAY}T08:00:{second:02d}Z"}


def store_sessions(raw_store: RawStore, sessions: Iterable[int], *, day: str = DAY, task: Row | None = None) -> None:
    """Sessions of four events, three states of a task (`task` is added to the last) and a tool call between them.

    Their ids and times depend on the session's number alone.
    """
    stored: dict[str, list[Row]] = {}
    for n in sessions:
        for place, (kind, fields) in enumerate(session_records(n, task or {})):
            common = {
                "record_id": f"{n + 1:08x}-0000-7000-8000-{place:012x}",
                "timestamp": f"{day}T{n % 24:02d}:{n // 24:02d}:{place:02d}.{n:06d}Z",
                "session_id": f"s{n}",
                "agent_id": f"agent-{n % 4}",
            }
            stored.setdefault(kind, []).append(raw_store.record(kind, **common, **fields))
    for kind, records in stored.items():
        raw_store.store(kind, *records, day=day)


def session_records(n: int, task: Row) -> list[tuple[str, Row]]:
    fixed: Row = {"task_id": f"t{n}", "task_type": "research", "priority": "high"}
    outcome: Row = {"status": "failed" if n % 3 == 0 else "completed", "retry_count": n % 2, "error": "outcome"}
    return [
        ("events", {"event_type": EVENTS[0], "severity": "info", "payload": {"n": n}}),
        ("events", {"event_type": EVENTS[1], "severity": "info", "payload": {"n": n, "text": f"request {n}"}}),
        ("tasks", fixed | {"status": "pending", "input_data": {"question": n}}),
        ("tasks", fixed | {"status": "running", "retry_count": 0}),
        ("tool_executions", {"execution_id": f"x{n}", "task_id": f"t{n}", "tool_name": "search", "status": "completed",
                             "input_params": {"q": n}, "output_result": {"found": n}}),
        ("tasks", fixed | outcome | {"output_data": {"answer": f"outcome {n}"}} | task),
        ("events", {"event_type": EVENTS[2], "severity": "warning" if n % 3 == 0 else "info", "payload": {"n": n}}),
        ("events", {"event_type": EVENTS[3], "severity": "info", "payload": {"n": n}}),
    ]  # fmt: skip


def rows_of(dataset: Dataset) -> dict[str, list[Row]]:
    return {
        split: [json.loads(line) for line in (dataset.folder / f"{split}.jsonl").read_bytes().splitlines()]
        for split in SPLITS
    }


def all_rows(dataset: Dataset) -> list[Row]:
    return [row for rows in rows_of(dataset).values() for row in rows]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_events_in_order_predict_the_next_one(store: RawStore, build: Build) -> None:
    dataset = build()
    assert dataset.records == 120
    assert dataset.no_example == {event_prediction.FIRST: 30}
    assert dataset.examples == 90 == dataset.rows + sum(dataset.left_out.values())
    of_session = {str(row["event_type"]): row for row in all_rows(dataset) if row["session_id"] == "s7"}
    assert list(of_session) == list(EVENTS[1:])
    row = of_session["answer_given"]
    assert list(row) == list(event_prediction.FEATURES)
    assert [item["event_type"] for item in row["history"]] == list(EVENTS[:2])  # type: ignore[attr-defined]
    assert row["history"][1]["payload"] == {"n": 7, "text": "request 7"}  # type: ignore[index]
    assert (row["event_type"], row["severity"], row["agent_id"]) == ("answer_given", "info", "agent-3")


def test_the_window_and_the_minimum_bound_the_history(store: RawStore, build: Build) -> None:
    dataset = build(window=2, minimum_history=2)
    assert {len(row["history"]) for row in all_rows(dataset)} == {2}  # type: ignore[arg-type]
    assert dataset.no_example == {event_prediction.FIRST: 30, event_prediction.SHORT: 30}


def test_by_agent_the_history_goes_over_sessions_but_never_to_another_agent(store: RawStore, build: Build) -> None:
    dataset = build(entity="agent", allow_empty_splits=True)
    assert dataset.no_example == {event_prediction.FIRST: 4}
    for row in all_rows(dataset):
        for item in row["history"]:  # type: ignore[attr-defined]
            assert item["payload"]["n"] % 4 == int(str(row["agent_id"])[-1])


def test_a_task_is_predicted_from_what_was_known_when_it_was_first_seen(store: RawStore, build: Build) -> None:
    dataset = build("task_completion")
    assert dataset.records == 90
    assert dataset.no_example == {task_completion.EARLIER: 60}
    row = next(row for row in all_rows(dataset) if row["task_id"] == "t6")
    assert list(row) == list(task_completion.FEATURES)
    assert [item["type"] for item in row["history"]] == list(EVENTS[:2])  # type: ignore[attr-defined]
    assert row["input"] == {"question": 6}
    assert (row["completed"], row["status"], row["retry_count"]) == (False, "failed", 0)
    assert sum(bool(row["completed"]) for row in all_rows(dataset)) == 20


def test_nothing_of_the_outcome_gets_into_the_input(store: RawStore, build: Build) -> None:
    """Neither output nor error, times or metadata of the last row, nor what happened after the first one."""
    secret = {"completed_at": f"{DAY}T23:59:59Z", "execution_time_ms": 4242.5, "metadata": {"reward": "outcome"}}
    store_sessions(store, range(30, 40), task=secret)
    dataset = build("task_completion")
    assert dataset.rows == 40
    for content in files_of(dataset.folder).values():
        assert b"outcome" not in content.replace(b"outcome is", b"")
        assert b"4242.5" not in content
        assert b"23:59:59" not in content


def store_ended_tasks(store: RawStore, *, started: bool | str, called: bool) -> None:
    """Three tasks that are stored once, when they are over, with what they did before that and what was before them."""
    call: Row = {"execution_id": "x", "tool_name": "search", "timestamp": f"{DAY}T08:00:20Z"}
    task: Row = {"status": "failed", "timestamp": f"{DAY}T08:00:40Z"}
    task |= {"started_at": f"{DAY}T{'08:00:10' if started is True else started}Z"} if started else {}
    for n in range(3):
        common = {"session_id": f"s{n}", "agent_id": "a"}
        for second, event_type in ((5, "request_received"), (10, "began"), (30, "task_failed")):
            store.store("events", store.record("events", event_type=event_type, payload={"task_id": f"t{n}", "n": n},
                                               timestamp=f"{DAY}T08:00:{second:02d}Z", **common))  # fmt: skip
        if called:
            store.store("tool_executions", store.record("tool_executions", task_id=f"t{n}", **call, **common))
        store.store("tasks", store.record("tasks", task_id=f"t{n}", input_data={"n": n}, **task, **common))


@pytest.mark.parametrize(
    ("started", "called", "known", "moment"),
    [
        (True, True, ["request_received"], "08:00:10"),
        (True, False, ["request_received"], "08:00:10"),
        (False, True, ["request_received", "began"], "08:00:20"),
        (False, False, [], "08:00:40"),
        ("08:00:40", False, [], "08:00:40"),  # a client that has one time for both
    ],
)
def test_a_task_that_is_stored_once_when_it_is_over_is_predicted_from_what_was_before_it_began(
    raw_store: RawStore, build: Build, *, started: bool | str, called: bool, known: list[str], moment: str
) -> None:
    store_ended_tasks(raw_store, started=started, called=called)
    dataset = build("task_completion", fractions=[1.0, 0.0, 0.0])
    for row in all_rows(dataset):
        assert [item["type"] for item in row["history"]] == known  # type: ignore[attr-defined]
        assert (row["input"], row["status"]) == ({"n": int(str(row["task_id"])[1:])}, "failed")
        assert row["timestamp"] == f"{DAY}T{moment}.000000Z"
    assert dataset.rows == 3


def test_of_two_rows_of_a_task_at_one_time_the_later_record_id_is_its_state(raw_store: RawStore, build: Build) -> None:
    fixed = {"task_id": "t", "session_id": "s"}
    for record_id, status in (("b", "completed"), ("a", "failed")):
        raw_store.store("tasks", raw_store.record("tasks", record_id=record_id, status=status, **fixed))
    dataset = build("task_completion", fractions=[1.0, 0.0, 0.0])
    (row,) = all_rows(dataset)
    assert (row["record_id"], row["status"]) == ("b", "completed")


def test_a_task_that_is_still_open_is_no_example_and_is_counted(store: RawStore, build: Build) -> None:
    store_sessions(store, [90], task={"status": "Running"})
    dataset = build("task_completion")
    assert dataset.no_example == {task_completion.EARLIER: 62, task_completion.UNDECIDED: 1}
    assert "t90" not in {row["task_id"] for row in all_rows(dataset)}


def test_earlier_tasks_of_the_agent_are_history_with_their_corrected_output(store: RawStore, build: Build) -> None:
    store.store("feedback", *(
        store.record("feedback", target_kind="task", target_id="t2", name="answer", corrected_output={"answer": answer},
                     timestamp=f"{NEXT_DAY}T0{n}:00:00Z")
        for n, answer in enumerate(["an older one", "corrected"])
    ), day=NEXT_DAY)  # fmt: skip
    dataset = build("task_completion", entity="agent", window=100, allow_empty_splits=True, end=DAY)
    row = next(row for row in all_rows(dataset) if row["task_id"] == "t6")
    history = [(item["kind"], item["type"], item["status"]) for item in row["history"]]  # type: ignore[attr-defined]
    assert history[:7] == [
        ("event", "agent_started", "info"), ("event", "request_received", "info"), ("task", "research", "pending"),
        ("task", "research", "running"), ("tool", "search", "completed"), ("task", "research", "completed"),
        ("event", "answer_given", "info"),
    ]  # fmt: skip
    assert row["history"][5]["data"] == {"output": {"answer": "corrected"}, "error": "outcome"}  # type: ignore[index]
    assert row["history"][4]["data"] == {"input": {"q": 2}, "output": {"found": 2}}  # type: ignore[index]


def test_a_corrected_event_takes_the_place_of_the_logged_one(store: RawStore, build: Build) -> None:
    targets = [row for row in all_rows(build()) if row["session_id"] == "s5"]
    for row, corrected in zip(targets, [{"event_type": "escalated", "severity": "error"}, "closed", 17], strict=True):
        store.store("feedback", store.record(
            "feedback", target_kind="record", target_id=row["record_id"], name="right", corrected_output=corrected
        ))  # fmt: skip
    corrected_rows = {row["record_id"]: row for row in all_rows(build())}
    found = [
        (corrected_rows[row["record_id"]]["event_type"], corrected_rows[row["record_id"]]["severity"])
        for row in targets
    ]
    assert found == [("escalated", "error"), ("closed", "info"), ("agent_stopped", "info")]


def test_where_and_lists_of_ids_choose_what_is_predicted_and_leave_the_history_whole(
    store: RawStore, build: Build
) -> None:
    store.store("feedback", *(
        store.record("feedback", target_kind="task", target_id=f"t{n}", name="reward", value=float(n % 2))
        for n in range(30)
    ))  # fmt: skip
    dataset = build("task_completion", where="feedback.reward >= 1 AND status = 'completed'", exclude=["t1", "s5"],
                    allow_empty_splits=True)  # fmt: skip
    assert {row["task_id"] for row in all_rows(dataset)} == {f"t{n}" for n in range(7, 30, 2) if n % 3}
    events = build(where="event_type = 'agent_stopped'", include=["s3", "s4", "agent-1"], allow_empty_splits=True)
    assert {row["session_id"] for row in all_rows(events)} == {"s3", "s4", *(f"s{n}" for n in range(1, 30, 4))}
    assert {len(row["history"]) for row in all_rows(events)} == {3}  # type: ignore[arg-type]


def test_no_session_is_in_two_splits_and_the_manifest_says_what_became_of_every_record(
    store: RawStore, build: Build
) -> None:
    dataset = build()
    rows = rows_of(dataset)
    sessions = [{row["session_id"] for row in rows[split]} for split in SPLITS]
    assert sum(map(len, sessions)) == len(set().union(*sessions)) == 30
    assert [len(found) for found in sessions] == [dataset.splits[split].entities for split in SPLITS]
    entries = [json.loads(line) for line in (dataset.folder / "rows.jsonl").read_bytes().splitlines()]
    lines = {split: (dataset.folder / f"{split}.jsonl").read_bytes().splitlines() for split in SPLITS}
    assert [entry["split"] for entry in entries] == [split for split in SPLITS for _ in rows[split]]
    for entry in entries:
        line = lines[entry["split"]][entry["line"] - 1]
        assert json.loads(line)["record_id"] == entry["record_id"]
        assert list(entry) == ["split", "line", "record_id", "session_id", "timestamp", "label", "row"]
        assert json.loads(line)["session_id"] == entry["session_id"]
        assert (
            bytes.fromhex("".join(f"{ord(letter) - ord('a'):x}" for letter in entry["row"]))
            == hashlib.sha256(line).digest()[:8]
        )
    assert [(source.kind, source.day) for source in dataset.sources] == [
        (kind, DAY) for kind in ("events", "tasks", "tool_executions")
    ]
    for file in dataset.files:
        content = (dataset.folder / file.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)


def test_the_same_build_in_another_folder_gives_the_same_version_and_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("here", "there"):
        other = RawStore(tmp_path / name / "data")
        store_sessions(other, range(30))
        made.append(build_dataset(settings_of(other), read_recipe("event_prediction", {})))
    assert made[0].version == made[1].version
    assert files_of(made[0].folder) == files_of(made[1].folder)
    assert str(tmp_path) not in (made[0].folder / "manifest.json").read_text()


@pytest.mark.parametrize("model", ["event_prediction", "task_completion"])
def test_other_peoples_programs_read_the_folder_with_its_types(
    model: str, store: RawStore, build: Build, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    dataset, features = build(model), model_named(model).FEATURES
    loaded = load_with_datasets(dataset.folder, tmp_path / "cache")
    for split, rows in rows_of(dataset).items():
        assert loaded[split].features == {name: loaded_feature(feature) for name, feature in features.items()}
        assert [plain(row) for row in loaded[split]] == rows
    assert croissant_warnings(dataset.folder / "croissant.json", caplog, monkeypatch) == []


def test_built_again_it_is_reused_and_another_recipe_is_another_version(store: RawStore, build: Build) -> None:
    first = build()
    again, other, ordered = build(), build(seed=1), build(exclude=["b", "a"])
    assert (first.reused, again.reused, other.reused) == (False, True, False)
    assert again.version == first.version != other.version
    assert build(exclude=["a", "b"]).version == ordered.version != first.version  # the order of a list is no recipe
    assert find_dataset(store.paths, "event_prediction").version == ordered.version
    assert read_dataset(first.folder).version == first.version
    latest = store.paths.datasets("event_prediction") / "latest.json"
    latest.write_text("{")
    with pytest.raises(DamagedFile, match=r"latest\.json: expected a version"):
        find_dataset(store.paths, "event_prediction")
    assert find_dataset(store.paths, build().version).version == first.version
    with pytest.raises(SourceMissing, match="expected a folder, <model>/<version>"):
        find_dataset(store.paths, "[0-9a-f]")


@pytest.mark.parametrize("edit", ["a byte", "a file more", "a file less", "the manifest"])
def test_a_folder_that_somebody_edited_is_built_anew(edit: str, store: RawStore, build: Build) -> None:
    first = build()
    before = files_of(first.folder)
    train = first.folder / "train.jsonl"
    if edit == "a byte":
        train.write_bytes(train.read_bytes().replace(b"agent_started", b"agent_Started", 1))
    elif edit == "a file more":
        (first.folder / "notes.txt").write_text("mine")
    elif edit == "a file less":
        (first.folder / "README.md").unlink()
    else:
        (first.folder / "manifest.json").write_text("{}")
    again = build()
    assert not again.reused
    assert files_of(again.folder) == before
    assert {path.name for path in first.folder.parent.iterdir()} == {first.version, "latest.json"}


def test_a_build_that_breaks_leaves_nothing_and_what_a_killed_one_left_is_removed(
    store: RawStore, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = store.paths.datasets("event_prediction")
    killed = home / ".building-0123"
    killed.mkdir(parents=True)
    (killed / "train.jsonl").write_text("half")

    def broken(*given: object) -> Iterator[Example]:
        if given:
            raise InvalidRecipe("broken on the way")
        yield Example("", "", "", "", b"")

    with monkeypatch.context() as patched:
        patched.setattr(event_prediction, "examples", broken)
        with pytest.raises(InvalidRecipe, match="on the way"):
            build()
    assert list(home.iterdir()) == []
    assert build().rows


def test_records_that_are_lost_on_the_way_stop_the_build(
    store: RawStore, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = event_prediction.examples
    monkeypatch.setattr(event_prediction, "examples", lambda *given: itertools.islice(every(*given), 5, None))
    with pytest.raises(TdsError, match=r"120 events.*, but 85 examples"):
        build()


def test_personal_data_of_a_record_is_in_no_file_and_is_counted(store: RawStore, build: Build) -> None:
    planted = "mia.lopez@example.org"
    store_sessions(store, [50], task={"output_data": {"sent": planted}})
    for n, text in enumerate((f"write to {planted}", json.dumps({"mail": planted}))):
        store.store("events", store.record("events", event_type="mail", session_id="s50", payload={"text": text},
                                           timestamp=f"{DAY}T00:00:0{n}Z"))  # fmt: skip
    for model in ("event_prediction", "task_completion"):
        where = f"metadata IS NULL OR metadata->>'mail' = '{planted}'"
        dataset = build(model, include=[planted, "s1", "s50"], where=where, allow_empty_splits=True)
        assert not [name for name, content in files_of(dataset.folder).items() if planted.encode() in content]
        assert sum(dataset.redacted.values()) >= 2
        histories = [json.dumps(row["history"]) for row in all_rows(dataset) if row["session_id"] == "s50"]
        assert [history for history in histories if "write to " in history]
    plain = build(redaction="none")
    assert plain.redacted == {}
    assert any(planted.encode() in content for content in files_of(plain.folder).values())


def test_a_column_that_redaction_keeps_in_one_kind_has_no_namesake_in_another_that_it_does_not() -> None:
    """For a dataset's sources are redacted with the columns of all kinds kept."""
    columns = [column for kind in KINDS.values() for column in kind.columns]
    kept = {column.name for column in columns if column.type not in {"text", "json"}}
    assert kept.isdisjoint(column.name for column in columns if column.type in {"text", "json"})


@pytest.mark.parametrize("model", ["event_prediction", "task_completion", "tool_selection"])
def test_a_name_that_a_tool_told_goes_from_what_was_said_in_its_session(
    model: str, store: RawStore, build: Build
) -> None:
    known, told = {"first_name": "Zebulon", "last_name": "Quarkus"}, "Dear Zebulon Quarkus"
    for kind, second, fields in (
        ("tool_executions", 9, {"execution_id": "x", "task_id": "t50", "tool_name": "find", "output_result": known}),
        ("events", 8, {"event_type": "answer_given", "payload": {"text": told}}),
        ("tasks", 10, {"task_id": "t50", "status": "completed", "input_data": {"question": told}}),
        ("events", 11, {"event_type": "answer_given", "payload": {"text": told}}),
        ("tool_executions", 12, {"execution_id": "y", "task_id": "t50", "tool_name": "send"}),
        ("events", 13, {"event_type": "agent_stopped"}),
    ):
        store.store(kind, store.record(kind, session_id="s50", timestamp=f"{DAY}T08:00:{second:02d}Z", **fields))
    dataset = build(model, include=["s50"], allow_empty_splits=True)
    content = b"".join(files_of(dataset.folder).values())
    assert b"Dear <NAME:" in content
    assert b"Zebulon" not in content


def test_a_name_that_a_tool_told_goes_from_the_calls_of_its_task_where_there_is_no_session(
    raw_store: RawStore, build: Build
) -> None:
    told = {"text": "Dear Zebulon Quarkus"}
    for second, task, more in (
        (1, "t1", {"tool_name": "find", "output_result": {"first_name": "Zebulon", "last_name": "Quarkus"}}),
        (2, "t1", {"tool_name": "send", "input_params": told}),
        (3, "t2", {"tool_name": "find", "output_result": {"first_name": "Zebulon", "last_name": "Quarkus"},
                   "session_id": "s2"}),
        (4, "t2", {"tool_name": "send", "input_params": told}),
    ):  # fmt: skip
        row = at_second(second) | {"agent_id": "a", "execution_id": f"x{second}", "task_id": task, **more}
        raw_store.store("tool_executions", raw_store.record("tool_executions", **row))
    for task in ("t1", "t2"):
        row = at_second(0) | {"agent_id": "a", "task_id": task, "input_data": {"request": f"write to them for {task}"}}
        raw_store.store("tasks", raw_store.record("tasks", **row))
    content = b"".join(files_of(build("tool_selection", allow_empty_splits=True).folder).values())
    assert content.count(b"Dear <NAME:") >= 2
    assert b"Zebulon" not in content


def test_a_name_in_a_state_of_a_workflow_goes_from_its_others_where_there_is_no_session(
    raw_store: RawStore, build: Build
) -> None:
    for second, data in ((1, {"first_name": "Zebulon"}), (2, {"text": "Dear Zebulon"}), (3, None)):
        row = at_second(second) | {"workflow_id": "w1", "phase": f"p{second}", "state_data": data}
        raw_store.store("workflows", raw_store.record("workflows", **row))
    content = b"".join(files_of(build("workflow_orchestration", allow_empty_splits=True).folder).values())
    assert b"Dear <NAME:" in content
    assert b"Zebulon" not in content


@pytest.mark.parametrize(
    ("target_kind", "target_id", "model"),
    [("record", "r2", "tool_selection"), ("record", "x2", "tool_selection"), ("task", "t1", "task_completion"),
     ("workflow", "w1", "workflow_orchestration")],
)  # fmt: skip
def test_a_name_that_a_tool_told_goes_from_what_somebody_corrected(
    target_kind: str, target_id: str, model: str, raw_store: RawStore, build: Build
) -> None:
    better = {"name": "send", "arguments": {"text": "Dear Zebulon"}, "phase": "Dear Zebulon"}
    seen = {"session_id": "s1", "task_id": "t1", "workflow_id": "w1"}
    for kind, second, fields in (
        ("tool_executions", 1, {"tool_name": "find", "output_result": {"first_name": "Zebulon"}}),
        ("tool_executions", 2, {"record_id": "r2", "execution_id": "x2", "tool_name": "send", "input_params": {}}),
        ("workflows", 3, {"phase": "one"}),
        ("workflows", 4, {"phase": "two"}),
        ("tasks", 5, {"status": "completed"}),
        ("tasks", 6, {"task_id": "t9", "status": "pending"}),
        ("tasks", 7, {"task_id": "t9", "status": "completed"}),
        ("feedback", 8, {"target_kind": target_kind, "target_id": target_id, "name": "fix", "value": False,
                         "corrected_output": better}),
    ):  # fmt: skip
        known = {name: value for name, value in seen.items() if name in KINDS[kind].types}
        row = at_second(second) | (fields if kind == "feedback" else known | fields)
        raw_store.store(kind, raw_store.record(kind, **row))
    content = b"".join(files_of(build(model, allow_empty_splits=True).folder).values())
    assert b"Dear <NAME:" in content
    assert b"Zebulon" not in content


@pytest.mark.parametrize("model", MODELS)
def test_what_is_nested_hundreds_of_levels_deep_stops_no_dataset(model: str, store: RawStore, build: Build) -> None:
    deep: object = "x"
    for _ in range(800):
        deep = {"a": deep}
    for n in range(50, 54):
        common = {"session_id": f"s{n}", "agent_id": "a", "workflow_id": f"w{n}"}
        for kind, second, fields in (
            ("events", 0, {"event_type": "request_received", "payload": deep}),
            ("workflows", 1, {"phase": "one", "state_data": deep}),
            ("workflows", 2, {"phase": "two", "state_data": deep, "step_results": deep}),
            ("tasks", 3, {"task_id": f"t{n}", "status": "pending", "input_data": deep}),
            ("tool_executions", 4, {"execution_id": "x", "tool_name": "find", "input_params": deep,
                                    "output_result": deep}),
            ("tool_executions", 5, {"execution_id": "y", "tool_name": "send", "input_params": deep}),
            ("tasks", 6, {"task_id": f"t{n}", "status": "completed"}),
            ("events", 7, {"event_type": "agent_stopped", "payload": deep}),
        ):  # fmt: skip
            row = store.record(kind, **{**common, **fields}, timestamp=f"{DAY}T{n - 42:02d}:00:0{second}Z")
            store.store(kind, row)
    dataset = build(model, include=[f"s{n}" for n in range(50, 54)], allow_empty_splits=True)
    assert dataset.examples
    assert [split.entities for split in dataset.splits.values()].count(0) == 2  # copies of one another


@pytest.mark.parametrize("redaction", ["none", "full"])
def test_a_record_of_megabytes_is_read_whole(redaction: str, store: RawStore, build: Build) -> None:
    text = "a word " * 400_000
    store.store("events", store.record("events", event_type="long", session_id="s1", payload={"text": text},
                                       timestamp=f"{DAY}T01:00:30Z"))  # fmt: skip
    rows = [row for row in all_rows(build(redaction=redaction)) if row["session_id"] == "s1"]
    assert [row["event_type"] for row in rows] == [*EVENTS[1:], "long"]
    store.store("events", store.record("events", event_type="end", session_id="s1", timestamp=f"{DAY}T01:00:31Z"))
    (last,) = [row for row in all_rows(build(redaction=redaction)) if row["event_type"] == "end"]
    assert last["history"][-1]["payload"] == {"text": text}  # type: ignore[index]


def test_what_redaction_overlooked_stops_the_build_before_anything_is_in_place(
    store: RawStore, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.store("events", store.record(
        "events", event_type="mail", session_id="s1", payload="mia.lopez@example.org", timestamp=f"{DAY}T00:00:00Z"
    ))  # fmt: skip
    monkeypatch.setattr(Redactor, "redact_together", lambda _, __, lines: list(lines))
    with pytest.raises(
        RedactionLeak, match=r"event_prediction, \w+\.jsonl at byte \d+: .*nothing was put in place"
    ) as caught:
        build()
    assert "mia.lopez" not in str(caught.value)
    assert list(store.paths.datasets("event_prediction").iterdir()) == []


def test_a_split_without_rows_is_an_error_that_says_what_to_change_unless_it_is_allowed(
    raw_store: RawStore, build: Build
) -> None:
    store_sessions(raw_store, [1])
    with pytest.raises(
        InvalidRecipe, match=r"validation and test would have no row: 3 rows of 1 sessions.*allow_empty"
    ):
        build()
    allowed = build(allow_empty_splits=True)
    assert [split.rows for split in allowed.splits.values()] == [3, 0, 0]
    assert "would have no row" in allowed.warnings[0]
    assert build(fractions=[1.0, 0.0, 0.0]).rows == 3
    with pytest.raises(InvalidRecipe, match="0 rows of 0 workflows"):
        build("workflow_orchestration")


def test_classes_that_a_model_can_hardly_learn_are_warned_of(store: RawStore, build: Build) -> None:
    store.store(
        "events", store.record("events", event_type="unheard_of", session_id="s1", timestamp=f"{DAY}T23:00:00Z")
    )
    assert "classes with one example, which is in one split only: unheard_of" in build().warnings
    only = build(where="event_type = 'agent_stopped'")
    assert only.warnings == ["every example has the same class: agent_stopped"]


def test_feedback_that_came_after_the_range_counts_and_records_after_it_do_not(store: RawStore, build: Build) -> None:
    store_sessions(store, [60], day=NEXT_DAY)
    before = build("task_completion", end=DAY)
    store.store("feedback", *(
        store.record("feedback", target_kind="task", target_id=f"t{n}", name="good", value=True,
                     timestamp=f"{NEXT_DAY}T09:00:00Z")
        for n in range(25)
    ), day=NEXT_DAY)  # fmt: skip
    after = build("task_completion", end=DAY, where="feedback.good")
    assert (before.rows, after.rows) == (30, 25)
    assert [(source.kind, source.day) for source in after.sources if source.day != DAY] == [("feedback", NEXT_DAY)]


def test_without_dates_the_range_is_from_the_first_to_the_last_day_with_data(store: RawStore, build: Build) -> None:
    store_sessions(store, [60], day="2024-06-01")
    recipe = build().recipe
    assert (recipe.start, recipe.end) == (DAY, "2024-06-01")


def test_a_shard_that_somebody_changed_is_named_and_no_dataset_is_made(store: RawStore, build: Build) -> None:
    build()
    shard = store.paths.shard("events", DAY)
    shard.write_bytes(shard.read_bytes().replace(b"agent_started", b"agent_Started", 1))
    with pytest.raises(DamagedFile, match=rf"{shard.name}.*somebody changed it"):
        build(seed=5)
    assert build(seed=5).rows  # the day is built anew


def test_two_versions_differ_by_the_rows_of_a_day_that_came_and_by_rows_whose_day_changed(
    store: RawStore, build: Build
) -> None:
    first = build()
    store_sessions(store, [60], day=NEXT_DAY)
    second = build()
    added = compare_datasets(first, second)
    assert added.changes == {"added": {"its day was added": 3}, "removed": {}, "changed": {}}
    assert (added.unchanged, list(added.recipe)) == (first.rows, ["end"])
    assert set(added.days.values()) == {"added"}
    (entry,) = {row.new_split for row in added.rows}
    assert {row.record_id for row in added.rows} <= {row["record_id"] for row in rows_of(second)[str(entry)]}
    stopped = next(
        row for row in all_rows(second) if row["session_id"] == "s60" and row["event_type"] == "agent_stopped"
    )
    store.store("feedback", store.record(
        "feedback", target_kind="record", target_id=stopped["record_id"], name="right", corrected_output="closed"
    ))  # fmt: skip
    corrected = compare_datasets(second, build())
    assert corrected.changes == {"added": {}, "removed": {}, "changed": {"other days of the sources changed": 1}}


def test_two_versions_differ_by_recipe_split_and_redaction_and_the_reason_says_which(
    store: RawStore, build: Build
) -> None:
    first = build()
    moved = compare_datasets(first, build(seed=1), limit=0)
    assert moved.rows == []
    assert set(moved.changes["changed"]) <= {
        f"moved from {old} to {new}: another recipe (seed)" for old in SPLITS for new in SPLITS if old != new
    }
    fewer = compare_datasets(first, build(exclude=["s1"]))
    assert fewer.changes["removed"] == {"another recipe (exclude)": 3}
    assert fewer.unchanged == first.rows - 3
    narrow = compare_datasets(first, build(window=1))
    assert narrow.changes["changed"] == {"another recipe (window)": 60}
    assert narrow.recipe == {"window": [20, 1]}


def test_where_a_row_may_differ_for_several_reasons_all_of_them_are_told(store: RawStore, build: Build) -> None:
    first = build()
    store.store("events", store.record("events", session_id="s1", timestamp=f"{DAY}T23:00:00Z"))
    assert compare_datasets(first, build(window=1)).changes == {
        "added": {"its day changed or another recipe (window)": 1},
        "removed": {},
        "changed": {"its day changed or another recipe (window)": 60},
    }
    store_sessions(store, [60], day=NEXT_DAY)
    last_row = compare_datasets(first, build(end=NEXT_DAY, exclude=["s1"])).changes
    assert last_row["removed"] == {
        "its day changed or another recipe (end, exclude) or other days of the sources changed": 3
    }
    assert last_row["added"] == {"its day was added": 3}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"windw": 1}, "recipe field 'windw': expected one of model, start"),
        ({"window": 0}, "window=0: expected 1 to 10000"),
        ({"window": "9"}, "window='9': expected another type"),
        ({"minimum_history": 21}, "minimum_history=21: expected 0 to the window"),
        ({"balance": "up"}, "balance='up': expected one of none, downsample"),
        ({"split_by": "x"}, "split_by='x': expected one of entity, time"),
        ({"entity": "moon"}, "entity='moon': expected one of session, agent, task, workflow"),
        ({"redaction": "some"}, "redaction='some': expected one of none, secrets, full"),
        ({"fractions": [0.5, 0.1, 0.1]}, "fractions="),
        ({"fractions": [0.0, 0.5, 0.5]}, "fractions="),
        ({"fractions": [1.2, -0.1, -0.1]}, "fractions="),
        ({"include": ["a"], "exclude": ["a"]}, "include='a': expected an id that is not excluded"),
    ],
)
def test_a_recipe_that_cannot_be_followed_names_the_field_and_what_was_expected(values: Row, told: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        read_recipe("event_prediction", values)
    assert str(caught.value).startswith(told)


def test_a_recipe_is_refused_before_any_data_is_looked_at(tmp_path: Path) -> None:
    for values, error in (
        ({"start": "yesterday"}, InvalidRange),
        ({"start": "2024-05-16", "end": "2024-05-15"}, InvalidRange),
        ({"where": "status = 'x'; DROP TABLE tasks"}, InvalidPredicate),
    ):
        with pytest.raises(error):
            read_recipe("task_completion", values)
    with pytest.raises(InvalidRecipe, match="expected one of event_prediction, task_completion"):
        read_recipe("chess", {})
    settings = Settings(data_dir=tmp_path / "data")
    with pytest.raises(InvalidRecipe, match="entity='task': expected one of session, agent"):
        build_dataset(settings, read_recipe("event_prediction", {"entity": "task"}))
    with pytest.raises(SourceMissing, match="store or import some"):
        build_dataset(settings, read_recipe("event_prediction", {}))
    assert not list(tmp_path.glob("data/datasets/**"))


def test_a_recipe_file_is_toml_or_json_and_must_be_of_the_model_that_is_asked_for(tmp_path: Path) -> None:
    toml, other = tmp_path / "recipe.toml", tmp_path / "recipe.json"
    toml.write_text('model = "task_completion"\nwindow = 5\nfractions = [0.6, 0.2, 0.2]\n')
    other.write_text(json.dumps({"window": 5, "fractions": [0.6, 0.2, 0.2]}))
    recipes = [read_recipe("task_completion", read_recipe_file(path, "task_completion")) for path in (toml, other)]
    assert recipes[0] == recipes[1]
    with pytest.raises(InvalidRecipe, match="expected 'event_prediction', as asked for"):
        read_recipe_file(toml, "event_prediction")
    toml.write_text("window = ")
    other.write_text("[1]")
    for path in (toml, other, tmp_path / "absent.json"):
        with pytest.raises(InvalidRecipe, match=path.name):
            read_recipe_file(path)


@hypothesis_settings(max_examples=60)
@given(values=st.fixed_dictionaries({}, optional={
    "window": st.integers(1, 100), "seed": st.integers(), "balance": st.sampled_from(["none", "downsample"]),
    "include": st.lists(st.text(max_size=5), max_size=3), "split_by": st.sampled_from(["entity", "time"]),
}), model=st.sampled_from(MODELS))  # fmt: skip
def test_a_checked_recipe_read_again_is_itself(values: Row, model: str) -> None:
    import msgspec

    recipe = read_recipe(model, values)
    assert read_recipe(model, msgspec.to_builtins(recipe)) == recipe


def test_by_time_and_downsampled_what_is_in_no_split_is_counted(store: RawStore, build: Build) -> None:
    dataset = build(split_by="time", balance="downsample")
    assert dataset.records == dataset.examples + sum(dataset.no_example.values())
    assert dataset.examples == dataset.rows + sum(dataset.left_out.values())
    assert dataset.rule.startswith("by time: train before 2024-05-15T")


PEAK_OF_A_BUILD = """
import resource, sys
from ingest.settings import read_settings
from tds_dagster.datasets import sources
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.recipe import read_recipe
sources._MEMORY = "128MiB"
built = build_dataset(read_settings(), read_recipe("event_prediction", {"window": 4}))
print(built.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for sessions in (150, 1500):
        many = RawStore(tmp_path / str(sessions) / "data")
        many.store("events", *(
            many.record("events", record_id=f"{n:08x}-{place:04x}", session_id=f"s{n}", event_type=f"type {place % 5}",
                        timestamp=f"{DAY}T{n % 24:02d}:{place:02d}:00.{n:06d}Z", payload={"text": f"{n} {place} " * 60})
            for n in range(sessions) for place in range(20)
        ))  # fmt: skip
        build_shards(settings_of(many), read_recipe("event_prediction", {}))  # not part of what is measured
        done = subprocess.run(
            [sys.executable, "-c", PEAK_OF_A_BUILD],
            env={**environment(settings_of(many, dataset_redaction="none")), "PYTHONPATH": str(PROJECT)},
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        rows, peak_mb = map(int, done.stdout.split())
        assert rows == sessions * 19
        peaks.append(peak_mb)
    # 70 are DuckDB's, which takes what it may before it spills; with the rows held in memory it was 130.
    assert peaks[1] < peaks[0] + 100, peaks
