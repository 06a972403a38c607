"""Turns what stands beside training data into findings: conversations, Dagster's storage, old tables, configs, metrics.

Each check looks without changing anything, and waits `WAIT_S` for a server at most.
"""

import importlib
import importlib.util
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.settings import Settings, without_password
from tds_dagster.cli.check import Check

if TYPE_CHECKING:
    import psycopg

WAIT_S = 3
CONFIGS = Path("configs")  # where `Configs()` looks


def check_conversations(settings: Settings) -> Iterator[Check]:
    """Whether the database of conversations answers, and has the table as this version makes it."""
    if settings.postgres_url is None:
        yield Check("conversations", "ok", "SQLite: state/messages.sqlite, made at the first message")
        return
    where = without_password(settings.postgres_url)
    if importlib.util.find_spec("psycopg") is None:
        yield Check(
            "conversations", "broken", f"{where}: psycopg is not installed",
            "pip install 'training-data-store[postgres]'",
        )  # fmt: skip
        return
    import psycopg

    try:
        with psycopg.connect(settings.postgres_url, connect_timeout=WAIT_S) as connection:
            yield Check("conversations", "ok", f"{where}: PostgreSQL {connection.info.server_version // 10000}")
            yield from _old_tables(connection, where)
    except psycopg.Error as err:
        yield Check(
            "conversations", "broken", f"{where}: {_first_line(err)}",
            "see that the server runs and lets TDS_POSTGRES_URL in; conversations wait for it, records do not",
        )  # fmt: skip


def check_dagster_storage(settings: Settings) -> Iterator[Check]:
    """Whether the database of Dagster's runs and events answers."""
    if settings.dagster_postgres_url is None:
        return
    where = without_password(settings.dagster_postgres_url)
    try:
        psycopg2: Any = importlib.import_module("psycopg2")  # ships no types
    except ModuleNotFoundError:
        yield Check(
            "Dagster's storage", "broken", f"{where}: dagster-postgres is not installed",
            "pip install 'training-data-store[platform]'",
        )  # fmt: skip
        return
    try:
        psycopg2.connect(settings.dagster_postgres_url, connect_timeout=WAIT_S).close()
    except psycopg2.Error as err:
        yield Check(
            "Dagster's storage", "broken", f"{where}: {_first_line(err)}",
            "see that the server runs, and that the database of TDS_DAGSTER_POSTGRES_URL exists",
        )  # fmt: skip
    else:
        yield Check("Dagster's storage", "ok", f"{where} answers")


def check_configs(_: Settings) -> Iterator[Check]:
    """Whether the configs and prompts of agents in ./configs can be used."""
    if not CONFIGS.is_dir():
        return
    from ingest.agents.configs import Configs

    problems = Configs(CONFIGS).check()
    for problem in problems[:5]:
        yield Check("configs", "warning", str(problem), "correct the file: agents use its last good version until then")
    if not problems:
        files = sum(1 for path in CONFIGS.rglob("*") if path.is_file())
        yield Check("configs", "ok", f"{files} files in {CONFIGS}/, all of them can be used")


def check_metrics(settings: Settings) -> Iterator[Check]:
    """Whether somebody serves metrics where the setting says."""
    if settings.metrics_port is None:
        return
    if importlib.util.find_spec("prometheus_client") is None:
        yield Check(
            "metrics", "broken", "TDS_METRICS_PORT is set, and prometheus-client is not installed",
            "pip install 'training-data-store[metrics]'",
        )  # fmt: skip
        return
    url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            is_ours = b"tds_records_accepted_total" in answer.read()
    except (urllib.error.URLError, OSError) as err:
        yield Check("metrics", "ok", f"{url}: nobody serves it now ({err}); `tds up` and `tds writer` do")
        return
    if is_ours:
        yield Check("metrics", "ok", f"{url} is served")
    else:
        yield Check(
            "metrics", "warning", f"{url} is served by another program",
            "set TDS_METRICS_PORT to a port that is free",
        )  # fmt: skip


def _old_tables(connection: "psycopg.Connection", where: str) -> Iterator[Check]:
    from ingest.agents.old_tables import OLD_TABLES

    rows = connection.execute(
        "SELECT relname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace "
        "WHERE relkind = 'r' AND nspname = 'public' AND relname = ANY(%s) ORDER BY relname",
        [list(OLD_TABLES)],
    ).fetchall()
    if rows:
        names = ", ".join(name for (name,) in rows)
        yield Check(
            "old tables", "warning", f"{where}: {names}: what agents do is kept there no more",
            "tds migrate --dry-run counts what is left to take over, tds migrate --drop drops them",
        )  # fmt: skip


def _first_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__
