"""Selections of a range: a predicate, columns, a sample, a format; each is an artifact of its own."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard

from ingest.errors import DamagedFile, InvalidPredicate, InvalidSelection, Unbalanced
from ingest.pipeline.partitions import day_range, manifest_of
from ingest.records import KINDS
from ingest.redaction.redactor import Redactor
from ingest.settings import Settings
from tds_dagster.export import RangeExport, export_range, select
from tds_dagster.export.selection import FORMATS
from tests.stages.conftest import RawStore

ReadJsonl = Callable[[Path], list[dict[str, object]]]
START, END = "2024-05-13", "2024-05-15"
DAYS = day_range(START, END)
KEY = "sk-proj-" + "aB3" * 16


@pytest.fixture
def filled(raw_store: RawStore) -> RawStore:
    return fill(raw_store)


def fill(store: RawStore) -> RawStore:
    """Three days of 40 events, one of them with an API key; feedback on two of them, two days later."""
    for day in DAYS:
        records = [
            store.record(
                "events", record_id=f"{day}-{n:02}", timestamp=f"{day}T08:{n:02}:00.000000Z", session_id=f"s{n % 4}",
                severity="error" if n % 10 == 0 else "info", payload={"n": n, "key": KEY if n == 20 else None},
            )
            for n in range(40)
        ]  # fmt: skip
        store.store("events", *records, day=day)
    judge(store, "2024-05-13-03", 1.0)
    judge(store, "2024-05-15-07", 1.0)
    judge(store, "2024-05-14-01", "a remark")
    return store


def judge(store: RawStore, record_id: str, value: object, at: str = "2024-05-17T00:00:00.000000Z") -> None:
    given = store.record(
        "feedback", target_kind="record", target_id=record_id, name="reward", value=value, timestamp=at
    )  # fmt: skip
    store.store("feedback", given, day=at[:10])


def export(store: RawStore, **selection: object) -> RangeExport:
    settings = Settings(data_dir=store.paths.root, redaction_key="the same on all machines")
    selected = select("events", **selection)  # type: ignore[arg-type]  # what a test wants
    return export_range(store.paths, "events", START, END, settings=settings, selection=selected)


def ids(made: RangeExport) -> list[object]:
    return [json.loads(line)["record_id"] for line in made.path.read_bytes().splitlines()]


def test_a_predicate_takes_whole_lines_in_their_order(filled: RawStore) -> None:
    whole = export(filled).path.read_bytes().splitlines()

    made = export(filled, where="severity = 'error'")

    assert made.path.read_bytes().splitlines() == [line for line in whole if b'"severity":"error"' in line]
    assert (made.rows, made.bytes) == (12, made.path.stat().st_size)


def test_a_predicate_reads_the_latest_feedback_wherever_it_was_filed(filled: RawStore) -> None:
    assert ids(export(filled, where="feedback.reward >= 1")) == ["2024-05-13-03", "2024-05-15-07"]

    judge(filled, "2024-05-15-07", 0, at="2024-05-18T00:00:00.000000Z")

    later = export(filled, where="feedback.reward >= 1 AND timestamp >= '2024-05-13'")
    again = export(filled, where="feedback.reward >= 1")
    assert ids(later) == ids(again) == ["2024-05-13-03"]
    assert not again.reused


def test_columns_are_chosen_and_stay_in_schema_order(filled: RawStore) -> None:
    made = export(filled, columns="payload, event_type,record_id", limit=21)

    rows = [json.loads(line) for line in made.path.read_bytes().splitlines()]
    assert {tuple(row) for row in rows} == {("event_type", "payload", "record_id")}
    assert KEY not in made.path.read_text()
    plain = export(filled, columns=["payload", "event_type", "record_id"], redaction="none", limit=21)
    assert [json.loads(line)["record_id"] for line in plain.path.read_bytes().splitlines()] == ids(made)
    assert plain.path.read_text().count(KEY) == 1
    assert (made.redaction, plain.redaction, sum(made.redacted.values())) == ("secrets", "none", 1)


def test_redaction_sees_the_whole_record_whatever_columns_are_chosen(
    filled: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def redact(_self: Redactor, _kind: str, line: bytes) -> bytes:
        seen.append(set(json.loads(line)))
        return line.replace(KEY.encode(), b"")

    monkeypatch.setattr(Redactor, "redact_line", redact)
    for form in FORMATS:
        export(filled, columns="session_id", format=form)

    assert seen
    assert all(keys == set(KINDS["events"].types) for keys in seen)


def test_a_limit_takes_the_first_rows_over_days(filled: RawStore) -> None:
    assert ids(export(filled, limit=45)) == ids(export(filled))[:45]
    assert ids(export(filled, limit=3, where="severity = 'error' AND timestamp >= '2024-05-14'"))[0] == "2024-05-14-00"


def test_a_sample_is_the_same_each_time_and_another_seed_gives_another_one(filled: RawStore) -> None:
    ten = ids(export(filled, sample=10))

    assert (len(ten), ten) == (10, sorted(map(str, ten)))
    assert set(ten) < set(ids(export(filled, sample="20")))  # the more, of the same order
    assert set(ten) != set(ids(export(filled, sample=10, seed=1)))
    share = ids(export(filled, sample="25%"))
    assert 15 < len(share) < 45
    assert set(share) < set(ids(export(filled, sample="50.5%")))
    assert ids(export(filled, sample="100%")) == ids(export(filled, sample=1000)) == ids(export(filled))
    assert len(ids(export(filled, sample=3, where="severity <> '$1 $2'"))) == 3
    assert set(ids(export(filled, sample=3, where="severity = 'error'"))) < set(
        ids(export(filled, where="severity = 'error'"))
    )


def test_every_format_holds_the_same_records(filled: RawStore) -> None:
    whole = export(filled).path.read_bytes()

    compressed, table = export(filled, format="jsonl.zst"), export(filled, format="parquet")

    assert zstandard.ZstdDecompressor().decompressobj().decompress(compressed.path.read_bytes()) == whole
    rows = pq.read_table(table.path).to_pylist()
    assert [row["timestamp"].isoformat() for row in rows[:1]] == ["2024-05-13T08:00:00+00:00"]
    assert [json.loads(str(row["payload"])) for row in rows] == [
        json.loads(line)["payload"] for line in whole.splitlines()
    ]
    assert (table.rows, sum(table.redacted.values())) == (120, 3)
    assert str(pq.read_schema(table.path).field("timestamp").type) == "timestamp[us, tz=UTC]"


def test_a_redacted_number_is_null_in_parquet_and_other_cells_stay(
    filled: RawStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Redactor, "redact_line", lambda _self, _kind, line: line.replace(KEY.encode(), b"<SECRET>"))

    rows = pq.read_table(export(filled, format="parquet").path).to_pylist()

    assert [row["record_id"] for row in rows if "SECRET" in str(row["payload"])] == [f"{day}-20" for day in DAYS]


def test_the_same_selection_of_the_same_records_is_the_same_file_in_another_folder(tmp_path: Path) -> None:
    one, two = (fill(RawStore(tmp_path / name)) for name in ("one", "two"))
    for form in FORMATS:
        made = [
            export(store, where="feedback.reward IS NULL", sample="50%", seed=7, format=form) for store in (one, two)
        ]
        assert made[0].path.read_bytes() == made[1].path.read_bytes()
        assert (made[0].path.name, made[0].sha256) == (made[1].path.name, made[1].sha256)


def test_a_selection_is_an_artifact_of_its_own_and_is_reused(filled: RawStore) -> None:
    whole = export(filled)
    latest = filled.paths.latest_export("events").read_bytes()

    made = export(filled, where=" severity = 'error' ", columns=["record_id"])

    assert made.path.parent == whole.path.parent
    assert made.path.name.startswith(f"events_training_{START}_{END}_")
    assert filled.paths.latest_export("events").read_bytes() == latest == whole.path.read_bytes()
    manifest = json.loads(manifest_of(made.path).read_text())
    assert manifest["selection"] == {"where": "severity = 'error'", "columns": ["record_id"]}
    assert [part["day"] for part in manifest["partitions"]] == DAYS
    assert manifest["accounting"]["exported"] == 120
    assert export(filled, where="severity = 'error'", columns=["record_id"]).reused
    assert export(filled).reused


def test_a_predicate_that_names_somebody_is_redacted_in_the_manifest_and_the_file_is_still_found_again(
    filled: RawStore,
) -> None:
    made = export(filled, where=f"payload->>'key' = '{KEY}'")
    manifest = manifest_of(made.path).read_text()
    assert made.rows == 3
    assert KEY not in manifest
    assert made.selection is not None
    assert not made.selection.is_of(made.path)

    assert export(filled, where=f"payload->>'key' = '{KEY}'").reused
    plain = export(filled, where="severity = 'error'")
    assert plain.selection is not None
    assert plain.selection.is_of(plain.path)


def test_a_selection_that_matches_nothing_is_a_file_of_no_rows(filled: RawStore) -> None:
    assert (export(filled, where="severity = 'none'").rows, export(filled, sample=5, where="FALSE").rows) == (0, 0)
    table = export(filled, where="severity = 'none'", format="parquet")
    assert (table.rows, pq.read_table(table.path).num_rows) == (0, 0)


def test_a_predicate_that_fails_on_a_record_is_told_without_the_record(filled: RawStore) -> None:
    with pytest.raises(InvalidPredicate, match=r"fails on a record.*TRY_CAST") as raised:
        export(filled, where="session_id::INT > 3")

    assert "s0" not in str(raised.value).replace("session_id", "")
    assert not list(filled.paths.range_export("events", START, END).parent.glob("*"))


def test_a_bad_predicate_is_told_before_any_day_is_built(filled: RawStore) -> None:
    with pytest.raises(InvalidPredicate, match="severity"):
        export(filled, where="severty = 'x'")
    assert not filled.paths.exports("events").exists()


def test_an_account_that_does_not_add_up_stops_a_selection_too(filled: RawStore) -> None:
    filled.commit("events", [], day=DAYS[1], quarantined=1)

    with pytest.raises(Unbalanced, match=DAYS[1]):
        export(filled, limit=1)


def test_a_curated_file_that_was_edited_is_named_and_built_again(filled: RawStore) -> None:
    export(filled)
    parquet = filled.paths.curated("events", DAYS[1])
    content = bytearray(parquet.read_bytes())
    content[len(content) // 2] ^= 1
    parquet.write_bytes(content)

    with pytest.raises(DamagedFile, match=parquet.name):
        export(filled, sample=7)

    assert export(filled, sample=7).rows == 7


def flip_a_byte_unseen(path: Path) -> None:
    """What a disk does that loses a bit: the content is another one, size and time are the same."""
    stamp = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_a_bit_that_the_disk_lost_is_found_wherever_something_is_made_of_the_file(filled: RawStore) -> None:
    whole = export(filled).path.read_bytes()
    paths = filled.paths

    flip_a_byte_unseen(paths.shard("events", DAYS[0]))
    paths.range_export("events", START, END).unlink()
    with pytest.raises(DamagedFile, match=f"events_{DAYS[0]}.jsonl: its content"):
        export(filled)
    assert export(filled).path.read_bytes() == whole

    flip_a_byte_unseen(paths.curated("events", DAYS[1]))
    paths.shard("events", DAYS[1]).unlink()
    with pytest.raises(Unbalanced, match=rf"events_{DAYS[1]}.parquet: its content"):
        export(filled)
    assert export(filled).path.read_bytes() == whole

    export(filled, where="feedback.reward >= 1")
    flip_a_byte_unseen(paths.curated("feedback", "2024-05-17"))
    with pytest.raises(DamagedFile, match=r"feedback_2024-05-17.parquet: its content"):
        export(filled, where="feedback.reward > 0.5")
    assert export(filled, where="feedback.reward > 0.5").rows == 2


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"columns": "record_id,payloads"}, "columns='payloads': expected some of event_id"),
        ({"columns": ""}, "columns=''"),
        ({"limit": 0}, "limit=0: expected 1 row or more"),
        ({"limit": 10**20}, "limit=1"),
        ({"sample": "0%"}, "sample='0%': expected a number of rows"),
        ({"sample": "101%"}, "sample='101%'"),
        ({"sample": "some"}, "sample='some'"),
        ({"format": "csv"}, "format='csv': expected one of records, jsonl.zst, parquet"),
        ({"redaction": "all"}, "redaction='all': expected one of none, secrets, full"),
    ],
)
def test_what_cannot_be_had_is_refused(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidSelection, match=message):
        select("events", **wanted)  # type: ignore[arg-type]  # on purpose


def test_selections_count_among_the_range_files_that_are_kept(filled: RawStore) -> None:
    folder = filled.paths.range_export("events", START, END).parent
    for limit in range(1, 5):
        export_range(
            filled.paths, "events", START, END, keep_ranges=2, selection=select("events", limit=limit, format="parquet")
        )
    assert len(list(folder.glob("*.parquet"))) == len(list(folder.glob("*.manifest.json"))) == 2
