"""Lets every way take its turn in each run, so that a slow minute of the machine hits all of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from benchmarks.processes import apart
from benchmarks.tools import NotMeasured, Tools, tell, working_folder

Figure = TypeVar("Figure")


class LostRecords(Exception):
    """Raised when a way that promises to store every record did not."""


class Job(NamedTuple):
    """One measurement of one way."""

    folder: Path  # empty, and removed afterwards
    seed: int  # the run's: all ways of a run store the same records
    records: int
    tools: Tools


class Way(NamedTuple, Generic[Figure]):
    """One way of storing records, and how to measure it."""

    name: str
    measure: Callable[[Job], Figure]
    share: float = 1.0  # of the records, for ways so slow that all of them would take minutes
    synced: str = ""  # when its records are fsynced; "" for never
    is_ours: bool = False


class Outcome(NamedTuple, Generic[Figure]):
    """What came of a way: a figure a run, or the reason why there is none."""

    figures: list[Figure]
    reason: str = ""


def in_turns(
    title: str, ways: Sequence[Way[Figure]], *, runs: int, records: int, tools: Tools, run_apart: bool = True
) -> dict[str, Outcome[Figure]]:
    """Measure each way once a run, each time in a folder and, with `run_apart`, a process of its own.

    Raises LostRecords.
    """
    outcomes: dict[str, Outcome[Figure]] = {way.name: Outcome([]) for way in ways}
    for run in range(runs):
        for way in ways:
            if outcomes[way.name].reason:
                continue
            with working_folder() as folder:
                job = Job(Path(folder), run, max(1, round(records * way.share)), tools)
                try:
                    figure = apart(way.measure, job) if run_apart else way.measure(job)
                except NotMeasured as err:
                    outcomes[way.name] = Outcome([], str(err))
                    tell(f"{title}: {way.name}: not measured: {err}")
                    continue
            outcomes[way.name].figures.append(figure)
            tell(f"{title}, run {run + 1} of {runs}: {way.name}: {figure}")
    return outcomes


def median_of(outcomes: Mapping[str, Outcome[Figure]], name: str, value: Callable[[Figure], float]) -> float | None:
    """The median of one value of a way over its runs; None if it was not measured."""
    outcome = outcomes.get(name)
    return statistics.median(map(value, outcome.figures)) if outcome and outcome.figures else None
