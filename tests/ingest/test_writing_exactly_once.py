"""The writer: each record once, whatever happens to the day files, and bad lines aside."""

import json
import os
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from ingest import Settings
from ingest.errors import DamagedFile
from ingest.pipeline.exactly_once import Writer
from ingest.pipeline.ledger import Commit, Ledger, open_ledger
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.spool import Batch
from ingest.records import KINDS, new_record_id
from tests.parts import csv_rows

EVENTS = KINDS["events"]
DAY = "2026-01-02"


@pytest.fixture
def day_file(settings: Settings) -> Path:
    return DataPaths(settings.data_dir).training("events", DAY)


def line(event_type: str, timestamp: str = f"{DAY}T03:04:05.000000Z", **fields: object) -> bytes:
    return msgspec.json.encode(
        {"record_id": new_record_id(), "timestamp": timestamp, "event_type": event_type} | fields
    )


def batch(*lines: bytes | None, first: int = 1, producer: str = "p") -> Batch:
    """None stands for a record that was lost in its spool."""
    return Batch(producer, first, len(lines), b"\n".join(line or b"" for line in lines))


def write(settings: Settings, *lines: bytes | None, first: int = 1, producer: str = "p") -> int:
    writer = Writer(settings, EVENTS)
    try:
        return writer.write([batch(*lines, first=first, producer=producer)])
    finally:
        writer.close()


def types(settings: Settings) -> list[object]:
    return [row["event_type"] for row in csv_rows(settings, "events")]


def test_a_batch_that_comes_twice_is_written_once(settings: Settings) -> None:
    first, second = line("a"), line("b")
    assert write(settings, first, second) == 2
    assert write(settings, first, second) == 0
    assert write(settings, second, line("c"), first=2) == 1
    assert types(settings) == ["a", "b", "c"]


def test_a_batch_behind_a_gap_is_left_with_its_source_until_the_gap_is_filled(settings: Settings) -> None:
    assert write(settings, line("a")) == 1
    assert write(settings, line("c"), first=3) == 0
    assert write(settings, line("b"), line("c"), first=2) == 2
    assert types(settings) == ["a", "b", "c"]


def test_producers_have_sequences_of_their_own(settings: Settings) -> None:
    write(settings, line("a"), producer="p")
    write(settings, line("b"), producer="q")
    assert types(settings) == ["a", "b"]


def test_records_of_many_days_go_to_their_days_in_one_batch(settings: Settings) -> None:
    days = [f"2026-01-{day:02d}" for day in range(1, 29)]
    write(settings, *[line(day, f"{day}T00:00:00.000000Z") for day in [*days, *reversed(days)]])
    for day in days:
        rows = DataPaths(settings.data_dir).training("events", day).read_text().splitlines()
        assert len(rows) == 3
    with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
        assert list(ledger.files()) == days


def test_a_batch_of_more_days_than_files_may_be_open_is_written_and_so_is_the_next_one(settings: Settings) -> None:
    days = [(date(2024, 1, 1) + timedelta(days=n)).isoformat() for n in range(700)]
    writer = Writer(settings, EVENTS)
    before = os.dup(0)
    for turn in range(2):
        writer.write([batch(*(line(day, f"{day}T00:00:00.000000Z") for day in days), first=1 + 700 * turn)])
    after = os.dup(0)
    writer.close()
    os.close(before)
    os.close(after)
    assert types(settings) == [day for day in days for _ in range(2)]
    assert after - before < 50, "descriptors are given out from the lowest: so many more are in use"


def test_one_day_that_was_made_longer_does_not_stop_the_others_when_a_writer_starts(
    settings: Settings, day_file: Path
) -> None:
    write(settings, line("a"))
    day_file.write_bytes(day_file.read_bytes().replace(b'"a"', b'"a longer one"'))
    write(settings, line("other", "2026-01-03T00:00:00.000000Z"), first=2)
    assert DataPaths(settings.data_dir).training("events", "2026-01-03").exists()


