"""Turns `tds metrics` into one look at the store's metrics, or into a server that Prometheus scrapes."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ingest.settings import Settings

EXAMPLE = "tds metrics --port 9464"


class MetricsFormat(Enum):
    """The formats that `--format` takes."""

    PROMETHEUS = "prometheus"
    INFLUX = "influx"


def show_metrics(
    *,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Serve /metrics there until Ctrl-C.", min=1, max=65535)
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to serve at.")] = "127.0.0.1",
    form: Annotated[
        MetricsFormat, typer.Option("--format", help="Prometheus' text, or InfluxDB's line protocol.")
    ] = MetricsFormat.PROMETHEUS,
) -> None:
    """Show the store's metrics, or serve them.

    Without --port they are printed once: for node_exporter's textfile collector, Telegraf, or a look. They are read
    from the counters, ledgers and runs that are there anyway, so any process may serve them.
    """
    from ingest.agents.metrics import influx_lines, registry_of, serve_metrics
    from ingest.settings import read_settings

    settings = read_settings()
    with _run_collectors(settings) as collectors:
        registry = registry_of(settings, *collectors)
        if port is None:
            if form is MetricsFormat.INFLUX:
                typer.echo(influx_lines(registry), nl=False)
            else:
                from prometheus_client import generate_latest

                typer.echo(generate_latest(registry).decode(), nl=False)
            return
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        end = serve_metrics(registry, port, host)
        typer.echo(f"metrics: http://{host}:{port}/metrics", err=True)
        stop.wait()
        end()


@contextmanager
def _run_collectors(settings: "Settings") -> Iterator[list[Any]]:
    """What Dagster knows of runs, where it has been at work."""
    from ingest.settings import dagster_home

    if not (dagster_home(settings) / "dagster.yaml").exists():
        yield []
        return
    from dagster import DagsterInstance

    from tds_dagster.automation.run_metrics import RunCollector
    from tds_dagster.cli.up import prepare_home

    home = prepare_home(settings)

    with DagsterInstance.from_config(str(home)) as instance:
        yield [RunCollector(instance)]
