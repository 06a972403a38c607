"""`tds verify`: every byte is read, every one that changed is named, and what is only out of date is no damage."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ingest import Settings
from ingest.errors import SourceMissing
from ingest.pipeline.partitions import manifest_of
from tds_dagster.curate.seal import find_flaw, seal
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.recipe import Recipe
from tds_dagster.export import build_days, export_range
from tds_dagster.export.checker import Finding
from tds_dagster.export.selection import select
from tds_dagster.export.verification import Verification, verify
from tests.stages.conftest import DAY, RawStore

NEXT = "2024-05-16"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of events, exported as a range; one of the rows is quarantined."""
    store = RawStore(tmp_path_factory.mktemp("built") / "data")
    for day in (DAY, NEXT):
        records = [
            store.record("events", record_id=f"{day}-{n}", timestamp=f"{day}T08:30:00.00000{n}Z", payload={"n": n})
            for n in range(5)
        ]
        store.store("events", *records, day=day)
    store.commit("events", [b'"torn\n'])
    export_range(store.paths, "events", DAY, NEXT)
    return store.paths.root


@pytest.fixture
def filled(built: Path, raw_store: RawStore) -> RawStore:
    """A copy of it, times of files included."""
    shutil.copytree(built, raw_store.paths.root)
    return raw_store


def checked(store: RawStore, *paths: Path) -> Verification:
    return verify(Settings(data_dir=store.paths.root), paths)


def artifacts(store: RawStore) -> dict[str, Path]:
    """A file of every sort."""
    paths = store.paths
    found = {
        "curated day": paths.curated("events", DAY),
        "quarantine file": paths.quarantine("events", DAY),
        "shard": paths.shard("events", DAY),
        "range": paths.range_export("events", DAY, NEXT),
        "card": paths.exports("events") / "README.md",
        "croissant": paths.exports("events") / "croissant.json",
    }
    return found | {f"manifest of the {name}": manifest_of(found[name]) for name in ("curated day", "shard", "range")}


ARTIFACTS = [
    "curated day", "quarantine file", "shard", "range", "card", "croissant",
    "manifest of the curated day", "manifest of the shard", "manifest of the range",
]  # fmt: skip


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file behind everybody's back: in a new file, for `training/` may link to the same one."""
    content = change(path.read_bytes())
    path.unlink()
    path.write_bytes(content)


def flipped(offset: int, mask: int = 1) -> Callable[[bytes], bytes]:
    return lambda content: content[:offset] + bytes([content[offset] ^ mask]) + content[offset + 1 :]


def only(found: Verification) -> Finding:
    """The one finding."""
    assert len(found.findings) == 1, found.findings
    return found.findings[0]


def test_what_was_built_is_sound_and_every_file_of_it_is_read(filled: RawStore) -> None:
    found = checked(filled)

    assert (found.findings, found.is_sound) == ([], True)
    files = [path for path in filled.paths.root.rglob("*") if path.suffix in {".parquet", ".jsonl", ".json", ".md"}]
    assert found.files >= len(files)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_a_flipped_byte_is_found_wherever_it_is_and_its_place_is_named(filled: RawStore, name: str) -> None:
    path = artifacts(filled)[name]
    content = path.read_bytes()
    places = random.Random(name)
    for offset in [0, len(content) - 1, len(content) - 6, *(places.randrange(len(content)) for _ in range(6))]:
        changed(path, flipped(offset, places.randrange(1, 256)))

        found = only(checked(filled, path))

        assert (found.path, found.state) == (path, "damaged")
        if name.startswith("manifest"):
            assert found.field in fields_at(content, offset)
        else:
            assert found.offset == offset
            if path.suffix == ".jsonl":
                assert found.line == content[:offset].count(b"\n") + 1
        path.write_bytes(content)
    assert checked(filled, path).findings == []


def fields_at(manifest: bytes, offset: int) -> set[str | None]:
    """The field in whose lines a byte of a manifest lies; between two fields both, at the start maybe none."""
    starts = [(manifest.index(f'\n  "{name}": '.encode()) + 1, name) for name in json.loads(manifest)]
    if offset < 2:
        return {None, "kind"}
    return {[name for start, name in starts if start <= place][-1] for place in (offset, offset + 2)}


