"""Offers twice the rate that the writer sustains, with Redis paused in the middle: `python -m benchmarks.overload`.

Agents' processes store for a minute at a rate that the writer cannot follow, and for a third of it Redis is stopped
(SIGSTOP), so that not even the shippers get on. What shows: how long the calls take meanwhile, that the backlog is
written afterwards, each record once, and that the account of `tds status --json` adds up to the record.
"""

import argparse
import array
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import ours
from benchmarks.latency import Latency, percentiles
from benchmarks.processes import SPAWN, apart, running_redis, running_writer, wait_until
from benchmarks.tools import REDIS, Tools, find_redis, tell, working_folder
from benchmarks.turns import Job, LostRecords
from benchmarks.workload import DISTINCT, events_of_line
from ingest import Settings, TrainingDataStore
from ingest.settings import child_environment

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

TIMED_EACH = 7  # one call in so many is timed: a prime, so that it falls on every place in a burst
BURST_S = 0.001
SPOOL_MAX_BYTES = 64 << 30  # the backlog is the point here; with the default of 4 GiB what is beyond would be dropped
MEASURED_RECORDS = 200_000
DRAIN_S = 1800.0  # as long as that the backlog may take


class Plan(NamedTuple):
    """What is to happen."""

    seconds: float  # of storing
    pause_from: float  # seconds after the first call
    pause_for: float
    rate: float  # records a second of all agents together
    agents: int


class Stored(NamedTuple):
    """What one agent's process did."""

    accepted: int
    refused: int  # calls that gave None
    seconds: float
    began_ns: bytes  # of the timed calls, by the clock that all processes share; 8 bytes each
    took_ns: bytes


class Summary(NamedTuple):
    """What came of it."""

    offered: int
    dropped: int
    rate: float  # calls a second
    calls: Latency
    paused_calls: Latency  # those made while Redis was stopped
    drain_s: float
    rows: int
    status: dict[str, object]  # of events, from `tds status --json`


def main() -> None:
    """Run it and print what was seen. Exits with 1 if a record is missing or the account does not add up."""
    arguments = parser().parse_args()
    binary, _ = find_redis()
    rate = arguments.rate or sustained_rate(binary, MEASURED_RECORDS)
    plan = Plan(arguments.seconds, arguments.seconds / 3, arguments.pause, rate * arguments.factor, arguments.agents)
    print(f"the writer sustains {rate:,.0f} records/s through Redis; offered are {plan.rate:,.0f}/s", flush=True)
    with working_folder() as folder:
        summary = overload(binary, Path(folder), plan)
    show(summary, plan)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    made.add_argument("--seconds", type=float, default=60, help="how long agents store (default 60)")
    made.add_argument("--pause", type=float, default=20, help="how long Redis is stopped meanwhile (default 20)")
    made.add_argument("--factor", type=float, default=2, help="times the writer's rate (default 2)")
    made.add_argument("--rate", type=float, help="what the writer sustains, records a second (default: measured)")
    made.add_argument("--agents", type=int, default=2, help="processes that store (default 2)")
    return made


def sustained_rate(binary: str, records: int) -> float:
    """Records a second from the first call through Redis to the fsynced CSV."""
    with working_folder() as folder:
        job = Job(Path(folder), 0, records, Tools({REDIS: binary}, {}, {}))
        return records / apart(ours.through_redis, job)


