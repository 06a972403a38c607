"""Rows that a call makes: the same bytes as those that the writer makes of JSON, and copied. Segments used again."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from ingest import Settings, TrainingDataStore
from ingest.pipeline import spool, synapse
from ingest.pipeline.accounting import account
from ingest.pipeline.exactly_once import Writer
from ingest.pipeline.ledger import open_ledger
from ingest.pipeline.partitions import DataPaths, today
from ingest.pipeline.spool import Batch, Spool, SpooledProducer
from ingest.records import KINDS, DayNumbers, Kind, new_record_id
from tests.parts import csv_rows, wait_until

EVENTS = KINDS["events"]
DAY, TIME = "2026-01-02", "2026-01-02T03:04:05.000000Z"
PAYLOAD = EVENTS.fields.index("payload")

texts = st.text() | st.sampled_from(["plain", 'a "word"', "a\\b", "a\nb", "a\rb", "", ",", "null", "ü", "\0", "\ud800"])
raws = st.sampled_from([b"null", b" null", b"null\t", b' {"a": 1} ', b'{"a": \r1}', b"[\n1]"]).map(msgspec.Raw)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | texts | raws,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
VALUES: dict[str, st.SearchStrategy[object]] = {
    "id": texts,
    "text": texts,
    "timestamp": st.just(TIME),
    "integer": st.integers(-(2**63) - 1, 2**63),
    "number": st.floats() | st.integers(-(2**70), 2**70),
    "json": documents,
}


def fields_of(kind: Kind) -> st.SearchStrategy[tuple[object, ...]]:
    """Values of all fields, of their columns' types or null."""
    return st.tuples(*(VALUES[kind.types[name]] | st.none() for name in kind.fields))


