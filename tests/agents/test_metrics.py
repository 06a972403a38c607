"""Metrics are what the store counts anyway, whoever serves them, and what agents of all processes count together."""

import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import dagster as dg
import pytest
from prometheus_client import CollectorRegistry, Gauge

from ingest import Settings, TrainingDataStore
from ingest.agents.metrics import influx_lines, registry_of, serve_metrics
from ingest.errors import InvalidSetting
from tds_dagster.automation.run_metrics import RunCollector
from tests.parts import environment, free_port, run_python, wait_until

AGENT = """
import asyncio, sys
from ingest import get_training_data_store
from ingest.agents import metrics

async def work():
    metrics.SAMPLED = int(sys.argv[1])
    own = metrics.Metrics()
    store = metrics.measure_calls(get_training_data_store())
    own.counter("steps", "Steps.").inc(3)
    own.gauge("memory_bytes", "Memory.").set(7)
    own.histogram("answer_seconds", "Answers.", buckets=[1, 2]).observe(1.5)
    for n in range(640):
        await store.store_agent_event("step")
    await store.flush()
    await store.close()

asyncio.run(work())
"""


def samples(settings: Settings, *collectors: object) -> dict[str, float]:
    """Values by `name{labels}`, as `/metrics` has them."""
    return {
        sample.name + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in registry_of(settings, *collectors).collect()
        for sample in family.samples
    }


def test_a_store_that_has_not_begun_has_metrics_too_and_nothing_is_made_for_them(settings: Settings) -> None:
    found = samples(settings)
    assert found["tds_records_accepted_total,kind=events"] == 0
    assert found["tds_writer_up,kind=tasks"] == 0
    assert found["tds_disk_free_bytes"] > 0
    assert not settings.data_dir.exists()


def test_the_stores_figures_are_those_of_the_account(store: TrainingDataStore, settings: Settings) -> None:
    for n in range(5):
        store.sync.store_agent_event("x", idempotency_key=str(n % 4))
    store.sync.flush()
    found = samples(settings)
    assert found["tds_records_accepted_total,kind=events"] == 5
    assert found["tds_records_stored_total,kind=events"] == 5
    assert found["tds_records_duplicates_total,kind=events"] == 1
    assert found["tds_records_waiting,kind=events"] == 0
    assert found["tds_spool_bytes"] > 0


def test_what_waits_has_an_age(settings: Settings) -> None:
    code = "import os; from ingest import get_training_data_store as s; s().sync.store_agent_event('x'); os._exit(0)"
    waiting = Settings(data_dir=settings.data_dir, redis_url="redis://127.0.0.1:1/0")  # nobody writes it
    assert run_python(code, waiting).returncode == 0
    found = samples(settings)
    assert found["tds_records_waiting,kind=events"] == 1
    assert 0 < found["tds_lag_seconds,kind=events"] < 60


def test_processes_count_together_also_when_they_have_ended(settings: Settings) -> None:
    for _ in range(2):
        done = run_python(AGENT, settings, "1")
        assert done.returncode == 0, done.stderr
    found = samples(settings)
    assert found["agent_steps_total"] == 6
    assert found["agent_answer_seconds_bucket,le=2.0"] == 2
    assert found["agent_answer_seconds_bucket,le=1.0"] == 0
    assert found["tds_call_seconds_count,call=store_agent_event"] == 1280
    assert 0 < found["tds_call_seconds_sum,call=store_agent_event"] < 10


def test_one_call_of_sixty_four_is_measured(settings: Settings) -> None:
    done = run_python(AGENT, settings, "64")
    assert done.returncode == 0, done.stderr
    assert 0 <= samples(settings).get("tds_call_seconds_count,call=store_agent_event", 0) < 60
    assert samples(settings)["tds_records_accepted_total,kind=events"] == 640


def test_a_process_that_imported_prometheus_before_is_told_that_it_counts_alone(settings: Settings) -> None:
    code = "import prometheus_client\nfrom ingest.agents.metrics import Metrics\nMetrics().counter('x', 'X.').inc()"
    done = run_python(code, settings)
    assert done.returncode == 0
    assert "metrics of this process are its own" in done.stderr


def test_influx_lines_have_tags_a_value_and_a_time_and_escape_what_has_to_be() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("depth", "Depth.", ["queue"], registry=registry)
    gauge.labels("a b,c=d").set(1.5)
    gauge.labels("nothing").set(float("nan"))
    assert influx_lines(registry, now_ns=17) == "depth,queue=a\\ b\\,c\\=d value=1.5 17\n"


def test_a_port_that_is_taken_is_an_error_that_names_the_setting(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSetting, match=f"TDS_METRICS_PORT={port}"):
            serve_metrics(registry_of(settings), port)


def test_the_writer_serves_metrics_where_the_setting_says(settings: Settings, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", "from tds_dagster.cli import main; main()", "writer"]
    served = environment(settings) | {"TDS_METRICS_PORT": str(port)}
    process = subprocess.Popen(command, env=served, cwd=tmp_path, stderr=subprocess.PIPE)

    def look() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                return str(response.read().decode())
        except OSError:
            return ""

    try:
        wait_until(lambda: 'tds_writer_up{kind="events"} 1.0' in look(), "the writer serves its metrics", 30)
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0


def test_each_run_is_counted_once_by_what_it_was_about_and_how_it_ended() -> None:
    @dg.asset(key=["exports", "events"])
    def days() -> None:
        return

    @dg.asset(key=["models", "tool_selection"])
    def trained() -> None:
        raise ValueError

    job = dg.Definitions(assets=[days, trained]).resolve_implicit_global_asset_job_def()

    def run(instance: dg.DagsterInstance, *key: str) -> None:
        job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey([*key])], raise_on_error=False)

    with dg.DagsterInstance.ephemeral() as instance:
        collector = RunCollector(instance)

        def counted() -> dict[str, float]:
            return {
                re.sub(r"[{}'\" ]", "", f"{sample.name}{sample.labels}"): sample.value
                for family in collector.collect()
                for sample in family.samples
            }

        assert counted()["tds_runs_under_waystatus:started"] == 0
        for _ in range(2):
            run(instance, "exports", "events")
        assert counted()["tds_runs_totalof:days,status:success"] == 2
        run(instance, "models", "tool_selection")
        for _ in range(2):
            found = counted()
            assert found["tds_runs_totalof:days,status:success"] == 2
            assert found["tds_runs_totalof:training,status:failure"] == 1
            assert found["tds_run_seconds_countof:days"] == 2
            assert found["tds_run_seconds_bucketof:training,le:+Inf"] == 1
