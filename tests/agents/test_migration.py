"""Rows of the old tables are taken over: each once, each accounted for, and killed in between it goes on."""

import asyncio
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest import Settings
from ingest.agents.configs import Configs
from ingest.agents.messages import Message, Messages
from ingest.agents.migration import Migration, Report
from ingest.agents.old_tables import OLD_TABLES
from ingest.errors import DatabaseUnavailable, InvalidSetting, Unbalanced
from ingest.pipeline.accounting import account
from ingest.records import KINDS
from tests.agents.old_parts import WHEN, OldDatabase, fill
from tests.parts import PROJECT, PostgresServer, csv_rows, environment

schemas = itertools.count()
KINDS_OF_TABLES = {table.name: table.kind for table in OLD_TABLES.values() if table.kind is not None}


@pytest.fixture
def old(postgres_server: PostgresServer) -> Iterator[OldDatabase]:
    database = OldDatabase(postgres_server.url, f"old_{next(schemas)}")
    database.create()
    yield database
    database.close()


@pytest.fixture
def settings(tmp_path: Path, postgres_server: PostgresServer, old: OldDatabase) -> Settings:
    """The store's settings; conversations go to a schema beside the old one."""
    return Settings(
        data_dir=tmp_path / "data", postgres_url=postgres_server.url, postgres_schema=f"{old.schema}_new",
        start_date=date(2026, 1, 1),
    )  # fmt: skip


def migrate(settings: Settings, old: OldDatabase, **more: Any) -> Report:
    with Migration(settings, schema=old.schema, configs=settings.data_dir.parent / "configs", **more) as migration:
        return migration.run()


def figures(report: Report) -> dict[str, tuple[int, int, int, int]]:
    """Of each table that is there: rows accounted for, stored, known, quarantined."""
    return {
        each.table: (each.migrated.rows, each.migrated.stored, each.migrated.known, each.migrated.quarantined)
        for each in report.tables
        if each.rows is not None
    }


def history(settings: Settings, instance_id: str) -> list[Message]:
    async def read() -> list[Message]:
        async with Messages(settings) as messages:
            return await messages.get_history(instance_id)

    return asyncio.run(read())


def test_every_row_of_every_table_gets_to_its_place(settings: Settings, old: OldDatabase, tmp_path: Path) -> None:
    fill(old)
    report = migrate(settings, old)
    assert figures(report) == {name: (12, 12, 0, 0) if name == "agent_interactions" else (3, 3, 0, 0)
                               for name in OLD_TABLES}  # fmt: skip
    assert report.quarantine is None
    for kind in ("events", "tasks", "tool_executions", "workflows"):
        rows = csv_rows(settings, kind)
        assert len(rows) == 3
        assert {row["timestamp"] for row in rows} == {f"{WHEN}Z"}
    (event,) = (row for row in csv_rows(settings, "events") if row["session_id"] == "s-1")
    assert (event["metadata"], event["severity"], event["source"]) == ({"event_id": "e-1"}, "warning", "app")
    assert event["payload"] == {"n": 1, "deep": [{"ü": None}]}
    (workflow,) = (row for row in csv_rows(settings, "workflows") if row["workflow_id"] == "w-2")
    kept = {"own": True, "checkpoints": [{"at": 1}], "error_count": 2, "created_at": WHEN}
    assert workflow["metadata"] == kept
    (task,) = (row for row in csv_rows(settings, "tasks") if row["task_id"] == "t-2")
    assert (task["retry_count"], task["started_at"], task.get("error")) == (2, f"{WHEN}Z", None)

    said = history(settings, "s-1")
    assert [each.content for each in said] == [f"turn {n}" for n in range(4)]
    assert said[0].metadata == {"session_id": "s-1", "token_count": 7}

    configs = Configs(tmp_path / "configs")
    agent = configs.agent("agent-1")
    assert (agent.model, agent.temperature, agent.max_tokens, agent.tools) == ("llama3:8b", 0.2, 101, ("search",))
    assert agent.render(name="Ada") == "You are Ada."
    assert agent.settings["model_config"] == {"model": "llama3:8b", "top_p": 0.9}
    assert configs.prompt("p-0.system").render(mood="kind") == "Be kind."
    assert configs.prompt("p-0.user").render(name="Ada") == "Greet Ada."
    (metrics,) = (settings.data_dir / "migration").glob("*/agent_metrics.jsonl")
    assert [json.loads(line)["metric_value"] for line in metrics.read_bytes().splitlines()] == [0, 0.5, 1]


