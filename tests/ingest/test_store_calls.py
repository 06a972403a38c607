"""The five calls: every parameter lands in its column, wrong calls raise, and nothing else breaks the agent."""

import asyncio
import inspect
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest import InvalidRecord, NotAccepted, Settings, TrainingDataStore, get_training_data_store
from ingest.calls import BlockingCalls
from ingest.errors import UnknownKind
from ingest.pipeline.accounting import account
from ingest.records import KINDS, is_keyed
from tests.parts import csv_rows

CALLS = {
    "events": "store_agent_event",
    "tasks": "store_agent_task",
    "tool_executions": "store_tool_execution",
    "workflows": "store_workflow_data",
    "feedback": "store_feedback",
}
REQUIRED: dict[str, dict[str, object]] = {
    "events": {"event_type": "started"},
    "tasks": {"task_id": "task-1"},
    "tool_executions": {"execution_id": "exec-1"},
    "workflows": {"workflow_id": "flow-1"},
    "feedback": {"target_kind": "task", "target_id": "task-1", "name": "reward"},
}


def value_for(kind: str, name: str) -> object:
    """A value for a parameter that no other parameter has."""
    column_type = KINDS[kind].types[name]
    if name in KINDS[kind].choices:
        return KINDS[kind].choices[name][-1]
    if name == "value":
        return 0.75
    return {
        "id": f"the {name}",
        "text": f"the {name}",
        "json": {"the": name, "list": [1, 2.5, None, True, "x"]},
        "integer": len(name) * 7,
        "number": len(name) + 0.5,
        "timestamp": datetime(2026, 1, 2, 3, 4, len(name), 567890, tzinfo=UTC),
    }[column_type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_lands_in_its_column(store: TrainingDataStore, kind: str) -> None:
    call = getattr(store, CALLS[kind])
    parameters = list(inspect.signature(getattr(BlockingCalls, CALLS[kind])).parameters)[1:]
    assert {*parameters, "record_id", "event_id"} - {"idempotency_key"} == {*KINDS[kind].types, "event_id"}
    given = {name: value_for(kind, name) for name in parameters if name != "idempotency_key"}
    record_id = asyncio.run(call(**given))
    store.sync.flush()
    (row,) = csv_rows(store.settings, kind)
    assert row.pop("record_id") == record_id
    if kind == "events":
        assert row.pop("event_id") == record_id
    expected = {
        name: value.isoformat(timespec="microseconds").replace("+00:00", "Z") if isinstance(value, datetime) else value
        for name, value in given.items()
    }
    assert row == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_blocking_twin_and_the_generic_call_store_the_same(store: TrainingDataStore, kind: str) -> None:
    parameters = list(inspect.signature(getattr(BlockingCalls, CALLS[kind])).parameters)[1:]
    given = {name: value_for(kind, name) for name in parameters if name != "idempotency_key"}
    getattr(store.sync, CALLS[kind])(**given)
    store.sync.store_record(kind, **given)
    store.sync.flush()
    rows = csv_rows(store.settings, kind)
    for row in rows:
        del row["record_id"]
        row.pop("event_id", None)
    assert rows[0] == rows[1]


def test_the_calls_take_the_old_stores_arguments_by_position(store: TrainingDataStore) -> None:
    async def store_all() -> None:
        await store.store_agent_event("started", "agent-1", "flow-1", "session-1", "cyrex", {"a": 1}, "warning")
        await store.store_agent_task(
            "task-1", "agent-1", "i-1", "search", "high", "done", {"a": 1}, {"b": 2}, "bad", 1, 2, 30, 1.5, None, None
        )
        await store.store_tool_execution(
            "exec-1", "agent-1", "task-1", "add", "math", {"a": 1}, {"b": 2}, "failed", "bad", 1.5, None
        )
        await store.store_workflow_data(
            "flow-1",
            "etl",
            "load",
            {"a": 1},
            {"b": 2},
            "bad",
            "name",
            "text",
            "step",
            3,
            2,
            ["agent-1"],
            {"m": 1},
            ["t"],
        )

    asyncio.run(store_all())
    store.sync.flush()
    task = csv_rows(store.settings, "tasks")[0]
    assert [task["status"], task["retry_count"], task["max_retries"], task["timeout_seconds"]] == ["done", 1, 2, 30]
    flow = csv_rows(store.settings, "workflows")[0]
    assert [flow["assigned_agents"], flow["metadata"], flow["tags"]] == [["agent-1"], {"m": 1}, ["t"]]


def test_what_is_not_given_is_null_or_the_old_stores_default(store: TrainingDataStore) -> None:
    asyncio.run(store.store_agent_task("task-1"))
    store.sync.flush()
    (row,) = csv_rows(store.settings, "tasks")
    assert {name: row[name] for name in row if name not in {"record_id", "timestamp"}} == {
        "task_id": "task-1", "task_type": "unknown", "priority": "normal", "status": "pending",
        "retry_count": 0, "max_retries": 3, "timeout_seconds": 300,
    }  # fmt: skip


def test_null_and_the_empty_string_stay_two_things(store: TrainingDataStore) -> None:
    store.sync.store_agent_event("started", agent_id="", payload="")
    store.sync.store_agent_event("started", agent_id=None, payload=None)
    store.sync.flush()
    rows = csv_rows(store.settings, "events")
    assert [row.get("agent_id") for row in rows] == ["", None]
    assert [row.get("payload") for row in rows] == ["", None]


def test_the_source_of_an_event_defaults_to_the_setting(tmp_path: Path) -> None:
    store = TrainingDataStore(Settings(data_dir=tmp_path, source="my-service"))
    store.sync.store_agent_event("started")
    store.sync.store_agent_event("started", source="other")
    store.sync.flush()
    assert [row["source"] for row in csv_rows(store.settings, "events")] == ["my-service", "other"]
    store.sync.close()


def test_ids_are_unique_and_in_the_order_of_the_calls(store: TrainingDataStore) -> None:
    ids = [store.sync.store_agent_event("started") for _ in range(20_000)]
    assert len(set(ids)) == 20_000
    assert all(uuid.UUID(id_).version == 7 for id_ in ids if id_ is not None)
    assert ids == sorted(ids, key=str)


def test_an_idempotency_key_stores_one_record_and_the_first_one_wins(store: TrainingDataStore) -> None:
    first = store.sync.store_agent_event("first", idempotency_key="job 1")
    store.sync.flush()
    second = store.sync.store_agent_event("second", idempotency_key="job 1")
    other_kind = store.sync.store_agent_task("task-1", idempotency_key="job 1")
    store.sync.flush()
    assert first == second
    assert first != other_kind
    assert is_keyed(str(first))
    assert [row["event_type"] for row in csv_rows(store.settings, "events")] == ["first"]
    counted = account(store.settings, "events")
    assert (counted.accepted, counted.stored, counted.rows, counted.duplicates) == (2, 2, 1, 1)
    assert counted.balanced


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05.000000Z"),  # noqa: DTZ001 - naive means UTC
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:04:05.000000Z"),
        ("2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05.000000Z"),
        ("2026-01-02 03:04:05.5", "2026-01-02T03:04:05.500000Z"),
    ],
)
def test_event_times_are_kept_as_rfc_3339_in_utc(store: TrainingDataStore, moment: datetime, expected: str) -> None:
    store.sync.store_agent_event("started", timestamp=moment)
    store.sync.flush()
    assert csv_rows(store.settings, "events")[0]["timestamp"] == expected
    assert (store.settings.data_dir / "training/events/events_2026-01-02.csv").exists()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda store: store.store_agent_event(None), "event_type=None"),
        (lambda store: store.store_agent_event(), "event_type"),
        (lambda store: store.store_agent_event("x", agent_id=4.5), r"agent_id=4.5 \(float\): expected str"),
        (lambda store: store.store_agent_event("x", agent_id=["a"]), "agent_id"),
        (lambda store: store.store_agent_event("x", agent_id=True), "agent_id"),
        (lambda store: store.store_agent_event("x", timestamp="yesterday"), "timestamp='yesterday'"),
        (lambda store: store.store_agent_event("x", timestamp=5), "timestamp=5"),
        (lambda store: store.store_agent_task("x", retry_count="many"), "retry_count='many'"),
        (lambda store: store.store_agent_task("x", retry_count=1.5), "retry_count=1.5"),
        (lambda store: store.store_agent_task("x", retry_count=2**70), "retry_count"),
        (lambda store: store.store_agent_task("x", started_at="soon"), "started_at='soon'"),
        (
            lambda store: store.store_feedback("person", "x", "reward", 1),
            "target_kind='person': expected one of record",
        ),
        (lambda store: store.store_feedback("task", "x", "reward", 1, source="me"), "source='me'"),
        (lambda store: store.store_feedback("task", "x", "reward", {"a": 1}), "value"),
        (lambda store: store.store_record("event", event_type="x"), "kind='event': expected one of events, tasks"),
        (lambda store: store.store_record("events", event_type="x", colour="red"), "colour"),
    ],
)
def test_a_wrong_call_raises_at_once_and_says_what_was_expected(
    store: TrainingDataStore, call: Callable[[Any], object], says: str
) -> None:
    with pytest.raises((InvalidRecord, TypeError), match=says):
        call(store.sync)
    assert not store.settings.spool.exists(), "nothing was accepted"


