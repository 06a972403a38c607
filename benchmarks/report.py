"""Turns what was measured into one Markdown page: tables of medians, ratios, and the goals beside the figures."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from benchmarks import endurance, freshness, latency, throughput
from benchmarks.endurance import Costs, Memory
from benchmarks.freshness import Freshness
from benchmarks.latency import Latency
from benchmarks.throughput import Throughput
from benchmarks.tools import Tools
from benchmarks.turns import Outcome, Way, median_of
from benchmarks.workload import ESCAPED_EVERY, LINE_BYTES, PAYLOAD_BYTES

Figure = TypeVar("Figure")
MS_50, MS_100 = 50.0, 100.0


@dataclass
class Results:
    """What was measured; a part that was not asked for, or not reached, is empty."""

    imports: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, Outcome[Latency]] = field(default_factory=dict)
    throughput: Mapping[str, Outcome[Throughput]] = field(default_factory=dict)
    freshness: Mapping[str, Outcome[Freshness]] = field(default_factory=dict)
    backfill: Mapping[str, Outcome[Throughput]] = field(default_factory=dict)
    client: Mapping[str, Outcome[Memory]] = field(default_factory=dict)
    writers: Mapping[str, Outcome[Memory]] = field(default_factory=dict)
    costs: Mapping[str, Outcome[Costs]] = field(default_factory=dict)


class Goal(NamedTuple):
    """A figure that the store has to reach."""

    what: str
    limit: float
    measured: float | None  # None: not measured in this run
    unit: str
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the figure is on the right side of the limit."""
        return self.measured is not None and (
            self.measured >= self.limit if self.at_least else self.measured <= self.limit
        )


def page(results: Results, machine: Sequence[str], tools: Tools, *, runs: int, records: int, calls: int) -> str:
    """The whole page."""
    parts = [
        "# Benchmark results",
        (
            f"Written by `python -m benchmarks` on {datetime.now(UTC):%Y-%m-%d}: medians of {runs} runs, in each of "
            "which every way took its turn, in a process and a folder of its own, with the same records."
        ),
        "\n".join(f"- {line}" for line in (*machine, versions(tools))),
    ]
    if any(results.latency.values()) or any(results.throughput.values()):
        parts += goals_section(results)
    if results.latency:
        parts += latency_section(results.latency, calls)
    if results.throughput:
        parts += throughput_section(results.throughput, records)
    if results.freshness:
        parts += freshness_section(results.freshness)
    if results.backfill:
        parts += backfill_section(results.backfill)
    if results.client or results.writers:
        parts += memory_section({**results.client, **results.writers})
    if results.costs:
        parts += cost_section(results.costs)
    if results.imports:
        parts += imports_section(results.imports)
    return "\n\n".join(parts) + "\n"


def versions(tools: Tools) -> str:
    """One line of all versions."""
    return "Versions: " + ", ".join(f"{name} {version}" for name, version in tools.versions.items())


# ---- the goals

_EMBEDDED_WAYS = (throughput.EMBEDDED, throughput.WITH_WRITER, throughput.TWO_AGENTS)
_REDIS_WAYS = (throughput.THROUGH_REDIS, throughput.TWO_THROUGH_REDIS)


