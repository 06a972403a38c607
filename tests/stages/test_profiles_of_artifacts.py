"""What `inspect_path` says of an artifact, against the rows themselves and against files that are broken."""

import gzip
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import DamagedFile, UnknownArtifact
from ingest.pipeline.partitions import manifest_of
from tds_dagster.export import export_range
from tds_dagster.export.inspection import Inspection, inspect_path
from tds_dagster.export.profile import ColumnProfile, line_lengths, missing_values

if TYPE_CHECKING:
    from tests.stages.conftest import RawStore

DAY = "2024-05-15"
Rows = list[dict[str, object]]


@pytest.fixture
def events(raw_store: "RawStore") -> "RawStore":
    """Five events with everything in their texts that makes trouble, curated and exported."""
    texts = ["plain", 'quo"te', "back\\slash", "line\nfeed", "plain"]
    for number, text in enumerate(texts):
        raw_store.store("events", raw_store.record(
            "events", event_type=text, payload={"n": number}, timestamp=f"{DAY}T0{number}:00:00.000000Z",
            session_id=None if number == 4 else f"s{number % 2}",
        ))  # fmt: skip
    export_range(raw_store.paths, "events", DAY, DAY)
    return raw_store


def column(found: Inspection, name: str) -> ColumnProfile:
    return next(column for column in found.columns if column.name == name)


def test_every_stage_of_a_day_shows_the_same_figures(events: "RawStore") -> None:
    paths = events.paths
    stages = {
        "raw day of events": paths.training("events", DAY),
        "curated day of events": paths.curated("events", DAY),
        "shard of events": paths.shard("events", DAY),
        "range export of events": paths.range_export("events", DAY, DAY),
    }
    found = {name: inspect_path(path) for name, path in stages.items()}
    assert [inspection.what for inspection in found.values()] == list(stages)
    for inspection in found.values():
        assert (inspection.kind, inspection.rows, inspection.warnings) == ("events", 5, [])
        kind = column(inspection, "event_type")
        assert (kind.nulls, kind.distinct, [(value.value, value.rows) for value in kind.top]) == (0, 4, [("plain", 2)])
        assert (kind.least, kind.greatest) == ("back\\slash", 'quo"te')
        assert (column(inspection, "session_id").nulls, column(inspection, "trace_id").nulls) == (1, 5)
        times = column(inspection, "timestamp")
        assert (times.least, times.greatest) == (f"{DAY}T00:00:00.000000Z", f"{DAY}T04:00:00.000000Z")
        assert (sum(times.shape), times.shape[0], times.shape[-1]) == (5, 1, 1)
        assert column(inspection, "payload").type == "json"
        assert [row["payload"] for row in inspection.first] == [{"n": 0}, {"n": 1}, {"n": 2}]
        assert [row["event_type"] for row in inspection.first] == ["plain", 'quo"te', "back\\slash"]


def test_what_the_manifest_says_is_given_and_held_against_the_file(events: "RawStore") -> None:
    shard = events.paths.shard("events", DAY)
    assert inspect_path(shard).manifest["sha256"] == json.loads(manifest_of(shard).read_bytes())["sha256"]
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:-1]))
    (warning,) = inspect_path(shard).warnings
    assert re.fullmatch(rf"the manifest says 5 rows in \d+ bytes: run `tds verify {re.escape(str(shard))}`", warning)
    (warning,) = inspect_path(manifest_of(shard)).warnings
    assert "run `tds verify" in warning
    shard.unlink()
    assert inspect_path(manifest_of(shard)).warnings == [f"its artifact {shard.name} is not there: build it again"]


def test_a_folder_of_days_is_one_artifact_with_its_rows_by_day(raw_store: "RawStore") -> None:
    for day, rows in (("2024-05-15", 2), ("2024-05-17", 3)):
        raw_store.store(
            "tasks",
            *(raw_store.record("tasks", timestamp=f"{day}T00:00:0{n}.000000Z") for n in range(rows)),
            day=day,
        )
    export_range(raw_store.paths, "tasks", "2024-05-15", "2024-05-17")
    for folder in ("training/tasks", "curated/tasks", "exports/tasks/days"):
        found = inspect_path(raw_store.paths.root / folder)
        assert found.rows == 5
        assert {day: rows for day, rows in found.parts.items() if rows} == {"2024-05-15": 2, "2024-05-17": 3}


def test_a_quarantine_file_is_counted_by_reason(raw_store: "RawStore") -> None:
    good = raw_store.row("tasks", raw_store.record("tasks"))
    raw_store.commit("tasks", [good, b'"only one cell"\n', b'"two","cells"\n', b'"one"\n'])
    export_range(raw_store.paths, "tasks", DAY, DAY)
    found = inspect_path(raw_store.paths.quarantine("tasks", DAY))
    assert (found.what, found.rows) == ("quarantined lines of tasks", 3)
    assert [value.rows for value in column(found, "reason").top] == [2]