def test_every_field_of_a_manifest_is_named_when_it_changes(filled: RawStore) -> None:
    for path in (manifest_of(filled.paths.shard("events", DAY)), manifest_of(filled.paths.curated("events", DAY))):
        text = path.read_bytes()
        for name, value in json.loads(text).items():
            start = text.index(f'\n  "{name}": '.encode()) + len(name) + 7
            damaged = flipped(start, 4)(text)
            flaw = find_flaw(damaged)
            assert flaw is not None, (name, value)
            assert flaw.field == name


def test_any_byte_that_changes_goes_or_comes_breaks_the_seal() -> None:
    text = seal(b'{"a":"\xc3\xa9","b":{"c":[1,2.5,null],"d":{}},"made_at":"2024-05-15T00:00:00Z"}')
    assert find_flaw(text) is None
    for offset in range(len(text)):
        assert find_flaw(text[:offset]) is not None
        assert find_flaw(text[:offset] + text[offset + 1 :]) is not None
        assert find_flaw(text[:offset] + b" " + text[offset:]) is not None
        for bit in range(8):
            assert find_flaw(flipped(offset, 1 << bit)(text)) is not None


@pytest.mark.parametrize("name", ["curated day", "shard", "range", "quarantine file"])
def test_a_file_that_ends_early_or_goes_on_is_named_with_the_byte_where_it_does(filled: RawStore, name: str) -> None:
    path = artifacts(filled)[name]
    content = path.read_bytes()

    changed(path, lambda content: content[: len(content) // 2])
    assert only(checked(filled, path)).offset == len(content) // 2
    path.write_bytes(content + b"{}\n")
    assert only(checked(filled, path)).offset == len(content)


def test_an_artifact_without_its_manifest_counts_as_half_written(filled: RawStore) -> None:
    path = filled.paths.shard("events", DAY)
    manifest_of(path).unlink()

    found = only(checked(filled, path))

    assert (found.path, found.state) == (path, "damaged")
    assert "no manifest beside it, so it was not written to its end" in found.reason


@pytest.mark.parametrize("name", ["curated day", "shard", "range"])
def test_a_manifest_without_its_artifact_is_named(filled: RawStore, name: str) -> None:
    path = artifacts(filled)[name]
    path.unlink()

    found = only(checked(filled, manifest_of(path)))

    assert (found.path, found.state) == (path, "damaged")
    assert "is gone" in found.reason


def test_a_quarantine_file_that_is_gone_is_named(filled: RawStore) -> None:
    path = filled.paths.quarantine("events", DAY)
    path.unlink()

    assert only(checked(filled, filled.paths.root / "curated")).path == path


def resealed(path: Path, /, **fields: Any) -> None:
    """Change fields of a manifest as somebody would who knows how it is sealed."""
    manifest = json.loads(path.read_bytes()) | fields
    del manifest["checksums"], manifest["seal"]
    path.write_bytes(seal(json.dumps(manifest).encode()))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("curated day", {"rows": 4}), ("curated day", {"quarantined": 0}), ("curated day", {"day": NEXT}),
        ("curated day", {"source_rows": 9}), ("shard", {"rows": 4}), ("shard", {"duplicates": 1}),
        ("shard", {"kind": "tasks"}), ("shard", {"path": "other.jsonl"}), ("range", {"rows": 4}),
        ("range", {"kind": "tasks"}),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_match_names_the_field_even_if_it_was_sealed_again(
    filled: RawStore, name: str, fields: dict[str, Any]
) -> None:
    path = artifacts(filled)[name]
    resealed(manifest_of(path), **fields)

    findings = checked(filled, path).findings

    assert {finding.field for finding in findings if finding.state == "damaged"} >= set(fields)


def test_a_manifest_of_another_day_does_not_pass(filled: RawStore) -> None:
    shutil.copy(manifest_of(filled.paths.shard("events", NEXT)), manifest_of(filled.paths.shard("events", DAY)))

    assert not checked(filled, filled.paths.shard("events", DAY)).is_sound


def test_a_manifest_of_a_newer_schema_is_told_as_such_and_not_taken_for_damage(filled: RawStore) -> None:
    path = filled.paths.shard("events", DAY)
    resealed(manifest_of(path), schema_version=99)

    found = checked(filled, path)

    assert (only(found).state, only(found).field, found.is_sound) == ("newer", "schema_version", False)
    assert "schema_version is 99" in only(found).reason


def test_a_manifest_of_an_older_program_is_stale(filled: RawStore) -> None:
    path = manifest_of(filled.paths.shard("events", DAY))
    manifest = json.loads(path.read_bytes())
    del manifest["checksums"], manifest["seal"]
    path.write_text(json.dumps(manifest, indent=2))

    assert only(checked(filled, path)).state == "stale"
    assert build_all(filled) == [DAY]


def build_all(store: RawStore) -> list[str]:
    """Export again; gives the days whose shard was made anew."""
    return [day for day, _, shard, _ in build_days(store.paths, "events", [DAY, NEXT]) if shard and not shard.reused]


def test_a_shard_changed_together_with_its_manifest_is_not_what_its_curated_day_gives(filled: RawStore) -> None:
    path = filled.paths.shard("events", DAY)
    offset = path.read_bytes().index(b'{"n":3}') + 5
    changed(path, flipped(offset))
    resealed(manifest_of(path), sha256=sha256(path))

    found = only(checked(filled, path))

    assert (found.state, found.offset, found.line) == ("damaged", offset, 4)
    assert "its curated day gives something else" in found.reason


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_parquet_with_a_row_less_and_a_manifest_to_match_is_not_what_its_raw_day_gives(filled: RawStore) -> None:
    path = filled.paths.curated("events", DAY)
    rewritten(path, "LIMIT 4")
    resealed(manifest_of(path), sha256=sha256(path), bytes=path.stat().st_size)

    assert "gives something else" in checked(filled, path).findings[0].reason


def test_a_parquet_of_the_same_rows_from_another_version_of_the_engine_is_sound(filled: RawStore) -> None:
    path = filled.paths.curated("events", DAY)
    rewritten(path)
    resealed(manifest_of(path), sha256=sha256(path), bytes=path.stat().st_size)

    assert checked(filled, path).findings == []


def rewritten(parquet: Path, limit: str = "") -> None:
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE kept AS FROM read_parquet('{parquet}') {limit}")
        connection.execute(f"COPY kept TO '{parquet}' (FORMAT parquet, COMPRESSION uncompressed)")


def test_newer_raw_rows_make_a_day_stale_and_not_damaged(filled: RawStore) -> None:
    filled.store("events", filled.record("events"))

    found = checked(filled)

    assert found.is_sound
    assert {(finding.path, finding.state) for finding in found.findings} == {
        (filled.paths.curated("events", DAY), "stale"),
        (filled.paths.shard("events", DAY), "stale"),
    }


@pytest.mark.parametrize("name", ["curated day", "shard", "quarantine file"])
def test_a_flipped_byte_of_a_stale_day_is_still_found_at_its_place(filled: RawStore, name: str) -> None:
    filled.store("events", filled.record("events"))
    path = artifacts(filled)[name]
    offset = path.stat().st_size // 2
    changed(path, flipped(offset))

    found = [finding for finding in checked(filled, path).findings if finding.state == "damaged"]

    assert [(finding.path, finding.offset) for finding in found] == [(path, offset)]


def test_a_range_whose_days_were_exported_anew_is_stale(filled: RawStore) -> None:
    filled.store("events", filled.record("events"))
    build_all(filled)

    found = only(checked(filled, filled.paths.range_export("events", DAY, NEXT)))

    assert (found.state, "1 of its 2 days" in found.reason) == ("stale", True)


def test_a_flipped_byte_in_one_shard_is_no_damage_to_the_range(filled: RawStore) -> None:
    changed(filled.paths.shard("events", NEXT), flipped(7))

    damaged = [finding.path for finding in checked(filled).findings if "manifest says" not in finding.reason]

    assert damaged == [filled.paths.shard("events", NEXT)]


@pytest.mark.parametrize("form", ["records", "jsonl.zst", "parquet"])
def test_what_was_selected_of_a_range_is_selected_again_and_a_flipped_byte_of_it_is_named(
    filled: RawStore, form: str
) -> None:
    wanted = select("events", where="payload ->> 'n' >= '2'", columns="record_id,payload", format=form)
    export = export_range(filled.paths, "events", DAY, NEXT, selection=wanted)
    assert (export.rows, checked(filled, export.path).findings) == (6, [])
    offset = export.bytes // 2
    changed(export.path, flipped(offset))

    found = only(checked(filled, export.path.parent))

    assert (found.path, found.state, found.offset) == (export.path, "damaged", offset)


def test_a_selection_changed_together_with_its_manifest_is_not_what_is_selected(filled: RawStore) -> None:
    export = export_range(filled.paths, "events", DAY, NEXT, selection=select("events", limit=3))
    changed(export.path, lambda content: content.replace(b'{"n":1}', b'{"n":7}'))
    resealed(export.manifest_path, sha256=sha256(export.path))

    assert "its curated days gives something else" in only(checked(filled, export.path)).reason


def test_a_selection_by_feedback_is_stale_when_feedback_has_come_since(filled: RawStore) -> None:
    scored = [
        filled.record("feedback", target_kind="record", target_id=f"{DAY}-{n}", name="reward", value=1)
        for n in range(2)
    ]
    filled.store("feedback", scored[0])
    export = export_range(filled.paths, "events", DAY, NEXT, selection=select("events", where="feedback.reward >= 1"))
    assert (export.rows, checked(filled, export.path).findings) == (1, [])
    filled.store("feedback", scored[1])
    assert checked(filled, export.path).findings == []
    list(build_days(filled.paths, "feedback", [DAY]))

    assert only(checked(filled, export.path)).state == "stale"


def test_the_latest_export_is_one_of_the_ranges(filled: RawStore) -> None:
    path = filled.paths.latest_export("events")
    changed(path, flipped(100))

    found = only(checked(filled))

    assert (found.path, found.state, found.offset) == (path, "damaged", 100)


def test_a_raw_day_that_is_cut_short_is_named_with_its_size(filled: RawStore) -> None:
    raw = filled.paths.training("events", DAY)
    changed(raw, lambda content: content[:-10])

    findings = checked(filled, filled.paths.curated("events", DAY)).findings

    assert [(finding.path, finding.state) for finding in findings] == [(raw, "damaged")]
    assert f"ends at byte {raw.stat().st_size}" in findings[0].reason


def test_a_raw_day_that_rots_without_a_trace_is_found_by_the_curated_day_that_it_no_longer_gives(
    filled: RawStore,
) -> None:
    raw = filled.paths.training("events", DAY)
    stamp = raw.stat().st_mtime_ns
    content = raw.read_bytes()
    raw.write_bytes(content.replace(b'{""n"":3}', b'{""n"":8}'))
    os.utime(raw, ns=(stamp, stamp))

    found = only(checked(filled, filled.paths.curated("events", DAY)))

    assert (found.state, raw.name in found.reason) == ("damaged", True)


def test_a_raw_day_edited_by_hand_makes_its_curated_day_stale(filled: RawStore) -> None:
    filled.overwrite("events", b'{""n"":3}', b'{""n"":8}')

    found = checked(filled)

    assert found.is_sound
    assert any("by somebody else" in finding.reason for finding in found.findings)


@pytest.fixture
def redacted(raw_store: RawStore) -> Path:
    """The shard of a day in which a secret was replaced, at the level that exports have by default."""
    raw_store.store("events", raw_store.record("events", payload={"url": "postgres://me:hunter22@host/db"}))
    export_range(raw_store.paths, "events", DAY, DAY)
    shard = raw_store.paths.shard("events", DAY)
    assert b"hunter22" not in shard.read_bytes()
    return shard


def test_a_redacted_shard_is_redacted_again_and_its_figures_are_held_against_that(
    raw_store: RawStore, redacted: Path
) -> None:
    assert checked(raw_store).findings == []
    resealed(manifest_of(redacted), redacted={})

    assert {(finding.path, finding.field) for finding in checked(raw_store, redacted).findings} == {
        (manifest_of(redacted), "redacted")
    }


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"redaction": "none"}, "is redacted at level secrets, and exports are at none now"),
        ({"redaction_key": "another key, long enough"}, "was redacted by another policy, or with another key"),
    ],
)
def test_a_shard_redacted_in_another_way_than_now_is_stale_and_its_damage_is_found_all_the_same(
    raw_store: RawStore, redacted: Path, settings: dict[str, Any], reason: str
) -> None:
    present = Settings(data_dir=raw_store.paths.root, **settings)
    found = only(verify(present, [redacted]))
    assert (found.state, reason in found.reason) == ("stale", True)

    changed(redacted, flipped(20))

    assert only(verify(present, [redacted])).state == "damaged"


