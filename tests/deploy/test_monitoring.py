"""A real Prometheus scrapes what a store serves, promtool takes the rules, and each query of the dashboard has data."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest import Settings, TrainingDataStore
from tds_dagster.cli.up import prepare_home
from tests.parts import PROJECT, environment, free_port, run_python, skip_unless_required, wait_until

DEPLOY = PROJECT / "deploy"
AGENT = """
import asyncio
from ingest import get_training_data_store
from ingest.agents.metrics import Metrics, measure_calls
import ingest.agents.metrics as module

async def work():
    module.SAMPLED = 1
    store = measure_calls(get_training_data_store())
    called = Metrics().counter("tools_called", "Calls of tools.", ["tool"])
    for n in range(200):
        await store.store_agent_event("step", "agent", payload={"n": n})
        called.labels("search").inc()
    await store.flush()
    await store.close()

asyncio.run(work())
"""


def binary(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        skip_unless_required(f"no {name}: install Debian's package prometheus")
    return found


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [binary("promtool"), *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_configuration_and_the_rules_and_each_alert_fires_where_it_should() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "alerts.yml")
    promtool("test", "rules", "alerts_test.yml")
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    tried = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    for alert in re.findall(r"alert: (\w+)", rules):
        assert f'alertname="{alert}"' in tried, alert


@pytest.fixture
def served(settings: Settings) -> Iterator[int]:
    """`tds metrics` over a store with records, an agent's own metrics, and a run of Dagster."""
    done = run_python(AGENT, settings)
    assert done.returncode == 0, done.stderr
    home = prepare_home(settings)
    run = subprocess.run(
        [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "tds_dagster.definitions",
         "--select", "exports/events", "--partition", "2024-05-15"],
        env=environment(settings) | {"DAGSTER_HOME": str(home)}, cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    port = free_port()
    command = [sys.executable, "-c", "from tds_dagster.cli import main; main()", "metrics", "--port", str(port)]
    process = subprocess.Popen(command, env=environment(settings), cwd=home, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: bool(answer(f"http://127.0.0.1:{port}/metrics")), "metrics are served", 40)
        yield port
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0


def answer(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return ""


@pytest.fixture
def prometheus(served: int, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that scrapes it each second, by the configuration that is shipped."""
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    config = config.replace("127.0.0.1:9464", f"127.0.0.1:{served}").replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", tmp_path)
    port = free_port()
    process = subprocess.Popen(
        [binary("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}",
         f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: "Ready" in answer(f"{url}/-/ready"), "Prometheus is ready", 40)
        yield url
    finally:
        process.terminate()
        process.wait()


def query(url: str, expression: str) -> list[dict[str, Any]]:
    text = answer(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    assert text, expression
    found: list[dict[str, Any]] = json.loads(text)["data"]["result"]
    return found


@pytest.mark.timeout(180)
def test_every_query_of_the_dashboard_has_data_and_the_figures_are_the_stores(
    prometheus: str, settings: Settings
) -> None:
    wait_until(lambda: len(query(prometheus, "count_over_time(tds_records_waiting[1m]) > 3")) == 5, "four scrapes", 40)
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_bytes())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 15
    # Rates of the run and of the agent, which ended before the first scrape, are those of counters that do not grow.
    for expression in expressions:
        assert query(prometheus, expression.replace("$__rate_interval", "1m")), expression
    (accepted,) = query(prometheus, 'tds_records_accepted_total{kind="events"}')
    assert accepted["value"][1] == "200"
    (called,) = query(prometheus, 'agent_tools_called_total{tool="search"}')
    assert called["value"][1] == "200"
    (calls,) = query(prometheus, "sum(tds_call_seconds_count)")
    assert calls["value"][1] == "200"
    (runs,) = query(prometheus, 'tds_runs_total{of="days", status="success"}')
    assert runs["value"][1] == "1"
    store = TrainingDataStore(settings)
    for _ in range(50):
        store.sync.store_agent_event("more")
    store.sync.flush()
    store.sync.close()
    begun = time.monotonic()
    while query(prometheus, 'tds_records_stored_total{kind="events"}')[0]["value"][1] != "250":
        assert time.monotonic() - begun < 20
        time.sleep(0.3)
    assert query(prometheus, 'ALERTS{alertstate="firing"}') == []
