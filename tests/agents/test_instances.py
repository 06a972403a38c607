"""Running agents are in memory: whoever is silent is gone, and starts and ends are events by themselves."""

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ingest import InvalidRecord, TrainingDataStore
from ingest.agents.instances import Instances
from tests.agents.instance_parts import Clock, SilentStore


def stored(store: TrainingDataStore) -> list[dict[str, str]]:
    store.sync.flush()
    rows: list[dict[str, str]] = []
    for path in sorted((store.settings.data_dir / "training" / "events").glob("*.csv")):
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def test_the_life_of_an_agent_at_work_is_events_of_it(store: TrainingDataStore) -> None:
    instances = Instances(store)
    with instances.running("agent-1", session_id="s1") as instance:
        assert instances.heartbeat(instance.instance_id) == instance
        instances.set_status(instance.instance_id, "thinking", task_id="t1")
        instances.set_status(instance.instance_id, "thinking", task_id="t1")
    rows = stored(store)
    assert [row["event_type"].removeprefix("agent_instance_") for row in rows] == ["started", "status", "stopped"]
    assert {(row["agent_id"], row["instance_id"], row["session_id"]) for row in rows} == {
        ("agent-1", instance.instance_id, "s1")
    }
    assert json.loads(rows[1]["payload"]) == {"status": "thinking", "task_id": "t1", "from": "running"}
    assert instances.all() == []


def test_an_error_goes_on_and_its_class_is_in_the_event(store: TrainingDataStore) -> None:
    instances = Instances(store)
    with pytest.raises(ZeroDivisionError), instances.running("agent-1"):
        _ = 1 / 0
    last = stored(store)[-1]
    assert (json.loads(last["payload"])["error"], last["severity"]) == ("ZeroDivisionError", "error")


def test_a_silent_one_expires_and_its_heartbeat_says_so(store: TrainingDataStore) -> None:
    clock = Clock()
    instances = Instances(store, expires_after_s=10, clock=clock)
    instances.start("agent-1", instance_id="i1")
    clock.now = 10.5
    assert instances.heartbeat("i1") is None
    assert instances.stop("i1") is None
    last = stored(store)[-1]
    assert (last["event_type"], last["severity"]) == ("agent_instance_expired", "warning")
    assert json.loads(last["payload"])["silent_s"] == 10.5


def test_of_too_many_the_longest_silent_one_goes() -> None:
    instances = Instances(SilentStore.made(), most=2)
    for name in ("a", "b"):
        instances.start("agent", instance_id=name)
    instances.heartbeat("a")
    instances.start("agent", instance_id="c")
    assert [one.instance_id for one in instances.all()] == ["a", "c"]


def test_an_id_that_is_no_text_is_refused_at_once() -> None:
    with pytest.raises(InvalidRecord, match="agent_id=7: expected str"):
        Instances(SilentStore.made()).start(7)  # type: ignore[arg-type]  # the point


def test_a_forked_child_begins_with_none(tmp_path: Path) -> None:
    instances = Instances(SilentStore.made())
    instances.start("agent-1")
    child = os.fork()
    if child == 0:
        os._exit(len(instances.all()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(instances.all()) == 1


STEPS = st.lists(
    st.tuples(st.sampled_from(["start", "heartbeat", "status", "stop", "wait"]), st.sampled_from("abcd")), max_size=40
)


@hypothesis_settings(max_examples=150, deadline=None)
@given(STEPS)
def test_any_calls_leave_what_a_table_of_last_signs_would_have(steps: list[tuple[str, str]]) -> None:
    clock, store, seen = Clock(), SilentStore.made(), dict[str, float]()
    instances = Instances(store, expires_after_s=5, most=3, clock=clock)
    for step, name in steps:
        seen = {one: at for one, at in seen.items() if clock.now - at <= 5}
        is_known = name in seen
        if step == "wait":
            clock.now += 2
        elif step == "start":
            instances.start("agent", instance_id=name)
            seen.pop(name, None)
            if len(seen) == 3:
                del seen[next(iter(seen))]
            seen[name] = clock.now
        else:
            calls = {"heartbeat": instances.heartbeat, "stop": instances.stop}
            found = instances.set_status(name, "busy") if step == "status" else calls[step](name)
            assert (found is not None) == is_known
            if seen.pop(name, None) is not None and step != "stop":
                seen[name] = clock.now
    living = {one: at for one, at in seen.items() if clock.now - at <= 5}
    assert [one.instance_id for one in instances.all()] == list(living)
    told = SilentStore.told(store)
    assert told.count("agent_instance_started") - len(living) == sum(
        told.count(f"agent_instance_{end}") for end in ("stopped", "expired")
    )
