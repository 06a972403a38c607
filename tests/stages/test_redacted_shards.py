"""Redaction in shards: what the level promises is gone before a shard is put in place, and the figures are kept."""

import json
from pathlib import Path

import pytest

from ingest.errors import RedactionLeak
from ingest.pipeline.partitions import manifest_of
from ingest.redaction.redactor import Redactor, open_redactor
from ingest.settings import RedactionLevel, Settings
from tds_dagster.curate import curate_day
from tds_dagster.export import build_days, export_day, export_range, lines
from tests.stages.conftest import DAY, RawStore

KEY = "sk-proj-" + "aB3" * 16
SETTINGS = Settings(redaction_key="the same on all machines")


def redactor(level: RedactionLevel = "secrets") -> Redactor:
    return open_redactor(SETTINGS, level)


@pytest.fixture
def planted(raw_store: RawStore) -> RawStore:
    """A curated day of 300 events; every hundredth holds an API key."""
    records = [
        raw_store.record("events", payload={"n": n, "text": f"use {KEY}" if n % 100 == 7 else "é"}) for n in range(300)
    ]
    raw_store.store("events", *records)
    curate_day(raw_store.paths, "events", DAY)
    return raw_store


def test_secrets_are_gone_and_all_other_lines_are_as_they_were_stored(planted: RawStore) -> None:
    before = export_day(planted.paths, "events", DAY, redactor=redactor("none")).path.read_bytes().splitlines()

    shard = export_day(planted.paths, "events", DAY, redactor=redactor())

    after = shard.path.read_bytes().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 3
    assert all(KEY.encode() in old and KEY.encode() not in new for old, new in changed)
    manifest = json.loads(manifest_of(shard.path).read_text())
    assert (manifest["redaction"], manifest["redaction_version"]) == ("secrets", redactor().version)
    assert sum(manifest["redacted"].values()) == 3


@pytest.mark.parametrize("small_bytes", [0, 1 << 30])
def test_a_small_day_and_a_large_one_are_written_alike(
    planted: RawStore, monkeypatch: pytest.MonkeyPatch, small_bytes: int
) -> None:
    expected = export_day(planted.paths, "events", DAY, redactor=redactor()).sha256
    manifest_of(planted.paths.shard("events", DAY)).unlink()

    monkeypatch.setattr(lines, "_SMALL_BYTES", small_bytes)

    assert export_day(planted.paths, "events", DAY, redactor=redactor()).sha256 == expected


def test_another_level_or_key_builds_the_day_again_and_the_same_one_does_not(planted: RawStore) -> None:
    export_day(planted.paths, "events", DAY, redactor=redactor())

    assert export_day(planted.paths, "events", DAY, redactor=redactor()).reused
    assert not export_day(planted.paths, "events", DAY, redactor=redactor("full")).reused
    other = open_redactor(Settings(redaction_key="another key of the same"), "full")
    assert not export_day(planted.paths, "events", DAY, redactor=other).reused


def test_what_redaction_left_behind_stops_the_day_and_the_old_shard_stays(
    planted: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = export_day(planted.paths, "events", DAY, redactor=redactor("none"))
    content = old.path.read_bytes()
    monkeypatch.setattr(Redactor, "redact_line", lambda _self, _kind, line: line)

    with pytest.raises(RedactionLeak, match="level secrets promises") as raised:
        export_day(planted.paths, "events", DAY, redactor=redactor())

    assert KEY not in str(raised.value)
    assert old.path.read_bytes() == content
    assert export_day(planted.paths, "events", DAY, redactor=redactor("none")).reused


def test_a_days_figures_are_its_own_and_the_range_has_their_sum(raw_store: RawStore) -> None:
    days = [f"2024-05-{day:02}" for day in range(10, 20)]
    for number, day in enumerate(days):
        stamp = f"{day}T08:30:00.000000Z"
        planted = [raw_store.record("events", timestamp=stamp, payload=f"{KEY}{n}") for n in range(number)]
        raw_store.store("events", raw_store.record("events", timestamp=stamp), *planted, day=day)

    built = list(build_days(raw_store.paths, "events", days, redactor=redactor()))
    export = export_range(
        raw_store.paths, "events", days[0], days[-1], settings=Settings(
            data_dir=raw_store.paths.root, redaction_key=SETTINGS.redaction_key
        ),
    )  # fmt: skip

    assert [sum(shard.redacted.values()) for _, _, shard, _ in built if shard is not None] == list(range(10))
    assert [day for day, *_ in built] == days
    assert (export.rebuilt, sum(export.redacted.values())) == ([], 45)


def test_days_built_at_once_are_those_built_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [f"2024-05-{day:02}" for day in range(10, 22)]
    records = {
        day: [RawStore(tmp_path).record("events", timestamp=f"{day}T01:00:00.000000Z", payload=KEY) for _ in range(3)]
        for day in days
    }
    digests = []
    for name, threads in (("one", 1), ("four", 4)):
        store = RawStore(tmp_path / name)
        for day in days:
            store.store("events", *records[day], day=day)
        store.paths.training("events", days[5]).unlink()
        monkeypatch.setattr("tds_dagster.export.days._MOST_THREADS", threads)
        monkeypatch.setattr("os.cpu_count", lambda: 4)
        built = list(build_days(store.paths, "events", days, redactor=redactor()))
        assert [day for day, _, _, error in built if error is not None] == [days[5]]
        digests.append([shard.sha256 for _, _, shard, _ in built if shard is not None])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 11


def test_a_caller_who_has_seen_enough_stops_the_rest(raw_store: RawStore) -> None:
    days = [f"2024-05-{day:02}" for day in range(1, 29)]
    for day in days:
        raw_store.store("events", raw_store.record("events", timestamp=f"{day}T01:00:00.000000Z"), day=day)

    building = build_days(raw_store.paths, "events", days, redactor=redactor("none"))
    next(building)
    building.close()

    assert not raw_store.paths.shard("events", days[-1]).exists()
    assert len([shard for *_, shard, _ in build_days(raw_store.paths, "events", days) if shard is not None]) == 28
