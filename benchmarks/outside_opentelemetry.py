"""Emits the records as OpenTelemetry spans through the SDK's batch exporter into a JSONL file, with all its defaults.

Run by the Python that has the SDK: `python -m benchmarks.outside_opentelemetry (burst|calls) FOLDER SEED N`. What the
exporter's queue of 2,048 spans has no room for is dropped: the file's lines are counted.
"""

import importlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.workload import Event, events_of_line, events_with_payload


def main(mode: str, folder: str, seed: str, records: str) -> None:
    """`burst` takes the time of all records together, `calls` that of each call."""
    logging.disable()  # it warns of each span that it drops
    trace: Any = importlib.import_module("opentelemetry.sdk.trace")  # not in the project's own environment
    export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
    file = Path(folder) / "spans.jsonl"
    make = events_of_line if mode == "burst" else events_with_payload
    events = make(int(seed), int(records))
    with file.open("w") as out:
        exporter = export.ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")
        provider = trace.TracerProvider()
        provider.add_span_processor(export.BatchSpanProcessor(exporter))
        tracer = provider.get_tracer("benchmark")
        emit(tracer, events[0])
        provider.force_flush()
        took_ns, began = [], time.perf_counter()
        for event in events:
            started = time.perf_counter_ns()
            emit(tracer, event)
            took_ns.append(time.perf_counter_ns() - started)
        provider.force_flush()
        seconds = time.perf_counter() - began
        provider.shutdown()
    stored = file.read_bytes().count(b"\n") - 1
    print(json.dumps({"seconds": seconds, "stored": stored, "took_ns": took_ns if mode == "calls" else []}))


def emit(tracer: Any, event: Event) -> None:  # noqa: ANN401 - a class that only the other environment has
    """One record: a span that ends at once. An attribute's value is a text or a number, so the payload is JSON text."""
    attributes = {
        "agent_id": event.agent_id,
        "session_id": event.session_id,
        "severity": "info",
        "payload": json.dumps(event.payload),
    }
    tracer.start_span(event.event_type, attributes=attributes).end()


if __name__ == "__main__":
    main(*sys.argv[1:])
