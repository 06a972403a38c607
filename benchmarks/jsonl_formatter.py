"""Measures two ways from a curated day to JSONL lines, time and memory: `python -m benchmarks.jsonl_formatter`."""

import argparse
import hashlib
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import duckdb
import msgspec
import orjson

from ingest.pipeline.ledger import Commit, CommittedFile, open_ledger
from ingest.pipeline.partitions import DataPaths, make_folder
from ingest.records import KINDS, new_record_id
from tds_dagster.curate import curate_day
from tds_dagster.curate.engine import open_engine
from tds_dagster.export.lines import json_lines


class Figures(NamedTuple):
    """What one way cost once."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    sha256: str


Result = TypeVar("Result")
KIND = KINDS["events"]
DAY = "2024-05-15"
TEXT = 'plan the trip, check whether to inform the user about "refund" café 日本 😀 line\nbreak'


def sql_concatenation(paths: DataPaths, parquet: Path) -> Iterator[bytes]:
    """The way that the export takes."""
    with open_engine(paths) as engine:
        yield from json_lines(engine, KIND, parquet)


def arrow_and_orjson(paths: DataPaths, parquet: Path) -> Iterator[bytes]:
    """Columns as Python lists, documents as `orjson.Fragment`, a line a call."""
    names = [column.name for column in KIND.columns]
    cells = ", ".join(
        f"strftime({c.name}, '%Y-%m-%dT%H:%M:%S.%fZ')" if c.type == "timestamp" else c.name for c in KIND.columns
    )
    with open_engine(paths) as engine:
        relation = engine.connection.sql(f"SELECT {cells} FROM read_parquet('{parquet}')")
        for batch in relation.to_arrow_reader(2048):
            columns = [column.to_pylist() for column in batch.columns]
            for place, column in enumerate(KIND.columns):
                if column.type == "json":
                    columns[place] = [None if cell is None else orjson.Fragment(cell) for cell in columns[place]]
            rows = zip(*columns, strict=True)
            yield b"".join(
                orjson.dumps(dict(zip(names, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE) for row in rows
            )


WAYS: dict[str, Callable[[DataPaths, Path], Iterator[bytes]]] = {
    "SQL concatenation, Arrow's text buffer": sql_concatenation,
    "Arrow batches, orjson.Fragment": arrow_and_orjson,
}


def measure(way: str, root: Path) -> Figures:
    """The cost of one way, writing to a file; run in a process of its own."""
    paths = DataPaths(root)
    digest, start = hashlib.sha256(), time.perf_counter()
    with (root / "out.jsonl").open("wb") as out:
        for lines in WAYS[way](paths, paths.curated(KIND.name, DAY)):
            out.write(lines)
            digest.update(lines)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
    return Figures(time.perf_counter() - start, time.process_time(), peak, digest.hexdigest())


def make_day(root: Path, rows: int) -> None:
    """A curated day of events with payloads of 300 to 1,000 bytes."""
    paths = DataPaths(root)
    chance = random.Random(1)
    texts = [" ".join(chance.choices(TEXT.split(" "), k=chance.randint(40, 150))) for _ in range(5000)]
    path = paths.training(KIND.name, DAY)
    make_folder(path.parent)
    with path.open("wb") as out:
        out.write(KIND.header)
        for number in range(rows):
            payload = {"role": "assistant", "content": chance.choice(texts), "n": number, "cost": chance.random()}
            second = f"{DAY}T{number * 86_400 // rows // 3600:02d}:{number % 3600 // 60:02d}:{number % 60:02d}"
            record = {"record_id": new_record_id(), "timestamp": f"{second}.000000Z", "event_type": "message"}
            line = msgspec.json.encode({**record, "agent_id": f"agent-{number % 500}", "payload": payload})
            out.write(KIND.csv_rows([KIND.decoder.decode(line)], escaped=b"\\" in line)[0].encode())
    status = path.stat()
    with open_ledger(paths, KIND.name) as ledger:
        ledger.commit(Commit(files={DAY: CommittedFile(status.st_size, rows, "1", status.st_mtime_ns)}))
    start = time.perf_counter()
    curate_day(paths, KIND.name, DAY)
    print(f"curated {rows} events, {status.st_size / 1e6:.0f} MB of CSV, in {time.perf_counter() - start:.1f} s\n")


def main() -> None:
    """Make a day, measure each way in turn, print the medians and whether the bytes are the same."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jsonl_formatter", description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000, help="events in the day (default 500000)")
    parser.add_argument("--runs", type=int, default=5, help="how often each is measured (default 5)")
    arguments = parser.parse_args()
    print(f"DuckDB {duckdb.__version__}, orjson {orjson.__version__}")
    measured: dict[str, list[Figures]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        alone(make_day, Path(folder), arguments.rows)
        for _ in range(arguments.runs):
            for way, figures in measured.items():
                figures.append(alone(measure, way, Path(folder)))
        size = (Path(folder) / "out.jsonl").stat().st_size
    for way, figures in measured.items():
        seconds = statistics.median(figure.seconds for figure in figures)
        cpu_seconds = statistics.median(figure.cpu_seconds for figure in figures)
        peak = statistics.median(figure.peak_mib for figure in figures)
        print(f"  {way:42}{seconds:6.2f} s {cpu_seconds:6.2f} s CPU {size / seconds / 1e6:6.0f} MB/s {peak:6.0f} MiB")
    hashes = {figure.sha256 for figures in measured.values() for figure in figures}
    print(f"\n{size / 1e6:.0f} MB of JSONL; {'the same bytes' if len(hashes) == 1 else 'DIFFERENT BYTES'} each time")


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a new process, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(function, arguments)


if __name__ == "__main__":
    main()