@pytest.fixture(scope="module")
def built_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a dataset made of twelve sessions of one day."""
    store = RawStore(tmp_path_factory.mktemp("dataset") / "data")
    records = [
        store.record("events", record_id=f"{n:02}", session_id=f"s-{n // 4}", timestamp=f"{DAY}T08:30:00.0000{n:02}Z",
                     event_type=["started", "asked", "answered", "ended"][n % 4], payload={"n": n})
        for n in range(48)
    ]  # fmt: skip
    store.store("events", *records)
    recipe = Recipe(model="event_prediction", start=DAY, end=DAY, allow_empty_splits=True)
    build_dataset(Settings(data_dir=store.paths.root), recipe)
    return store.paths.root


@pytest.fixture
def dataset(built_dataset: Path, raw_store: RawStore) -> Path:
    """The dataset's folder, in a copy of that data folder."""
    shutil.copytree(built_dataset, raw_store.paths.root)
    return next(path for path in raw_store.paths.datasets("event_prediction").iterdir() if path.is_dir())


def test_a_dataset_is_what_its_manifest_says_and_what_its_shards_give_again(raw_store: RawStore, dataset: Path) -> None:
    found = checked(raw_store, dataset)

    assert found.findings == []
    assert found.files == len(list(dataset.iterdir()))


