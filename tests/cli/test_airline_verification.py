"""160 real runs: other people's programs load every export as it is, and `tds verify` finds each byte that changes."""

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from ingest import Settings
from ingest.records import KINDS
from tds_dagster.export.features import kind_features
from tests.cli.conftest import AIRLINE_RUNS
from tests.stages.loading import croissant_rows, load_with_datasets, loaded_feature, rows_of

ROWS = {"events": 4652, "tasks": 160, "tool_executions": 1039, "feedback": 160}
Tds = Callable[..., Result]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("airline") / "data"


@pytest.fixture(scope="module")
def airline_tds(run_tds: Tds, data: Path) -> Tds:
    """`tds` over the runs, spread over three days and exported."""
    tds = functools.partial(run_tds, Settings(data_dir=data))
    assert tds("import", AIRLINE_RUNS, "--format", "openai-chat", "--start", "2024-05-15", "--days", 3).exit_code == 0
    for kind in ROWS:
        assert tds("export", kind, "--start", "2024-05-15", "--end", "2024-05-17").exit_code == 0
    return tds


@pytest.mark.parametrize("kind", ROWS)
def test_every_export_loads_with_its_types_and_every_row(
    airline_tds: Tds, data: Path, tmp_path: Path, kind: str
) -> None:
    folder = data / "exports" / kind
    (path,) = folder.glob("ranges/*.jsonl")
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    plain = [name for name, feature in kind_features(KINDS[kind]).items() if feature != "json"]

    dataset = load_with_datasets(folder, tmp_path / "cache", split="train")

    assert (len(dataset), dataset.features) == (ROWS[kind], loaded_feature(kind_features(KINDS[kind])))
    assert [{name: row[name] for name in plain} for row in rows_of(dataset)] == [
        {name: row[name] for name in plain} for row in rows
    ]
    if kind == "tool_executions":  # the other kinds take a second more each
        assert croissant_rows(folder / "croissant.json", "train") == [
            {name: row[name] for name in plain} for row in rows
        ]


def test_all_of_it_is_sound_until_a_byte_changes_which_is_named(airline_tds: Tds, data: Path) -> None:
    assert airline_tds("verify").stdout.endswith("all as they were built\n")
    places = random.Random(3)
    for pattern in ("curated/*/*.parquet", "exports/*/days/*.jsonl", "exports/*/ranges/*.jsonl"):
        path = places.choice([path for path in sorted(data.glob(pattern)) if path.stat().st_size])
        content = path.read_bytes()
        offset = places.randrange(len(content))
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 16]) + content[offset + 1 :])

        result = airline_tds("verify", path, "--json")

        told = [(found["path"], found["offset"]) for found in json.loads(result.stdout)["findings"]]
        assert (result.exit_code, told) == (1, [(str(path), offset)])
        path.write_bytes(content)
