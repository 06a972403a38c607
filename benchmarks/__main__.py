"""Measures imports, calls and the writer against named peers and prints the medians: `python -m benchmarks`."""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from benchmarks import latency, throughput

RUNS = 5
Way = TypeVar("Way")
Figure = TypeVar("Figure")


def main() -> None:
    """Run what was asked for; every way takes its turn in each run, so that a slow minute of the machine hits all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"how often each is measured (default {RUNS})")
    parser.add_argument("--records", type=int, default=50_000, help="records a run of the throughput (default 50000)")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, medians of {arguments.runs} runs\n")
    print_imports(arguments.runs)
    print_latency(arguments.runs)
    print_throughput(arguments.runs, arguments.records)


def print_imports(runs: int) -> None:
    """What an agent pays at its start, in milliseconds; each import in a new process."""
    print("Import, in milliseconds:\n")
    for name, module in {
        "ingest": "ingest",
        "of this, msgspec": "msgspec",
        "redis-py, for comparison": "redis",
    }.items():
        medians = statistics.median(import_ms(module) for _ in range(2 * runs))
        print(f"  {name:44}{medians:8.1f}")
    print()


def import_ms(module: str) -> float:
    """Wall time of one import in a new process."""
    code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout) * 1000


def print_latency(runs: int) -> None:
    """A table of what one call costs, in microseconds."""
    figures = repeated(runs, latency.WAYS, lambda way, folder: way(folder))
    print(f"One call, an event with {latency.PAYLOAD_BYTES} bytes of payload, in microseconds:\n")
    print(f"  {'':44}{'p50':>8}{'p99':>8}{'p99.9':>8}")
    for name, runs_of_it in figures.items():
        medians = [statistics.median(figure) for figure in zip(*runs_of_it, strict=True)]
        print(f"  {name:44}" + "".join(f"{value:8.1f}" for value in medians))
    print()


def print_throughput(runs: int, records: int) -> None:
    """A table of records a second, and how many times a peer's rate ours is, end to end and the writer alone."""
    figures = repeated(runs, throughput.WAYS, lambda way, folder: records / way(folder, records))
    print(f"{records} such events into files, ours fsynced and exactly once:\n")
    print(f"  {'':44}{'records/s':>12}{'end to end':>14}{'writer alone':>14}")
    for name, rates in figures.items():
        print(f"  {name:44}{statistics.median(rates):12,.0f}", end="")
        if name not in {throughput.OURS, throughput.ALONE}:
            for ours in (figures[throughput.OURS], figures[throughput.ALONE]):
                ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, rates, strict=True))
                print(f"{ratio:13.1f}x", end="")
        print()


def repeated(runs: int, ways: Mapping[str, Way], measure: Callable[[Way, Path], Figure]) -> dict[str, list[Figure]]:
    """Measure each way once a run, in a folder of its own; one unmeasured run warms up."""
    figures: dict[str, list[Figure]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(prefix="tds-bench-", dir=Path.cwd()) as folder:
                figure = measure(way, Path(folder))
            if run:
                figures[name].append(figure)
            tell(f"run {run} of {runs}: {name}")
    tell("")
    return figures


def tell(text: str) -> None:
    """Show progress on a terminal."""
    if sys.stderr.isatty():
        print(f"{text:80}", end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
