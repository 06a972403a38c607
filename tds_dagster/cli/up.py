"""Runs the writer, Dagster's webserver and Dagster's daemon as one process tree, until it is told to stop.

    lock → port → dagster.yaml → runs of a dead tree → three children → the UI answers → watch → stop

Each child leads a process group of its own, so that Ctrl-C in a terminal reaches this process alone and what a child
has started (code servers, runs) can be ended with it. A child that dies is reported and started again; one that keeps
dying ends the rest. A run that is cut off by the end of the tree, or by that of the machine, is failed at the next
start, and Dagster's run retries then start it again: automation asks for a changed day only once.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import FrameType

import typer

from ingest.errors import PlatformUnavailable
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import PRIVATE_FILE, make_folder, replacing
from ingest.settings import Settings, child_environment, dagster_home

DEFINITIONS = "tds_dagster.definitions"
MARK = "# Written by tds; delete this line to keep changes of your own.\n"
UI_TIMEOUT_S = 180.0  # both code servers import Dagster first: 4 s on a free machine, a minute on a busy one
STORAGE_URL = "DAGSTER_POSTGRES_URL"  # the variable that dagster.yaml names
STOP_TIMEOUT_S = 8.0  # what children get to end by themselves
RESTART_DELAY_S = 1.0
DEATHS, DEATHS_WITHIN_S = 4, 120.0  # a child that dies this often cannot run here
LOG_BYTES = 10 << 20  # a longer log is set aside at the next start
POLL_S = 0.2

Report = Callable[[str], None]


def up(settings: Settings, *, port: int = 3000, host: str = "127.0.0.1", report: Report = typer.echo) -> int:
    """Run the platform until SIGINT, SIGTERM or SIGHUP; gives the exit code: 0 stopped, 1 a child cannot run.

    `report` gets one sentence at a time; what the children write goes to `<DAGSTER_HOME>/processes`. `port=0` takes a
    free one. A second signal ends everything at once. Call it from the main thread: it sets signal handlers.

    Raises PlatformUnavailable if the port is taken, another `tds up` serves this DAGSTER_HOME, or Dagster cannot use
    its storage.
    """
    home = dagster_home(settings)
    lock = FileLock(home / "up.lock")
    if not lock.acquire():
        raise PlatformUnavailable(
            f"{home}: another `tds up` is at work there; stop it, or set TDS_DATA_DIR to another folder"
        )
    try:
        port = free_port(host, port)
        prepare_home(settings)
        with _stop_signals() as stop:
            cut_off = fail_cut_off_runs(home)
            if cut_off:
                report(f"{cut_off} runs had been cut off; they are marked as failed and start again")
            return _Tree(settings, home, host, port, report).run(stop)
    finally:
        lock.release()


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises PlatformUnavailable if it is taken or the host is not this machine's."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            return int(probe.getsockname()[1])
    except OSError as err:
        raise PlatformUnavailable(
            f"{host}:{port}: expected a free port of this machine ({err.strerror}); pass another --port or --host"
        ) from err


def prepare_home(settings: Settings) -> Path:
    """Create DAGSTER_HOME with its dagster.yaml, or bring that up to date; gives the folder.

    A dagster.yaml without our first line is somebody's own and stays. Where Dagster keeps its things in PostgreSQL, the
    address is put into this process's environment, for Dagster here and in its children.
    """
    home = dagster_home(settings)
    if settings.dagster_postgres_url is not None:
        # SQLAlchemy 2.1 takes `postgresql://` for psycopg 3, and dagster-postgres needs psycopg2: the scheme says so.
        os.environ[STORAGE_URL] = "postgresql+psycopg2://" + settings.dagster_postgres_url.partition("://")[2]
    make_folder(home)
    target, text = home / "dagster.yaml", MARK + dagster_config(settings)
    present = target.read_text(encoding="utf-8") if target.exists() else MARK
    if present.startswith(MARK) and present != text:
        with replacing(target) as out:
            out.write(text.encode())
    return home


def dagster_config(settings: Settings) -> str:
    """The shipped dagster.yaml with its storage: SQLite in DAGSTER_HOME, or Postgres.

    It names the variable with the address and not the address: Dagster shows its settings in the UI, and hands them to
    its code servers on their command lines.
    """
    shipped = (resources.files("tds_dagster") / "dagster.yaml").read_text(encoding="utf-8")
    if settings.dagster_postgres_url is None:
        return shipped
    return f"{shipped}\nstorage:\n  postgres:\n    postgres_url:\n      env: {STORAGE_URL}\n"


def fail_cut_off_runs(home: Path) -> int:
    """Mark runs as failed whose process tree is gone; gives how many. Call it while no tree runs over `home`.

    Nobody else would: a run counts as started until its own process says otherwise, and holds one of two places.
    Raises PlatformUnavailable if Dagster cannot use its dagster.yaml or the storage that it names.
    """
    from dagster import DagsterError, DagsterInstance, DagsterRunStatus, RunsFilter
    from dagster_postgres.utils import DagsterPostgresException
    from yaml import YAMLError

    started = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
    try:
        with DagsterInstance.from_config(str(home)) as instance:
            # A run of the daemon knows its code server; one that a shell started does not, and may well be alive.
            runs = [run for run in instance.get_runs(RunsFilter(statuses=started)) if ".dagster/grpc_info" in run.tags]
            for run in runs:
                instance.report_run_failed(run, "The processes of `tds up` ended in the middle of this run.")
    except (DagsterError, DagsterPostgresException, YAMLError) as err:
        raise PlatformUnavailable(
            f"{home / 'dagster.yaml'}: Dagster cannot start with it ({err}); correct or delete the file, and see that "
            "the server of TDS_DAGSTER_POSTGRES_URL answers if that is set"
        ) from err
    return len(runs)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first stop signal sets. The second one has its default effect again."""
    stop = threading.Event()
    former = {}

    def ask_to_stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        former[number] = signal.signal(number, ask_to_stop)
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _commands(host: str, port: int, metrics_port: int | None) -> Mapping[str, Sequence[str]]:
    """What runs, by name. Modules of this interpreter: scripts may not be on the path."""
    python, location = sys.executable, ("-m", DEFINITIONS)
    tds = (python, "-c", "from tds_dagster.cli import main; main()")
    metrics = {} if metrics_port is None else {"metrics": (*tds, "metrics", "--port", str(metrics_port))}
    return metrics | {
        "writer": (*tds, "writer"),
        "webserver": (python, "-m", "dagster_webserver", "-h", host, "-p", str(port), *location,
                      "--dagster-log-level", "warning", "--code-server-log-level", "warning"),
        "daemon": (python, "-m", "dagster._daemon", "run", *location, "--log-level", "warning"),
    }  # fmt: skip