def test_a_flipped_byte_in_the_files_of_a_dataset_is_named_with_its_place(raw_store: RawStore, dataset: Path) -> None:
    names = ("train.jsonl", "rows.jsonl", "README.md", "croissant.json")
    for name in names:
        changed(dataset / name, flipped(len(name) * 11))
    assert {(found.path, found.state, found.offset) for found in checked(raw_store, dataset).findings} == {
        (dataset / name, "damaged", len(name) * 11) for name in names
    }
    changed(dataset / "manifest.json", lambda text: text.replace(b'"rule": "', b'"rule": "!', 1))
    assert only(checked(raw_store, dataset)).field == "rule"


def test_a_dataset_edited_together_with_its_manifest_is_not_what_its_shards_give(
    raw_store: RawStore, dataset: Path
) -> None:
    path = dataset / "train.jsonl"
    changed(path, lambda content: content.replace(b"asked", b"dared", 1))
    files = json.loads((dataset / "manifest.json").read_bytes())["files"]
    for file in files:
        if file["path"] == path.name:
            file["sha256"] = sha256(path)
    resealed(dataset / "manifest.json", files=files)

    findings = checked(raw_store, dataset).findings

    assert {(finding.path.name, finding.field) for finding in findings} == {
        ("manifest.json", "files"), ("train.jsonl", None),
    }  # fmt: skip
    assert "a build from the same shards gives something else" in findings[-1].reason