def test_an_unknown_kind_is_refused_by_all_that_take_one(store: TrainingDataStore) -> None:
    for call in (store.load, store.scan, store.sync.store_record):
        with pytest.raises(UnknownKind, match="kind='event': expected one of events"):
            call("event")


def test_a_number_or_uuid_as_an_id_becomes_text_and_is_counted_as_coerced(store: TrainingDataStore) -> None:
    agent = uuid.uuid4()
    store.sync.store_agent_event("x", agent_id=42)  # type: ignore[arg-type]
    store.sync.store_agent_event("x", agent_id=agent)  # type: ignore[arg-type]
    store.sync.store_agent_event("x", agent_id="a")
    store.sync.flush()
    assert [row["agent_id"] for row in csv_rows(store.settings, "events")] == ["42", str(agent), "a"]
    assert account(store.settings, "events").coerced == 2


class Colour(Enum):
    RED = "red"


def nested(levels: int) -> object:
    value: object = "bottom"
    for _ in range(levels):
        value = [value]
    return value


class Grumpy:
    def __repr__(self) -> str:
        raise RuntimeError("no repr today")


def test_values_that_json_cannot_hold_are_kept_in_a_form_that_it_can(store: TrainingDataStore) -> None:
    loop: list[object] = []
    loop.append(loop)
    payloads: list[tuple[object, object]] = [
        ({"at": datetime(2026, 1, 2, tzinfo=UTC)}, {"at": "2026-01-02T00:00:00Z"}),
        ({"d": Decimal("1.10")}, {"d": "1.10"}),
        ({"c": Colour.RED}, {"c": "red"}),
        ({1: {2.5: "x"}}, {"1": {"2.5": "x"}}),
        ({"f": float("nan"), "g": float("inf")}, {"f": None, "g": None}),
        ({"pair": "\ud83d\ude00", "lone": "a\ud800b"}, {"pair": "😀", "lone": "a\\ud800b"}),
        ({"nul": "a\x00b", "lines": "a\r\nb\\n"}, {"nul": "a\x00b", "lines": "a\r\nb\\n"}),
        ({"o": Grumpy()}, {"o": "<Grumpy: repr failed>"}),
    ]
    for payload, _ in payloads:
        assert store.sync.store_agent_event("x", payload=payload) is not None
    assert store.sync.store_agent_event("x", payload=nested(1_100)) is not None
    assert store.sync.store_agent_event("x", payload=loop) is not None
    store.sync.flush()
    rows = csv_rows(store.settings, "events")
    assert [row["payload"] for row in rows[: len(payloads)]] == [expected for _, expected in payloads]
    assert str(rows[-2]["payload"]).count("[") == 1_100
    assert "cycle" in str(rows[-1]["payload"])
    counted = account(store.settings, "events")
    assert (counted.rows, counted.quarantined) == (len(payloads) + 2, 0)
    assert counted.coerced == 4, "surrogates, the bad repr, the depth and the loop; msgspec knows the others"


