"""Curation: a raw day becomes a typed, deduplicated, sorted Parquet file, and nothing of it goes missing."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.errors import DamagedFile, InvalidRange, UnknownKind
from ingest.pipeline.ledger import Reject
from ingest.pipeline.partitions import manifest_of
from ingest.records import KINDS, kind_named
from tds_dagster.curate import CuratedDay, curate_day, engine, raw, sql
from tds_dagster.curate.engine import open_engine
from tds_dagster.curate.raw import line_feeds, open_raw
from tds_dagster.curate.survey import find_fine_days, stamp_of
from tds_dagster.export import build_days
from tests.stages.conftest import DAY, RawStore

CHOSEN = {"target_kind", "source", "record_id"}
REQUIRED = {"feedback": {"target_kind": "task", "target_id": "t", "name": "n"}}


def table(built: CuratedDay) -> pa.Table:
    return pq.read_table(built.path)


def test_each_column_has_the_parquet_type_of_its_column_type(raw_store: RawStore, kind: str) -> None:
    raw_store.store(kind, raw_store.record(kind))

    schema = table(curate_day(raw_store.paths, kind, DAY)).schema

    types = {
        "id": pa.string(),
        "text": pa.string(),
        "json": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    assert [(field.name, field.type) for field in schema] == [(c.name, types[c.type]) for c in KINDS[kind].columns]


def test_rows_are_sorted_by_timestamp_and_then_by_record_id(raw_store: RawStore) -> None:
    times = [f"{DAY}T10:00:00.000002Z", f"{DAY}T10:00:00.000001Z", f"{DAY}T10:00:00.000001Z"]
    raw_store.store(
        "events",
        *(raw_store.record("events", record_id=i, timestamp=t) for i, t in zip(["a", "c", "b"], times, strict=True)),
    )

    built = curate_day(raw_store.paths, "events", DAY)

    assert table(built)["record_id"].to_pylist() == ["b", "c", "a"]


def test_of_rows_with_one_record_id_the_earliest_stays_and_of_equal_times_the_first_in_the_file(
    raw_store: RawStore,
) -> None:
    def row(record_id: str, second: int, agent_id: str) -> dict[str, object]:
        return raw_store.record(
            "events", record_id=record_id, timestamp=f"{DAY}T10:00:{second:02d}.000000Z", agent_id=agent_id
        )

    raw_store.store("events", row("x", 9, "late"), row("x", 1, "early"), row("y", 5, "first"), row("y", 5, "second"))

    built = curate_day(raw_store.paths, "events", DAY)

    assert table(built)["agent_id"].to_pylist() == ["early", "first"]
    assert (built.source_rows, built.rows, built.duplicates, built.quarantined) == (4, 2, 2, 0)


def test_a_document_stays_the_very_text_that_was_stored(raw_store: RawStore) -> None:
    document = '{"z": 1.50,\t"a":123456789012345678901234567890, "z":"\\u0000\\/😀","e":1E+2}'
    cell = document.replace('"', '""').encode()
    row = raw_store.row("events", raw_store.record("events", payload="HERE")).replace(b'"""HERE"""', b'"' + cell + b'"')
    raw_store.commit("events", [row])

    assert table(curate_day(raw_store.paths, "events", DAY))["payload"].to_pylist() == [document]


def test_null_and_the_empty_text_stay_apart(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events", agent_id="", session_id=None))

    rows = table(curate_day(raw_store.paths, "events", DAY)).to_pylist()

    assert (rows[0]["agent_id"], rows[0]["session_id"]) == ("", None)


def test_a_day_file_of_an_older_schema_gives_nulls_for_the_columns_it_lacks(raw_store: RawStore) -> None:
    header = b"timestamp,record_id,event_type\n"
    raw_store.commit("events", [f'"{DAY}T01:00:00.000000Z","r1","started"\n'.encode()], header=header)

    rows = table(curate_day(raw_store.paths, "events", DAY)).to_pylist()

    assert list(rows[0]) == [column.name for column in KINDS["events"].columns]
    assert {name: value for name, value in rows[0].items() if value is not None}.keys() == {
        "timestamp",
        "record_id",
        "event_type",
    }


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        (kind_named("events").header.replace(b"source", b"origin"), "origin"),
        (kind_named("events").header.replace(b"\n", b",metadata\n"), "a name twice, or no names"),
        (b"\xff\n", "a name twice, or no names"),
    ],
    ids=["a strange column", "a column twice", "not UTF-8"],
)
def test_a_header_that_is_none_is_a_damaged_file(raw_store: RawStore, header: bytes, shown: str) -> None:
    raw_store.commit("events", [], header=header)

    with pytest.raises(DamagedFile, match=shown):
        curate_day(raw_store.paths, "events", DAY)


def test_a_day_without_records_is_an_artifact_of_no_rows(raw_store: RawStore, kind: str) -> None:
    built = curate_day(raw_store.paths, kind, DAY)

    assert (built.rows, built.source_rows) == (0, 0)
    assert table(built).num_rows == 0
    assert not raw_store.paths.quarantine(kind, DAY).exists()


def test_an_unknown_kind_and_a_day_that_is_none_are_refused(raw_store: RawStore) -> None:
    with pytest.raises(UnknownKind, match="expected one of events"):
        curate_day(raw_store.paths, "event", DAY)
    with pytest.raises(InvalidRange, match="2024-02-30"):
        curate_day(raw_store.paths, "events", "2024-02-30")


def test_only_the_committed_prefix_is_read(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events", record_id="committed"))
    with raw_store.paths.training("events", DAY).open("ab") as file:
        file.write(raw_store.row("events", raw_store.record("events")) + b'"torn,')

    built = curate_day(raw_store.paths, "events", DAY)

    assert table(built)["record_id"].to_pylist() == ["committed"]
    assert not list(raw_store.paths.root.glob("state/scratch/*"))


def test_rows_that_the_writer_appends_during_the_read_do_not_count(
    raw_store: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw_store.store("events", raw_store.record("events", record_id="committed"))
    path = raw_store.paths.training("events", DAY)
    load = sql.load_source

    def appending(*args: Any) -> str:
        if b"torn" not in path.read_bytes():
            with path.open("ab") as file:
                file.write(raw_store.row("events", raw_store.record("events")) + b'"torn')
        return load(*args)

    monkeypatch.setattr(sql, "load_source", appending)
    built = curate_day(raw_store.paths, "events", DAY)

    assert table(built)["record_id"].to_pylist() == ["committed"]
    assert built.quarantined == 0


def test_a_file_shorter_than_committed_is_damaged_and_says_at_which_byte(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events"), raw_store.record("events"))
    path = raw_store.paths.training("events", DAY)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])

    with pytest.raises(DamagedFile, match=rf"{path.name}: ends at byte {len(whole) - 20}, but {len(whole)} bytes"):
        curate_day(raw_store.paths, "events", DAY)
    assert not raw_store.paths.curated("events", DAY).exists()


def test_an_edit_that_takes_the_last_line_feed_is_damage(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events", metadata="end"))
    raw_store.overwrite("events", b'"""end"""\n', b'"""end"""x')

    with pytest.raises(DamagedFile, match="is not the end of a row"):
        curate_day(raw_store.paths, "events", DAY)


def test_an_unchanged_day_is_reused_and_an_edit_of_the_same_length_is_not(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events", agent_id="agent-1"))
    first = curate_day(raw_store.paths, "events", DAY)
    before = first.path.stat().st_mtime_ns
    again = curate_day(raw_store.paths, "events", DAY)
    assert (first.reused, again.reused, again.path.stat().st_mtime_ns) == (False, True, before)

    raw_store.overwrite("events", b"agent-1", b"agent-2")
    edited = curate_day(raw_store.paths, "events", DAY)

    assert not edited.reused
    assert table(edited)["agent_id"].to_pylist() == ["agent-2"]


def test_a_day_is_built_again_when_its_code_its_file_or_its_quarantine_is_another(
    raw_store: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw_store.commit("events", [b"\n"])
    first = curate_day(raw_store.paths, "events", DAY)
    assert curate_day(raw_store.paths, "events", DAY).reused

    raw_store.paths.quarantine("events", DAY).unlink()
    assert not curate_day(raw_store.paths, "events", DAY).reused
    first.path.write_bytes(b"")
    assert not curate_day(raw_store.paths, "events", DAY).reused
    manifest_of(first.path).write_text("{}")
    assert not curate_day(raw_store.paths, "events", DAY).reused
    raw_store.commit("events", [], rejects=[Reject(DAY, "no JSON", "producer p seq 1", b"{")], quarantined=1)
    assert not curate_day(raw_store.paths, "events", DAY).reused
    monkeypatch.setattr("tds_dagster.curate.day.code_version", lambda: "another")
    assert not curate_day(raw_store.paths, "events", DAY).reused


def test_the_manifest_has_the_hash_and_the_size_of_the_file(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events"))

    built = curate_day(raw_store.paths, "events", DAY)

    content = built.path.read_bytes()
    assert (built.bytes, built.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert str(raw_store.paths.root) not in manifest_of(built.path).read_text()


def test_the_bytes_do_not_depend_on_the_number_of_threads(raw_store: RawStore) -> None:
    record = raw_store.record("events", payload={"text": "x" * 600})
    rows = [raw_store.row("events", {**record, "record_id": f"{n * 7919 % 65_000:08d}"}) for n in range(65_000)]
    rows[60_000] = rows[60_000].replace(b'{""text""', b'{""text"x')
    raw_store.commit("events", rows)  # 4 row groups, and more than DuckDB's 32 MB of one CSV buffer
    assert raw_store.paths.training("events", DAY).stat().st_size > 32 << 20
    builds = []
    for threads in (1, 2, 4):
        with engine.open_engine(raw_store.paths) as threaded:
            threaded.connection.execute(f"SET threads = {threads}")
            builds.append(curate_day(raw_store.paths, "events", DAY, engine=threaded))
        manifest_of(builds[-1].path).unlink()
    assert len({built.sha256 for built in builds}) == 1
    assert [built.rows for built in builds] == [64_999] * 3
    assert f"events_{DAY}.csv line 60002 byte " in raw_store.paths.quarantine("events", DAY).read_text()
    assert pq.ParquetFile(builds[0].path).num_row_groups > 1


@pytest.mark.parametrize("size", [3 << 20, 40 << 20], ids=["3 MiB", "40 MiB"])
def test_a_cell_of_many_mebibytes_passes(raw_store: RawStore, size: int) -> None:
    text = "é\n" * (size // 3)
    raw_store.store(
        "events", raw_store.record("events", record_id="1", payload=text), raw_store.record("events", record_id="2")
    )

    built = curate_day(raw_store.paths, "events", DAY)

    assert (built.rows, built.quarantined) == (2, 0)
    assert len(table(built)["payload"][0].as_py()) == size // 3 * 3 + 2


def test_files_are_for_their_owner_alone(raw_store: RawStore) -> None:
    raw_store.commit("events", [b"\n"])
    curate_day(raw_store.paths, "events", DAY)

    modes = {path: path.stat().st_mode & 0o777 for path in raw_store.paths.root.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    strange = [path for path, mode in modes.items() if path.is_file() and mode != 0o600 and path.suffix != ".csv"]
    assert strange == []


def test_scratch_files_of_a_killed_process_are_removed(raw_store: RawStore) -> None:
    left = raw_store.paths.state / "scratch" / "left"
    left.mkdir(parents=True)
    (left / "curated.parquet").write_bytes(b"half")

    curate_day(raw_store.paths, "events", DAY)

    assert not left.exists()


def test_the_committed_size_is_taken_and_not_more(tmp_path: Path) -> None:
    file, scratch = tmp_path / "day.csv", tmp_path / "scratch"
    scratch.mkdir()
    file.write_bytes(b"header\nrow\n")
    assert raw.still_prefix(file, 11, scratch) == file
    assert raw.still_prefix(file, 7, scratch).read_bytes() == b"header\n"
    with pytest.raises(DamagedFile, match="ends at byte 11"):
        raw.still_prefix(file, 12, scratch)


def test_many_small_days_are_the_same_bytes_built_together_or_one_by_one(tmp_path: Path, kind: str) -> None:
    days = [f"2024-05-{day:02}" for day in range(1, 7)]
    model = RawStore(tmp_path)
    full = {name: "a" for name in KINDS[kind].types if KINDS[kind].types[name] in {"id", "text"} and name not in CHOSEN}
    rows = {}
    for number, day in enumerate(days):
        given = {"timestamp": f"{day}T08:00:00.000000Z", **(full if number % 2 else {}), **REQUIRED.get(kind, {})}
        rows[day] = [model.row(kind, model.record(kind, **given | {"record_id": f"{n}"})) for n in range(3)]
    rows[days[4]].append(rows[days[4]][0])
    together, alone = RawStore(tmp_path / "together"), RawStore(tmp_path / "alone")
    for store in (together, alone):
        for day in days:
            store.commit(kind, rows[day], day=day)

    with open_raw(together.paths, kind) as raw_days, open_engine(together.paths) as engine:
        assert sorted(find_fine_days(raw_days, days, engine)) == [day for day in days if day != days[4]]
    built = list(build_days(together.paths, kind, days, stages=("curated",)))

    expected = [curate_day(alone.paths, kind, day) for day in days]
    assert [curated.sha256 for _, curated, _, _ in built if curated is not None] == [each.sha256 for each in expected]


def test_a_file_that_is_no_csv_takes_the_haste_from_its_neighbours_and_nothing_else(raw_store: RawStore) -> None:
    days = [f"2024-05-{day:02}" for day in range(1, 4)]
    for day in days:
        raw_store.store("events", raw_store.record("events", timestamp=f"{day}T08:00:00.000000Z"), day=day)
    raw_store.commit("events", [b'"not a row\n'], day=days[1])

    built = list(build_days(raw_store.paths, "events", days, stages=("curated",)))

    assert [(each.rows, each.quarantined) for _, each, _, _ in built if each is not None] == [(1, 0), (1, 1), (1, 0)]


def test_of_small_days_those_are_fine_that_have_good_rows_alone(raw_store: RawStore) -> None:
    days = [f"2024-05-{day:02}" for day in range(1, 8)]

    def row(day: str, **fields: object) -> bytes:
        return raw_store.row("events", raw_store.record("events", timestamp=f"{day}T08:00:00.000000Z", **fields))

    same = row(days[2])
    doubtful = row(days[1], payload="x").replace(b'"""x"""', b'"[1,]"')
    for day, added in zip(days, [b"", doubtful, same, row(days[3], agent_id="a\nb"), b"", b"", b""], strict=True):
        raw_store.commit("events", [same if day == days[2] else row(day), *([added] if added else [])], day=day)
    raw_store.paths.training("events", days[4]).unlink()
    with raw_store.paths.training("events", days[5]).open("ab") as uncommitted:
        uncommitted.write(row(days[5]))

    with open_raw(raw_store.paths, "events") as raw_days, open_engine(raw_store.paths) as engine:
        assert find_fine_days(raw_days, days, engine).keys() == {days[0], days[6]}


def test_a_day_that_changed_after_it_was_looked_at_is_looked_at_again(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events"))
    stamp = stamp_of(raw_store.paths.training("events", DAY))
    raw_store.commit("events", [b"not a row\n"])

    built = curate_day(raw_store.paths, "events", DAY, fine=stamp)

    assert (built.rows, built.quarantined) == (1, 1)


def test_json_that_only_lenient_readers_take_is_found_wherever_it_stands(raw_store: RawStore) -> None:
    lenient = [
        "NaN",
        " -inf ",
        "[nan]",
        "[ +Infinity, 1]",
        "[1, nan]",
        '{"a":NaN}',
        '{"a" : -INF }',
        "[1,]",
        '{"a":1 , }',
    ]
    good = ['"a, nan, b"', '["x:nan,", "[inf]"]', '",]"', "[1]"]
    row = raw_store.row("events", raw_store.record("events", payload="x"))
    raw_store.commit(
        "events",
        [
            row.replace(b'"""x"""', b'"' + cell.replace('"', '""').encode() + b'"')
            for cell in [*lenient, *good]
        ],
    )  # fmt: skip

    built = curate_day(raw_store.paths, "events", DAY)

    assert (built.quarantined, built.rows + built.duplicates) == (len(lenient), len(good))


@pytest.mark.parametrize("lines", [0, 1, 3, 60_000])
def test_line_feeds_are_counted_in_small_and_in_large_texts(lines: int) -> None:
    text = b"a\x00\r\xe2\x80\xa8b\n" * lines + b"rest"
    assert line_feeds(text) == lines
