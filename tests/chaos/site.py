"""Turns settings into a place under attack: a data folder, workers, writers and a Redis, all of them killable.

Every process is a child of the harness. One that dies without having been killed, by an attack or by its failpoint, is
a finding: the product crashed.
"""

import contextlib
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from ingest import Settings
from ingest.pipeline.accounting import account
from ingest.pipeline.partitions import DataPaths
from tests.chaos.child import STUCK
from tests.chaos.tools import Tools
from tests.chaos.worker import KINDS, Order
from tests.parts import PROJECT, RedisServer, environment

Role = Literal["worker", "writer"]
STEPS = ("intent", "append", "sync", "commit", "publish", "acknowledge")
SMALL_DISK_BYTES = 192 << 20
_POLL_S = 0.01


class Plan(NamedTuple):
    """What one folder is attacked with, for all its rounds."""

    redis: bool
    small_disks: bool  # data folder and spool are file systems of their own that can be filled
    without: str | None  # the protection that is switched off
    kinds: list[str]
    workers: int
    rate: int  # calls a second of a thread
    stepped_clock: bool  # processes run under the clock that can be shifted
    failpoint_share: float  # of processes that die at a step
    steps: tuple[str, ...]  # at which they do
    patience_s: float  # how long a flush may take
    forks_share: float = 0.3  # of workers that fork