def goals(results: Results) -> list[Goal]:
    """The goals of the write path with what was measured of each."""

    def call(name: str, part: Callable[[Latency], float]) -> float | None:
        return median_of(results.latency, name, part)

    def rate(name: str) -> float | None:
        return median_of(results.throughput, name, lambda figure: figure.rate)

    fastest = max(_EMBEDDED_WAYS, key=lambda name: rate(name) or 0)
    fastest_through_redis = max(_REDIS_WAYS, key=lambda name: rate(name) or 0)
    found = [
        Goal("a call in a tight loop, p50", 4, call(latency.TIGHT, p50), "μs"),
        Goal("a call in a tight loop, p99", 15, call(latency.TIGHT, p99), "μs"),
        Goal("a call at 10,000/s, the writer beside it, p50", 8, call(latency.PACED, p50), "μs"),
        Goal("a call at 10,000/s, the writer beside it, p99", 60, call(latency.PACED, p99), "μs"),
        Goal("a call at 10,000/s, the writer beside it, p99.9", 1000, call(latency.PACED, p999), "μs"),
    ]
    for state, tight, paced in (
        ("down", latency.TIGHT_DOWN, latency.PACED_DOWN),
        ("paused", latency.TIGHT_PAUSED, latency.PACED_PAUSED),
    ):
        for pace, name, usual in (
            ("in a tight loop", tight, latency.TIGHT),
            ("at 10,000/s", paced, latency.PACED),
        ):
            for percentile, part in (("p50", p50), ("p99", p99)):
                measured = ratio(results.latency, name, usual, part)
                found.append(Goal(f"Redis {state}, {pace}, {percentile}: times the usual", 1.2, measured, "x"))
    found += [
        Goal(f"{latency.THREADS} threads at once, {percentile}: times one thread's", 3, measured, "x")
        for percentile, measured in (
            ("p50", ratio(results.latency, latency.EIGHT_THREADS, latency.SYNC, p50)),
            ("p99", ratio(results.latency, latency.EIGHT_THREADS, latency.SYNC, p99)),
        )
    ]
    best = best_synced_peer(results.throughput)
    old = throughput.OLD_STORE
    shuffled = ratio(results.backfill, endurance.SHUFFLED, endurance.ORDERED, lambda figure: figure.rate)
    found += [
        Goal(
            "durable end to end, embedded (the fastest of the ways)", 250_000, rate(fastest), "records/s", at_least=True
        ),
        Goal("durable end to end, through Redis", 200_000, rate(fastest_through_redis), "records/s", at_least=True),
        Goal(
            f"embedded: times the best fsyncing peer ({best or 'none measured'}; the aim is 1.5)",
            1.1,
            ratio(results.throughput, fastest, best, lambda figure: figure.rate),
            "x",
            at_least=True,
        ),
        Goal(
            "embedded: times the old store, which does not fsync",
            8,
            ratio(results.throughput, fastest, old, lambda figure: figure.rate),
            "x",
            at_least=True,
        ),
        Goal("call to fsynced CSV at 10,000/s, embedded, p99", MS_50, fresh(results, freshness.EMBEDDED), "ms"),
        Goal(
            "call to fsynced CSV at 10,000/s, through Redis, p99", MS_100, fresh(results, freshness.THROUGH_REDIS), "ms"
        ),
        Goal("a year's backfill, shuffled: times the ordered rate", 0.5, shuffled, "x", at_least=True),
    ]
    found += [
        Goal(f"memory: {name}, growth", 30, median_of(results.client, name, lambda memory: memory.growth), "MiB")
        for name in results.client
    ]
    found += [
        Goal(f"memory: {name}, swing", 20, median_of(results.writers, name, lambda memory: memory.swing), "MiB")
        for name in results.writers
    ]
    found += [
        Goal("cost of a row at the longest file: times that at the shortest", 1.2, rise_of(costs), "x")
        for costs in [outcome.figures for outcome in results.costs.values() if outcome.figures]
    ]
    return found


def p50(figure: Latency) -> float:
    """The median call."""
    return figure.p50


def p99(figure: Latency) -> float:
    """The hundredth slowest."""
    return figure.p99


def p999(figure: Latency) -> float:
    """The thousandth slowest."""
    return figure.p999


def fresh(results: Results, name: str) -> float | None:
    """p99 of a way's time to the disk."""
    return median_of(results.freshness, name, lambda figure: figure.p99)


def rise_of(runs: Sequence[Costs]) -> float:
    """How many times the cost in the shortest file that in the longest is; median of the runs."""
    return statistics.median(costs.by_rows[max(costs.by_rows)] / costs.by_rows[min(costs.by_rows)] for costs in runs)


def ratio(
    outcomes: Mapping[str, Outcome[Figure]], one: str, other: str | None, value: Callable[[Figure], float]
) -> float | None:
    """How many times the other's figure is the one's: the median of the runs' ratios; None if one was not measured."""
    if other is None or one not in outcomes or other not in outcomes:
        return None
    pairs = list(zip(outcomes[one].figures, outcomes[other].figures, strict=False))
    return statistics.median(value(mine) / value(theirs) for mine, theirs in pairs) if pairs else None


