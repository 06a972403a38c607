"""Range export: the days' shards as one file, and cost that follows change."""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from ingest.errors import DamagedFile, InvalidRange, SourceMissing, Unbalanced, UnknownKind
from ingest.pipeline.partitions import day_range, manifest_of
from tds_dagster.export import Shard, build_days, export_range, ranges, write_range
from tds_dagster.export.lines import default_redactor
from tests.stages.conftest import RawStore

ReadJsonl = Callable[[Path], list[dict[str, object]]]
START, END = "2024-05-13", "2024-05-17"
DAYS = day_range(START, END)


@pytest.fixture
def filled(raw_store: RawStore) -> RawStore:
    """A record each on five days."""
    for day in DAYS:
        stamp = f"{day}T08:30:00.000000Z"
        raw_store.store("events", raw_store.record("events", record_id=day, timestamp=stamp), day=day)
    return raw_store


def shard_times(store: RawStore) -> dict[str, int]:
    return {day: store.paths.shard("events", day).stat().st_mtime_ns for day in DAYS}


def test_the_range_file_is_the_shards_one_after_the_other(filled: RawStore) -> None:
    export = export_range(filled.paths, "events", START, END)

    content = export.path.read_bytes()
    assert content == b"".join(filled.paths.shard("events", day).read_bytes() for day in DAYS)
    assert (export.rows, export.bytes, export.sha256) == (5, len(content), hashlib.sha256(content).hexdigest())
    assert (export.rebuilt, export.failed, export.reused) == (DAYS, {}, False)


def test_the_manifest_names_the_partitions_and_their_accounts(filled: RawStore) -> None:
    export = export_range(filled.paths, "events", START, END)

    assert export.manifest_path == manifest_of(export.path)
    manifest = json.loads(export.manifest_path.read_text())
    assert list(manifest) == [
        "kind",
        "start",
        "end",
        "path",
        "rows",
        "bytes",
        "sha256",
        "partitions",
        "accounting",
        "schema_version",
        "code_version",
        "redaction",
        "redaction_version",
        "made_at",
        "checksums",
        "seal",
    ]
    for part in manifest["partitions"]:
        content = filled.paths.shard("events", part["day"]).read_bytes()
        assert (part["bytes"], part["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert part["account"]["stored"] == part["account"]["exported"] == 1
    assert (manifest["accounting"]["stored"], manifest["redaction"]) == (5, "secrets")


def test_the_latest_export_and_the_output_are_the_same_bytes(filled: RawStore, tmp_path: Path) -> None:
    output = tmp_path / "mine" / "events.jsonl"

    export = export_range(filled.paths, "events", START, END, output=output)
    export_range(filled.paths, "events", START, START)

    assert output.read_bytes() == export.path.read_bytes()
    assert filled.paths.latest_export("events").read_bytes() == filled.paths.shard("events", START).read_bytes()
    export_range(filled.paths, "events", START, END)
    assert filled.paths.latest_export("events").read_bytes() == export.path.read_bytes()


def test_nothing_is_written_again_when_nothing_changed(filled: RawStore) -> None:
    first = export_range(filled.paths, "events", START, END)
    before = shard_times(filled), first.path.stat().st_mtime_ns

    again = export_range(filled.paths, "events", START, END)

    assert (again.rebuilt, again.reused) == ([], True)
    assert (shard_times(filled), again.path.stat().st_mtime_ns) == before
    assert again.sha256 == first.sha256


def test_a_late_record_and_an_edit_of_the_same_length_rebuild_their_days_alone(filled: RawStore) -> None:
    export_range(filled.paths, "events", START, END)
    before = shard_times(filled)
    filled.store("events", filled.record("events"), day=DAYS[1])
    filled.overwrite("events", b'"x"', b'"y"', day=DAYS[3])

    export = export_range(filled.paths, "events", START, END)

    assert (export.rebuilt, export.rows) == ([DAYS[1], DAYS[3]], 6)
    assert {day for day, time in shard_times(filled).items() if time != before[day]} == {DAYS[1], DAYS[3]}


def test_a_truncated_day_fails_alone_and_the_range_file_stays(filled: RawStore) -> None:
    old = export_range(filled.paths, "events", START, END)
    content = old.path.read_bytes()
    path = filled.paths.training("events", DAYS[2])
    path.write_bytes(path.read_bytes()[:-9])
    filled.store("events", filled.record("events"), day=DAYS[4])

    with pytest.raises(Unbalanced, match=rf"(?s)not replaced.*{DAYS[2]}: .*{path.name}: ends at byte"):
        export_range(filled.paths, "events", START, END)

    assert old.path.read_bytes() == content
    assert filled.paths.shard("events", DAYS[4]).read_bytes().count(b"\n") == 2


def test_with_allow_missing_the_range_is_written_without_the_days_that_fail(filled: RawStore) -> None:
    path = filled.paths.training("events", DAYS[2])
    path.unlink()

    export = export_range(filled.paths, "events", START, END, allow_missing=True)

    assert (export.rows, [part.day for part in export.partitions]) == (4, [*DAYS[:2], *DAYS[3:]])
    assert "the file is gone" in export.failed[DAYS[2]]
    assert json.loads(export.manifest_path.read_text())["failed"] == export.failed


def test_an_unbalanced_day_is_named_and_the_others_are_built(filled: RawStore) -> None:
    filled.commit("events", [], day=DAYS[0], quarantined=1)

    built = {day: (shard, error) for day, _, shard, error in build_days(filled.paths, "events", DAYS)}

    assert [day for day, (shard, _) in built.items() if shard is None] == [DAYS[0]]
    assert isinstance(built[DAYS[0]][1], Unbalanced)


def test_a_damaged_day_is_given_with_its_error(filled: RawStore) -> None:
    filled.paths.training("events", DAYS[0]).unlink()

    built = list(build_days(filled.paths, "events", DAYS[:2], stages=("curated",)))

    assert isinstance(built[0][3], DamagedFile)
    assert [(day, curated is None, shard) for day, curated, shard, _ in built] == [
        (DAYS[0], True, None),
        (DAYS[1], False, None),
    ]


def test_the_exports_stage_alone_needs_the_curated_one(filled: RawStore) -> None:
    ((_, curated, shard, error),) = build_days(filled.paths, "events", DAYS[:1], stages=("exports",))

    assert (curated, shard) == (None, None)
    assert isinstance(error, SourceMissing)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("2024-05-17", "2024-05-13", "swap"),
        ("17.05.2024", "2024-05-18", "start='17.05.2024'"),
        ("2024-05-17", "tomorrow", "end='tomorrow'"),
        ("2024-02-30", None, "2024-02-30"),
        (None, "", "end=''"),
    ],
)
def test_a_range_that_is_none_is_refused(raw_store: RawStore, start: str | None, end: str | None, message: str) -> None:
    with pytest.raises(InvalidRange, match=message):
        export_range(raw_store.paths, "events", start, end)
    assert not raw_store.paths.root.joinpath("exports").exists()