@pytest.mark.parametrize(
    "name", ["2024-W20-3T00:00:00.000000Z", "2026-01-02T99:00:00.000000Z", "2026-01-02 whatever it is Z"]
)
def test_a_foreign_producers_time_in_another_form_makes_no_file_and_no_row(settings: Settings, name: str) -> None:
    assert write(settings, line("x", name), line("good")) == 2
    assert types(settings) == ["good"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"not json", "JSON"),
        (b'{"event_type": "x"}', "record_id"),
        (line("x", "yesterday"), "timestamp='yesterday'"),
        (line("x", "2026-13-45T00:00:00.000000Z"), "month"),
        (line("x", agent_id=5), "agent_id"),
        (
            line("x", payload="\ud800".encode("utf-8", "surrogatepass").decode("latin-1")).replace(b"\xc3", b"\xff"),
            "utf-8",
        ),
        (b'{"record_id":"r","timestamp":"2026-01-02T03:04:05.000000Z","event_type":"x","payload":' + b"[" * 2000, ""),
        (None, "lost"),
    ],
    ids=["no JSON", "no id", "no time", "no such month", "no text", "no UTF-8", "too deep", "a tombstone"],
)
def test_a_bad_line_goes_to_quarantine_with_its_reason_and_the_good_ones_are_written(
    settings: Settings, bad: bytes | None, reason: str
) -> None:
    assert write(settings, line("before"), bad, line("after")) == 3
    assert types(settings) == ["before", "after"]
    with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
        (reject,) = ledger.rejects(datetime.now(UTC).date().isoformat())
        assert reject.line == (bad or b"")
        assert reason in reject.reason
        assert reject.origin == "producer p seq 2"
        assert sum(ledger.counts().values()) == 1
        assert ledger.marks() == {"p": 3}


def test_rows_that_were_appended_and_not_committed_are_cut_off(settings: Settings, day_file: Path) -> None:
    write(settings, line("a"))
    writer = Writer(settings, EVENTS)
    committed = day_file.read_bytes()
    writer.files.append({DAY: [b'"torn row']}, {DAY: 1})  # the process dies before the commit
    assert day_file.read_bytes() != committed
    writer.close()
    write(settings, line("b"), first=2)
    assert types(settings) == ["a", "b"]
    with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
        assert ledger.counts() == {}, "nobody else wrote there"


def test_a_first_batch_that_was_not_committed_leaves_nothing(settings: Settings, day_file: Path) -> None:
    writer = Writer(settings, EVENTS)
    writer.files.append({DAY: [b'"a row"\n']}, {DAY: 1})
    writer.close()
    Writer(settings, EVENTS).close()
    assert not day_file.exists()
    write(settings, line("a"))
    assert types(settings) == ["a"]


@pytest.mark.parametrize("is_running", [True, False])
def test_rows_that_others_append_go_to_quarantine_and_ours_go_on(
    settings: Settings, day_file: Path, is_running: bool
) -> None:
    writer = Writer(settings, EVENTS)
    writer.write([batch(line("a"))])
    if not is_running:
        writer.close()
    with day_file.open("a") as file:
        file.write("a,strange,row\nand another\n")
    if not is_running:
        writer = Writer(settings, EVENTS)
    writer.write([batch(line("b"), first=2)])
    assert types(settings) == ["a", "b"]
    rejects = writer.ledger.rejects(DAY)
    assert [reject.line for reject in rejects] == [b"a,strange,row\n", b"and another\n"]
    assert rejects[0].origin.startswith(f"events_{DAY}.csv byte ")
    assert writer.ledger.counts() == {(DAY, "foreign"): 2}
    writer.close()


def test_a_file_shorter_than_committed_is_an_error_that_names_file_and_offset(
    settings: Settings, day_file: Path
) -> None:
    write(settings, line("a"), line("b"))
    size = day_file.stat().st_size
    os.truncate(day_file, size - 20)
    with pytest.raises(DamagedFile, match=rf"{DAY}.csv: ends at byte {size - 20}, but {size} bytes are committed"):
        write(settings, line("c"), first=3)
    assert day_file.stat().st_size == size - 20, "nothing is repaired by guessing"


def test_a_damaged_day_does_not_stop_records_of_other_days(settings: Settings, day_file: Path) -> None:
    write(settings, line("a"))
    os.truncate(day_file, 5)
    write(settings, line("other", "2026-01-03T00:00:00.000000Z"), first=2)
    assert DataPaths(settings.data_dir).training("events", "2026-01-03").exists()


def test_a_file_that_was_rewritten_longer_is_an_error(settings: Settings, day_file: Path) -> None:
    write(settings, line("a"))
    day_file.write_bytes(day_file.read_bytes().replace(b'"a"', b'"a longer one"'))
    with pytest.raises(DamagedFile, match="not the end of a row"):
        write(settings, line("b"), first=2)


def test_an_edit_of_the_same_length_gives_the_day_a_new_version_and_writing_goes_on(
    settings: Settings, day_file: Path
) -> None:
    writer = Writer(settings, EVENTS)
    writer.write([batch(line("a"))])
    before = writer.ledger.file(DAY)
    time.sleep(0.02)
    day_file.write_bytes(day_file.read_bytes().replace(b'"a"', b'"z"'))
    writer.write([batch(line("b"), first=2)])
    after = writer.ledger.file(DAY)
    writer.close()
    assert types(settings) == ["z", "b"]
    assert before is not None
    assert after is not None
    edited = msgspec.structs.replace(after, version="")
    assert (edited.rows, after.version != before.version) == (2, True)