def test_a_second_run_does_nothing_and_a_dry_one_changes_nothing(settings: Settings, old: OldDatabase) -> None:
    fill(old)
    with Migration(settings, schema=old.schema) as migration:
        counted = migration.count()
    assert {each.table: (each.rows, each.migrated.rows) for each in counted.tables}["agent_events"] == (3, 0)
    assert not settings.data_dir.exists()
    first = migrate(settings, old)
    accounts = {kind: account(settings, kind) for kind in KINDS}
    assert figures(migrate(settings, old)) == figures(first)
    assert {kind: account(settings, kind) for kind in KINDS} == accounts


def test_rows_that_come_later_are_taken_wherever_they_stand_and_none_is_doubled(
    settings: Settings, old: OldDatabase
) -> None:
    fill(old)
    migrate(settings, old)
    old.insert("agent_events", event_id="z-last", event_type="late", created_at=WHEN)
    assert figures(migrate(settings, old))["agent_events"] == (4, 4, 0, 0)
    old.insert("agent_events", event_id="a-first", event_type="late", created_at=WHEN)
    assert figures(migrate(settings, old))["agent_events"] == (5, 1, 4, 0)
    old.execute("DELETE FROM agent_events WHERE event_id = 'e-1'")
    assert figures(migrate(settings, old))["agent_events"] == (4, 0, 4, 0)
    assert len(csv_rows(settings, "events")) == 5


def test_what_no_record_can_be_made_of_is_kept_with_its_reason_and_the_rest_goes_on(
    settings: Settings, old: OldDatabase
) -> None:
    settings = msgspec.structs.replace(settings, max_record_bytes=100_000)
    fill(old)
    old.insert("agent_events", event_id="b-infinity", event_type="x", created_at="infinity")
    old.insert("agent_events", event_id="b-future", event_type="x", created_at="2199-01-01")
    old.insert("agent_events", event_id="b-large", event_type="x", payload={"x": "y" * 200_000}, created_at=WHEN)
    old.execute(
        "INSERT INTO agent_events (event_id, event_type, payload, created_at) VALUES ('b-deep', 'x', %s, %s)",
        "[" * 1500 + "]" * 1500,
        WHEN,
    )
    old.insert("agent_interactions", interaction_id="b-nobody", role="user", content="hello")
    old.insert("agent_configs", agent_id="../../etc", agent_type="x", name="x")
    report = migrate(settings, old)
    found = figures(report)
    assert (found["agent_events"], found["agent_interactions"]) == ((7, 3, 0, 4), (13, 12, 0, 1))
    assert found["agent_configs"] == (4, 3, 0, 1)
    assert report.quarantine is not None
    told = {
        path.stem: [json.loads(line) for line in path.read_bytes().splitlines()]
        for path in Path(report.quarantine).glob("*.jsonl")
    }
    reasons = {line["row"]["event_id"] if isinstance(line["row"], dict) else "b-deep": line["reason"]
               for line in told["agent_events"]}  # fmt: skip
    assert "expected one from year 1 to 9999" in reasons["b-infinity"]
    assert "more than a day ahead" in reasons["b-future"]
    assert "TDS_MAX_RECORD_BYTES=100000" in reasons["b-large"]
    assert "at most 900 levels" in reasons["b-deep"]
    assert "session_id and agent_id are null" in told["agent_interactions"][0]["reason"]
    assert "../../etc" in told["agent_configs"][0]["reason"]
    assert figures(migrate(settings, old)) == found


def test_a_row_from_before_the_first_day_stops_it_before_anything_is_stored(
    settings: Settings, old: OldDatabase
) -> None:
    fill(old)
    old.insert("tool_executions", execution_id="x", tool_name="x", created_at="2023-04-05")
    with pytest.raises(InvalidSetting, match="set TDS_START_DATE=2023-04-05"):
        migrate(settings, old)
    assert not (settings.data_dir / "training").exists()


def test_where_the_writer_is_on_another_host_it_is_refused_before_anything_is_done(
    settings: Settings, old: OldDatabase
) -> None:
    fill(old)
    with pytest.raises(InvalidSetting, match="on its host"):
        migrate(msgspec.structs.replace(settings, redis_url="redis://127.0.0.1:1/0"), old)
    assert not settings.data_dir.exists()