def row_of_json(kind: Kind, values: tuple[object, ...]) -> bytes:
    """The row that the writer makes of a record's JSON."""
    record = kind.plain_record("an id", TIME, values)
    assert record is not None
    line = msgspec.json.encode(record)
    return kind.csv_rows([kind.decoder.decode(line)], escaped=True)[0].removesuffix("\n").encode()


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
@examples(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_row_that_a_call_makes_is_the_one_that_the_writer_makes_of_its_json(kind: Kind, data: st.DataObject) -> None:
    values = data.draw(fields_of(kind))
    try:
        row = kind.plain_row("an id", TIME, values)
    except UnicodeEncodeError:
        return  # a lone surrogate: refused by both
    if row is not None:
        assert row == row_of_json(kind, values)
        assert b"\n" not in row


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_plain_values_make_a_row_and_what_needs_care_none(kind: Kind) -> None:
    plain = tuple("plain" if kind.types[name] in {"id", "text", "timestamp"} else 1 for name in kind.fields)
    chosen = tuple(kind.choices.get(name, (value,))[0] for name, value in zip(kind.fields, plain, strict=True))
    assert kind.plain_row("an id", TIME, chosen) == row_of_json(kind, chosen)
    for place, name in enumerate(kind.fields):
        if kind.types[name] in {"id", "text"}:
            for text in ('"', "\\", "\n", "\r", 1):
                assert kind.plain_row("an id", TIME, (*chosen[:place], text, *chosen[place + 1 :])) is None
        elif kind.types[name] == "json":
            for document in (msgspec.Raw(b" null"), [msgspec.Raw(b"[\n]")]):
                assert kind.plain_row("an id", TIME, (*chosen[:place], document, *chosen[place + 1 :])) is None


def test_more_combinations_of_texts_than_are_kept_come_out_right(monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest import plain_rows

    monkeypatch.setattr(plain_rows, "_MOST_KNOWN", 3)
    plain_row = plain_rows.compile_plain_row(EVENTS)
    for name in "abcdefabc":
        values = (name, *(None,) * (len(EVENTS.fields) - 1))
        assert plain_row("an id", TIME, values) == row_of_json(EVENTS, values)


def nested(levels: int) -> object:
    document: object = None
    for _ in range(levels):
        document = [document]
    return document


class Colour(StrEnum):
    RED = "red"


def test_rows_and_what_needed_care_come_out_together_in_their_order(
    settings: Settings, store: TrainingDataStore
) -> None:
    calls: list[dict[str, Any]] = [
        {"event_type": "plain"},
        {"event_type": 'with "quotes" and\nlines', "payload": {"a": '"'}},
        {"event_type": "plain", "payload": {"text": "line\nbreak", "deep": [None, {"x": '"'}]}},
        {"event_type": "keyed", "idempotency_key": "k"},
        {"event_type": "keyed", "idempotency_key": "k"},
        {"event_type": "old", "timestamp": "2025-12-31T00:00:00Z"},
        {"event_type": "lone \ud800 surrogate"},
        {"event_type": Colour.RED},
        {"event_type": "raw", "payload": msgspec.Raw(b'{"a":\n1}')},
        {"event_type": "deep", "payload": nested(950)},
        {"event_type": "plain", "payload": {"last": 1}},
    ]
    for call in calls:
        assert store.sync.store_agent_event(**call)
    store.sync.flush()
    rows = csv_rows(settings, "events")
    kept = [row["event_type"] for row in rows]
    plain = ["plain"] * 3 + ["keyed", "old", "red", "raw", "deep"]
    assert sorted(map(str, kept)) == sorted([*plain, 'with "quotes" and\nlines', "lone \\ud800 surrogate"])
    assert [row["payload"] for row in rows if row["event_type"] == "plain" and "payload" in row] == [
        {"text": "line\nbreak", "deep": [None, {"x": '"'}]},
        {"last": 1},
    ]
    counted = account(settings, "events")
    assert (counted.rows, counted.duplicates, counted.balanced) == (10, 1, True)


def test_text_of_the_callers_own_that_is_no_json_goes_to_quarantine_and_raises_nothing(
    settings: Settings, store: TrainingDataStore
) -> None:
    broken = [b"nonsense", b"", b"[1,", b"1,2", b"\0", b'{"a":"\\ud800"}', b'"\xff"']
    for raw in map(msgspec.Raw, broken):
        assert store.sync.store_agent_event("broken", payload=raw)
        assert store.sync.store_agent_event("broken", payload={"k": raw})
    assert store.sync.store_agent_event("whole", payload={"k": msgspec.Raw(b"[1]")})
    store.sync.flush()
    assert [row["event_type"] for row in csv_rows(settings, "events")] == ["whole"]
    assert account(settings, "events").quarantined == 2 * len(broken)


def batch_of(lines: list[bytes], days: list[int], header: bytes = EVENTS.header) -> Batch:
    return Batch("p", 1, len(lines), b"\n".join(lines), days, header)


def row(event_type: str, moment: str = TIME) -> bytes:
    values = (event_type, *(None,) * (len(EVENTS.fields) - 1))
    made = EVENTS.plain_row(new_record_id(), moment, values)
    assert made is not None
    return made


def write(settings: Settings, batch: Batch) -> None:
    writer = Writer(settings, EVENTS)
    try:
        writer.write([batch])
    finally:
        writer.close()


def days_of(settings: Settings) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {}
    for path in sorted((settings.data_dir / "training" / "events").glob("*.csv")):
        lines = path.read_text().removesuffix("\n").split("\n")[1:]
        found[path.stem[-10:]] = [EVENTS.read_row(line)["event_type"] for line in lines]
    return found


def test_rows_of_many_days_are_filed_under_theirs(settings: Settings) -> None:
    numbers = DayNumbers()
    moments = ["2026-01-02T00:00:00.000000Z", "2026-01-01T23:59:59.999999Z", "2026-01-02T03:00:00.000000Z"]
    rows = [row(f"row {n}", moment) for n, moment in enumerate(moments)]
    write(settings, batch_of(rows, [numbers[moment[:10]] for moment in moments]))
    assert days_of(settings) == {"2026-01-01": ["row 1"], "2026-01-02": ["row 0", "row 2"]}


def test_rows_of_a_clock_that_is_wrong_are_filed_under_their_ingest_day_and_counted(settings: Settings) -> None:
    moments = ["1999-01-02T00:00:00.000000Z", f"{datetime.now(UTC).date() + timedelta(days=9)}T00:00:00.000000Z"]
    rows = [row(f"row {n}", moment) for n, moment in enumerate(moments)]
    write(settings, batch_of(rows, [DayNumbers()[moment[:10]] for moment in moments]))
    assert days_of(settings) == {datetime.now(UTC).date().isoformat(): ["row 0", "row 1"]}
    assert account(settings, "events").clock == 2


def test_rows_of_an_older_versions_columns_get_those_of_today(settings: Settings) -> None:
    names = EVENTS.header.decode().rstrip("\n").split(",")
    cells = row("from then").decode().split(",")
    older = ",".join(cells[:-2]).encode()
    write(settings, batch_of([older, older], [DayNumbers()[DAY]] * 2, (",".join(names[:-2]) + "\n").encode()))
    assert days_of(settings) == {DAY: ["from then", "from then"]}


def test_a_file_that_the_former_version_had_widened_is_put_in_place_and_a_strangers_copy_stays(
    settings: Settings,
) -> None:
    write(settings, batch_of([row("a")], [DayNumbers()[DAY]]))
    path = DataPaths(settings.data_dir).training("events", DAY)
    widened, copy = path.with_suffix(".csv.widened"), path.with_suffix(".csv.bak")
    whole = path.read_bytes()
    path.rename(widened)
    path.write_bytes(whole[:-40])
    copy.write_bytes(b"a copy")
    path.with_suffix(".csv.erasing").touch()
    write(settings, batch_of([row("b")], [0]))
    assert path.read_bytes() == whole
    assert sorted(found.name for found in path.parent.iterdir()) == [path.name, copy.name]


def test_a_newer_versions_rows_go_to_quarantine_rather_than_without_a_column(settings: Settings) -> None:
    newer = EVENTS.header.replace(b"\n", b",colour\n")
    write(settings, batch_of([row("a") + b',"red"', row("b") + b","], [DayNumbers()[DAY]] * 2, newer))
    assert days_of(settings) == {}
    with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
        rejects = ledger.rejects(today().isoformat())
    assert [reject.origin for reject in rejects] == ["producer p seq 1", "producer p seq 2"]
    assert rejects[0].line.endswith(b',"red"')
    assert "colour" in rejects[0].reason
    assert account(settings, "events").quarantined == 2


def test_a_row_that_cannot_be_read_costs_no_other_one(settings: Settings) -> None:
    """Its day needs a closer look, or it goes to Synapse: documents may hold numbers that no decoder takes."""
    values = ("huge", *(None,) * (PAYLOAD - 1), {"n": msgspec.Raw(b"1e999")}, None)
    huge = EVENTS.plain_row(new_record_id(), "1999-01-02T00:00:00.000000Z", values)
    assert huge is not None
    lines, days = [huge, b"no row", row("a")], [*[DayNumbers()["1999-01-02"]] * 2, DayNumbers()[DAY]]
    write(settings, batch_of(lines, days))
    paths = DataPaths(settings.data_dir)
    assert b'"a"' in paths.training("events", DAY).read_bytes()
    assert huge in paths.training("events", today().isoformat()).read_bytes()
    assert account(settings, "events").quarantined == 1
    shipped = synapse._as_json(batch_of(lines, days), EVENTS).lines
    assert shipped[:2] == lines[:2], "for the writer to reject"
    assert msgspec.json.decode(shipped[2])["event_type"] == "a"


def test_a_row_that_was_lost_in_the_spool_goes_to_quarantine_and_the_others_are_kept(settings: Settings) -> None:
    producer = Spool(settings, "events")
    for name in "abc":
        assert producer.append(row(name), day=DayNumbers()[DAY])
    producer.close()
    segment = next(producer.folder.glob("*.seg"))
    segment.write_bytes(segment.read_bytes().replace(b'"b"', b'"X"'))
    batch = SpooledProducer(producer.folder, 0).read()
    assert batch is not None
    write(settings, batch)
    assert days_of(settings) == {DAY: ["a", "c"]}
    assert account(settings, "events").quarantined == 1


def test_a_batch_of_which_the_mark_covers_a_part_gives_the_other_one(settings: Settings) -> None:
    numbers = DayNumbers()
    rows = [row("a"), row("b", "2026-01-01T00:00:00.000000Z"), row("c")]
    days = [numbers[DAY], numbers["2026-01-01"], numbers[DAY]]
    write(settings, batch_of(rows[:1], days[:1]))
    write(settings, batch_of(rows, days))
    assert days_of(settings) == {"2026-01-01": ["b"], DAY: ["a", "c"]}


def test_rows_that_a_process_without_redis_left_travel_as_json() -> None:
    values = tuple(None if name == "severity" else "x" for name in EVENTS.fields[:PAYLOAD])
    line = EVENTS.plain_row("an id", TIME, (*values, {"a": ['"', "ü\n"]}, None))
    assert line is not None
    shipped = synapse._as_json(batch_of([line, b'{"is":"json"}'], [DayNumbers()[DAY], 0]), EVENTS)
    first, second = shipped.lines
    assert EVENTS.csv_rows([EVENTS.decoder.decode(first)], escaped=True) == [line.decode() + "\n"]
    assert "event_id" not in msgspec.json.decode(first)
    assert second == b'{"is":"json"}'
    assert not any(shipped.days)


def test_with_redis_records_are_spooled_as_json(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", redis_url="redis://127.0.0.1:1/0")
    store = TrainingDataStore(settings)
    store.sync.store_agent_event("shipped")
    (segment,) = settings.spool.glob("events/*/*.seg")
    assert b'"event_type":"shipped"' in segment.read_bytes()
    store.sync.close()


def test_an_exception_that_a_signal_handler_raises_while_a_row_is_made_reaches_the_caller(
    store: TrainingDataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(Exception):
        pass

    interrupts = [Interrupt()]

    def interrupted(*_: object) -> None:
        if interrupts:
            raise interrupts.pop()

    monkeypatch.setitem(vars(EVENTS), "plain_row", interrupted)
    with pytest.raises(Interrupt):
        store.sync.store_agent_event("interrupted")


# ---------------------------------------------------------------------------------------------- segments used again ---


def reader_of(producer: Spool) -> SpooledProducer:
    return SpooledProducer(producer.folder, 0)


def read_all(reader: SpooledProducer) -> list[bytes]:
    lines = list[bytes]()
    while batch := reader.read(1000, 1 << 30):
        lines += batch.lines
    return lines


def fill(producer: Spool, segments: int, text: str = "line") -> list[bytes]:
    """Append lines of one length until there are so many more segments."""
    lines = list[bytes]()
    paths = {path.name for path in producer.folder.glob("*.seg")} if producer.folder.exists() else set[str]()
    while len({path.name for path in producer.folder.glob("*.seg")} - paths) < segments:
        lines.append(f"{text} {len(lines):06d}".encode() * 8)
        assert producer.append(lines[-1])
    return lines


@pytest.fixture
def small(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", spool_segment_bytes=4096, max_record_bytes=100_000)


def inodes(producer: Spool, pattern: str) -> set[int]:
    return {path.stat().st_ino for path in producer.folder.glob(pattern)}


def test_written_segments_are_used_again_and_hold_only_what_came_last(small: Settings) -> None:
    producer = Spool(small, "events")
    lines = fill(producer, 3)
    reader = reader_of(producer)
    assert read_all(reader) == lines
    reader.release(len(lines))
    spares = inodes(producer, "*.spare")
    assert len(spares) == 2
    more = fill(producer, 1, "more")
    assert inodes(producer, "*.seg") & spares
    assert read_all(reader) == more
    producer.close()
    assert read_all(SpooledProducer(producer.folder, len(lines))) == more


def test_no_more_than_two_spares_are_kept_and_an_ended_producer_leaves_none(small: Settings) -> None:
    producer = Spool(small, "events")
    lines = fill(producer, 8)
    reader = reader_of(producer)
    read_all(reader)
    reader.release(len(lines))
    assert len(inodes(producer, "*.spare")) == 2
    lines += fill(producer, 4)
    producer.close()
    ended = SpooledProducer(producer.folder, 0)
    ended.release(len(lines))
    assert not inodes(producer, "*.spare")


def test_spares_that_were_deleted_and_those_of_another_size_are_done_without(small: Settings) -> None:
    producer = Spool(small, "events")
    lines = fill(producer, 3)
    reader = reader_of(producer)
    assert read_all(reader) == lines
    reader.release(len(lines))
    for spare in producer.folder.glob("*.spare"):
        spare.unlink()
    large = [b"x" * 9000]
    assert producer.append(large[0])
    more = fill(producer, 2)
    assert read_all(reader) == large + more
    reader.release(len(lines) + 1 + len(more))
    more = fill(producer, 3, "more")
    assert read_all(reader) == more
    assert not [path for path in producer.folder.iterdir() if path.stat().st_size > 9000]
    producer.close()


def test_pages_of_a_former_use_that_a_power_cut_brought_back_are_tombstones(small: Settings) -> None:
    producer = Spool(small, "events")
    lines = fill(producer, 2)
    per_segment = int(max(path.stem for path in producer.folder.glob("*.seg"))) - 1
    first = min(producer.folder.glob("*.seg"))
    former = first.read_bytes()
    reader = reader_of(producer)
    read_all(reader)
    reader.release(per_segment)
    spares = inodes(producer, "*.spare")
    later = fill(producer, 1, "last")
    later += fill(producer, 1, "last")
    (used_again,) = [path for path in producer.folder.glob("*.seg") if path.stat().st_ino in spares]
    producer.close()
    begin = int(used_again.stem)
    now = used_again.read_bytes()
    whole = 10
    place = spool._place(len(now), begin, begin + whole - 1)
    end = spool._ENTRY.unpack_from(now, place)[0]
    used_again.write_bytes(now[:end] + former[end:place] + now[place:])
    found = read_all(SpooledProducer(producer.folder, begin - 1))
    assert found[:whole] == (lines + later)[begin - 1 : begin - 1 + whole]
    assert set(found[whole:per_segment]) == {b""}


def test_an_erasure_blanks_written_text_and_deletes_spares_and_leaves_alone_what_is_in_use_again(
    small: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = Spool(small, "events")
    lines = fill(producer, 3)
    reader = reader_of(producer)
    read_all(reader)
    reader.release(len(lines))
    spare = min(producer.folder.glob("*.spare"))
    blank = spool._blank
    more = list[bytes]()

    def late(path: Path, last: int) -> bool:
        if path == spare:
            more.extend(fill(producer, 1, "more"))  # takes it
        return blank(path, last)

    monkeypatch.setattr(spool, "_blank", late)
    spool.blank_written(small.spool, "events", {producer.producer: len(lines)})
    assert more
    assert read_all(reader) == more
    assert b"line" not in b"".join(path.read_bytes() for path in producer.folder.iterdir())
    producer.close()


def test_a_large_backlog_keeps_the_mapping_of_no_more_than_two_full_segments(small: Settings) -> None:
    producer = Spool(small, "events")
    fill(producer, 12)
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert sum(producer.producer in line for line in mapped.read_text().splitlines()) <= 4  # counters too
    producer.close()


def test_a_store_that_runs_beside_its_writer_loses_nothing_while_segments_come_and_go(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", spool_segment_bytes=64 << 10, max_record_bytes=8 << 10)
    store = TrainingDataStore(settings)
    ids = [store.sync.store_agent_event("went", payload={"n": n, "text": "x" * 200}) for n in range(5000)]
    wait_until(lambda: account(settings, "events").waiting == 0, "all is written", 30)
    ids += [store.sync.store_agent_event("went", payload={"n": n}) for n in range(5000)]
    store.sync.flush()
    assert sorted(str(row["record_id"]) for row in csv_rows(settings, "events")) == sorted(map(str, ids))
    assert list(settings.spool.glob("events/*/*.spare"))
    store.sync.close()
