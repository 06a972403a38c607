"""The benchmarks measure what they say: every way stores every record, and losses do not pass for figures."""

from pathlib import Path

import pytest

from benchmarks import forks, latency, report, throughput
from benchmarks.ours import check_stored
from benchmarks.tools import OLD_STORE, REDIS, Tools
from benchmarks.turns import Job, LostRecords, Way, in_turns
from benchmarks.workload import LINE_BYTES, PAYLOAD_BYTES, events_of_line, events_with_payload, json_size, line_size
from ingest import Settings, TrainingDataStore

RECORDS, CALLS = 300, 60
NOT_HERE = "it is not fetched for tests"


@pytest.fixture
def tools(redis_binary: str) -> Tools:
    """Redis, and nothing that would have to be installed or fetched."""
    return Tools({REDIS: redis_binary}, {OLD_STORE: NOT_HERE}, {"Python": "3"})


def test_a_record_has_the_size_that_the_tables_name() -> None:
    events = events_of_line(seed=1, count=5000)
    assert len(events) == 5000
    assert {line_size(event) for event in events} == {LINE_BYTES}
    assert {json_size(event.payload) for event in events_with_payload(seed=1, count=50)} == {PAYLOAD_BYTES}


def test_all_ways_of_a_run_store_the_same_records_and_another_run_others() -> None:
    assert events_of_line(seed=1, count=20) == events_of_line(seed=1, count=20)
    assert events_of_line(seed=1, count=20) != events_of_line(seed=2, count=20)


@pytest.mark.timeout(300)  # ten seconds; it starts a Redis and a `tds writer` eight times
def test_the_table_holds_every_way_with_every_record_and_a_reason_for_those_not_measured(tools: Tools) -> None:
    many = in_turns("throughput", throughput.WAYS, runs=1, records=RECORDS, tools=tools, run_apart=False)
    single = in_turns("latency", latency.WAYS, runs=1, records=CALLS, tools=tools, run_apart=False)
    outside = {"the old store", "rsyslog", "dlt", "OpenTelemetry"}
    for way in (*throughput.WAYS, *latency.WAYS):
        outcome = many.get(way.name) or single[way.name]
        assert bool(outcome.reason) == any(way.name.startswith(name) for name in outside), way.name
    assert all(figure.stored == figure.offered for outcome in many.values() for figure in outcome.figures)
    assert all(figure.stored == figure.calls for outcome in single.values() for figure in outcome.figures)

    results = report.Results(latency=single, throughput=many)
    text = report.page(results, ["Processor: one"], tools, runs=1, records=RECORDS, calls=CALLS)
    assert f"| the old store | no | not measured: {NOT_HERE} |" in text
    for way in (*throughput.WAYS, *latency.WAYS):
        assert f"| {way.name} |" in text


def test_a_way_that_loses_a_record_fails_the_benchmark(tools: Tools) -> None:
    with pytest.raises(LostRecords, match="299 records are stored: expected 300"):
        in_turns("throughput", [Way("leaky", _leaky)], runs=1, records=RECORDS, tools=tools, run_apart=False)


def _leaky(job: Job) -> throughput.Throughput:
    return throughput.all_of(job, job.records - 1, 1.0)


def test_a_record_that_is_missing_in_the_csv_is_seen(settings: Settings, store: TrainingDataStore) -> None:
    store.sync.store_agent_event("seen")
    store.sync.flush()
    check_stored(settings, 1)
    with pytest.raises(LostRecords, match="1 rows with 1 ids: expected 2"):
        check_stored(settings, 2)


def test_records_of_forked_processes_with_threads_are_all_stored_under_distinct_ids(tmp_path: Path) -> None:
    forked = forks.store_from_forks(tmp_path, 320)
    assert forked.records == 320
    assert forked.status["stored"] == 321
    assert forked.status["balanced"] is True


def test_a_goal_that_was_not_measured_is_not_met() -> None:
    goals = report.goals(report.Results())
    assert goals
    assert not any(goal.is_met for goal in goals)