def test_an_unknown_kind_is_refused_before_anything_is_written(raw_store: RawStore) -> None:
    with pytest.raises(UnknownKind):
        export_range(raw_store.paths, "event", START, END)
    assert not raw_store.paths.root.exists()


def test_a_range_without_records_is_a_file_of_no_rows(raw_store: RawStore, kind: str) -> None:
    export = export_range(raw_store.paths, kind, START, END)

    assert (export.rows, export.bytes, export.path.read_bytes()) == (0, 0, b"")
    assert len(export.partitions) == 5


def test_by_default_the_range_is_from_the_first_day_with_data_to_yesterday(
    filled: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.commit("events", [], day="2024-05-01", quarantined=0, clock=1)
    monkeypatch.setattr(ranges, "today", lambda: date(2024, 5, 17))

    export = export_range(filled.paths, "events")

    assert (export.start, export.end, export.rows) == (START, "2024-05-16", 4)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, ("2024-05-13", "2024-05-13")),
        ("2024-05-13", None, ("2024-05-13", "2024-05-13")),
        (None, "2024-04-01", ("2024-04-01", "2024-04-01")),
        ("2024-05-01", None, ("2024-05-01", "2024-05-12")),
    ],
)
def test_a_default_never_makes_a_range_that_is_none(
    filled: RawStore, monkeypatch: pytest.MonkeyPatch, start: str | None, end: str | None, expected: tuple[str, str]
) -> None:
    monkeypatch.setattr(ranges, "today", lambda: date(2024, 5, 13))

    assert ranges.default_range(filled.paths, "events", start, end) == expected


def test_the_latest_range_files_stay_and_older_ones_go_with_their_manifests(filled: RawStore) -> None:
    folder = filled.paths.range_export("events", START, END).parent
    for day in DAYS:
        export_range(filled.paths, "events", day, day, keep_ranges=3)
    assert sorted(path.name[16:26] for path in folder.glob("*.jsonl")) == DAYS[2:]
    assert len(list(folder.iterdir())) == 6

    export_range(filled.paths, "events", DAYS[2], DAYS[2], keep_ranges=3)  # asked for again: the last to go
    export_range(filled.paths, "events", DAYS[0], DAYS[0], keep_ranges=3)

    assert sorted(path.name[16:26] for path in folder.glob("*.jsonl")) == [DAYS[0], DAYS[2], DAYS[4]]