def test_a_dataset_is_its_splits_together(tmp_path: Path) -> None:
    splits = {"train": 4, "validation": 0, "test": 1}
    for name, rows in splits.items():
        lines = [json.dumps({"label": "a" if n % 2 else "b", "n": n, "x": [n]}) + "\n" for n in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    manifest = {"model": "event_prediction", "splits": {name: {"rows": rows} for name, rows in splits.items()}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = inspect_path(tmp_path)
    assert (found.what, found.rows, found.parts) == ("dataset event_prediction", 5, splits)
    assert list(found.parts) == list(splits)
    assert [(column.name, column.type) for column in found.columns] == [
        ("label", "text"),
        ("n", "integer"),
        ("x", "json"),
    ]
    model = tmp_path / "model"
    model.mkdir()
    (model / "latest.json").write_text('{"version": ".."}', encoding="utf-8")
    assert inspect_path(model).rows == 5
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(DamagedFile, match=r"the manifest names test\.jsonl, which is not there"):
        inspect_path(tmp_path)


def test_a_selection_of_columns_has_the_types_of_the_kind_that_its_manifest_names(
    tmp_path: Path, events: "RawStore"
) -> None:
    selected = tmp_path / "selected.jsonl"
    selected.write_text('{"timestamp": "2024-05-15T08:00:00.000000Z", "payload": "7"}\n', encoding="utf-8")
    assert [column.type for column in inspect_path(selected).columns] == ["timestamp", "text"]
    with selected.open("a", encoding="utf-8") as file:
        file.write('{"timestamp": "yesterday", "payload": null}\n')
    assert [column.type for column in inspect_path(selected).columns] == ["text", "text"]
    manifest_of(selected).write_text('{"kind": "events"}', encoding="utf-8")
    found = inspect_path(selected)
    assert (found.kind, [column.type for column in found.columns]) == ("events", ["timestamp", "json"])
    packed = tmp_path / "selected.jsonl.gz"
    packed.write_bytes(gzip.compress(selected.read_bytes()))
    assert inspect_path(packed).kind == "events"


def test_values_beyond_the_sampled_lines_that_are_of_another_type_are_not_taken_for_missing_ones(
    tmp_path: Path,
) -> None:
    lines = [{"n": 1, "f": 0.5, "b": True, "t": "2024-05-15T08:00:00.000000Z"}] * 1000
    lines.append({"n": 1.5, "f": "0.5", "b": "yes", "t": "yesterday"})
    path = tmp_path / "turned.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = inspect_path(path)
    assert [(column.type, column.nulls, column.distinct) for column in found.columns] == [
        ("json", 0, 2), ("json", 0, 2), ("json", 0, 2), ("text", 0, 2),
    ]  # fmt: skip


def test_a_raw_days_values_that_are_not_of_their_columns_type_are_told(raw_store: "RawStore") -> None:
    row = raw_store.row("tasks", raw_store.record("tasks", retry_count=3))
    raw_store.commit("tasks", [row, row.replace(b'"3"', b'"3 times"')])
    found = inspect_path(raw_store.paths.training("tasks", DAY))
    assert (found.rows, found.warnings) == (2, ["retry_count: 1 values are no integer"])


# ------------------------------------------------------------------------------------------- against the rows

VALUES = st.one_of(
    st.none(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.booleans(),
    st.text(max_size=8), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=2),
)  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"a": VALUES, 'b "x"': st.sampled_from([None, "p", "q", "r\x00"])}), min_size=1)
)
def test_the_figures_of_any_json_lines_are_those_of_a_plain_count(
    tmp_path_factory: pytest.TempPathFactory, rows: Rows
) -> None:
    path = tmp_path_factory.mktemp("lines") / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = inspect_path(path, rows=len(rows))
    assert found.rows == len(rows)
    counted = Counter(row['b "x"'] for row in rows if row['b "x"'] is not None)
    texts = column(found, 'b "x"')
    assert (texts.nulls, texts.distinct) == (len(rows) - counted.total(), len(counted))
    assert all(counted[value.value] == value.rows for value in texts.top)
    values = [row["a"] for row in rows if row["a"] is not None]
    mixed = column(found, "a")
    assert mixed.nulls == len(rows) - len(values)
    if values and all(type(value) is int for value in values):
        assert (mixed.type, mixed.least, mixed.greatest) == ("integer", str(min(values)), str(max(values)))  # type: ignore[type-var]  # integers all
    for row, shown in zip(rows, found.first, strict=True):
        assert shown['b "x"'] == row['b "x"']
        if not isinstance(row["a"], float) or mixed.type != "json":
            assert shown["a"] == row["a"]


def test_long_values_are_cut_before_they_are_compared_and_their_lengths_are_not(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"t": "é" * n}) + "\n" for n in (10, 5000, 5000)), encoding="utf-8")
    found = column(inspect_path(path), "t")
    assert found.lengths is not None
    assert found.lengths.longest == 10_000
    assert [(value.value, value.rows) for value in found.top] == [("é" * 100, 2)]