def test_times_are_in_the_zone_that_is_told_and_columns_of_ones_own_are_kept(
    settings: Settings, old: OldDatabase
) -> None:
    old.execute("ALTER TABLE agent_tasks ADD COLUMN customer TEXT")
    old.insert("agent_tasks", task_id="t", task_type="x", customer="acme", created_at="2026-07-01T12:00:00")
    migrate(settings, old, timezone="Europe/Berlin")
    (row,) = csv_rows(settings, "tasks")
    assert row["timestamp"] == "2026-07-01T10:00:00.000000Z"
    assert row["metadata"] == {"customer": "acme"}
    with pytest.raises(InvalidSetting, match="Europe/Berlin"):
        migrate(settings, old, timezone="Mars/Olympus")


def test_tables_that_are_not_there_are_passed_over_and_others_are_an_error(
    settings: Settings, old: OldDatabase
) -> None:
    old.execute("DROP TABLE workflows")
    report = migrate(settings, old)
    assert {each.table for each in report.tables if each.rows is None} == {"workflows"}
    with pytest.raises(InvalidSetting, match="expected one of agent_events"):
        migrate(settings, old, tables=["users"])
    with pytest.raises(InvalidSetting, match="TDS_POSTGRES_URL is not set"):
        migrate(msgspec.structs.replace(settings, postgres_url=None), old)
    gone = msgspec.structs.replace(settings, postgres_url="postgresql://nobody:hunter2@127.0.0.1:1/x")
    with pytest.raises(DatabaseUnavailable) as caught:
        migrate(gone, old)
    assert "hunter2" not in str(caught.value)


def test_tables_are_dropped_when_every_row_is_accounted_for_and_not_before(
    settings: Settings, old: OldDatabase
) -> None:
    fill(old)
    with Migration(settings, schema=old.schema, configs=settings.data_dir / "configs") as migration:
        with pytest.raises(Unbalanced, match=r"agent_events \(0 of 3\)"):
            migration.drop()
        migration.run()
        old.insert("agent_tasks", task_id="late", task_type="x", created_at=WHEN)
        with pytest.raises(Unbalanced, match=r"agent_tasks \(3 of 4\)"):
            migration.drop()
        assert old.tables() == set(OLD_TABLES)
        migration.run()
        assert set(migration.drop().dropped) == set(OLD_TABLES)
    assert old.tables() == set()
    assert len(csv_rows(settings, "tasks")) == 4
    assert figures(migrate(settings, old)) == {}


@pytest.mark.timeout(180)
def test_killed_again_and_again_it_ends_with_each_row_once(settings: Settings, old: OldDatabase) -> None:
    rows = 6000
    for table, columns in {
        "agent_events": "event_id, event_type, created_at) SELECT 'e' || n, 'x', TIMESTAMP '2026-03-01'",
        "agent_tasks": "task_id, task_type, created_at) SELECT 't' || n, 'x', TIMESTAMP '2026-03-01'",
        "agent_interactions": "interaction_id, session_id, role, content, created_at) SELECT 'm' || n, 's' || n % 9, "
        "'user', 'hi', TIMESTAMP '2026-03-01'",
    }.items():
        old.execute(f"INSERT INTO {table} ({columns} + n * INTERVAL '1 second' FROM generate_series(1, {rows}) AS n")
    old.insert("agent_events", event_id="bad", event_type="x", created_at="infinity")
    code = (
        "from ingest.agents import migration\nfrom ingest.settings import read_settings\nmigration.BATCH = 250\n"
        f"with migration.Migration(read_settings(), schema={old.schema!r}) as moving:\n"
        "    print('begun', flush=True)\n    moving.run()\n"
    )
    pauses, kills = random.Random(7), 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment(settings), cwd=PROJECT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(pauses.uniform(0.1, 0.8))
        if kills == 4:
            process.communicate()
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    assert process.returncode == 0
    found = figures(migrate(settings, old))
    for table in ("agent_events", "agent_tasks", "agent_interactions"):
        accounted, stored, known, quarantined = found[table]
        assert accounted == old.count(table) == stored + known + quarantined
    assert found["agent_events"][3] == 1
    for table, kind in KINDS_OF_TABLES.items():
        written = [row["record_id"] for row in csv_rows(settings, str(kind))]
        assert len(written) == len(set(written)) == (old.count(table) - (table == "agent_events"))
        assert account(settings, str(kind)).balanced
    assert sum(len(history_of(settings, n)) for n in range(9)) == rows


def history_of(settings: Settings, n: int) -> list[Message]:
    async def read() -> list[Message]:
        async with Messages(settings) as messages:
            return await messages.get_history(f"s{n}", 10_000)

    return asyncio.run(read())
