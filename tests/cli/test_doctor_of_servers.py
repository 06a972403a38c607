"""What `tds doctor` finds beside training data: conversations, Dagster's storage, old tables, configs, metrics."""

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import Result

from ingest import Settings
from ingest.agents.metrics import registry_of, serve_metrics
from tests.agents.old_parts import OldDatabase
from tests.parts import PostgresServer, free_port

Tds = Callable[..., Result]
GONE = "postgresql://user:sesame@127.0.0.1:1/app"


def found(tds: Tds, name: str, exit_code: int = 0) -> list[tuple[str, str]]:
    """State and text of the checks of a name."""
    result = tds("doctor", "--json")
    assert result.exit_code == exit_code, result.stdout
    assert "sesame" not in result.stdout + result.stderr
    return [(each["state"], each["found"]) for each in json.loads(result.stdout)["checks"] if each["name"] == name]


def test_without_servers_nothing_is_amiss(tds: Tds) -> None:
    assert found(tds, "conversations") == [("ok", "SQLite: state/messages.sqlite, made at the first message")]
    for name in ("Dagster's storage", "configs", "metrics", "old tables"):
        assert found(tds, name) == []


def test_a_postgres_that_answers_is_well_and_old_tables_in_it_are_told(
    tds: Tds, monkeypatch: pytest.MonkeyPatch, postgres_server: PostgresServer
) -> None:
    monkeypatch.setenv("TDS_POSTGRES_URL", postgres_server.url)
    monkeypatch.setenv("TDS_DAGSTER_POSTGRES_URL", postgres_server.url)
    ((state, text),) = found(tds, "conversations")
    assert (state, text.rpartition(": ")[2]) == ("ok", "PostgreSQL 18")
    ((state, text),) = found(tds, "Dagster's storage")
    assert (state, text.endswith("answers")) == ("ok", True)
    assert found(tds, "old tables") == []
    old = OldDatabase(postgres_server.url, "old_of_doctor")
    old.execute("SET search_path TO public")
    old.create(["agent_events", "workflows"])
    try:
        ((state, text),) = found(tds, "old tables")
        assert state == "warning"
        assert "agent_events, workflows" in text
    finally:
        old.execute("DROP TABLE agent_events, workflows")
        old.close()


def test_a_postgres_that_does_not_answer_is_broken_and_its_password_is_not_told(
    tds: Tds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDS_POSTGRES_URL", GONE)
    monkeypatch.setenv("TDS_DAGSTER_POSTGRES_URL", GONE)
    for name in ("conversations", "Dagster's storage"):
        ((state, text),) = found(tds, name, exit_code=1)
        assert state == "broken"
        assert text.startswith("postgresql://***@127.0.0.1:1/app: ")


def test_configs_beside_it_are_checked(tds: Tds, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    agents = tmp_path / "configs" / "agents"
    agents.mkdir(parents=True)
    (agents / "good.toml").write_text("temperature = 0.5\n")
    assert found(tds, "configs") == [("ok", "1 files in configs/, all of them can be used")]
    (agents / "bad.toml").write_text("temperature = 'hot'\n")
    ((state, text),) = found(tds, "configs")
    assert state == "warning"
    assert "bad.toml:1: temperature='hot'" in text


def test_metrics_are_served_or_not_or_somebody_else_has_the_port(
    tds: Tds, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    port = free_port()
    monkeypatch.setenv("TDS_METRICS_PORT", str(port))
    ((state, text),) = found(tds, "metrics")
    assert state == "ok"
    assert "nobody serves it now" in text
    stop = serve_metrics(registry_of(settings), port)
    assert found(tds, "metrics") == [("ok", f"http://127.0.0.1:{port}/metrics is served")]
    stop()

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", port), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        ((state, text),) = found(tds, "metrics")
        assert state == "warning"
        assert "by another program" in text
    finally:
        server.shutdown()
        server.server_close()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        monkeypatch.setenv("TDS_METRICS_PORT", str(silent.getsockname()[1]))
        ((state, _),) = found(tds, "metrics")
        assert state == "ok"