def test_a_file_that_an_editor_replaced_is_written_to_and_not_its_ghost(settings: Settings, day_file: Path) -> None:
    writer = Writer(settings, EVENTS)
    writer.write([batch(line("a"))])
    copy = day_file.with_suffix(".bak")
    copy.write_bytes(day_file.read_bytes())
    copy.replace(day_file)
    writer.write([batch(line("b"), first=2)])
    writer.close()
    assert types(settings) == ["a", "b"]


def old_day_file(settings: Settings, kind: str, day: str, rows: str) -> Path:
    path = DataPaths(settings.data_dir).training(kind, day)
    path.parent.mkdir(parents=True)
    path.write_bytes((",".join(KINDS[kind].legacy_header) + "\r\n" + rows).encode())
    return path


OLD_EVENTS = (
    'evt-1-5,started,agent-1,,,cyrex,info,2025-03-04T05:06:07.800000,"{""a"": 1}"\r\n'
    'evt-1-5,said,agent-1,,,cyrex,info,2025-03-04T05:06:08,"{""text"": ""b\\nc""}"\r\n'
    'evt-2-5,"two\r\nlines",,,,cyrex,info,2025-03-05T00:00:00,not json\r\n'
    "evt-3-5,no time,,,,cyrex,info,,{}\r\n"
    "too,few\r\n"
)


def test_a_day_file_of_the_old_store_is_imported_row_by_row_and_moved_away(settings: Settings) -> None:
    path = old_day_file(settings, "events", "2025-03-04", OLD_EVENTS)
    writer = Writer(settings, EVENTS)
    assert writer.import_day_files() == 5
    assert writer.import_day_files() == 0
    writer.close()
    rows = csv_rows(settings, "events")
    assert [row["event_id"] for row in rows] == ["evt-1-5", "evt-1-5", "evt-2-5"]
    assert len({row["record_id"] for row in rows}) == 3
    assert rows[0]["timestamp"] == "2025-03-04T05:06:07.800000Z"
    assert [row.get("payload") for row in rows] == [{"a": 1}, {"text": "b\nc"}, "not json"]
    assert rows[2]["event_type"] == "two\r\nlines"
    assert len(path.read_text().splitlines()) == 3, "the day's own file, written anew"
    (moved,) = (settings.data_dir / "training/imported").iterdir()
    assert moved.read_bytes().endswith(OLD_EVENTS.encode())
    with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
        assert len(ledger.rejects(datetime.now(UTC).date().isoformat())) == 2


def test_a_torn_row_in_the_middle_costs_that_row_alone_and_is_kept_as_it_stood(settings: Settings) -> None:
    torn = 'evt-2-5,torn,a,,,cyrex,info,2025-03-05T00:00:00,"{""a"": \r\n'
    good = "".join(f'evt-{n}-5,good,a,,,cyrex,info,2025-03-05T00:00:{n:02d},"{{""n"": {n}}}"\r\n' for n in range(30))
    old_day_file(settings, "events", "2025-03-04", OLD_EVENTS[: OLD_EVENTS.index("evt-3")] + torn + good)
    writer = Writer(settings, EVENTS)
    writer.import_day_files()
    writer.close()
    assert types(settings).count("good") == 30
    with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
        (reject,) = ledger.rejects(datetime.now(UTC).date().isoformat())
    assert reject.line == torn.encode()


def test_numbers_and_documents_of_the_old_store_that_json_does_not_know_become_null(settings: Settings) -> None:
    row = 't-1,a,i,search,high,done,1,nan,2025-03-04T05:06:07,"{""x"": NaN, ""y"": [Infinity, 1]}",,\r\n'
    old_day_file(settings, "tasks", "2025-03-04", row)
    writer = Writer(settings, KINDS["tasks"])
    assert writer.import_day_files() == 1
    writer.close()
    (task,) = csv_rows(settings, "tasks")
    assert "execution_time_ms" not in task
    assert task["input_data"] == {"x": None, "y": [None, 1]}


def test_an_import_that_was_cut_off_goes_on_and_the_same_file_given_again_adds_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.pipeline.exactly_once.MAX_RECORDS", 2)
    path = old_day_file(settings, "events", "2025-03-04", OLD_EVENTS)
    content = path.read_bytes()
    writer = Writer(settings, EVENTS)
    real_commit, calls = writer.ledger.commit, []

    def commit_once(change: object) -> None:
        calls.append(change)
        if len(calls) > 1:
            raise OSError("the disk went away")
        real_commit(change)  # type: ignore[arg-type]

    monkeypatch.setattr(writer.ledger, "commit", commit_once)
    with pytest.raises(OSError, match="went away"):
        writer.import_day_files()
    writer.close()
    writer = Writer(settings, EVENTS)
    assert writer.import_day_files() == 3
    writer.close()
    assert len(csv_rows(settings, "events")) == 3
    days = DataPaths(settings.data_dir)
    days.training("events", "2025-03-09").write_bytes(content)
    writer = Writer(settings, EVENTS)
    assert writer.import_day_files() == 0
    writer.close()
    assert len(csv_rows(settings, "events")) == 3