def test_a_folder_holds_what_its_manifest_names_and_nothing_else(raw_store: RawStore, dataset: Path) -> None:
    (dataset / "README.md").unlink()
    (dataset / "notes.txt").write_text("mine")

    assert {(finding.path.name, finding.reason.partition(";")[0]) for finding in checked(raw_store).findings} == {
        ("README.md", "is gone, and the manifest names it"),
        ("notes.txt", "is not in the folder's manifest"),
    }


def test_a_folder_without_its_manifest_is_damaged(raw_store: RawStore, dataset: Path) -> None:
    (dataset / "manifest.json").unlink()

    assert only(checked(raw_store)).path == dataset


def test_a_shard_that_is_damaged_is_named_once_and_left_as_it_is_where_a_dataset_was_made_of_it(
    raw_store: RawStore, dataset: Path
) -> None:
    shard = raw_store.paths.shard("events", DAY)
    changed(shard, flipped(77))

    found = only(checked(raw_store))

    assert (found.path, found.state, found.offset) == (shard, "damaged", 77)
    assert only(checked(raw_store, dataset)).path == shard
    assert manifest_of(shard).exists()


def test_the_latest_version_of_a_dataset_has_to_be_there(raw_store: RawStore, dataset: Path) -> None:
    latest = dataset.with_name("latest.json")
    for content in (b'{"version":"0123456789ab"}\n', b"\xff", b"{}"):
        latest.write_bytes(content)
        found = only(checked(raw_store, latest))
        assert (found.path, found.state) == (latest, "damaged")


