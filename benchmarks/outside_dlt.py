"""Loads the records with dlt; run by the Python that has it: `python -m benchmarks.outside_dlt load FOLDER SEED N`."""

import gzip
import importlib
import json
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.workload import Event, events_of_line


def rows(events: list[Event]) -> Iterator[dict[str, object]]:
    """Each record with an id and a time."""
    for event in events:
        yield {
            "event_id": str(uuid.uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            **event._asdict(),
            "severity": "info",
        }


def main(_mode: str, folder: str, seed: str, records: str) -> None:
    """Run one pipeline into JSONL files, nested values kept as they are; the first record is a warm-up."""
    dlt: Any = importlib.import_module("dlt")  # not in the project's own environment
    target = Path(folder) / "out"
    pipeline = dlt.pipeline(
        "benchmark",
        pipelines_dir=str(Path(folder) / "pipelines"),
        destination=dlt.destinations.filesystem(bucket_url=target.as_uri()),
        dataset_name="data",
    )
    resource = dlt.resource(rows, name="events", max_table_nesting=0)
    events = events_of_line(int(seed), int(records))
    pipeline.run(resource(events[:1]), loader_file_format="jsonl")
    began = time.perf_counter()
    pipeline.run(resource(events), loader_file_format="jsonl")
    seconds = time.perf_counter() - began
    stored = 0
    for file in (target / "data" / "events").iterdir():
        content = file.read_bytes()
        stored += (gzip.decompress(content) if file.suffix == ".gz" else content).count(b"\n")
    print(json.dumps({"seconds": seconds, "stored": stored - 1}))


if __name__ == "__main__":
    main(*sys.argv[1:])
