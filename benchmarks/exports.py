"""Measures exports against named peers over the same CSV files: `python -m benchmarks.exports`.

A month of events is made once, and a year of small days. In each run every way takes its turn in a process of its
own, and what it wrote is counted. With the defaults it takes ten minutes and 8 GB of disk; `--size 200 --runs 1` half
a minute.
"""

import argparse
import datetime as dt
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks import export_peers as peers
from benchmarks.machine import describe_machine, load_average
from benchmarks.processes import apart
from benchmarks.tools import OLD_STORE, NotMeasured, Tools, find_tools, tell, working_folder
from benchmarks.workload import DISTINCT, LINE_BYTES, Event, events_of_line
from ingest import Settings
from ingest.pipeline.ledger import Commit, CommittedFile, open_ledger
from ingest.pipeline.partitions import DataPaths, day_range, make_folder
from ingest.records import KINDS, new_record_id
from ingest.settings import RedactionLevel

RESULTS = Path(__file__).with_name("RESULTS-exports.md")
KIND = KINDS["events"]
MONTH = day_range("2024-05-01", "2024-05-31")
YEAR = day_range("2024-01-01", "2024-12-30")
YEAR_ROWS = 100  # a day
ROW_BYTES = 479  # of a CSV row with a record of LINE_BYTES as JSON
CHANGED = MONTH[14]
SLOW_DAYS = 3  # of the month, for peers that would take minutes


class Figures(NamedTuple):
    """What one way cost once."""

    seconds: float
    peak_mib: float
    rows: int  # that were written; -1: not counted


class Measured(NamedTuple):
    """One way's figures, or why there are none."""

    figures: list[Figures]
    reason: str = ""
    note: str = ""

    def seconds(self) -> float | None:
        """The median."""
        return statistics.median(figure.seconds for figure in self.figures) if self.figures else None

    def peak_mib(self) -> float | None:
        """The median."""
        return statistics.median(figure.peak_mib for figure in self.figures) if self.figures else None


# ---- the data


def make_days(root: Path, days: Sequence[str], rows_a_day: int) -> None:
    """Day files as the writer leaves them, committed in the ledger; run in a process of its own."""
    paths, templates = DataPaths(root), [_template(event) for event in events_of_line(seed=1, count=DISTINCT)]
    committed = {}
    for day in days:
        path = paths.training(KIND.name, day)
        make_folder(path.parent)
        with path.open("w") as out:
            out.write(KIND.header.decode())
            for number in range(rows_a_day):
                second = number * 86_400 // rows_a_day
                clock = f"{second // 3600:02}:{second % 3600 // 60:02}:{second % 60:02}.{number % 1_000_000:06}"
                template = templates[number % len(templates)]
                out.write(template.replace(_ID, new_record_id()).replace(_TIME, f"{day}T{clock}Z"))
        status = path.stat()
        committed[day] = CommittedFile(status.st_size, rows_a_day, f"{rows_a_day} rows", status.st_mtime_ns)
    with open_ledger(paths, KIND.name) as ledger:
        ledger.commit(Commit(files=committed))


_ID, _TIME = "I" * 36, "T" * 27


def _template(event: Event) -> str:
    """An event's row, with an id and a time to be put in."""
    line = msgspec.json.encode({"record_id": _ID, "timestamp": _TIME, **event._asdict(), "severity": "info"})
    return KIND.csv_rows([KIND.decoder.decode(line)], escaped=b"\\" in line)[0]


def change_day(root: Path, day: str) -> None:
    """One more record at the end of a day."""
    paths = DataPaths(root)
    path = paths.training(KIND.name, day)
    row = (
        _template(events_of_line(seed=2, count=1)[0])
        .replace(_ID, new_record_id())
        .replace(_TIME, f"{day}T23:59:59.999999Z")
    )
    with path.open("a") as out:
        out.write(row)
    status = path.stat()
    with open_ledger(paths, KIND.name) as ledger:
        before = ledger.file(day)
        rows = 1 if before is None else before.rows + 1
        ledger.commit(Commit(files={day: CommittedFile(status.st_size, rows, f"{rows} rows", status.st_mtime_ns)}))