def test_lines_and_missing_values_are_counted_over_files(events: "RawStore") -> None:
    shard, curated = events.paths.shard("events", DAY), events.paths.curated("events", DAY)
    lengths = Counter(int(math.log2(len(line))) for line in shard.read_bytes().splitlines(keepends=True))
    assert line_lengths([shard, shard]) == {power: 2 * n for power, n in sorted(lengths.items())}
    missing, rows = missing_values([curated, curated])
    assert rows == 10
    assert {name: missing[name] for name in ("event_type", "session_id", "trace_id")} == {
        "event_type": 0, "session_id": 2, "trace_id": 10,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- broken files

GOOD = b'{"a": 1}\n{"a": 2}\n'


def compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


BROKEN: Mapping[str, tuple[str, bytes, str]] = {
    "a line that is no JSON": ("a.jsonl", GOOD + b'{"a": \n' + GOOD, r"line 3, byte 18: no JSON object"),
    "a line that is no object": ("a.jsonl", GOOD + b"[1]\n", r"line 3, byte 18: no JSON object"),
    "a torn last line": ("a.jsonl", GOOD + b'{"a": 3, "b": "x', r"line 3, byte 18: no JSON object"),
    "noise": ("a.jsonl", bytes(range(128, 256)) * 20, r"line 1, byte 0: no JSON object"),
    "gzip cut short": ("a.jsonl.gz", gzip.compress(GOOD * 5000)[:-30], "the compressed data break off"),
    "no gzip at all": ("a.jsonl.gz", GOOD, "the compressed data break off"),
    "no Zstandard at all": ("a.jsonl.zst", GOOD, "the compressed data break off"),
    "Parquet cut short": ("a.parquet", b"PAR1" + bytes(200), "not a whole Parquet file"),
    "an empty Parquet file": ("a.parquet", b"", "not a whole Parquet file"),
    "an empty CSV file": ("a.csv", b"", "expected a header in its first line"),
    "a manifest that is no JSON": ("a.manifest.json", b'{"rows": ', "no JSON"),
    "a manifest that is no object": ("a.manifest.json", b"[]", "expected a JSON object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_the_place_and_what_to_do(case: str, tmp_path: Path) -> None:
    name, content, told = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFile, match=told) as raised:
        inspect_path(tmp_path / name)
    assert str(raised.value).startswith(str(tmp_path / name))


def test_whole_compressed_files_are_read(tmp_path: Path) -> None:
    for name, content in (("a.jsonl.gz", gzip.compress(GOOD)), ("a.jsonl.zst", compressed(GOOD))):
        (tmp_path / name).write_bytes(content)
        assert inspect_path(tmp_path / name).rows == 2


def test_lines_of_a_raw_day_that_are_no_rows_are_counted_and_named(events: "RawStore") -> None:
    path = events.paths.training("events", DAY)
    good = path.read_bytes().splitlines(keepends=True)[-1]
    with path.open("ab") as file:
        file.write(b'"open quote\n' + good + b'"torn"\n' * 3)
        size = file.tell()
        file.write(good[:-3])
    found = inspect_path(path)
    assert (found.rows, found.bytes) == (6, size + len(good) - 3)
    assert found.warnings == [
        f"no row: {path.name}, byte {size}: a line without an end",
        f"no row: {path.name}, line 7: not CSV: a quote is missing or out of place",
        f"no row: {path.name}, line 9: 1 columns instead of 15",
        "2 more lines are no rows",
    ]


@pytest.mark.parametrize(
    ("name", "make"),
    [("notes.txt", lambda path: path.write_text("hello")), ("empty", Path.mkdir), ("pipe.jsonl", os.mkfifo)],
)
def test_what_is_no_artifact_is_refused_with_what_would_be_one(
    name: str, make: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(UnknownArtifact, match="expected a"):
        inspect_path(tmp_path / name)


def test_somebody_who_waits_is_told_what_is_done_and_how_far_it_is(events: "RawStore") -> None:
    told: list[tuple[str, int, int]] = []
    inspect_path(events.paths.shard("events", DAY), advance=lambda *step: told.append(step))
    stages = ["judging types", "counting rows", "reading columns", "counting values"]
    assert [step for step in told if step[1] == 100] == [(stage, 100, 100) for stage in stages]
    assert all(0 <= done <= 100 for _, done, _ in told)


def test_a_path_that_is_not_there_is_no_empty_artifact(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect_path(tmp_path / "absent.parquet")


def test_a_file_is_read_whatever_its_folder_is_called(events: "RawStore", tmp_path: Path) -> None:
    for name in ("axb", "it's 1", "event_type=x", "a*b", "it's [1]"):  # the last two as patterns would take in others
        folder = tmp_path / name
        folder.mkdir()
        for source in (
            events.paths.shard("events", DAY),
            events.paths.curated("events", DAY),
            events.paths.training("events", DAY),
        ):
            copy = folder / source.name
            copy.write_bytes(source.read_bytes())
            found = inspect_path(copy)
            assert (found.rows, column(found, "event_type").top[0].value) == (5, "plain")
