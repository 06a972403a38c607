"""160 real runs as `tds show` tells them: each record once, every call below the message that asked for it."""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from ingest import Settings
from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS, timestamp_text
from tds_dagster.cli.narration import told_steps
from tds_dagster.cli.page import page_of
from tds_dagster.export.run import Run, Step, build_run, decode_row, read_run
from tests.cli.test_airline_runs import COUNTS, import_runs

Tds = Callable[..., Result]


@pytest.fixture(scope="module")
def data(run_tds: Tds, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(data_dir=tmp_path_factory.mktemp("airline_shown") / "data")
    import_runs(functools.partial(run_tds, settings))
    return settings


@pytest.fixture(scope="module")
def runs(data: Settings) -> dict[str, Run]:
    """All runs by session. One is read as `tds show` does, which curates all days; the rest from the same files."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: {kind: [] for kind in KINDS})
    with pytest.raises(LookupError):
        read_run(DataPaths(data.data_dir), "session", "no such session")
    for kind in KINDS:
        for path in sorted((data.data_dir / "curated" / kind).glob("*.parquet")):
            for row in pq.read_table(path).to_pylist():
                rows[row["session_id"]][kind].append(decode_row(KINDS[kind], [plain(value) for value in row.values()]))
    return {session: build_run("session", session, of_session) for session, of_session in rows.items()}


def plain(value: object) -> object:
    return timestamp_text("time", value) if isinstance(value, datetime) else value


def all_steps(steps: list[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        yield from all_steps(step.steps)


def test_every_record_of_every_run_is_told_once(runs: dict[str, Run]) -> None:
    told = [step for run in runs.values() for step in all_steps(run.steps)]
    kinds = Counter("tasks" if step.kind == "task" else step.kind for step in told)
    assert len(runs) == 160
    assert dict(kinds) == {kind: count for kind, count in COUNTS.items() if count}
    assert len({step.row["record_id"] for step in told}) == sum(COUNTS.values())


def test_every_call_stands_below_its_message_and_every_answer_below_its_call(runs: dict[str, Run]) -> None:
    calls = answers = 0
    for run in runs.values():
        for step in all_steps(run.steps):
            for below in step.steps:
                if below.kind == "tool_executions":
                    assert step.row["event_type"] == "assistant_message"
                    assert step.row["metadata"]["position"] == below.row["metadata"]["position"]
                    calls += 1
                if step.kind == "tool_executions":
                    assert below.row["metadata"]["position"] == step.row["metadata"]["answer_position"]
                    assert told_steps(step) == []
                    answers += 1
    assert (calls, answers) == (1039, 1039 - unanswered(runs))


def unanswered(runs: dict[str, Run]) -> int:
    steps = [step for run in runs.values() for step in all_steps(run.steps) if step.kind == "tool_executions"]
    return sum(step.row["metadata"]["answer_position"] is None for step in steps)


def test_a_session_read_from_disk_is_the_same_run(data: Settings, runs: dict[str, Run]) -> None:
    for session in list(runs)[::53]:
        assert read_run(DataPaths(data.data_dir), "session", session) == runs[session]


def test_every_run_becomes_a_page(runs: dict[str, Run]) -> None:
    sizes = [len(page_of(run)) for run in list(runs.values())[::8]]
    assert min(sizes) > 10_000