class Child:
    """One process, and what it is expected to die of."""

    def __init__(self, role: Role, name: str, process: "subprocess.Popen[bytes]", failpoint: str | None) -> None:
        self.role, self.name, self.process, self.failpoint = role, name, process, failpoint
        self.was_killed = self.was_stopped = False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone; a child that it forked goes on."""
        if self.process.poll() is None:
            self.process.send_signal(number)


class Site:
    """A folder with everything that runs over it. Used for a few rounds, then left."""

    def __init__(self, folder: Path, plan: Plan, rng: random.Random, tools: Tools) -> None:
        """Make the folder ready; nothing is started."""
        self.folder, self.plan, self.rng, self._tools = folder, plan, rng, tools
        self.children: list[Child] = []
        self.kills: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.findings: list[str] = []  # what went wrong besides records
        self.strange_lines = 0  # appended to day files by us
        self.damaged: list[tuple[Path, bytes]] = []  # spool segments as they were before we damaged them
        self.log, self.stop, self._clock = folder / "log", folder / "stop", folder / "clock"
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._started = 0
        self._groups: set[int] = set()
        for path in (folder, self.log, folder / "data", folder / "spool"):
            path.mkdir(exist_ok=True)
        self._mounts = [folder / "data", folder / "spool"] if plan.small_disks else []
        for path in self._mounts:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", path], check=True, timeout=10
            )
        self._clock.write_bytes(struct.pack("<q", 0))
        self.redis: RedisServer | None = None
        self.redis_is_away = False  # down or stopped, and on its way back
        if plan.redis and tools.redis_server is not None:
            (folder / "redis").mkdir()
            self.redis = RedisServer(tools.redis_server, folder / "redis")
            self.redis.start()
        self.settings = Settings(
            data_dir=folder / "data",
            spool_dir=folder / "spool",
            redis_url=None if self.redis is None else self.redis.url,
            max_record_bytes=64 << 10,
            spool_segment_bytes=rng.choice([32 << 10, 128 << 10, 1 << 20]),
            spool_max_bytes=rng.choice([4 << 20, 64 << 20]),
            spool_sync=rng.choice(["off", "interval", "interval", "always"]),
            on_full=rng.choice(["drop", "drop", "raise", "block"]),
        )
        self.paths = DataPaths(self.settings.data_dir)

    # -- processes

    def start(self, role: Role, arguments: list[str], name: str, failpoint: str | None) -> Child:
        """Start a process of the store; what it says goes to `log/<name>.err`."""
        settings = msgspec.structs.replace(self.settings, failpoint=failpoint)
        child_environment = {**environment(settings), "PYTHONFAULTHANDLER": "1"}
        if self.plan.without is not None:
            child_environment["CHAOS_WITHOUT"] = self.plan.without
        if self.plan.stepped_clock and self._tools.clock_library is not None:
            child_environment |= {"CHAOS_CLOCK": str(self._clock), "LD_PRELOAD": str(self._tools.clock_library)}
        with (self.log / f"{name}.err").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.child", *arguments],
                env=child_environment,
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        child = Child(role, name, process, failpoint)
        self.children.append(child)
        self._groups.add(process.pid)
        return child

    def start_worker(self) -> Child:
        """Start a worker with an order made up by the dice."""
        self._started += 1
        name = f"w{self._started}"
        order = Order(
            name=name,
            seed=self.rng.randrange(1 << 30),
            kinds=self.plan.kinds,
            threads=self.rng.choice([1, 1, 2, 4]),
            rate=self.rng.choice([self.plan.rate, self.plan.rate // 4]),
            forks=self.rng.random() < self.plan.forks_share,
            keyed=0.03,
            log=str(self.log),
            stop=str(self.stop),
            flush_s=self.plan.patience_s,
        )
        failpoint = None if self.plan.redis else self._failpoint()
        return self.start("worker", ["worker", msgspec.json.encode(order).decode()], name, failpoint)

    def start_writer(self, *, safe: bool = False) -> Child:
        """Start `tds writer`; a `safe` one has no failpoint."""
        self._started += 1
        failpoint = None if safe else self._failpoint()
        return self.start("writer", ["tds", "writer"], f"writer{self._started}", failpoint)

    def _failpoint(self) -> str | None:
        if self.rng.random() >= self.plan.failpoint_share:
            return None
        steps = [step for step in self.plan.steps if self.plan.redis or step not in {"publish", "acknowledge"}]
        return f"{self.rng.choice(steps)}:{self.rng.choice([1, 1, 2, 3, 5, 8])}"

    def alive(self, role: Role) -> list[Child]:
        """The processes of that role that run, or are stopped."""
        return [child for child in self.children if child.role == role and child.process.poll() is None]

    def kill(self, child: Child, what: str) -> None:
        """kill -9, counted under `what`."""
        if child.process.poll() is None:
            child.was_killed = True
            child.process.kill()
            child.process.wait()
            self.kills[what] += 1

    def kill_all(self, what: str) -> None:
        """kill -9 for every process of the store, children of workers included."""
        for child in list(self.children):
            self.kill(child, what)
        self._kill_orphans()
        self.reap()

    def _kill_orphans(self) -> None:
        """kill -9 for children of workers, whether their parent lives or not: they are in its process group."""
        leaders = {str(child.process.pid) for child in self.children}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended by itself
                group = int(stat.read_text().rpartition(")")[2].split()[2])  # proc(5): state, parent, group
                is_orphan = group in self._groups and stat.parent.name not in leaders
                if is_orphan and b"tests.chaos.child" in stat.with_name("cmdline").read_bytes():
                    os.kill(int(stat.parent.name), signal.SIGKILL)

    def reap(self) -> None:
        """Take note of the processes that ended; an end that nobody asked for is a finding."""
        for child in list(self.children):
            code = child.process.poll()
            if code is None:
                continue
            self.children.remove(child)
            if child.was_killed or (code == 0 and (child.was_stopped or self.stop.exists())):
                continue
            if code == -signal.SIGTERM and child.was_stopped and not self._has_spoken(child):
                continue  # asked to stop before `tds writer` had come so far as to listen
            if code == -signal.SIGKILL and child.failpoint is not None:
                self.kills[f"at {child.failpoint.partition(':')[0]}"] += 1
            elif code == STUCK:
                self.findings.append(f"stuck: {child.name}: {self.last_words(child)}")
            else:
                self.findings.append(f"crashed: {child.name} ended with {code}: {self.last_words(child)}")

    def _has_spoken(self, child: Child) -> bool:
        return (self.log / f"{child.name}.err").stat().st_size > 0

    def last_words(self, child: Child) -> str:
        """What a process said of its end: Python's line about a signal, else its last line without advice."""
        lines = (self.log / f"{child.name}.err").read_text(errors="replace").strip().splitlines()
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return [*lines, *fatal][-1].partition(": expected ")[0] if lines else "it said nothing"

    def keep_up(self, writers: int) -> None:
        """Start what is missing after kills."""
        self.reap()
        while len(self.alive("worker")) < self.plan.workers:
            self.start_worker()
        while len(self.alive("writer")) < writers:
            self.start_writer()

    def holder(self, kind: str) -> Child | None:
        """The process that writes a kind now: it holds the kind's lock. Known from /proc/locks."""
        path = self.paths.lock(kind)
        if not path.exists():
            return None
        inode = path.stat().st_ino
        holders = {
            int(fields[4])
            for fields in map(str.split, Path("/proc/locks").read_text().splitlines())
            if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == inode
        }
        return next((child for child in self.children if child.process.pid in holders), None)

    # -- faults that end by themselves

    def later(self, delay_s: float, undo: Callable[[], None]) -> None:
        """Have something done in so many seconds, or at the end of the round."""
        self._undo.append((time.monotonic() + delay_s, undo))

    def undo_due(self, *, everything: bool = False) -> None:
        """Undo the faults whose time is over."""
        while due := [entry for entry in self._undo if everything or entry[0] <= time.monotonic()]:
            self._undo.remove(due[0])  # first, for what is called now may undo the others
            due[0][1]()

    def step_clock(self, days: int) -> None:
        """Let the wall clock of all processes jump."""
        with self._clock.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("<q", days * 86_400))

    @property
    def has_clock(self) -> bool:
        """Whether the processes' clock can be shifted."""
        return self.plan.stepped_clock and self._tools.clock_library is not None

    # -- ends

    def drain(self) -> None:
        """Have everything written, by processes that nobody kills; what does not come to an end is a finding."""
        self.undo_due(everything=True)
        if self.redis is not None:
            if not self.redis.answers():
                self.redis.start()
            self.reap()
            for writer in self.alive("writer"):
                if writer.failpoint is not None:
                    self.kill(writer, "writer")
            self.start_writer(safe=True)
        self.stop.touch()
        self._await(self.alive("worker"), self.plan.patience_s + 10)
        self.reap()
        self._kill_orphans()
        flushing = self.start("worker", ["flush", str(self.plan.patience_s)], f"flush{self._started}", None)
        self._await([flushing], self.plan.patience_s + 10)
        self.reap()
        deadline = time.monotonic() + self.plan.patience_s
        while not self._is_settled():
            if time.monotonic() > deadline:
                self.findings.append("stuck: the account does not come to rest")
                break
            time.sleep(_POLL_S)
        writers = self.alive("writer")
        for writer in writers:
            writer.was_stopped = True
            writer.signal(signal.SIGTERM)
        self._await(writers, 20)
        self.reap()
        self.stop.unlink()

    def _is_settled(self) -> bool:
        counted = [account(self.settings, kind) for kind in KINDS]
        return all(kind.balanced and kind.waiting == 0 for kind in counted)

    def _await(self, children: list[Child], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while any(child.process.poll() is None for child in children):
            if time.monotonic() > deadline:
                for child in children:
                    if child.process.poll() is None:
                        self.findings.append(f"stuck: {child.name} does not end: {self.last_words(child)}")
                        self.kill(child, "stuck")
                return
            time.sleep(_POLL_S)

    @property
    def is_grown(self) -> bool:
        """Whether records alone could fill one of its small disks in another round: then nothing could be drained."""
        return any(usage.used > usage.total // 3 for usage in map(shutil.disk_usage, self._mounts))

    def leave(self, *, keep: Path | None = None) -> None:
        """End everything. The folder is removed, or with `keep` copied there first."""
        self.undo_due(everything=True)
        self.kill_all("at the end")
        if self.redis is not None:
            self.redis.kill()
        if keep is not None:
            shutil.copytree(self.folder, keep, dirs_exist_ok=True)
        for path in self._mounts:
            subprocess.run(["umount", "--lazy", path], check=True, timeout=10)
        shutil.rmtree(self.folder)
