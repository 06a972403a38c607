"""Measures the write path against named peers and prints one page of medians: `python -m benchmarks`."""

import argparse
from pathlib import Path

from benchmarks import endurance, freshness, imports, latency, report, throughput
from benchmarks.machine import describe_machine, load_average
from benchmarks.tools import Tools, find_tools, tell
from benchmarks.turns import in_turns

RESULTS = Path(__file__).with_name("RESULTS.md")
# What begins and ends a run (the first batch, the last commit, a flush's look) takes 50 ms: of 200,000 records a tenth.
RUNS, RECORDS, CALLS = 5, 600_000, 50_000
FRESHNESS_RECORDS = 50_000  # five seconds
CLIENT_RECORDS = 1_000_000  # half a gigabyte of backlog
PARTS = ("imports", "latency", "throughput", "freshness", "backfill", "memory", "cost")


def main() -> None:
    """Measure what was asked for."""
    arguments = parser().parse_args()
    if arguments.write and arguments.only:
        parser().error("--write writes the whole page: leave out --only")
    parts = set(arguments.only or PARTS)
    load = load_average()
    machine = [*describe_machine(), f"Load average before the first run: {load}"]
    tools = find_tools(arguments.old_store, fetch=bool(parts & {"latency", "throughput"}))
    runs, records, calls = arguments.runs, arguments.records, arguments.calls
    results = report.Results()
    try:
        measure(results, parts, tools, runs=runs, records=records, calls=calls, long=arguments.long)
    finally:  # what was measured before something failed, or Ctrl-C, is shown all the same
        text = report.page(results, machine, tools, runs=runs, records=records, calls=calls)
        print(text)
    if arguments.write:
        RESULTS.write_text(text)
        tell(f"written to benchmarks/{RESULTS.name}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="Progress goes to stderr. See also: python -m benchmarks.overload, .forks and .jsonl_formatter.",
    )
    made.add_argument("--runs", type=int, default=RUNS, help=f"how often each way is measured (default {RUNS})")
    made.add_argument(
        "--records", type=int, default=RECORDS, help=f"records a run, where they are counted (default {RECORDS})"
    )
    made.add_argument("--calls", type=int, default=CALLS, help=f"calls a run, where they are timed (default {CALLS})")
    made.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    made.add_argument(
        "--long",
        action="store_true",
        help="also the writer's memory and the cost in long files: minutes, and 12 GB of disk",
    )
    made.add_argument("--write", action="store_true", help="write the page to benchmarks/RESULTS.md as well")
    made.add_argument(
        "--old-store", type=Path, metavar="PATH", help="a clone of the old store's repository, or its file; else cloned"
    )
    return made


def measure(
    results: report.Results, parts: set[str], tools: Tools, *, runs: int, records: int, calls: int, long: bool
) -> None:
    """Measure the parts, one after the other. What takes minutes is measured once, and only if `long`."""
    if "imports" in parts:
        results.imports = imports.import_medians(runs)
    if "latency" in parts:
        results.latency = in_turns("latency", latency.WAYS, runs=runs, records=calls, tools=tools)
    if "throughput" in parts:
        results.throughput = in_turns("throughput", throughput.WAYS, runs=runs, records=records, tools=tools)
    if "freshness" in parts:
        few = min(FRESHNESS_RECORDS, records)
        results.freshness = in_turns("freshness", freshness.WAYS, runs=runs, records=few, tools=tools)
    if "backfill" in parts:
        results.backfill = in_turns("backfill", endurance.BACKFILL, runs=runs, records=records, tools=tools)
    if "memory" in parts:
        many = min(CLIENT_RECORDS, 5 * records)
        results.client = in_turns("memory", endurance.CLIENT, runs=1, records=many, tools=tools)
    if "memory" in parts and long:
        many = endurance.MEMORY_RECORDS
        results.writers = in_turns("memory", endurance.WRITERS, runs=1, records=many, tools=tools)
    if "cost" in parts and long:
        many = max(endurance.FILES_OF)
        results.costs = in_turns("cost", endurance.COSTS, runs=1, records=many, tools=tools)


if __name__ == "__main__":
    main()
