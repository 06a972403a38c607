"""What is unusual about a day is told from the weeks before it; what is usual is not."""

import json
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ingest.errors import SourceMissing, SplitLeak
from ingest.pipeline.partitions import DataPaths, manifest_of
from ingest.records import SCHEMA_VERSION
from tds_dagster.datasets.manifest import ROWS
from tds_dagster.datasets.written_splits import check_written_splits
from tds_dagster.export import export_range
from tds_dagster.export.expectations import (
    Verdict,
    judge_duplicates,
    judge_quarantine,
    judge_schema,
    judge_volume,
    read_shards,
)
from tds_dagster.export.manifest import Shard
from tests.stages.conftest import DAY, RawStore
from tests.training.training_parts import build, store_sessions

PRESENT = date(2026, 6, 1)  # a Monday


def days(*rows: int) -> list[str]:
    """As many days as there are figures, the last of them yesterday."""
    return [(PRESENT - timedelta(days=n)).isoformat() for n in range(len(rows), 0, -1)]


def shards(*rows: int, duplicates: Mapping[int, int] | None = None, quarantined: Mapping[int, int] | None = None,
           schema: int = SCHEMA_VERSION) -> dict[str, Shard]:  # fmt: skip
    """Manifests of the last days; `duplicates` and `quarantined` by place."""
    found = {}
    for place, (day, number) in enumerate(zip(days(*rows), rows, strict=True)):
        account = SimpleNamespace(
            duplicates=(duplicates or {}).get(place, 0), quarantined=(quarantined or {}).get(place, 0), stored=number
        )
        found[day] = cast("Shard", SimpleNamespace(rows=number, schema_version=schema, account=account))
    return found


def volume(*rows: int) -> Verdict:
    return judge_volume(shards(*rows), PRESENT)


@pytest.mark.parametrize("last", [100, 51, 149, 120])
def test_a_day_like_those_before_it_is_usual(last: int) -> None:
    found = volume(*[100] * 20, last)
    assert (found.passed, found.days) == (True, [])


@pytest.mark.parametrize("last", [0, 40, 200, 1000])
def test_a_day_far_from_those_before_it_is_named_with_both_figures(last: int) -> None:
    found = volume(*[100] * 20, last)
    assert (found.passed, found.days) == (False, days(last))
    assert found.text == f"{days(last)[0]}: {last:,} rows where 100 are usual"


def test_a_day_that_is_missing_between_others_has_no_rows() -> None:
    given = shards(*[100] * 30)
    missing = days(0, 0, 0)[0]
    del given[missing]
    assert judge_volume(given, PRESENT).days == [missing]


def test_sundays_without_work_are_usual_where_sundays_are_so() -> None:
    weeks = [100, 100, 100, 100, 100, 100, 3] * 5  # the last day is a Sunday
    assert volume(*weeks).passed
    assert not volume(*weeks[:-1], 100, *weeks[:-2], 100, 3000).passed


def test_days_that_vary_are_given_more_room() -> None:
    varied = [60, 100, 140, 80, 120] * 5
    assert volume(*varied, 30).passed
    assert not volume(*varied, 400).passed


def test_a_few_days_say_nothing_and_old_oddities_are_not_told_again() -> None:
    assert volume(100, 100, 5000).passed
    assert volume(*[100] * 20, 5000, *[100] * 7).passed


def test_the_present_day_is_not_over_and_not_judged() -> None:
    given = shards(*[100] * 20) | {PRESENT.isoformat(): shards(1)[days(1)[0]]}
    assert judge_volume(given, PRESENT).passed


def test_more_duplicates_or_quarantined_rows_than_usual_are_named() -> None:
    few = dict.fromkeys(range(28), 30)
    assert judge_duplicates(shards(*[1000] * 29, duplicates=few | {28: 40}), PRESENT).passed
    found = judge_duplicates(shards(*[1000] * 29, duplicates=few | {28: 300}), PRESENT)
    assert found.text.endswith("300 duplicates, 30.0% of what was stored")
    assert judge_quarantine(shards(*[1000] * 29, quarantined={28: 19}), PRESENT).passed
    found = judge_quarantine(shards(*[1000] * 29, quarantined={28: 21}), PRESENT)
    assert (found.passed, found.days) == (False, days(1))


def test_days_of_another_schema_are_named_twenty_at_most() -> None:
    assert judge_schema(shards(*[1] * 30)).passed
    found = judge_schema(shards(*[1] * 30, schema=SCHEMA_VERSION - 1))
    assert len(found.days) == 30
    assert found.text.endswith(", and 10 days more")


def test_they_are_read_from_the_manifests_of_real_shards(raw_store: RawStore) -> None:
    record = raw_store.record("events")
    raw_store.store("events", record, record, raw_store.record("events"))
    export_range(raw_store.paths, "events", DAY, DAY)
    found = read_shards(raw_store.paths, "events")
    assert {day: (shard.rows, shard.account.duplicates) for day, shard in found.items() if shard} == {DAY: (2, 1)}
    assert read_shards(raw_store.paths, "tasks") == {}


def test_a_manifest_that_cannot_be_read_is_named_and_is_no_day_without_rows(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events"))
    export_range(raw_store.paths, "events", DAY, DAY)
    manifest_of(raw_store.paths.shard("events", DAY)).write_text("{")
    found = read_shards(raw_store.paths, "events")
    assert found == {DAY: None}
    assert judge_schema(found).days == [DAY]
    usual: dict[str, Shard | None] = {**shards(*[100] * 20)}
    usual[days(1)[0]] = None
    assert judge_volume(usual, PRESENT).passed


@pytest.mark.parametrize("differs", ["in nothing", "in its record", "in its session and record"])
def test_what_two_splits_share_is_found_in_the_files_that_were_written(tmp_path: Path, differs: str) -> None:
    root = tmp_path / "data"
    store_sessions(root, range(40))
    dataset = build(root, "task_completion")
    check_written_splits(DataPaths(root), dataset)
    listed, entry = dataset.folder / ROWS, b""
    for entry in listed.read_bytes().splitlines(keepends=True):
        if b'"train"' in entry:
            break
    row = (dataset.folder / "train.jsonl").read_bytes().splitlines(keepends=True)[0]
    told = json.loads(entry) | {"split": "test"}
    told |= {} if differs == "in nothing" else {"record_id": "another"}
    told |= {"session_id": "another"} if differs == "in its session and record" else {}
    with listed.open("ab") as out, (dataset.folder / "test.jsonl").open("ab") as test:
        out.write(json.dumps(told).encode() + b"\n")
        test.write(row.replace(json.loads(row)["record_id"].encode(), b"another"))
    with pytest.raises(SplitLeak, match=r"session|record|example"):
        check_written_splits(DataPaths(root), dataset)
    (dataset.folder / "test.jsonl").write_bytes(b"")
    with pytest.raises(SourceMissing, match="build the dataset again"):
        check_written_splits(DataPaths(root), dataset)
