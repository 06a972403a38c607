"""What `tds status` counts and what `tds doctor` finds, over data folders that are well, late, or damaged."""

import functools
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import Result

from ingest import Settings, TrainingDataStore
from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS
from tds_dagster.cli import diagnosis
from tds_dagster.cli.doctor import Diagnosis
from tds_dagster.cli.status import KindStatus, Status
from tests.parts import RedisServer, free_port, run_python

Tds = Callable[..., Result]
DAY = "2024-05-15"
EXPORT = ("--start", DAY, "--end", DAY)


def status_of(tds: Tds, exit_code: int = 0) -> Status:
    result = tds("status", "--json")
    assert result.exit_code == exit_code, result.stderr
    assert list(json.loads(result.stdout)["kinds"]["events"]) == list(KindStatus.__struct_fields__)
    return msgspec.json.decode(result.stdout, type=Status)


def store_events(store: TrainingDataStore, n: int) -> None:
    for number in range(n):
        store.sync.store_agent_event("e", payload=number, timestamp=f"{DAY}T08:00:00Z", idempotency_key=f"{number % 8}")


def leave_in_spool(settings: Settings, n: int) -> None:
    """Store records in a process that ends before anything is written."""
    code = (
        "import os, sys\nfrom dataclasses import dataclass\nfrom ingest import read_settings\n"
        "from ingest.calls import BlockingCalls, Recorder\nfrom ingest.pipeline.spool import Spool\n"
        "settings = read_settings()\nspool = Spool(settings, 'events')\n"
        "calls = BlockingCalls('agent', Recorder(lambda kind: spool))\n"
        "for n in range(int(sys.argv[1])):\n    calls.store_agent_event('e', timestamp='2024-05-15T08:00:00Z')\n"
        "os._exit(9)\n"
    )
    assert run_python(code, settings, str(n)).returncode == 9


def test_looking_at_a_folder_that_holds_nothing_leaves_nothing_in_it(tds: Tds, settings: Settings) -> None:
    status = status_of(tds)
    assert status.balanced
    assert list(status.kinds) == list(KINDS)
    assert tds("doctor").exit_code == 0
    assert not settings.data_dir.exists()


def test_every_record_is_counted_where_it_is(tds: Tds, store: TrainingDataStore) -> None:
    store_events(store, 10)
    store.sync.flush()
    events = status_of(tds).kinds["events"]
    assert (events.offered, events.accepted, events.dropped, events.waiting) == (10, 10, 0, 0)
    assert (events.stored, events.exported, events.pending, events.duplicates) == (10, 0, 8, 2)
    assert (events.days, events.first_day, events.last_day) == (1, DAY, DAY)
    assert events.writer_alive
    assert tds("export", "events", *EXPORT).exit_code == 0
    events = status_of(tds).kinds["events"]
    assert (events.stored, events.exported, events.pending, events.duplicates) == (10, 8, 0, 2)
    assert events.disk_bytes > 0
    table = tds("status").stdout
    assert "every record is accounted for" in table
    assert table.splitlines()[0].split()[:4] == ["kind", "offered", "dropped", "accepted"]


def test_what_dead_processes_left_is_written_before_it_is_counted(tds: Tds, settings: Settings) -> None:
    leave_in_spool(settings, 7)
    events = status_of(tds).kinds["events"]
    assert (events.waiting, events.stored, events.lag_s) == (0, 7, None)