@pytest.mark.parametrize("field", ["event_type", "source", "session_id"])
def test_text_with_line_breaks_nul_and_surrogates_survives_in_one_line(store: TrainingDataStore, field: str) -> None:
    text = 'a\nb\r\nc\\n"d",\x00 \ud83d\ude00 😀 \ud800'
    store.sync.store_record("events", **{"event_type": "x", field: text})
    store.sync.flush()
    (row,) = csv_rows(store.settings, "events")
    assert row[field] == 'a\nb\r\nc\\n"d",\x00 😀 😀 \\ud800'


def test_a_record_over_the_limit_is_dropped_counted_and_breaks_nothing(tmp_path: Path) -> None:
    store = TrainingDataStore(Settings(data_dir=tmp_path, max_record_bytes=1000))
    assert asyncio.run(store.store_agent_event("x", payload="y" * 2000)) is None
    assert asyncio.run(store.store_agent_event("x", payload="y")) is not None
    store.sync.flush()
    counted = account(store.settings, "events")
    assert (counted.offered, counted.accepted, counted.dropped, counted.rows) == (2, 1, 1, 1)
    assert counted.balanced
    store.sync.close()


def test_a_record_of_sixteen_mebibytes_is_stored(store: TrainingDataStore) -> None:
    store.sync.store_agent_event("x", payload='"' * (7 << 20))  # doubled by JSON, and again by CSV
    store.sync.flush()
    assert csv_rows(store.settings, "events")[0]["payload"] == '"' * (7 << 20)
    assert store.load("events")["payload"][0] == msgspec.json.encode('"' * (7 << 20)).decode()


