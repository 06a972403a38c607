"""The event logs of workflows say to a process-mining package what was stored, and the examples what came next."""

import json
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from ingest import Settings, TrainingDataStore
from tds_dagster.datasets import workflow_orchestration
from tds_dagster.datasets.process_mining import write_event_logs
from tds_dagster.datasets.recipe import read_recipe
from tds_dagster.datasets.sources import open_sources

Json = Any
START = datetime(2024, 5, 15, 8, 30, tzinfo=UTC)
HOSTILE = "<&\"'\x00\x1f\n\r\t]]>\u2028 é \U0001f600 \uffff"


def seconds(n: int) -> datetime:
    return START + timedelta(seconds=n)


@pytest.fixture(scope="module")
def workflows(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Two workflows, the one with two tasks; a task of none; and a workflow whose every text is hostile."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("workflows") / "data")
    store = TrainingDataStore(settings)
    tell, task = store.sync.store_workflow_data, store.sync.store_agent_task
    for n, (phase, step, done) in enumerate(
        [("plan", "read", 0), ("act", "write", 1), ("act", "write", 2), ("done", None, 2)]
    ):
        tell(
            "w1", "report", phase, {"n": n}, [{"step": n}], current_step=step, total_steps=2, completed_steps=done,
            assigned_agents=["a2", "a1"], session_id="s1", agent_id="a1", timestamp=seconds(10 * n),
        )  # fmt: skip
    for name, statuses in (("t1", ["pending", "running", "completed"]), ("t2", ["pending", "failed", "odd"])):
        for n, status in enumerate(statuses):
            task(name, "a2", task_type="write", status=status, workflow_id="w1", timestamp=seconds(10 * n + 5))
    task("t3", "a9", timestamp=seconds(1))
    tell("w2", phase=None, current_step=None, timestamp=seconds(3), metadata={"secret": 1})
    tell("w2", phase="x", current_step=None, timestamp=seconds(4))
    for n in range(2):
        tell(HOSTILE, HOSTILE, HOSTILE, current_step=f"{HOSTILE}{n}", error=HOSTILE, timestamp=seconds(50 + n))
    store.sync.flush()
    store.sync.close()
    return settings


def write_logs(settings: Settings, folder: Path, **recipe: Json) -> list[Json]:
    with open_sources(settings, read_recipe("workflow_orchestration", {"redaction": "none", **recipe})) as sources:
        return [json.loads(json.dumps([file.path, file.rows])) for file in write_event_logs(folder, sources)]


READ_BOTH = """
import json, sys, warnings
warnings.simplefilter("ignore")
import pm4py
log = pm4py.read_ocel2_json(sys.argv[1])
xes = pm4py.read_xes(sys.argv[2])
print("FOUND" + json.dumps({
    "events": len(log.events), "objects": log.objects["ocel:type"].value_counts().to_dict(),
    "activities": log.events["ocel:activity"].value_counts().to_dict(),
    "relations": log.relations["ocel:qualifier"].value_counts().to_dict(),
    "changes": len(log.object_changes), "contained": sorted(log.o2o["ocel:oid_2"]),
    "first": str(log.events["ocel:timestamp"].min()),
    "traces": xes.groupby("case:concept:name").size().to_dict(),
    "variant": list(xes[xes["case:concept:name"] == "w1"]["concept:name"]),
    "transitions": xes["lifecycle:transition"].value_counts().to_dict(),
    "resources": sorted(set(xes["org:resource"].dropna())),
    "seen": [list(map(str, edge)) for edge in pm4py.discover_dfg(xes[xes["case:concept:name"] == "w2"])[0]],
}))
"""


@pytest.mark.timeout(60)
def test_a_process_mining_package_reads_both_logs_with_the_figures_that_were_stored(
    workflows: Settings, tmp_path: Path
) -> None:
    assert write_logs(workflows, tmp_path / "logs") == [["logs/log.ocel.json", 14], ["logs/log.xes", 14]]
    logs = [str(tmp_path / "logs" / name) for name in ("log.ocel.json", "log.xes")]
    printed = subprocess.run(
        [sys.executable, "-c", READ_BOTH, *logs], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(printed.partition("FOUND")[2])
    name = HOSTILE.replace("\x00", "\ufffd").replace("\x1f", "\ufffd").replace("\uffff", "\ufffd")
    assert found["events"] == 14
    assert found["objects"] == {"workflow": 3, "task": 2, "agent": 2, "session": 1}
    assert found["activities"] == {
        "plan: read": 1, "act: write": 2, "done": 1, "no phase": 1, "x": 1, f"{HOSTILE}: {HOSTILE}0": 1,
        f"{HOSTILE}: {HOSTILE}1": 1, "task: pending": 2, "task: running": 1, "task: completed": 1, "task: failed": 1,
        "task: odd": 1,
    }  # fmt: skip
    # 4 states of w1 name who did it, another agent and a session; 6 of tasks their workflow, task and agent.
    assert found["relations"] == {"state of": 14, "part of": 6, "done by": 10, "assigned": 4, "within": 4}
    assert found["contained"] == ["task:t1", "task:t2"]
    # After an object's first values: w1 act, write, 1; 2; done. The hostile one a step. t1, t2 two statuses each.
    assert found["changes"] == 3 + 1 + 1 + 1 + 4
    assert found["first"] == "2024-05-15 08:30:00+00:00"
    assert found["traces"] == {"w1": 10, "w2": 2, name: 2}
    assert found["variant"][:4] == ["plan: read", "write", "write", "act: write"]
    assert found["transitions"] == {"complete": 9, "schedule": 2, "start": 1, "ate_abort": 1, "unknown": 1}
    assert found["resources"] == ["a1", "a2"]
    assert found["seen"] == [["no phase", "x"]]


def test_an_ocel_log_is_what_its_schema_asks_for(workflows: Settings, tmp_path: Path) -> None:
    write_logs(workflows, tmp_path)
    log = json.loads((tmp_path / "log.ocel.json").read_bytes())
    assert list(log) == ["objectTypes", "eventTypes", "objects", "events"]
    types = {"string": str, "integer": int}
    declared = {
        kind: {each["name"]: {a["name"]: types[a["type"]] for a in each["attributes"]} for each in log[kind]}
        for kind in ("objectTypes", "eventTypes")
    }
    ids = [item["id"] for item in log["objects"]]
    assert len(set(ids)) == len(ids)
    assert len({item["id"] for item in log["events"]}) == len(log["events"])
    for kind, items in (("objectTypes", log["objects"]), ("eventTypes", log["events"])):
        for item in items:
            attributes = declared[kind][item["type"]]
            assert all(isinstance(a["value"], attributes[a["name"]]) for a in item["attributes"])
            assert all(relation["objectId"] in ids and relation["qualifier"] for relation in item["relationships"])
    times = [event["time"] for event in log["events"]]
    assert times == sorted(times)
    assert all(datetime.fromisoformat(time).tzinfo is UTC for time in times)


def test_a_xes_log_is_well_formed_and_keeps_the_order_of_the_standard(workflows: Settings, tmp_path: Path) -> None:
    write_logs(workflows, tmp_path)
    space = "{http://www.xes-standard.org/}"
    log = ET.parse(tmp_path / "log.xes").getroot()
    assert log.tag == f"{space}log"
    order = ["extension", "global", "classifier", "string", "trace"]
    places = [order.index(child.tag.removeprefix(space)) for child in log]
    assert places == sorted(places)
    declared = {child.get("prefix") for child in log.iter(f"{space}extension")}
    keys = Counter(attribute.get("key", "") for event in log.iter(f"{space}event") for attribute in event)
    assert {key.split(":")[0] for key in keys if ":" in key} <= declared
    for key in ("concept:name", "lifecycle:transition", "time:timestamp"):
        assert keys[key] == 14, f"{key} is promised of every event"
    (values,) = {
        event.find(f"{space}string[@key='error']").get("value")  # type: ignore[union-attr]
        for event in log.iter(f"{space}event")
        if event.find(f"{space}string[@key='error']") is not None
    }
    assert values == HOSTILE.replace("\x00", "\ufffd").replace("\x1f", "\ufffd").replace("\uffff", "\ufffd")


def test_equal_records_give_equal_logs(workflows: Settings, tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        write_logs(workflows, tmp_path / name)
        written.append([(tmp_path / name / file).read_bytes() for file in ("log.ocel.json", "log.xes")])
    assert written[0] == written[1]


def test_only_workflows_that_the_recipe_chose_are_in_the_logs(workflows: Settings, tmp_path: Path) -> None:
    assert write_logs(workflows, tmp_path, include=["w2"]) == [
        [f"{tmp_path.name}/log.ocel.json", 2],
        [f"{tmp_path.name}/log.xes", 2],
    ]
    log = json.loads((tmp_path / "log.ocel.json").read_bytes())
    assert [item["id"] for item in log["objects"]] == ["workflow:w2"]


class Made:
    """The examples of a range, and what was left out."""

    def __init__(self, settings: Settings, **recipe: Json) -> None:
        checked = read_recipe("workflow_orchestration", {"redaction": "none", **recipe})
        with open_sources(settings, checked) as sources:
            self.examples = list(workflow_orchestration.examples(sources, checked))
            self.left_out = dict(sources.left_out)
        self.rows: list[Json] = [json.loads(example.row) for example in self.examples]


def test_each_state_but_the_first_is_an_example_of_what_comes_after_those_before_it(workflows: Settings) -> None:
    made = Made(workflows, include=["w1"])
    assert [(row["phase"], row["current_step"], row["completed_steps"]) for row in made.rows] == [
        ("act", "write", 1), ("act", "write", 2), ("done", None, 2),
    ]  # fmt: skip
    assert [example.label for example in made.examples] == ["act", "act", "done"]
    assert [[state["state_data"]["n"] for state in row["history"]] for row in made.rows] == [[0], [0, 1], [0, 1, 2]]
    assert made.rows[0]["history"][0] == {
        "timestamp": "2024-05-15T08:30:00.000000Z", "phase": "plan", "current_step": "read", "completed_steps": 0,
        "total_steps": 2, "error": None, "state_data": {"n": 0}, "step_results": [{"step": 0}],
    }  # fmt: skip
    assert list(made.rows[0]) == list(workflow_orchestration.FEATURES)
    assert made.left_out == {workflow_orchestration.FIRST: 1}


def test_nothing_of_the_next_state_but_what_is_to_be_predicted_is_in_a_row(workflows: Settings) -> None:
    text = json.dumps(Made(workflows, include=["w1"]).rows[0])
    assert '"n": 1' not in text
    assert '"step": 1' not in text


def test_a_window_and_a_minimum_of_history_hold_for_states(workflows: Settings) -> None:
    made = Made(workflows, include=["w1"], window=2, minimum_history=2)
    assert [[state["state_data"]["n"] for state in row["history"]] for row in made.rows] == [[0, 1], [1, 2]]
    assert made.left_out == {workflow_orchestration.FIRST: 1, workflow_orchestration.SHORT: 1}


def test_a_corrected_state_takes_the_place_of_the_logged_one(settings: Settings, store: TrainingDataStore) -> None:
    *_, wrong = [
        store.sync.store_workflow_data(
            "w1", phase=phase, current_step="write", completed_steps=n, total_steps=2, timestamp=seconds(n)
        )
        for n, phase in enumerate(("plan", "act", "done"))
    ]
    better = {"phase": "review", "completed_steps": True, "total_steps": 3, "other": 1}
    store.sync.store_feedback("record", str(wrong), "correction", corrected_output=better)
    store.sync.flush()
    made = Made(settings)
    assert {name: made.rows[1][name] for name in ("phase", "current_step", "completed_steps", "total_steps")} == {
        "phase": "review", "current_step": "write", "completed_steps": 2, "total_steps": 3,
    }  # fmt: skip
    assert [example.label for example in made.examples] == ["act", "review"]