def best_synced_peer(outcomes: Mapping[str, Outcome[Throughput]]) -> str | None:
    """The fastest of the peers that fsync."""
    rates = {
        way.name: rate
        for way in throughput.WAYS
        if way.synced and not way.is_ours and (rate := median_of(outcomes, way.name, lambda figure: figure.rate))
    }
    return max(rates, key=rates.__getitem__) if rates else None


def goals_section(results: Results) -> list[str]:
    """The goals as a table."""
    rows: list[Sequence[str]] = []
    for goal in goals(results):
        if goal.measured is None:
            rows.append((goal.what, limit_text(goal), "not measured", ""))
        else:
            rows.append((goal.what, limit_text(goal), number(goal.measured, goal.unit), "yes" if goal.is_met else "no"))
    return ["## Goals", table(("", "goal", "measured", "met"), rows)]


def limit_text(goal: Goal) -> str:
    """A goal's limit."""
    return f"{'≥' if goal.at_least else '≤'} {number(goal.limit, goal.unit)}"


# ---- the parts


def latency_section(outcomes: Mapping[str, Outcome[Latency]], calls: int) -> list[str]:
    """What a call takes."""
    rows: list[Sequence[str]] = []
    for way, figures in measured(latency.WAYS, outcomes):
        if not figures:
            rows.append((way.name, f"not measured: {outcomes[way.name].reason}", "", "", "", ""))
            continue
        dropped = statistics.median(1 - figure.stored / figure.calls for figure in figures)
        rows.append(
            (
                way.name,
                *(f"{statistics.median(map(part, figures)):,.1f}" for part in (p50, p99, p999)),
                f"{figures[0].calls:,}",
                f"{dropped:.0%} dropped" if dropped else "all",
            )
        )
    return [
        "## One call",
        (
            f"Microseconds a call, an event with a payload of {PAYLOAD_BYTES} bytes as JSON, {calls:,} calls a run or "
            "fewer where a way is slow. Two clock readings around each call; ours has made its first "
            f"{latency.WARM_UP + 1:,} calls before. Tight loop: one call after the other. 10,000/s: one call each 100 "
            "μs, while the event loop turns in between (`await asyncio.sleep(0)`), so that the thread that writes or "
            "ships has its share of the GIL beside the calls. Redis down: nobody listens at its address. Redis paused: "
            f"SIGSTOP before the first call. {latency.THREADS} threads: each call timed in its thread, waits for the "
            "GIL included."
        ),
        table(("", "p50", "p99", "p99.9", "calls", "stored"), rows),
    ]


def throughput_section(outcomes: Mapping[str, Outcome[Throughput]], records: int) -> list[str]:
    """Records a second."""
    rows: list[Sequence[str]] = []
    ours = (throughput.EMBEDDED, throughput.TWO_AGENTS, throughput.TWO_THROUGH_REDIS)
    for way, figures in measured(throughput.WAYS, outcomes):
        if not figures:
            rows.append((way.name, way.synced or "no", f"not measured: {outcomes[way.name].reason}", *[""] * 5))
            continue
        rates = [figure.rate for figure in figures]
        dropped = statistics.median(1 - figure.stored / figure.offered for figure in figures)
        ratios = [ratio(outcomes, mine, way.name, lambda figure: figure.rate) for mine in ours]
        rows.append(
            (
                way.name,
                way.synced or "no",
                f"{statistics.median(rates):,.0f}",
                f"{min(rates):,.0f} to {max(rates):,.0f}",
                f"{figures[0].offered:,}, {dropped:.0%} dropped" if dropped else f"{figures[0].offered:,}, all stored",
                *("" if way.is_ours or value is None else f"{value:.1f}x" for value in ratios),
            )
        )
    return [
        "## Many records, to the end",
        (
            f"Records a second from the first call until the last one is where the way puts it; {records:,} records a "
            f"run, or fewer where a way is slow. A record has {LINE_BYTES} bytes as one JSON line: its id, its time, "
            f"four texts and the payload, with a quoted word and a line break in one of {ESCAPED_EVERY}. Ours is "
            "fsynced in the CSV files, and after each run its rows, their distinct ids and the account are counted: "
            "each record exactly once. Peers are given the fastest encoder (msgspec) where the form is free, and their "
            "stored records are counted too. The old store publishes to no Redis here. Ratios are ours to the way of "
            "the row, run by run."
        ),
        table(
            ("", "fsync", "records/s", "runs", "records", "embedded ÷ it", "two agents ÷ it", "through Redis ÷ it"),
            rows,
        ),
    ]