def test_a_data_folder_that_cannot_be_written_never_breaks_the_agent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = TrainingDataStore(Settings(data_dir=tmp_path / "file"))
    assert asyncio.run(store.store_agent_event("x")) is None
    loud = TrainingDataStore(Settings(data_dir=tmp_path / "file", on_full="raise"))
    with pytest.raises(NotAccepted, match="TDS_SPOOL_DIR"):
        asyncio.run(loud.store_agent_event("x"))
    store.sync.close()
    loud.sync.close()


def test_event_times_in_1970_and_2199_are_filed_under_the_day_of_ingest_and_counted(store: TrainingDataStore) -> None:
    for year in (1970, 2199):
        store.sync.store_agent_event("x", timestamp=datetime(year, 1, 2, tzinfo=UTC))
    store.sync.flush()
    today = datetime.now(UTC).date().isoformat()
    assert [path.stem[-10:] for path in (store.settings.data_dir / "training/events").glob("*.csv")] == [today]
    assert [str(row["timestamp"])[:4] for row in csv_rows(store.settings, "events")] == ["1970", "2199"]
    assert account(store.settings, "events").clock == 2


@pytest.mark.parametrize("change", [{"spool_sync": "always"}, {"on_full": "block"}, {"spool_sync": "off"}])
def test_calls_that_may_wait_run_beside_the_event_loop(tmp_path: Path, change: dict[str, str]) -> None:
    store = TrainingDataStore(msgspec.structs.replace(Settings(data_dir=tmp_path), **change))

    async def store_many() -> None:
        await asyncio.gather(*(store.store_agent_event(f"event {n}") for n in range(100)))
        await store.flush()

    asyncio.run(store_many())
    assert len(csv_rows(store.settings, "events")) == 100
    store.sync.close()