def overload(binary: str, folder: Path, plan: Plan) -> Summary:
    """Store, pause, go on, drain, count. Raises LostRecords if a record is missing or stored twice."""
    with running_redis(binary, folder) as redis:
        # Without the hour that entries stay for subscribers: Redis would need all of the memory.
        settings = Settings(
            data_dir=folder / "data", redis_url=redis.url, synapse_retention=0, spool_max_bytes=SPOOL_MAX_BYTES
        )
        with running_writer(settings):
            ready, results = SPAWN.Barrier(plan.agents + 1), SPAWN.Queue()
            agents = [
                SPAWN.Process(target=_agent, args=(settings, n, plan, ready, results)) for n in range(plan.agents)
            ]
            for agent in agents:
                agent.start()
            ready.wait(ours.LONG_S)
            start = time.monotonic()
            wait_until(lambda: time.monotonic() >= start + plan.pause_from, "the pause begins", plan.seconds)
            redis.pause()
            paused_ns = time.monotonic_ns()
            tell("Redis is stopped")
            wait_until(lambda: time.monotonic_ns() >= paused_ns + plan.pause_for * 1e9, "it ends", 2 * plan.seconds)
            redis.resume()
            resumed_ns = time.monotonic_ns()
            tell("Redis goes on")
            stored: list[Stored] = [results.get(timeout=plan.seconds + ours.LONG_S) for _ in agents]
            for agent in agents:
                agent.join()
            tell("agents have ended; draining")
            ended = time.monotonic()
            store = TrainingDataStore(settings)
            store.sync.flush(DRAIN_S)
            store.sync.close()
            drain_s = time.monotonic() - ended
            status = events_status(settings)
        accepted = sum(agent.accepted for agent in stored) + plan.agents  # each one's first record is a warm-up
        ours.check_stored(settings, accepted)
    took, paused = list[int](), list[int]()
    for agent_stored in stored:
        for began, ns in zip(
            array.array("q", agent_stored.began_ns), array.array("q", agent_stored.took_ns), strict=True
        ):
            (paused if paused_ns <= began < resumed_ns else took).append(ns)
    refused = sum(agent.refused for agent in stored)
    if status["balanced"] is not True or status["dropped"] != refused or status["stored"] != accepted:
        raise LostRecords(f"{accepted} accepted, {refused} refused: `tds status` says {status}")
    return Summary(
        offered=accepted + refused,
        dropped=refused,
        rate=(accepted + refused) / max(agent.seconds for agent in stored),
        calls=percentiles(took, len(took)),
        paused_calls=percentiles(paused, len(paused)),
        drain_s=drain_s,
        rows=accepted,
        status=status,
    )


def _agent(settings: Settings, number: int, plan: Plan, ready: "Barrier", results: "Queue[Stored]") -> None:
    results.put(asyncio.run(store_at_rate(settings, number, plan, ready)))


async def store_at_rate(settings: Settings, number: int, plan: Plan, ready: "Barrier") -> Stored:
    """Store at this agent's share of the rate: each millisecond what is due, without rest where it is late."""
    store, events = await ours.warmed_up(settings), events_of_line(number, DISTINCT)
    began_ns, took_ns, clock = array.array("q"), array.array("q"), time.monotonic_ns
    calls, refused, rate = 0, 0, plan.rate / plan.agents
    ready.wait(ours.LONG_S)
    start = time.monotonic()
    while (passed := time.monotonic() - start) < plan.seconds:
        due = int(passed * rate) - calls
        if due <= 0:
            await asyncio.sleep(BURST_S)
        for _ in range(min(due, 1000)):
            event_type, agent_id, session_id, payload = events[calls % DISTINCT]
            calls += 1
            began = clock()
            stored = await store.store_agent_event(event_type, agent_id, session_id=session_id, payload=payload)
            if calls % TIMED_EACH == 0:
                took_ns.append(clock() - began)
                began_ns.append(began)
            refused += stored is None
    seconds = time.monotonic() - start
    await store.close()
    return Stored(calls - refused, refused, seconds, began_ns.tobytes(), took_ns.tobytes())


def events_status(settings: Settings) -> dict[str, object]:
    """What `tds status --json` says of events."""
    command = [str(Path(sys.executable).with_name("tds")), "status", "--json"]
    done = subprocess.run(command, env=child_environment(settings), capture_output=True, text=True, check=False)
    if done.returncode:
        raise LostRecords(f"tds status: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    found: dict[str, object] = json.loads(done.stdout)["kinds"]["events"]
    return found


def show(summary: Summary, plan: Plan) -> None:
    """Print the summary."""
    print(
        f"offered for {plan.seconds:.0f} s: {summary.offered:,} records, {summary.rate:,.0f}/s, by {plan.agents} agents"
    )
    print(f"dropped: {summary.dropped:,}")
    stopped = f"Redis stopped for {plan.pause_for:.0f} s"
    for name, calls in (("Redis at work", summary.calls), (stopped, summary.paused_calls)):
        figures = f"p50 {calls.p50:.1f}, p99 {calls.p99:.1f}, p99.9 {calls.p999:.1f} μs"
        print(f"a call, {name}: {figures} ({calls.calls:,} timed)")
    print(
        f"drained {summary.drain_s:.1f} s after the last call: {summary.rows:,} rows, as many distinct ids: none lost"
    )
    print(f"tds status --json, events: {json.dumps(summary.status)}")


if __name__ == "__main__":
    main()
