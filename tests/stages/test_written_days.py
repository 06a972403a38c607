"""What lies there is looked at again: columns, repeated ids, missing values, what redaction promised to be gone."""

from datetime import date, timedelta
from pathlib import Path

import duckdb
import pytest

from ingest import Settings
from ingest.pipeline.partitions import DataPaths, manifest_of
from tds_dagster.automation import checks
from tds_dagster.automation.checks import DAY_CHECKS, day_check_results
from tds_dagster.datasets.written_leaks import first_leak_of
from tds_dagster.export import export_range
from tds_dagster.export.written_days import judge_columns, judge_leaks, judge_missing, judge_repeats
from tests.stages.conftest import DAY, RawStore
from tests.training.training_parts import build, store_sessions

NEXT = (date.fromisoformat(DAY) + timedelta(days=1)).isoformat()
SECRET = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"  # shaped like a token of GitHub's, and none


def build_days(store: RawStore, days: dict[str, list[dict[str, object]]]) -> DataPaths:
    """Curated days and shards of events, from the fields of each record."""
    for day, records in days.items():
        store.store("events", *(store.record("events", timestamp=f"{day}T08:30:00.000000Z", **given)
                                for given in records), day=day)  # fmt: skip
    export_range(store.paths, "events", min(days), max(days))
    return store.paths


def rewrite(path: Path, select: str) -> None:
    """Put other rows into a Parquet file, as somebody might who works on it by hand."""
    draft = path.with_suffix(".new")
    duckdb.sql(f"COPY ({select.format(here=f'read_parquet({str(path)!r})')}) TO {str(draft)!r} (FORMAT parquet)")
    draft.replace(path)


def test_columns_of_another_type_or_name_are_told(raw_store: RawStore) -> None:
    paths = build_days(raw_store, {DAY: [{}], NEXT: [{}]})
    assert judge_columns(paths, "events").passed
    rewrite(paths.curated("events", NEXT), "SELECT * REPLACE (7 AS severity) FROM {here}")
    found = judge_columns(paths, "events")
    assert (found.passed, found.days) == (False, [NEXT])
    assert found.text == f"{NEXT}: column severity is int32, expected string: build it again"
    rewrite(paths.curated("events", NEXT), "SELECT * EXCLUDE severity FROM {here}")
    assert "column severity is missing, expected string" in judge_columns(paths, "events").text
    paths.curated("events", NEXT).write_bytes(b"PAR1")
    assert "cannot be read" in judge_columns(paths, "events").text


def test_a_record_that_is_there_twice_is_told_in_one_day_and_across_days(raw_store: RawStore) -> None:
    paths = build_days(raw_store, {DAY: [{}, {}], NEXT: [{}]})
    assert judge_repeats(paths, "events").passed
    one, other = (paths.curated("events", day) for day in (DAY, NEXT))
    rewrite(other, f"SELECT * FROM {{here}} UNION ALL SELECT * FROM read_parquet({str(one)!r}) LIMIT 3")
    found = judge_repeats(paths, "events")
    assert (found.passed, found.days) == (False, [DAY])
    assert "2 record_ids are there twice" in found.text
    rewrite(other, "SELECT * FROM {here} UNION ALL FROM {here}")
    assert judge_repeats(paths, "events").days == [DAY, NEXT]


def test_only_the_last_days_are_looked_at_and_not_the_present_one(raw_store: RawStore) -> None:
    days = [(date.fromisoformat(DAY) + timedelta(days=n)).isoformat() for n in range(9)]
    paths = build_days(raw_store, {day: [{}] for day in days})
    for day in (days[0], days[-1]):
        paths.curated("events", day).write_bytes(b"PAR1")
    assert judge_columns(paths, "events", date.fromisoformat(days[-1])).passed
    assert not judge_columns(paths, "events").passed
    assert judge_columns(paths, "tasks").passed
    assert judge_repeats(paths, "tasks").passed


def test_values_that_are_missing_more_often_than_before_are_told(raw_store: RawStore) -> None:
    days = [(date.fromisoformat(DAY) + timedelta(days=n)).isoformat() for n in range(10)]
    given: dict[str, list[dict[str, object]]] = {
        day: [{"agent_id": "a" if n else None} for n in range(10)] for day in days
    }
    paths = build_days(raw_store, given)
    assert judge_missing(paths, "events").passed
    rewrite(paths.curated("events", days[-1]), "SELECT * REPLACE (NULL::VARCHAR AS agent_id) FROM {here}")
    found = judge_missing(paths, "events")
    assert found.days == days[-1:]
    assert found.text == f"{days[-1]}: no value in agent_id (100%, usually 10%)"