def test_a_dataset_whose_shards_were_exported_anew_is_stale(raw_store: RawStore, dataset: Path) -> None:
    raw_store.store("events", raw_store.record("events"))
    build_all(raw_store)

    found = only(checked(raw_store, dataset))

    assert (found.state, found.path.name) == ("stale", "manifest.json")


def test_a_dataset_taken_elsewhere_is_held_against_its_manifest_alone(
    raw_store: RawStore, dataset: Path, tmp_path: Path
) -> None:
    away = Path(shutil.copytree(dataset, tmp_path / "away"))

    assert checked(raw_store, away).findings == []
    changed(away / "train.jsonl", flipped(9))
    assert only(checked(raw_store, away)).path == away / "train.jsonl"


def test_what_was_taken_elsewhere_is_held_against_its_manifest_alone(filled: RawStore, tmp_path: Path) -> None:
    source = filled.paths.range_export("events", DAY, NEXT)
    away = tmp_path / "away"
    away.mkdir()
    for path in (source, manifest_of(source)):
        shutil.copy(path, away)

    assert checked(filled, away).findings == []
    changed(away / source.name, flipped(50))
    assert only(checked(filled, away / source.name)).state == "damaged"


@pytest.mark.parametrize("path", ["absent", "state", "training/events/events_2024-05-15.csv"])
def test_a_path_with_nothing_to_check_is_refused(filled: RawStore, path: str) -> None:
    with pytest.raises(SourceMissing, match=r"expected curated days|no such file"):
        checked(filled, filled.paths.root / path)


def test_a_path_through_a_link_is_the_file_in_the_data_folder(filled: RawStore, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(filled.paths.root)
    path = filled.paths.shard("events", DAY)
    filled.store("events", filled.record("events"))

    for given in (tmp_path / "link" / path.relative_to(filled.paths.root), path.parent / ".." / "days" / path.name):
        assert (only(checked(filled, given)).path, only(checked(filled, given)).state) == (path, "stale")


def test_an_empty_data_folder_is_sound(raw_store: RawStore) -> None:
    raw_store.paths.root.mkdir()

    assert checked(raw_store) == Verification(files=0, bytes=0, findings=[])


def test_verifying_changes_nothing_and_leaves_nothing_behind(filled: RawStore) -> None:
    def state() -> dict[Path, int]:
        kept = [path for path in filled.paths.root.rglob("*") if path.is_file() and "state" not in path.parts]
        return {path: path.stat().st_mtime_ns for path in kept}

    before = state()
    checked(filled)

    assert state() == before
    assert list((filled.paths.state / "scratch").iterdir()) == []


def test_a_moved_data_folder_is_as_sound_as_before(filled: RawStore, tmp_path: Path) -> None:
    moved = RawStore(filled.paths.root.rename(tmp_path / "after"))

    assert checked(moved).findings == []


def test_progress_counts_what_is_checked(filled: RawStore) -> None:
    told: list[tuple[int, int]] = []

    verify(Settings(data_dir=filled.paths.root), progress=lambda _what, done, total: told.append((done, total)))

    assert [done for done, _ in told] == list(range(len(told)))
    assert {total for _, total in told} == {len(told)}