# ---- the ways; each runs in a process of its own


def ours(root: Path, days: Sequence[str], level: RedactionLevel) -> Figures:
    """`export_range`, to the manifest and the synced file."""
    from tds_dagster.export import export_range

    settings = Settings(data_dir=root, redaction=level, redaction_key="only for benchmarks")
    start = time.perf_counter()
    made = export_range(DataPaths(root), KIND.name, days[0], days[-1], settings=settings)
    return Figures(time.perf_counter() - start, _peak_mib(), made.rows)


def peer(write: Callable[[Sequence[Path], Path], None], files: Sequence[Path], folder: Path) -> Figures:
    """A peer, over files; its output is counted afterwards."""
    for module in ("duckdb", "polars", "pandas", "pyarrow.csv"):
        if module.partition(".")[0] in getattr(write, "__name__", ""):
            __import__(module)  # before the clock starts
    start = time.perf_counter()
    write(files, folder)
    took = time.perf_counter() - start
    outputs = list(folder.glob("*.jsonl"))
    rows = sum(_count_lines(file) for file in outputs) if outputs else -1
    return Figures(took, _peak_mib(), rows)


def _count_lines(file: Path) -> int:
    with file.open("rb") as content:
        return sum(piece.count(b"\n") for piece in iter(lambda: content.read(1 << 20), b""))


def _peak_mib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20)


# ---- the measurement

COLD, COLD_SECRETS = "ours, cold: CSV → Parquet → JSONL, redaction none", "ours, cold, redaction secrets (the default)"
WARM, ONE_DAY = "ours, warm: nothing changed", f"ours, one of {len(MONTH)} days changed"
YEAR_COLD = f"ours, a year of {len(YEAR)} days with {YEAR_ROWS} records each, cold"
DUCK_JSONL, DUCK_PARQUET = "DuckDB COPY: CSV → JSONL", "DuckDB COPY: CSV → Parquet"
POLARS, PANDAS, PYARROW = (
    "Polars: CSV → JSONL, documents as text",
    "pandas: CSV → JSONL",
    "pyarrow and orjson: CSV → JSONL",
)
OLD, CAT_CSV, CAT = "the old store's export: CSV → JSONL", "cat of the CSV files", "cat of the JSONL shards"
CAT_SYNCED = "cat of the JSONL shards, synced, in an older file's place"
WAYS = (
    DUCK_JSONL,
    DUCK_PARQUET,
    POLARS,
    PANDAS,
    PYARROW,
    OLD,
    CAT_CSV,
    COLD,
    CAT,
    CAT_SYNCED,
    WARM,
    ONE_DAY,
    COLD_SECRETS,
    YEAR_COLD,
)