def test_records_that_wait_are_counted_and_their_age_is_told(
    tds: Tds, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_in_spool(settings, 7)
    monkeypatch.setenv("TDS_REDIS_URL", f"redis://:secret@127.0.0.1:{free_port()}/0")  # nobody ships them
    status = status_of(tds)
    assert (status.kinds["events"].waiting, status.kinds["events"].accepted) == (7, 7)
    assert status.kinds["events"].lag_s is not None
    assert 0 <= status.kinds["events"].lag_s < 60
    assert "7 are still on their way" in status.verdict
    assert "secret" not in tds("status").stdout


def test_an_account_that_does_not_add_up_exits_with_1_and_names_the_day(
    tds: Tds, settings: Settings, store: TrainingDataStore
) -> None:
    store_events(store, 5)
    store.sync.flush()
    tds("export", "events", *EXPORT)
    shard = settings.data_dir / "exports" / "events" / "days" / f"events_{DAY}.jsonl"
    shard.write_bytes(shard.read_bytes().partition(b"\n")[2])
    status = status_of(tds, exit_code=1)
    assert not status.balanced
    assert status.kinds["events"].unbalanced_days == [DAY]
    assert f"events ({DAY})" in status.verdict


def test_values_that_were_changed_and_clocks_that_were_overruled_are_told(tds: Tds, store: TrainingDataStore) -> None:
    store.sync.store_agent_event("e", payload={"x": object()}, timestamp="1970-01-01T00:00:00Z")
    store.sync.flush()
    told = tds("status").stdout
    assert "events: 1 values were changed to fit JSON" in told
    assert "events: 1 are filed under their ingest day" in told


def findings(tds: Tds, exit_code: int) -> dict[str, tuple[str, str, str]]:
    """Each check's state, what it found and what to do, by its name."""
    result = tds("doctor", "--json")
    assert result.exit_code == exit_code, result.stdout
    diagnosis = msgspec.json.decode(result.stdout, type=Diagnosis)
    assert diagnosis.healthy == (exit_code == 0)
    for check in diagnosis.checks:
        assert (check.advice is None) == (check.state == "ok"), check
    return {check.name: (check.state, check.found, check.advice or "") for check in diagnosis.checks}


def test_a_healthy_folder_has_only_good_findings(tds: Tds, store: TrainingDataStore) -> None:
    store_events(store, 3)
    store.sync.flush()
    found = findings(tds, 0)
    assert {state for state, _, _ in found.values()} == {"ok"}
    assert found["ledgers"][1].startswith("1 day files are in the ledgers")
    assert tds("doctor").stdout.endswith("all is well\n")


def test_a_ledger_that_cannot_be_opened_is_not_called_damaged(
    tds: Tds, store: TrainingDataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_events(store, 3)
    store.sync.flush()
    store.sync.close()

    def refused(path: Path) -> object:
        raise sqlite3.OperationalError("disk I/O error")  # what SQLite says on a disk without room

    monkeypatch.setattr(diagnosis, "_read_ledger", refused)
    state, message, advice = findings(tds, 1)["events ledger"]
    assert state == "broken"
    assert re.search(r"disk I/O error; [\d,]+ bytes are free", message)
    assert advice.startswith("make room")
    assert "backup" not in advice


def test_a_damaged_ledger_is_found_and_the_other_kinds_are_still_looked_at(
    tds: Tds, settings: Settings, store: TrainingDataStore
) -> None:
    store_events(store, 3)
    store.sync.store_agent_task("t", timestamp=f"{DAY}T08:00:00Z")
    store.sync.flush()
    store.sync.close()
    ledger = settings.data_dir / "state" / "events.sqlite"
    ledger.write_bytes(b"no database at all" * 1000)
    found = findings(tds, 1)
    assert found["events ledger"][0] == "broken"
    assert str(ledger) in found["events ledger"][1]
    assert "backup" in found["events ledger"][2]
    assert "tasks ledger" not in found
    told = tds("status")
    assert told.exit_code == 1
    assert "tds doctor" in told.stderr


def test_a_day_file_that_is_shorter_than_committed_or_gone_is_found(
    tds: Tds, settings: Settings, store: TrainingDataStore
) -> None:
    store_events(store, 3)
    store.sync.store_agent_task("t", timestamp=f"{DAY}T08:00:00Z")
    store.sync.flush()
    store.sync.close()
    training = settings.data_dir / "training"
    events = training / "events" / f"events_{DAY}.csv"
    size = events.stat().st_size
    events.write_bytes(events.read_bytes()[:-10])
    (training / "tasks" / f"tasks_{DAY}.csv").unlink()
    found = findings(tds, 1)
    assert found[f"events {DAY}"][:2] == ("broken", f"{events} ends at byte {size - 10}: {size} bytes are committed")
    assert "is gone" in found[f"tasks {DAY}"][1]


def test_files_that_are_not_the_stores_are_named(tds: Tds, settings: Settings, store: TrainingDataStore) -> None:
    store_events(store, 3)
    store.sync.flush()
    tds("export", "events", *EXPORT)
    for form in ("records", "jsonl.zst", "parquet"):
        assert tds("export", "events", *EXPORT, "--limit", "1", "--format", form).exit_code == 0
    (settings.data_dir / "training" / "events" / "notes.txt").touch()
    (settings.data_dir / "mine").mkdir()
    state, found, advice = findings(tds, 0)["unknown files"]
    assert state == "warning"
    assert found == "mine, training/events/notes.txt"
    assert "move them out" in advice


def test_a_folder_that_cannot_be_written_is_broken(run_tds: Tds, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = findings(functools.partial(run_tds, Settings(data_dir=tmp_path / "file" / "data")), 1)
    assert found["data folder"][0] == "broken"
    assert "TDS_DATA_DIR" in found["data folder"][2]


def test_settings_that_cannot_be_used_and_a_failpoint_are_broken(tds: Tds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDS_FAILPOINT", "commit")
    assert findings(tds, 1)["failpoint"][0] == "broken"
    monkeypatch.setenv("TDS_ON_FULL", "explode")
    found = findings(tds, 1)
    assert list(found) == ["settings"]
    assert "TDS_ON_FULL='explode'" in found["settings"][1]


def test_folders_that_others_can_read_are_a_warning(tds: Tds, settings: Settings, store: TrainingDataStore) -> None:
    store_events(store, 1)
    store.sync.flush()
    for folder in (settings.data_dir, settings.data_dir / "training"):
        folder.chmod(0o755)
    state, found, advice = findings(tds, 0)["privacy"]
    assert (state, "training can be read" in found, "chmod" in advice) == ("warning", True, True)


def test_redis_is_looked_at_when_it_is_used(
    tds: Tds, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDS_REDIS_URL", redis_server.url)
    found = findings(tds, 0)
    assert found["Redis"][0] == "ok"
    assert found["writers"][0] == "warning"
    assert "tds writer" in found["writers"][2]
    assert not {"Redis memory", "Redis persistence"} & set(found)
    import redis

    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
    found = findings(tds, 0)
    assert found["Redis memory"][0] == found["Redis persistence"][0] == "warning"
    assert "noeviction" in found["Redis memory"][2]
    redis_server.kill()
    state, told, advice = findings(tds, 1)["Redis"]
    assert state == "broken"
    assert redis_server.url in told
    assert "wait in the spool" in advice


def test_a_variable_that_is_no_setting_is_a_warning(tds: Tds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDS_DATA_DIRECTORY", "/data")
    state, found, _ = findings(tds, 0)["variables"]
    assert (state, "TDS_DATA_DIRECTORY" in found) == ("warning", True)


def test_a_damaged_day_keeps_status_and_the_export_of_other_days_from_nothing(
    tds: Tds, settings: Settings, store: TrainingDataStore
) -> None:
    for day in ("2024-05-14", "2024-05-15"):
        store.sync.store_agent_event("e", timestamp=f"{day}T08:00:00Z")
    store.sync.flush()
    store.sync.close()
    damaged = DataPaths(settings.data_dir).training("events", "2024-05-15")
    damaged.write_bytes(damaged.read_bytes()[:-5])
    leave_in_spool(settings, 1)
    shown = tds("status")
    assert "what waits in the spool is not written now" in shown.stderr
    assert "2024-05-15.csv: ends at byte" in shown.stderr
    assert "events" in shown.stdout
    done = tds("export", "events", "--start", "2024-05-14", "--end", "2024-05-14")
    assert done.exit_code == 0, done.stderr
    done = tds("export", "events", "--start", "2024-05-14", "--end", "2024-05-15", "--allow-missing")
    assert done.exit_code == 0, done.stderr


def test_doctor_shows_no_secret_of_the_settings(tds: Tds, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "TDS_REDACTION_KEY": "a key that nobody may read",
        "TDS_ALERT_URL": "https://hooks.example.com/T0/sesame",
        "TDS_POSTGRES_URL": "postgresql://user:sesame@127.0.0.1:1/app",
        "TDS_DAGSTER_POSTGRES_URL": "postgresql://user@127.0.0.1:1/app?password=sesame",
        "TDS_REDIS_URL": "redis://:sesame@127.0.0.1:1/0",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    shown = tds("doctor")
    assert all(name in shown.stdout for name in secrets), shown.stdout
    assert "sesame" not in shown.stdout + shown.stderr
    assert "nobody may read" not in shown.stdout + shown.stderr