def test_what_is_left_in_a_shard_is_told_by_its_place_and_not_by_its_text(raw_store: RawStore) -> None:
    paths = build_days(raw_store, {DAY: [{}, {}], NEXT: [{}]})
    settings = Settings(data_dir=paths.root)
    assert judge_leaks(settings, "events").passed
    shard = paths.shard("events", NEXT)
    size = shard.stat().st_size
    with shard.open("a") as out:
        out.write(f'{{"payload": "the key is {SECRET}"}}\n')
    found = judge_leaks(settings, "events")
    assert found.days == [NEXT]
    assert SECRET not in found.text
    offset = int(found.text.partition(" byte ")[2].partition(" ")[0])
    assert size < offset < size + 40


def test_a_day_in_which_something_was_left_stays_told_until_it_is_built_again(raw_store: RawStore) -> None:
    paths = build_days(raw_store, {DAY: [{}], NEXT: [{}]})
    settings, leak = Settings(data_dir=paths.root), "nothing_is_left_to_redact"
    with paths.shard("events", DAY).open("a") as out:
        out.write(f'{{"payload": "the key is {SECRET}"}}\n')

    def passed(leaking: list[str]) -> list[bool]:
        return [bool(each.passed) for each in day_check_results(settings, "events", [leak], {}, leaking)]

    assert (passed([]), passed([DAY]), passed([NEXT])) == ([True], [False], [True])  # a run built another day
    paths.shard("events", DAY).unlink()
    export_range(paths, "events", DAY, DAY)
    assert passed([DAY]) == [True]


def test_a_day_that_leaks_stays_told_by_mornings_that_look_at_later_days_or_cannot_look(
    raw_store: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [(date.fromisoformat(DAY) + timedelta(days=n)).isoformat() for n in range(9)]
    paths = build_days(raw_store, {day: [{}] for day in days})
    with paths.shard("events", DAY).open("a") as out:
        out.write(f'{{"payload": "the key is {SECRET}"}}\n')
    settings, leak = Settings(data_dir=paths.root), "nothing_is_left_to_redact"

    def told(leaking: list[str]) -> list[object]:
        (found,) = day_check_results(settings, "events", [leak], None, leaking)
        return [found.passed, found.metadata["days"].value]

    assert (told([]), told([DAY])) == ([True, []], [False, [DAY]])  # older than what a morning looks at by itself

    def fails(*_: object) -> None:
        raise OSError("no disk")

    monkeypatch.setattr(checks, "judge_leaks", fails)
    assert told([DAY]) == [False, [DAY]]


def test_a_shard_without_its_manifest_was_not_looked_at_and_is_told(raw_store: RawStore) -> None:
    paths = build_days(raw_store, {DAY: [{}], NEXT: [{}]})
    manifest = manifest_of(paths.shard("events", NEXT))
    manifest.write_bytes(manifest.read_bytes()[:-5])
    found = judge_leaks(Settings(data_dir=paths.root), "events")
    assert (found.passed, found.days) == (False, [NEXT])
    assert "not looked at, for its manifest is missing or damaged: export it again" in found.text


@pytest.mark.parametrize("name", ["copy", "events_0copy", "events_2024-5-15", "events_2024-W20-3", "events_"])
def test_a_file_whose_name_has_no_day_is_nobodys_day(raw_store: RawStore, name: str) -> None:
    paths = build_days(raw_store, {DAY: [{}], NEXT: [{}]})
    for path in (paths.curated("events", NEXT), paths.shard("events", NEXT)):
        (path.parent / f"{name}{path.suffix}").write_bytes(b"stray")
    results = list(day_check_results(Settings(data_dir=paths.root), "events", DAY_CHECKS, None))
    assert [result.check_name for result in results if not result.passed] == []


@pytest.mark.parametrize("content", [b"PAR1", b"", None])
def test_a_file_that_cannot_be_read_fails_its_check_and_breaks_none(raw_store: RawStore, content: bytes | None) -> None:
    days = [(date.fromisoformat(DAY) + timedelta(days=n)).isoformat() for n in range(9)]
    paths = build_days(raw_store, {day: [{}] for day in days})
    for path in (paths.curated("events", days[-1]), paths.shard("events", days[-1])):
        path.unlink()
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    results = day_check_results(Settings(data_dir=paths.root), "events", DAY_CHECKS, None)
    passed = {result.check_name: result.passed for result in results}
    assert passed.keys() == DAY_CHECKS.keys()
    assert not passed["columns_are_as_declared"]
    assert not passed["no_record_is_there_twice"]
    assert passed["missing_values_are_as_usual"]
    assert passed["nothing_is_left_to_redact"] == (content is not None)


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_left_in_a_dataset_is_told(tmp_path: Path, split: str) -> None:
    store_sessions(tmp_path / "data", range(40))
    dataset = build(tmp_path / "data", "task_completion")
    settings = Settings(data_dir=tmp_path / "data")
    assert first_leak_of(settings, dataset) is None
    with (dataset.folder / f"{split}.jsonl").open("a") as out:
        out.write('{"input": "mail to jane.doe@example.org"}\n')
    assert f"of {split}.jsonl" in str(first_leak_of(settings, dataset))