def test_progress_is_told_after_each_day_under_one_name(filled: RawStore) -> None:
    told: list[tuple[str, int, int]] = []

    export_range(filled.paths, "events", START, END, progress=lambda *step: told.append(step))

    assert told == [("days exported", number, 5) for number in range(1, 6)]


def test_a_shard_that_went_after_it_was_built_is_missed(filled: RawStore) -> None:
    shards = [shard for _, _, shard, _ in build_days(filled.paths, "events", DAYS) if shard is not None]
    filled.paths.shard("events", DAYS[1]).unlink()

    with pytest.raises(SourceMissing, match=f"export {DAYS[1]} again"):
        write_range(filled.paths, "events", shards, START, END)


def test_a_shard_that_another_process_replaced_goes_in_with_its_own_manifest(filled: RawStore) -> None:
    shards = [shard for _, _, shard, _ in build_days(filled.paths, "events", DAYS) if shard is not None]
    filled.store("events", filled.record("events"), day=DAYS[1])
    list(build_days(filled.paths, "events", DAYS))

    export = write_range(filled.paths, "events", shards, START, END)

    assert (export.rows, export.path.read_bytes().count(b"\n")) == (6, 6)
    assert export.partitions[1].rows == 2


def test_a_day_is_copied_into_the_range_file_while_the_next_one_is_built(filled: RawStore) -> None:
    shards = [shard for _, _, shard, _ in build_days(filled.paths, "events", DAYS) if shard is not None]
    folder = filled.paths.range_export("events", START, END).parent
    copied: list[list[int]] = []

    def given() -> Iterator[Shard]:
        for shard in shards:
            yield shard
            copied.append([path.stat().st_size for path in folder.glob(".*.tmp")])

    export = write_range(filled.paths, "events", given(), START, END)

    assert [len(sizes) for sizes in copied] == [1] * 5
    assert export.path.read_bytes() == b"".join(shard.path.read_bytes() for shard in shards)
    assert [part.day for part in export.partitions] == export.rebuilt == DAYS


def test_nothing_is_copied_before_the_first_changed_day_is_known(filled: RawStore) -> None:
    first = export_range(filled.paths, "events", START, END)
    filled.store("events", filled.record("events"), day=DAYS[2])
    shards = [shard for _, _, shard, _ in build_days(filled.paths, "events", DAYS) if shard is not None]
    copied: list[int] = []

    def given() -> Iterator[Shard]:
        for shard in shards:
            yield shard
            copied.append(len(list(first.path.parent.glob(".*.tmp"))))

    export = write_range(filled.paths, "events", given(), START, END)

    assert copied == [0, 0, 1, 1, 1]
    assert export.path.read_bytes() == b"".join(shard.path.read_bytes() for shard in shards)
    assert export.rebuilt == [DAYS[2]]


def test_a_day_that_fails_after_others_were_copied_leaves_the_range_file_as_it_was(filled: RawStore) -> None:
    export = export_range(filled.paths, "events", START, END)
    before = {path.name: path.read_bytes() for path in export.path.parent.iterdir()}
    filled.store("events", filled.record("events"), day=DAYS[0])
    filled.paths.training("events", DAYS[4]).unlink()

    with pytest.raises(Unbalanced, match=DAYS[4]):
        export_range(filled.paths, "events", START, END)

    assert {path.name: path.read_bytes() for path in export.path.parent.iterdir()} == before


def test_what_stops_the_copy_stops_the_days_under_way(raw_store: RawStore, monkeypatch: pytest.MonkeyPatch) -> None:
    days = day_range("2024-05-01", "2024-05-30")
    for day in days:
        raw_store.store("events", raw_store.record("events"), day=day)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(ranges, "_open_shard", full)
    with pytest.raises(OSError, match="no space left") as stopped:
        export_range(raw_store.paths, "events", days[0], days[-1])

    assert stopped.traceback  # whose frames keep alive what nobody closed
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("build-day")]
    assert len([day for day in days if raw_store.paths.shard("events", day).exists()]) < len(days)
    assert not list(raw_store.paths.root.glob("state/scratch/*"))


def test_where_there_are_no_hard_links_the_latest_export_is_a_copy(
    filled: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    default_redactor(filled.paths)  # its key is made by a link, as the ledger is

    def refuse(*_: object) -> None:
        raise PermissionError("no hard links on this disk")

    monkeypatch.setattr(os, "link", refuse)
    export = export_range(filled.paths, "events", START, END)

    assert filled.paths.latest_export("events").read_bytes() == export.path.read_bytes()
