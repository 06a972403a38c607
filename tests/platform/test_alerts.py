"""Failed runs and checks reach a webhook, a real server here: each once, and none is lost while it is away."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dagster as dg
import msgspec
import pytest
from typer.testing import CliRunner

from ingest import Settings
from ingest.errors import AlertFailed
from tds_dagster.automation import alerts, webhook
from tds_dagster.automation.alerts import alert_failed_checks, alert_failed_runs
from tds_dagster.automation.webhook import Alert, post
from tds_dagster.cli.app import app

ALERT = Alert(
    kind="test", severity="error", title="a <b> & c", text="why", at="2026-01-01T00:00:00Z", url="http://ui/x"
)


class Webhook:
    """A server that takes what is posted, or answers what it is told to first."""

    def __init__(self) -> None:
        self.taken: list[dict[str, object]] = []
        self.asked = 0
        self.delay_s = 0.0
        self.answers: list[tuple[int, dict[str, str]]] = []  # of the next requests, before it takes any
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.asked += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(server.delay_s)
                code, headers = server.answers.pop(0) if server.answers else (200, {})
                if code == 0:
                    self.close_connection = True
                    return
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                if code == 200 and self.headers["Content-Type"] == "application/json":
                    server.taken.append(json.loads(body))  # before the answer: who has it looks at once
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/hook/secret"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def hook() -> Iterator[Webhook]:
    hook = Webhook()
    yield hook
    hook.stop()


@pytest.fixture
def told(settings: Settings, hook: Webhook) -> Settings:
    return msgspec.structs.replace(settings, alert_url=hook.url, ui_url="http://ui:3000/")


def no_sleep(_seconds: float) -> None:
    """Nobody waits in a test."""


def test_an_alert_is_posted_as_json_or_as_slack_takes_it(told: Settings, hook: Webhook) -> None:
    post(told, ALERT)
    post(msgspec.structs.replace(told, alert_format="slack"), ALERT)
    assert hook.taken[0] == json.loads(msgspec.json.encode(ALERT))
    assert hook.taken[1] == {"text": ":red_circle: *a &lt;b&gt; &amp; c*\nwhy\n<http://ui/x|open in Dagster>"}


@pytest.mark.parametrize("answers", [[503, 500], [429], [0]])
def test_what_may_pass_is_tried_again(told: Settings, hook: Webhook, answers: list[int]) -> None:
    hook.answers = [(code, {}) for code in answers]
    post(told, ALERT, sleep=no_sleep)
    assert (len(hook.taken), hook.asked) == (1, len(answers) + 1)


def test_a_webhook_says_how_long_to_wait_and_is_not_waited_for_for_ever(told: Settings, hook: Webhook) -> None:
    hook.answers = [(429, {"Retry-After": "2"}), (503, {"Retry-After": "4711"})]
    waited: list[float] = []
    post(told, ALERT, sleep=waited.append)
    assert waited == [2.0, webhook.LONGEST_WAIT_S]


@pytest.mark.parametrize(("code", "asked"), [(404, 1), (400, 1), (302, 1), (500, 3)])
def test_what_does_not_pass_is_an_error_that_does_not_show_the_address(
    told: Settings, hook: Webhook, code: int, asked: int
) -> None:
    hook.answers = [(code, {"Location": "http://127.0.0.1:1/"})] * 5
    with pytest.raises(AlertFailed, match=f"it answered {code}") as caught:
        post(told, ALERT, sleep=no_sleep)
    assert hook.asked == asked
    assert "secret" not in str(caught.value)


def test_a_webhook_that_is_gone_or_slow_is_an_error(
    told: Settings, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = msgspec.structs.replace(told, alert_url="http://127.0.0.1:1/secret")
    with pytest.raises(AlertFailed, match="3 times: no answer"):
        post(gone, ALERT, sleep=no_sleep)
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.02)
    hook.delay_s = 0.2
    with pytest.raises(AlertFailed, match="no answer"):
        post(told, ALERT, sleep=no_sleep)


def test_the_command_posts_a_test_alert(told: Settings, hook: Webhook) -> None:
    variables = {"TDS_DATA_DIR": str(told.data_dir), "TDS_ALERT_URL": hook.url}
    assert CliRunner().invoke(app, ["alert", "--test"], env=variables).exit_code == 0
    assert hook.taken[0]["kind"] == "test"
    hook.answers = [(404, {})]
    assert CliRunner().invoke(app, ["alert", "--test"], env=variables).exit_code == 1
    without = CliRunner().invoke(app, ["alert", "--test"], env=variables | {"TDS_ALERT_URL": ""})
    assert (without.exit_code, "TDS_ALERT_URL is not set" in without.stderr) == (1, True)


@dg.asset(key=["exports", "events"], check_specs=[dg.AssetCheckSpec("adds_up", asset=["exports", "events"])])
def events(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
    problem = context.run.tags.get("problem", "")
    if problem == "run":
        raise dg.Failure("expected a day; mia.lopez@example.org wrote sk-abcdefghijklmnopqrstuvwx0123456789ABCD")
    result = dg.AssetCheckResult(
        passed=not problem, check_name="adds_up", description=problem or "fine", severity=dg.AssetCheckSeverity.WARN
    )
    yield dg.MaterializeResult(check_results=[result])


DEFS = dg.Definitions(assets=[events], sensors=[alert_failed_runs, alert_failed_checks])


class Daemon:
    """Ticks a sensor and keeps its cursor, as Dagster's daemon does."""

    def __init__(self, instance: dg.DagsterInstance, settings: Settings, sensor: dg.SensorDefinition) -> None:
        self.instance, self.settings, self.sensor, self.cursor = instance, settings, sensor, ""

    def tick(self) -> str:
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"settings": self.settings},
            repository_def=DEFS.get_repository_def(),
        )  # fmt: skip
        result = self.sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor or ""
        return str(
            result.skip_reason.skip_message if isinstance(result.skip_reason, dg.SkipReason) else result.skip_reason
        )


