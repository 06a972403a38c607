"""Turns `tds writer` into running writers, until a signal asks them to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from tds_dagster.cli.arguments import KindsArgument, checked_kinds

if TYPE_CHECKING:
    from ingest.settings import Settings

EXAMPLE = "TDS_REDIS_URL=redis://localhost:6379/0 tds writer"


def write_kinds(
    kinds: KindsArgument = None,
    *,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Fail if another writer is at work, instead of standing by for it.")
    ] = False,
) -> None:
    """Write what agents store into the daily CSV files.

    It works until Ctrl-C or SIGTERM. It reads Synapse (TDS_REDIS_URL), on the host that has the data folder; without
    Redis it reads the spool. Each kind has one writer at a time: a second one stands by and takes over when the first
    ends. What it reports goes to stderr, metrics to TDS_METRICS_PORT if that is set. A second Ctrl-C ends it at once;
    nothing is lost by that, nor by kill -9.
    """
    from ingest.pipeline.writer import run_writers
    from ingest.settings import read_settings

    settings, names = read_settings(), checked_kinds(kinds)
    stop = threading.Event()

    def stop_writing(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_writing)
    source = settings.redis_url_without_password or settings.spool
    typer.echo(f"writing {', '.join(names)}: {source} -> {settings.data_dir / 'training'}", err=True)
    with _metrics(settings):
        run_writers(settings, names, stop, wait=not no_wait, report=_report)
    typer.echo("stopped", err=True)


@contextmanager
def _metrics(settings: "Settings") -> Iterator[None]:
    """Serve `/metrics` meanwhile, if TDS_METRICS_PORT says where."""
    if settings.metrics_port is None:
        yield
        return
    from ingest.agents.metrics import registry_of, serve_metrics

    stop = serve_metrics(registry_of(settings), settings.metrics_port)
    typer.echo(f"metrics: http://127.0.0.1:{settings.metrics_port}/metrics", err=True)
    try:
        yield
    finally:
        stop()


def _report(sentence: str) -> None:
    typer.echo(sentence, err=True)