def test_an_integer_that_no_column_holds_is_refused_on_every_call_and_not_only_on_the_first(
    store: TrainingDataStore,
) -> None:
    store.sync.store_agent_task("x", retry_count=2**63 - 1)
    with pytest.raises(InvalidRecord, match="retry_count=1180591620717411303424"):
        store.sync.store_agent_task("x", retry_count=2**70)
    store.sync.flush()
    assert account(store.settings, "tasks").rows == 1


@pytest.mark.parametrize("text", [b'{\n"a":1,\r\n"b":"x\\ny"}', b"{not\njson"])
def test_raw_json_of_the_callers_own_stays_on_one_line(store: TrainingDataStore, text: bytes) -> None:
    store.sync.store_agent_event("x", payload=msgspec.Raw(text))
    store.sync.store_agent_event("y")
    store.sync.flush()
    rows = csv_rows(store.settings, "events")
    assert [row["event_type"] for row in rows] == ["x", "y"]
    assert rows[0]["payload"] == ({"a": 1, "b": "x\ny"} if b"1" in text else "{not\njson")


@pytest.mark.parametrize("levels", range(880, 1010, 5))
def test_values_of_any_depth_are_stored_and_none_is_refused_by_the_writer(tmp_path: Path, levels: int) -> None:
    store = TrainingDataStore(Settings(data_dir=tmp_path))
    for more in range(5):
        store.sync.store_agent_event("x", payload=nested(levels + more))
    store.sync.flush()
    counted = account(store.settings, "events")
    assert (counted.rows, counted.quarantined) == (5, 0)
    store.sync.close()


def test_a_wide_value_is_not_taken_for_a_deep_one(store: TrainingDataStore) -> None:
    store.sync.store_agent_event("x", payload=[{"n": n} for n in range(2000)])
    store.sync.flush()
    assert account(store.settings, "events").coerced == 0


def test_closing_beside_running_calls_breaks_none_of_them(store: TrainingDataStore) -> None:
    failures: list[BaseException] = []
    stop = threading.Event()
    counts = [0, 0, 0]

    def store_all_the_time(place: int) -> None:
        try:
            while not stop.is_set():
                assert store.sync.store_agent_event("x") is not None
                counts[place] += 1
                time.sleep(0.0002)
        except BaseException as err:  # noqa: BLE001 - told to the test below
            failures.append(err)

    threads = [threading.Thread(target=store_all_the_time, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        store.sync.close()
    stop.set()
    for thread in threads:
        thread.join()
    store.sync.flush()
    assert failures == []
    assert len(csv_rows(store.settings, "events")) == sum(counts)
    assert account(store.settings, "events").balanced


def test_a_disk_that_cannot_sync_or_a_machine_without_threads_never_breaks_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = TrainingDataStore(Settings(data_dir=tmp_path, spool_sync="always"))

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def no_sync(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as fault:
        fault.setattr(threading.Thread, "start", no_thread)
        fault.setattr("ingest.pipeline.spool.sync_data", no_sync)
        assert store.sync.store_agent_event("x") is not None
    assert "can't start new thread" in caplog.text
    assert "cannot be synced" in caplog.text
    store.sync.flush()
    assert len(csv_rows(store.settings, "events")) == 1
    store.sync.close()


def test_closing_twice_is_fine_and_storing_after_it_goes_on(store: TrainingDataStore) -> None:
    async def use() -> None:
        await store.store_agent_event("x")
        await store.flush()
        await store.close()
        await store.close()
        await store.store_agent_event("y")
        await store.flush()

    asyncio.run(use())
    assert [row["event_type"] for row in csv_rows(store.settings, "events")] == ["x", "y"]


def test_a_process_has_one_store_made_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDS_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("ingest.store._process_store", None)
    assert get_training_data_store() is get_training_data_store()
    assert get_training_data_store().settings.data_dir == tmp_path / "elsewhere"
    assert not (tmp_path / "elsewhere").exists(), "a process that stores nothing leaves nothing behind"