class _Child:
    """One child process, started again after it died, and everything that it starts."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.deaths: list[float] = []  # when it died, in monotonic seconds
        # Not in `logs`: what lies in that folder of DAGSTER_HOME, Dagster takes for its telemetry and uploads it,
        # with telemetry off too (1.13, telemetry_upload.py).
        self.log = folder / "processes" / f"{name}.log"
        self._command, self._environment, self._folder = command, environment, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start_when_due(self) -> bool:
        """Start it if it does not run and its pause is over; whether it was started."""
        if self._process is not None or time.monotonic() < self._start_at:
            return False
        make_folder(self.log.parent)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".1.log"))
        self.log.touch(mode=PRIVATE_FILE)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,  # nothing there can be imported by mistake, and no .env is read
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return True

    def ended(self) -> int | None:
        """The exit code if it has died since it was last asked; what it had started is ended too."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            self.kill()
            self._process = None
            self.deaths.append(time.monotonic())
            self._start_at = time.monotonic() + RESTART_DELAY_S
        return code

    def keeps_dying(self) -> bool:
        """Whether it died so often of late that starting it again is no use."""
        return len(self.deaths) >= DEATHS and time.monotonic() - self.deaths[-DEATHS] < DEATHS_WITHIN_S

    def last_lines(self, count: int = 15) -> str:
        """The end of its log, indented."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
        return "\n".join(f"  {line}" for line in lines)

    def ask_to_end(self) -> None:
        """SIGTERM to the child alone: it ends its code servers by itself."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def is_gone(self) -> bool:
        """Whether neither it nor anything that it started is left; then its pid is not used any more."""
        if self._process is None:
            return True
        self._process.poll()  # a zombie would count as left
        if self._signal_group(0):
            return False
        self._process = None
        return True

    def kill(self) -> None:
        """SIGKILL to the child and all that it started. A run among them is failed at the next start, and retried."""
        self._signal_group(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _signal_group(self, number: int) -> bool:
        """Signal the process group; False if nobody is left in it."""
        if self._process is None:
            return False
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # macOS says so of a group that only has zombies
            return False
        return True


class _Guard:
    """The process that ends the tree's groups if this one is killed (`guard`)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tds_dagster.cli.guard"],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is not for it
        )

    def watch(self, group: int | None) -> None:
        self._say(str(group))

    def dismiss(self) -> None:
        """Nothing is left to end."""
        self._say("done")
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody ended it: then nobody watches, and that is all
            print(line, file=self._process.stdin, flush=True)


class _Tree:
    """The children, from their start to the end of the last one."""

    def __init__(self, settings: Settings, home: Path, host: str, port: int, report: Report) -> None:
        # One process serves metrics, and not the writer: the port is one.
        environment = child_environment(settings, DAGSTER_HOME=str(home), PYTHONUNBUFFERED="1", TDS_METRICS_PORT="")
        self._report = report
        self._children = [
            _Child(name, command, environment, home)
            for name, command in _commands(host, port, settings.metrics_port).items()
        ]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - compared
        self._url = f"http://{shown}:{port}"
        self._home = home
        self._redis = settings.redis_url_without_password
        self._metrics_port = settings.metrics_port
        self._data = settings.data_dir
        self._guard = _Guard()

    def run(self, stop: threading.Event) -> int:
        """Start, watch until `stop` is set or a child cannot run, end all; gives the exit code."""
        source = self._redis or "the spool"
        self._report(f"starting the writer ({source} -> {self._data / 'training'}) and Dagster; Ctrl-C stops all")
        try:
            code = self._watch(stop)
            self._report("stopping")
            self._end()
        finally:
            for child in self._children:
                child.kill()
            self._guard.dismiss()
        self._report("stopped")
        return code

    def _fail_its_runs(self) -> None:
        """Runs are processes of the daemon's code server and ended with it; nobody else would notice for a day."""
        try:
            cut_off = fail_cut_off_runs(self._home)
        except PlatformUnavailable as err:
            self._report(f"runs of the daemon may count as started although they ended: {err}")
            return
        if cut_off:
            self._report(f"{cut_off} runs ended with the daemon; they are marked as failed and start again")

    def _watch(self, stop: threading.Event) -> int:
        answers, deadline = False, time.monotonic() + UI_TIMEOUT_S
        while not stop.is_set():
            for child in self._children:
                code = child.ended()
                if code is not None and not self._may_start_again(child, code):
                    return 1
                if code is not None and child.name == "daemon":
                    self._fail_its_runs()
                if child.start_when_due():
                    self._guard.watch(child.pid)
            if not answers:
                answers = _is_answering(self._url)
                if answers:
                    self._report(self._welcome())
                elif time.monotonic() > deadline:
                    log = next(child.log for child in self._children if child.name == "webserver")
                    self._report(f"{self._url}: no answer within {UI_TIMEOUT_S:.0f} s; {log} says why")
                    return 1
            stop.wait(POLL_S)
        return 0

    def _may_start_again(self, child: _Child, code: int) -> bool:
        reason = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._report(f"the {child.name} {reason}; the end of {child.log}:\n{child.last_lines()}")
        if child.keeps_dying():
            self._report(f"the {child.name} died {DEATHS} times in {DEATHS_WITHIN_S:.0f} s: correct what it says")
            return False
        self._report(f"the {child.name} is started again")
        return True

    def _end(self) -> None:
        for child in self._children:
            child.ask_to_end()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline and not all(child.is_gone() for child in self._children):
            time.sleep(POLL_S / 4)

    def _welcome(self) -> str:
        lines = [
            f"Dagster UI  {self._url}",
            f"lineage     {self._url}/asset-groups",
            f"logs        {self._children[0].log.parent}",
        ]
        if self._metrics_port is not None:
            lines.append(f"metrics     http://127.0.0.1:{self._metrics_port}/metrics")
        return "\n".join(lines)


def _is_answering(url: str) -> bool:
    """Whether the webserver serves requests."""
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=2) as answer:  # noqa: S310 - always http
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