def freshness_section(outcomes: Mapping[str, Outcome[Freshness]]) -> list[str]:
    """From the call to the disk."""
    rows: list[Sequence[str]] = []
    for way, figures in measured(freshness.WAYS, outcomes):
        if not figures:
            rows.append((way.name, f"not measured: {outcomes[way.name].reason}", "", ""))
            continue
        parts = zip(*figures, strict=True)
        rows.append((way.name, *(f"{statistics.median(part):,.1f}" for part in parts)))
    return [
        "## From the call to the fsynced CSV",
        (
            f"Milliseconds, every record of a run at {freshness.RATE:,} records/s: ten calls each millisecond, the "
            "agent's event loop asleep in between. A process of its own looks each millisecond at the mark in the "
            "ledger, which covers a record when its row has been fsynced."
        ),
        table(("", "p50", "p99", "longest"), rows),
    ]


def backfill_section(outcomes: Mapping[str, Outcome[Throughput]]) -> list[str]:
    """A year, in order and shuffled."""
    rows: list[Sequence[str]] = []
    for way, figures in measured(endurance.BACKFILL, outcomes):
        of_ordered = ratio(outcomes, way.name, endurance.ORDERED, lambda figure: figure.rate)
        rows.append(
            (
                way.name,
                f"{statistics.median(figure.rate for figure in figures):,.0f}",
                "" if of_ordered is None else f"{of_ordered:.2f}x",
            )
        )
    return [
        "## A backfill of a year",
        "Embedded, one process, each record with its own `timestamp=`, from the first call until all is fsynced.",
        table(("", "records/s", "of the ordered rate"), rows),
    ]


def memory_section(outcomes: Mapping[str, Outcome[Memory]]) -> list[str]:
    """Resident memory."""
    rows: list[Sequence[str]] = []
    for name, outcome in outcomes.items():
        if not outcome.figures:
            rows.append((name, f"not measured: {outcome.reason}", "", "", ""))
            continue
        first, least, most, records = (statistics.median(part) for part in zip(*outcome.figures, strict=True))
        rows.append((name, f"{records:,.0f}", f"{first:.0f}", f"{least:.0f}", f"{most:.0f}"))
    return [
        "## Memory",
        (
            "Resident MiB, mapped files included. The writer is looked at each second, for the first time when it has "
            f"written a tenth of the records or {endurance.SETTLED:,}; the agent's process each 10,000 calls, for the "
            "first time after 1,000."
        ),
        table(("", "records", "first", "least", "most"), rows),
    ]


def cost_section(outcomes: Mapping[str, Outcome[Costs]]) -> list[str]:
    """The cost of a row by the length of its file."""
    rows = [
        (f"{level:,}", f"{statistics.median(costs.by_rows[level] for costs in outcome.figures):.2f}")
        for outcome in outcomes.values()
        if outcome.figures
        for level in outcome.figures[0].by_rows
    ]
    return [
        "## The cost of a row in a long file",
        f"Microseconds a record, embedded, durable end to end, for the next {endurance.WINDOW:,} records.",
        table(("rows in the day file before", "μs a record"), rows),
    ]


def imports_section(medians: Mapping[str, float]) -> list[str]:
    """What an agent pays at its start."""
    return [
        "## Import",
        "Milliseconds, each in a new process.",
        table(("", "ms"), [(name, f"{took:.1f}") for name, took in medians.items()]),
    ]


# ---- Markdown


def measured(
    ways: Sequence[Way[Figure]], outcomes: Mapping[str, Outcome[Figure]]
) -> Iterator[tuple[Way[Figure], list[Figure]]]:
    """Each way with its figures, in the order of the ways."""
    for way in ways:
        yield way, outcomes[way.name].figures


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, unit: str) -> str:
    """A figure with its unit, with as many digits as say something."""
    if unit == "x":
        return f"{value:.2f}x"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