def test_a_day_file_with_strange_columns_goes_to_quarantine_whole(settings: Settings) -> None:
    path = DataPaths(settings.data_dir).training("events", "2025-03-04")
    path.parent.mkdir(parents=True)
    path.write_text("colour,shape\nred,round\n")
    writer = Writer(settings, EVENTS)
    assert writer.import_day_files() == 0
    writer.write([batch(line("a"))])
    writer.close()
    assert types(settings) == ["a"]
    (kept,) = (settings.data_dir / "quarantine/events").iterdir()
    assert kept.read_text() == "colour,shape\nred,round\n"
    with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
        (reject,) = ledger.rejects(datetime.now(UTC).date().isoformat())
    assert "colour" in reject.reason


def test_day_files_whose_ledger_is_gone_are_taken_in_again_with_their_ids(settings: Settings) -> None:
    write(settings, line("a\nb", payload={"x": 'q"\\'}), line("c"))
    before = csv_rows(settings, "events")
    for path in (settings.data_dir / "state").iterdir():
        path.unlink()
    writer = Writer(settings, EVENTS)
    assert writer.import_day_files() == 2
    writer.close()
    assert csv_rows(settings, "events") == before


def test_keys_are_forgotten_after_their_days(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    keyed = json.loads(line("a")) | {"record_id": "00000000-0000-8000-8000-000000000000"}
    text = json.dumps(keyed).encode()
    write(settings, text)
    write(settings, text, first=2)
    assert types(settings) == ["a"]
    real_time = time.time
    monkeypatch.setattr("time.time", lambda: real_time() + timedelta(days=8).total_seconds())
    Ledger(DataPaths(settings.data_dir).ledger("events")).forget_keys(timedelta(days=7).total_seconds())
    write(settings, text, first=3)
    assert types(settings) == ["a", "a"], "curation removes what is left within a day"


def older(settings: Settings, day_file: Path) -> list[dict[str, object]]:
    """Make the day file one of a version that had no metadata column yet; gives its rows."""
    rows = csv_rows(settings, "events")
    lines = [text.removesuffix(",metadata").removesuffix(",") for text in day_file.read_text().splitlines()]
    day_file.write_text("\n".join(lines) + "\n")
    with open_ledger(DataPaths(settings.data_dir), "events") as ledger:
        file = ledger.file(DAY)
        assert file is not None
        status = day_file.stat()
        old = msgspec.structs.replace(file, size=status.st_size, version="older", mtime_ns=status.st_mtime_ns)
        ledger.commit(Commit(files={DAY: old}))
    return rows


def test_an_open_day_of_an_older_version_is_rewritten_once_with_the_new_column(
    settings: Settings, day_file: Path
) -> None:
    write(settings, line("a,b", payload={"x": 'q"\n'}), line("c"))
    before = older(settings, day_file)
    write(settings, line("d", metadata={"new": 1}), first=3)
    rows = csv_rows(settings, "events")
    assert rows[:2] == before
    assert rows[2]["metadata"] == {"new": 1}
    assert not list(day_file.parent.glob("*.csv.*"))


@pytest.mark.parametrize("moment", ["before the ledger", "before the rename"])
def test_killed_while_a_day_is_rewritten_it_is_rewritten_or_taken_over(
    settings: Settings, day_file: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(settings, line("a"))
    before = older(settings, day_file)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    writer = Writer(settings, EVENTS)
    with monkeypatch.context() as fault:
        if moment == "before the rename":
            fault.setattr("ingest.pipeline.dayfiles.put_rewritten_in_place", die)
        else:
            fault.setattr(writer.ledger, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            writer.write([batch(line("b"), first=2)])
    writer.close()
    assert list(day_file.parent.glob("*.csv.*"))
    write(settings, line("b"), first=2)
    rows = csv_rows(settings, "events")
    assert rows[:-1] == before
    assert rows[-1]["event_type"] == "b"
    assert not list(day_file.parent.glob("*.csv.*"))


def test_a_day_file_of_a_newer_version_is_not_touched(settings: Settings, day_file: Path) -> None:
    write(settings, line("a"))
    text = day_file.read_bytes().replace(b"event_id,", b"eventual,", 1)
    day_file.write_bytes(text)
    with pytest.raises(DamagedFile, match="a newer version wrote this file"):
        write(settings, line("b"), first=2)
    assert day_file.read_bytes() == text