def measure(size_mb: int, runs: int, old_store: Path | None) -> dict[str, Measured]:
    """All ways, in turns. Raises LostRows if one of them did not write every record."""
    measured = {way: Measured([], note="") for way in WAYS}
    tools = find_tools(old_store, fetch=False)
    with working_folder() as folder:
        month, year = Path(folder, "month"), Path(folder, "year")
        rows_a_day = max(1, size_mb * 1_000_000 // ROW_BYTES // len(MONTH))
        tell(f"making {len(MONTH)} days with {rows_a_day:,} events each, and a year")
        apart(make_days, month, MONTH, rows_a_day)
        apart(make_days, year, YEAR, YEAR_ROWS)
        files = [DataPaths(month).training(KIND.name, day) for day in MONTH]
        expected = rows_a_day * len(MONTH)
        for run in range(runs):
            for way in WAYS:
                if measured[way].reason:
                    continue
                try:
                    figures, days = _measure_once(way, month, year, files, tools)
                except NotMeasured as err:
                    measured[way] = Measured([], str(err))
                    tell(f"{way}: not measured: {err}")
                    continue
                due = _rows_due(way, expected, days, run)
                if figures.rows not in {-1, due}:
                    raise LostRows(f"{way}: {figures.rows:,} records were written: expected {due:,}")
                if days != len(MONTH) and way != YEAR_COLD:
                    figures = figures._replace(seconds=figures.seconds * len(MONTH) / days)
                    measured[way] = measured[way]._replace(note=f"{days} days, times {len(MONTH)}/{days}")
                measured[way].figures.append(figures)
                tell(f"run {run + 1} of {runs}: {way}: {figures.seconds:.2f} s, {figures.peak_mib:.0f} MiB")
    return measured


class LostRows(Exception):
    """Raised when a way did not write every record."""


def _rows_due(way: str, month_rows: int, days: int, run: int) -> int:
    """What a way has to write; each run adds one record to one day (`ONE_DAY`), near the end."""
    if way == YEAR_COLD:
        return len(YEAR) * YEAR_ROWS
    added = run + (way in {ONE_DAY, COLD_SECRETS})
    return month_rows + added if days == len(MONTH) else month_rows // len(MONTH) * days


def _measure_once(way: str, month: Path, year: Path, files: Sequence[Path], tools: Tools) -> tuple[Figures, int]:
    """One way once; gives its figures and how many days of the month it had."""
    if way in {COLD, COLD_SECRETS, YEAR_COLD}:
        _put_away(year if way == YEAR_COLD else month)
    if way == ONE_DAY:
        apart(change_day, month, CHANGED)
    of_peers: Mapping[str, tuple[Callable[..., None], int]] = {
        DUCK_JSONL: (peers.duckdb_jsonl, len(MONTH)), DUCK_PARQUET: (peers.duckdb_parquet, len(MONTH)),
        POLARS: (peers.polars_jsonl, len(MONTH)), PANDAS: (peers.pandas_jsonl, SLOW_DAYS),
        PYARROW: (peers.pyarrow_jsonl, SLOW_DAYS), OLD: (peers.old_store_jsonl, SLOW_DAYS),
        CAT_CSV: (peers.cat, len(MONTH)), CAT: (peers.cat, len(MONTH)), CAT_SYNCED: (peers.cat_synced, len(MONTH)),
    }  # fmt: skip
    os.sync()
    if way not in of_peers:
        level: RedactionLevel = "secrets" if way == COLD_SECRETS else "none"
        return apart(ours, year if way == YEAR_COLD else month, YEAR if way == YEAR_COLD else MONTH, level), len(MONTH)
    write, days = of_peers[way]
    if way == OLD:
        write = partial(write, source=Path(tools.path(OLD_STORE)))
    is_of_shards = way in {CAT, CAT_SYNCED}
    inputs = [DataPaths(month).shard(KIND.name, day) for day in MONTH] if is_of_shards else files[:days]
    with working_folder() as folder:
        if way == CAT_SYNCED:
            apart(peers.cat, inputs, Path(folder))
        figures = apart(peer, write, inputs, Path(folder))
    return (figures._replace(rows=-1) if way == CAT_CSV else figures), days


def _put_away(root: Path) -> None:
    """Take away what was made of the raw days.

    Small files are only moved, until all is measured: for a minute or more ext4 looks at each inode that became free
    before it takes one, so that after 1,500 removed files each new one costs half a millisecond.
    """
    (root / "training" / f"{KIND.name}_training.jsonl").unlink(missing_ok=True)
    for name in ("curated", "exports"):
        away = root / "away" / f"{name}-{time.time_ns()}"
        if (root / name).exists():
            away.parent.mkdir(exist_ok=True)
            (root / name).rename(away)
            for large in away.rglob("*.jsonl"):
                if large.stat().st_size > 1 << 20:
                    large.unlink()


# ---- the page


class Goal(NamedTuple):
    """A goal, what was measured, and the most that it may be."""

    name: str
    most: float
    found: float | None
    unit: str

    @property
    def is_met(self) -> bool:
        """What was not measured is not met."""
        return self.found is not None and self.found <= self.most


def goals(measured: Mapping[str, Measured]) -> list[Goal]:
    """The goals of exports."""
    seconds = {way: found.seconds() for way, found in measured.items()}
    cold, duck = seconds[COLD], _sum(seconds[DUCK_JSONL], seconds[DUCK_PARQUET])
    peaks = [peak for way in (COLD, COLD_SECRETS) if (peak := measured[way].peak_mib()) is not None]
    return [
        Goal("cold month: times DuckDB's copy to JSONL and its Parquet write", 1.0, _ratio(cold, duck), "x"),
        Goal("the same with redaction of secrets (no peer redacts)", 1.0, _ratio(seconds[COLD_SECRETS], duck), "x"),
        Goal("cold month: peak memory", 1024, max(peaks, default=None), "MiB"),
        Goal("warm month: times `cat` of its JSONL", 2.0, _ratio(seconds[WARM], seconds[CAT]), "x"),
        Goal(f"one changed day of {len(MONTH)}: times cold", 0.1, _ratio(seconds[ONE_DAY], cold), "x"),
        Goal(f"a year of {len(YEAR) * YEAR_ROWS:,} records", 2.0, seconds[YEAR_COLD], "s"),
    ]


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def page(measured: Mapping[str, Measured], machine: Sequence[str], *, size_mb: int, runs: int) -> str:
    """The results as Markdown."""
    import duckdb
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    versions = {"Python": sys.version.split()[0], "DuckDB": duckdb.__version__, "Polars": pl.__version__}
    versions |= {"pandas": pd.__version__, "pyarrow": pa.__version__}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    base = _sum(measured[DUCK_JSONL].seconds(), measured[DUCK_PARQUET].seconds())
    made = (
        f"Written by `python -m benchmarks.exports --size {size_mb} --runs {runs}` on "
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}: "
        f"medians of {runs} runs, in each of which every way took its turn, in a process of its own, over the same "
        f"{len(MONTH)} day files of events, {size_mb:,} MB of CSV with {LINE_BYTES} bytes of JSON a record."
    )
    fairness = (
        "Ours checks every row, removes duplicates, sorts, balances the account, hashes, and syncs each file before "
        "it is put in place. The peers do none of that; what is done to the JSON column is said in "
        "benchmarks/export_peers.py."
    )
    lines = [
        "# Benchmark of exports",
        "",
        made,
        "",
        *(f"- {line}" for line in [*machine, f"Versions: {shown}"]),
        "",
        fairness,
        "",
        "| goal | at most | measured | met |",
        "| --- | ---: | ---: | ---: |",
    ]
    for goal in goals(measured):
        found = "not measured" if goal.found is None else f"{goal.found:,.2f} {goal.unit}"
        lines.append(f"| {goal.name} | {goal.most:,.1f} {goal.unit} | {found} | {'yes' if goal.is_met else 'no'} |")
    lines += [
        "",
        "| way | seconds | times DuckDB's two | MB of CSV a second | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for way, of_way in measured.items():
        seconds, peak, ratio = of_way.seconds(), of_way.peak_mib(), _ratio(of_way.seconds(), base)
        if seconds is None or peak is None:
            lines.append(f"| {way} | not measured: {of_way.reason} | | | |")
            continue
        name = f"{way} ({of_way.note})" if of_way.note else way
        speed = "" if way in {YEAR_COLD, WARM, ONE_DAY} else f"{size_mb / seconds:,.0f}"
        lines.append(f"| {name} | {seconds:.2f} | {'' if ratio is None else f'{ratio:.2f}'} | {speed} | {peak:,.0f} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.exports", description=__doc__)
    made.add_argument("--size", type=int, default=1600, metavar="MB", help="of CSV in the month (default 1600)")
    made.add_argument("--runs", type=int, default=3, help="how often each way is measured (default 3)")
    made.add_argument("--write", action="store_true", help=f"write the page to benchmarks/{RESULTS.name} as well")
    made.add_argument(
        "--old-store", type=Path, metavar="PATH", help="a clone of the old store's repository, or its file"
    )
    return made


def main() -> None:
    """Measure, print the page, write it if asked to."""
    arguments = parser().parse_args()
    machine = [*describe_machine(), f"Load average before the first run: {load_average()}"]
    measured = measure(arguments.size, arguments.runs, arguments.old_store)
    text = page(measured, machine, size_mb=arguments.size, runs=arguments.runs)
    print(text)
    if arguments.write:
        RESULTS.write_text(text)
        tell(f"written to benchmarks/{RESULTS.name}")


if __name__ == "__main__":
    main()
