"""`tds migrate` and `tds migrate code`, as a person and a CI use them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from ingest import Settings
from ingest.agents.old_tables import OLD_TABLES
from tests.agents.old_parts import OldDatabase, fill
from tests.parts import PostgresServer

Tds = Callable[..., Result]
CODE = """
async def store(db):
    await db.execute("INSERT INTO agent_events (event_id) VALUES ('e')")
    await db.fetch("SELECT * FROM workflows")
"""


@pytest.fixture
def old(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[OldDatabase]:
    database = OldDatabase(postgres_server.url, "old_of_commands")
    database.create()
    monkeypatch.setenv("TDS_POSTGRES_URL", postgres_server.url)
    monkeypatch.setenv("TDS_POSTGRES_SCHEMA", "new_of_commands")
    yield database
    database.execute("DROP SCHEMA old_of_commands CASCADE")
    database.close()


def test_counted_migrated_and_dropped(tds: Tds, old: OldDatabase, settings: Settings, tmp_path: Path) -> None:
    fill(old)
    asked = ["migrate", "--schema", old.schema, "--configs", tmp_path / "configs"]
    counted = tds(*asked, "--dry-run")
    assert counted.exit_code == 0, counted.stderr
    assert "36 rows are left to migrate; nothing was changed" in counted.stdout
    assert not settings.data_dir.exists()
    done = tds(*asked)
    assert done.exit_code == 0, done.stderr
    assert "every row is accounted for" in done.stdout
    assert "tds migrate code PATH" in done.stdout
    old.execute("INSERT INTO agent_events (event_id, event_type, created_at) VALUES ('bad', 'x', 'infinity')")
    again = json.loads(tds(*asked, "--json").stdout)
    assert {each["table"]: each["migrated"]["rows"] for each in again["tables"]}["agent_events"] == 4
    told = tds(*asked, "--drop")
    assert told.exit_code == 0, told.stderr
    assert told.stdout.splitlines()[-2] == f"dropped: {', '.join(OLD_TABLES)}"
    assert f"with their reasons: {settings.data_dir}" in told.stderr
    assert old.tables() == set()


def test_without_an_address_or_with_a_wrong_table_it_says_what_to_set(
    tds: Tds, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tds("migrate")
    assert result.exit_code == 1
    assert "TDS_POSTGRES_URL is not set" in result.stderr
    monkeypatch.setenv("TDS_POSTGRES_URL", "postgresql://user:hunter2@127.0.0.1:1/app")
    result = tds("migrate", "--table", "users")
    assert (result.exit_code, "expected one of agent_events" in result.stderr) == (1, True)
    result = tds("migrate")
    assert result.exit_code == 1
    assert "expected a PostgreSQL that answers" in result.stderr
    assert "hunter2" not in result.stderr


def test_the_command_lists_them_and_fails_a_ci_until_none_is_left(tmp_path: Path, tds: Tds) -> None:
    (tmp_path / "app.py").write_text(CODE)
    result = tds("migrate", "code", tmp_path, "--sarif", tmp_path / "found.sarif")
    assert result.exit_code == 1
    assert f"{tmp_path / 'app.py'}:3" in result.stdout
    assert "2 uses of old tables in 1 files" in result.stdout
    assert len(json.loads((tmp_path / "found.sarif").read_bytes())["runs"][0]["results"]) == 2
    assert len(json.loads(tds("migrate", "code", tmp_path / "app.py", "--json").stdout)["uses"]) == 2
    (tmp_path / "app.py").write_text("pass\n")
    (tmp_path / "found.sarif").unlink()
    result = tds("migrate", "code", tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}: no use of an old table\n")