def run(instance: dg.DagsterInstance, problem: str = "") -> str:
    done = dg.materialize(
        [events], selection=["exports/events"], instance=instance, tags={"problem": problem}, raise_on_error=False
    )
    return done.run_id


@pytest.fixture
def daemon(instance: dg.DagsterInstance, told: Settings) -> Callable[[dg.SensorDefinition], Daemon]:
    return lambda sensor: Daemon(instance, told, sensor)


def test_a_run_that_fails_is_told_once_with_its_reason_and_without_personal_data(
    instance: dg.DagsterInstance, hook: Webhook, daemon: Callable[[dg.SensorDefinition], Daemon]
) -> None:
    run(instance, "run")
    watching = daemon(alert_failed_runs)
    assert watching.tick() == "watches from now on"
    failed = run(instance, "run")
    run(instance)
    assert [watching.tick(), watching.tick()] == ["told of 1 failed runs", "no run failed"]
    (alert,) = hook.taken
    assert (alert["kind"], alert["run_id"], alert["assets"]) == ("run_failed", failed, ["exports/events"])
    assert alert["url"] == f"http://ui:3000/runs/{failed}"
    assert "expected a day" in str(alert["text"])
    assert "mia.lopez" not in str(alert)
    assert "sk-abc" not in str(alert)


def test_while_the_webhook_is_away_failures_wait_and_are_told_in_order(
    instance: dg.DagsterInstance, hook: Webhook, daemon: Callable[[dg.SensorDefinition], Daemon]
) -> None:
    watching = daemon(alert_failed_runs)
    watching.tick()
    failed = [run(instance, "run") for _ in range(3)]
    hook.answers = [(200, {}), (404, {})]
    assert watching.tick() == "told of 1 failed runs; the webhook did not take the next one, which waits"
    assert watching.tick() == "told of 2 failed runs"
    assert [alert["run_id"] for alert in hook.taken] == failed


def test_a_check_is_told_when_it_turns_and_not_each_time(
    instance: dg.DagsterInstance, hook: Webhook, daemon: Callable[[dg.SensorDefinition], Daemon]
) -> None:
    watching = daemon(alert_failed_checks)
    assert watching.tick() == "watches from now on"
    for problem in ("", "2 days", "2 days", "3 days", "", ""):
        run(instance, problem)
        watching.tick()
    assert [(alert["kind"], alert["severity"], alert["text"]) for alert in hook.taken] == [
        ("check_failed", "warning", "2 days"), ("check_failed", "warning", "3 days"),
        ("check_passed", "resolved", "fine"),
    ]  # fmt: skip
    assert hook.taken[0]["check"] == "adds_up"


def test_a_check_that_the_webhook_did_not_take_is_told_later(
    instance: dg.DagsterInstance, hook: Webhook, daemon: Callable[[dg.SensorDefinition], Daemon]
) -> None:
    watching = daemon(alert_failed_checks)
    watching.tick()
    run(instance, "2 days")
    hook.answers = [(404, {})]
    assert "wait for the webhook" in watching.tick()
    assert watching.tick() == "told of 1 checks"
    assert len(hook.taken) == 1


def test_without_an_address_the_sensors_say_so_and_later_tell_nothing_old(
    instance: dg.DagsterInstance, told: Settings, hook: Webhook
) -> None:
    for sensor in (alert_failed_runs, alert_failed_checks):
        watching = Daemon(instance, msgspec.structs.replace(told, alert_url=None), sensor)
        assert "TDS_ALERT_URL is not set" in watching.tick()
        run(instance, "run")
        run(instance, "2 days")
        watching.settings = told
        assert watching.tick() == "watches from now on"
        watching.tick()
    assert not hook.taken


def test_a_tick_with_a_slow_webhook_ends_in_time_and_the_next_one_goes_on(
    instance: dg.DagsterInstance, hook: Webhook, daemon: Callable[[dg.SensorDefinition], Daemon],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    watching = daemon(alert_failed_runs)
    watching.tick()
    failed = [run(instance, "run") for _ in range(3)]
    monkeypatch.setattr(alerts, "TICK_S", 0.05)
    hook.delay_s = 0.1
    assert watching.tick() == "told of 1 failed runs; the webhook is slow, the others wait"
    hook.delay_s = 0.0
    monkeypatch.undo()
    assert watching.tick() == "told of 2 failed runs"
    assert [alert["run_id"] for alert in hook.taken] == failed
