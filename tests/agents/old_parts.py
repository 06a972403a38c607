"""The old way's tables in a real PostgreSQL, and rows for them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
from psycopg import sql

# Columns and types as the old way's own definitions have them (`ingest.agents.old_tables` says where).
COLUMNS: Mapping[str, str] = {
    "agent_configs": (
        "agent_id VARCHAR(255) PRIMARY KEY, agent_type VARCHAR(100) NOT NULL, name VARCHAR(255) NOT NULL, "
        "description TEXT, role VARCHAR(100), capabilities JSONB DEFAULT '[]', tools JSONB DEFAULT '[]', "
        "model_config JSONB DEFAULT '{}', system_prompt TEXT, temperature FLOAT DEFAULT 0.7, max_tokens "
        "INTEGER DEFAULT 2000, guardrails JSONB DEFAULT '[]', metadata JSONB DEFAULT '{}', is_active BOOLEAN "
        "DEFAULT TRUE, created_at TIMESTAMP DEFAULT NOW(), updated_at TIMESTAMP DEFAULT NOW()"
    ),
    "agent_instances": (
        "instance_id VARCHAR(255) PRIMARY KEY, agent_id VARCHAR(255) REFERENCES agent_configs(agent_id), "
        "session_id VARCHAR(255), status VARCHAR(50) DEFAULT 'idle', current_task_id VARCHAR(255), state_data "
        "JSONB DEFAULT '{}', metrics JSONB DEFAULT '{}', started_at TIMESTAMP DEFAULT NOW(), last_activity "
        "TIMESTAMP DEFAULT NOW(), stopped_at TIMESTAMP"
    ),
    "agent_tasks": (
        "task_id VARCHAR(255) PRIMARY KEY, agent_id VARCHAR(255), instance_id VARCHAR(255), task_type "
        "VARCHAR(100) NOT NULL, priority VARCHAR(20) DEFAULT 'normal', status VARCHAR(50) DEFAULT 'pending', "
        "input_data JSONB DEFAULT '{}', output_data JSONB, error TEXT, retry_count INTEGER DEFAULT 0, "
        "max_retries INTEGER DEFAULT 3, timeout_seconds INTEGER DEFAULT 300, created_at TIMESTAMP DEFAULT "
        "NOW(), started_at TIMESTAMP, completed_at TIMESTAMP"
    ),
    "agent_interactions": (
        "interaction_id VARCHAR(255) PRIMARY KEY, session_id VARCHAR(255), agent_id VARCHAR(255), role "
        "VARCHAR(20) NOT NULL, content TEXT NOT NULL, tool_calls JSONB, token_count INTEGER, confidence "
        "FLOAT, metadata JSONB DEFAULT '{}', created_at TIMESTAMP DEFAULT NOW()"
    ),
    "tool_executions": (
        "execution_id VARCHAR(255) PRIMARY KEY, agent_id VARCHAR(255), task_id VARCHAR(255), tool_name "
        "VARCHAR(255) NOT NULL, tool_category VARCHAR(100), input_params JSONB DEFAULT '{}', output_result "
        "JSONB, status VARCHAR(50) DEFAULT 'pending', error TEXT, execution_time_ms FLOAT, created_at "
        "TIMESTAMP DEFAULT NOW(), completed_at TIMESTAMP"
    ),
    "workflows": (
        "workflow_id VARCHAR(255) PRIMARY KEY, name VARCHAR(255) NOT NULL, description TEXT, workflow_type "
        "VARCHAR(100), phase VARCHAR(50) DEFAULT 'initializing', current_step VARCHAR(255), total_steps "
        "INTEGER DEFAULT 0, completed_steps INTEGER DEFAULT 0, state_data JSONB DEFAULT '{}', step_results "
        "JSONB DEFAULT '{}', assigned_agents JSONB DEFAULT '[]', checkpoints JSONB DEFAULT '[]', error TEXT, "
        "error_count INTEGER DEFAULT 0, metadata JSONB DEFAULT '{}', tags JSONB DEFAULT '[]', created_at "
        "TIMESTAMP DEFAULT NOW(), updated_at TIMESTAMP DEFAULT NOW(), started_at TIMESTAMP, completed_at "
        "TIMESTAMP, deadline TIMESTAMP"
    ),
    "prompt_templates": (
        "template_id VARCHAR(255) PRIMARY KEY, name VARCHAR(255) NOT NULL, description TEXT, category "
        "VARCHAR(100), version VARCHAR(20) DEFAULT '1.0.0', system_template TEXT NOT NULL, user_template TEXT "
        "NOT NULL, variables JSONB DEFAULT '[]', tools JSONB DEFAULT '[]', examples JSONB DEFAULT '[]', "
        "temperature FLOAT DEFAULT 0.7, max_tokens INTEGER DEFAULT 2000, top_p FLOAT DEFAULT 0.9, tags JSONB "
        "DEFAULT '[]', author VARCHAR(255), is_active BOOLEAN DEFAULT TRUE, created_at TIMESTAMP DEFAULT "
        "NOW(), updated_at TIMESTAMP DEFAULT NOW()"
    ),
    "agent_events": (
        "event_id VARCHAR(255) PRIMARY KEY, event_type VARCHAR(100) NOT NULL, agent_id VARCHAR(255), "
        "workflow_id VARCHAR(255), session_id VARCHAR(255), source VARCHAR(100), payload JSONB DEFAULT '{}', "
        "severity VARCHAR(20) DEFAULT 'info', created_at TIMESTAMP DEFAULT NOW()"
    ),
    "agent_metrics": (
        "metric_id VARCHAR(255) PRIMARY KEY, agent_id VARCHAR(255), metric_name VARCHAR(100) NOT NULL, "
        "metric_value FLOAT NOT NULL, unit VARCHAR(50), tags JSONB DEFAULT '{}', recorded_at TIMESTAMP "
        "DEFAULT NOW()"
    ),
}
WHEN = "2026-03-01T10:00:00.000001"


class OldDatabase:
    """The tables in a schema of their own."""

    def __init__(self, url: str, schema: str) -> None:
        self.schema = schema
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        self._connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))

    def create(self, names: Iterable[str] = COLUMNS) -> None:
        for name, columns in COLUMNS.items():
            if name in names:
                self.execute(f"CREATE TABLE {name} ({columns})")

    def execute(self, statement: str, *values: object) -> Any:
        return self._connection.execute(statement.encode(), values or None)

    def insert(self, table: str, **row: object) -> None:
        values = [json.dumps(value) if isinstance(value, dict | list) else value for value in row.values()]
        self.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})", *values)

    def count(self, table: str) -> int:
        return int(self.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def tables(self) -> set[str]:
        rows = self.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = %s", self.schema)
        return {name for (name,) in rows}

    def close(self) -> None:
        self._connection.close()


def fill(database: OldDatabase, rows: int = 3) -> None:
    """A few rows of each table, with something in each column that has a meaning."""
    for n in range(rows):
        agent: dict[str, object] = {"agent_id": f"agent-{n}"}
        database.insert(
            "agent_configs", **agent, agent_type="support", name=f"Agent {n}", role="helper", capabilities=["talk"],
            tools=["search"], model_config={"model": "llama3:8b", "top_p": 0.9}, system_prompt="You are {name}.",
            temperature=0.2, max_tokens=100 + n, metadata={"team": "core"},
        )  # fmt: skip
        database.insert("agent_instances", instance_id=f"i-{n}", **agent, status="idle")
        database.insert("agent_metrics", metric_id=f"m-{n}", **agent, metric_name="latency", metric_value=n / 2)
        database.insert(
            "prompt_templates", template_id=f"p-{n}", name="Greeting", system_template="Be {mood}.",
            user_template="Greet {{ name }}.", variables=["mood", "name"],
        )  # fmt: skip
        database.insert(
            "agent_events", event_id=f"e-{n}", event_type="started", **agent, session_id=f"s-{n}", workflow_id="w",
            source="app", payload={"n": n, "deep": [{"ü": None}]}, severity="warning", created_at=WHEN,
        )  # fmt: skip
        database.insert(
            "agent_tasks", task_id=f"t-{n}", **agent, instance_id=f"i-{n}", task_type="answer", priority="high",
            status="completed", input_data={"q": n}, output_data={"a": n}, retry_count=n, created_at=WHEN,
            started_at=WHEN, completed_at=WHEN,
        )  # fmt: skip
        database.insert(
            "tool_executions", execution_id=f"x-{n}", **agent, task_id=f"t-{n}", tool_name="search",
            tool_category="web", input_params={"q": "a,b"}, output_result={"hits": n}, status="completed",
            execution_time_ms=n + 0.5,
            created_at=WHEN, completed_at=WHEN,
        )  # fmt: skip
        database.insert(
            "workflows", workflow_id=f"w-{n}", name="Release", workflow_type="release", phase="testing",
            current_step="unit", total_steps=4, completed_steps=n, state_data={"n": n}, assigned_agents=["a"],
            checkpoints=[{"at": 1}], error_count=2, metadata={"own": True}, tags=["ci"],
            created_at=WHEN, updated_at=WHEN,
        )  # fmt: skip
        for turn in range(4):
            database.insert(
                "agent_interactions", interaction_id=f"m-{n}-{9 - turn}", session_id=f"s-{n}", **agent,
                role="assistant" if turn % 2 else "user", content=f"turn {turn}", token_count=7,
                created_at=f"2026-03-01T10:00:0{turn}",
            )  # fmt: skip
