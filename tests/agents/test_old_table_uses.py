"""Code that uses the old tables is found, with the call to use instead; what only looks like it is not."""

import json
from pathlib import Path

import pytest

from ingest.agents.old_table_uses import find_uses, sarif_log
from ingest.agents.old_tables import OLD_TABLES
from ingest.agents.routing import PLACES

PYTHON = '''
"""Rows: SELECT * FROM agent_events is in a docstring."""
import workflows  # SELECT * FROM agent_events in a comment
from sqlalchemy import Table

class Event(Base):
    __tablename__ = "agent_events"

tasks = Table("agent_tasks", metadata)

async def store(db, payload):
    await db.execute("INSERT INTO agent_events (event_id) VALUES ($1)", payload)
    await db.execute(f"""
        UPDATE public.agent_tasks
        SET status = {payload}
    """)
    rows = await db.fetch("SELECT w.* FROM workflows w JOIN tool_executions t ON t.agent_id = w.id")
    log("could not update workflows, see the data from tool_executions")
    log("agent_events")
'''


def found(path: Path) -> list[tuple[int, str, str]]:
    return [(use.line, use.operation, use.table) for use in find_uses(path)]


def test_python_is_searched_by_its_literals_and_models(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PYTHON)
    assert found(tmp_path) == [
        (7, "model", "agent_events"),
        (9, "model", "agent_tasks"),
        (12, "insert into", "agent_events"),
        (14, "update", "agent_tasks"),
        (17, "from", "workflows"),
        (17, "join", "tool_executions"),
    ]
    first = find_uses(tmp_path)[0]
    assert (first.path, first.column) == (str(tmp_path / "app.py"), 21)
    assert "store_agent_event" in first.call


@pytest.mark.parametrize(
    ("statement", "operation", "table"),
    [
        ('DELETE FROM "agent_metrics" WHERE 1 = 1;', "delete from", "agent_metrics"),
        ("create table if not exists agent_configs (x int);", "create table if not exists", "agent_configs"),
        ("CREATE INDEX i ON agent_interactions(session_id);", "on", "agent_interactions"),
        ("TRUNCATE TABLE ONLY public.agent_instances;", "truncate table", "agent_instances"),
        ("COPY agent_events TO STDOUT;", "copy", "agent_events"),
        ("select 1\nfrom prompt_templates\n", "from", "prompt_templates"),
        ("CREATE TABLE x (a TEXT REFERENCES agent_configs(agent_id));", "references", "agent_configs"),
    ],
)
def test_sql_is_found_in_any_text_file(tmp_path: Path, statement: str, operation: str, table: str) -> None:
    (tmp_path / "schema.sql").write_text(statement)
    (tmp_path / "query.ts").write_text(f"await db.query(`{statement}`)")
    assert [(use.operation, use.table) for use in find_uses(tmp_path)] == [(operation, table)] * 2


@pytest.mark.parametrize(
    "text",
    [
        "-- SELECT * FROM agent_events",
        "/* INSERT INTO agent_tasks\n VALUES (1) */",
        "SELECT * FROM agent_events_archive",
        "See the data from workflows on tool_executions.",
        "SELECT workflows.id FROM x",
        "import { workflows } from './workflows'",
    ],
)
def test_comments_and_words_that_are_no_statement_are_no_use(tmp_path: Path, text: str) -> None:
    (tmp_path / "schema.sql").write_text(text)
    assert found(tmp_path) == []


def test_a_schema_that_is_filled_in_and_an_annotated_model_are_uses_too(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        'rows = f"SELECT * FROM {schema}.agent_events"\n'
        "class Task:\n    __tablename__: str = 'agent_tasks'\n    class Meta:\n        db_table = 'workflows'\n"
    )
    assert found(tmp_path) == [(1, "from", "agent_events"), (3, "model", "agent_tasks"), (5, "model", "workflows")]


def test_what_is_no_code_is_passed_over_and_python_that_does_not_parse_is_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "x.sql").write_text("SELECT 1 FROM agent_events")
    (tmp_path / "image.bin").write_bytes(b"\0SELECT 1 FROM agent_events")
    (tmp_path / "old.py").write_text('print "SELECT 1 FROM agent_events"\n')
    assert found(tmp_path) == [(1, "from", "agent_events")]


def test_sarif_has_a_rule_for_each_table_and_a_place_for_each_use(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PYTHON)
    uses = find_uses(tmp_path)
    log = json.loads(sarif_log(uses))
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(OLD_TABLES)
    assert len(run["results"]) == len(uses)
    place = run["results"][2]["locations"][0]["physicalLocation"]
    assert place["region"] == {"startLine": 12, "startColumn": uses[2].column}
    assert place["artifactLocation"]["uri"].endswith("app.py")


def test_every_old_table_belongs_to_a_place_of_the_routing() -> None:
    places = {place.name for place in PLACES}
    assert {table.place for table in OLD_TABLES.values()} <= places
