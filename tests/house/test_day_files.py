"""Where files lie, which day a record goes to, and how a file takes another's place."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import uuid
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import InvalidRange
from ingest.pipeline import partitions
from ingest.pipeline.partitions import (
    DataPaths,
    day_of,
    day_range,
    filing_day,
    make_folder,
    manifest_of,
    parse_day,
    replacing,
    today,
)
from ingest.records import new_record_id, timestamp_text

START = date(2024, 1, 1)
NOW = datetime(2024, 5, 15, 12, tzinfo=UTC)


def uuid7_of(moment: datetime) -> str:
    milliseconds = int(moment.timestamp() * 1000)
    return str(uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | 5))


INGESTED = uuid7_of(datetime(2024, 5, 14, 23, 59, 59, 999000, tzinfo=UTC))


@pytest.mark.parametrize(
    ("timestamp", "record_id", "filed"),
    [
        ("2024-05-10T23:59:59.999999Z", INGESTED, ("2024-05-10", False)),
        ("2024-01-01T00:00:00.000000Z", INGESTED, ("2024-01-01", False)),
        ("2023-12-31T23:59:59.999999Z", INGESTED, ("2024-05-14", True)),
        ("1970-01-01T00:00:00.000000Z", INGESTED, ("2024-05-14", True)),
        ("2024-05-16T12:00:00.000000Z", INGESTED, ("2024-05-16", False)),
        ("2024-05-16T12:00:00.000001Z", INGESTED, ("2024-05-14", True)),
        ("2199-12-31T00:00:00.000000Z", INGESTED, ("2024-05-14", True)),
        ("9999-12-31T23:59:59.999999Z", INGESTED, ("2024-05-14", True)),
        ("1970-01-01T00:00:00.000000Z", str(uuid.UUID(int=8 << 76)), ("2024-05-15", True)),
        ("1970-01-01T00:00:00.000000Z", "somebody else's id", ("2024-05-15", True)),
        ("1970-01-01T00:00:00.000000Z", "ffffffff-ffff-7fff-bfff-ffffffffffff", ("2024-05-15", True)),
        ("1970-01-01T00:00:00.000000Z", uuid7_of(NOW + timedelta(days=3)), ("2024-05-15", True)),
        ("1970-01-01T00:00:00.000000Z", uuid7_of(datetime(2020, 1, 1, tzinfo=UTC)), ("2024-01-01", True)),
    ],
)
def test_a_record_is_filed_under_its_own_day_or_else_under_its_ingest_day(
    timestamp: str, record_id: str, filed: tuple[str, bool]
) -> None:
    assert filing_day(timestamp, record_id, START, NOW) == filed


@given(st.datetimes(datetime(2024, 1, 1), datetime(2024, 5, 16, 11)))  # noqa: DTZ001 - hypothesis wants naive bounds
def test_any_moment_between_the_start_and_tomorrow_is_filed_under_its_utc_day(moment: datetime) -> None:
    assert filing_day(timestamp_text("timestamp", moment), INGESTED, START, NOW) == (
        moment.date().isoformat(),
        False,
    )


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        "2024-05-10",
        "2024-05-10T00:00:00Z",
        "2024-05-10T00:00:00.000000+00:00",
        "2024-05-10 00:00:00.000000Z",
        "2024-05-10T00:00:00,000000Z",
        "2024-W20-3T00:00:00.000000Z",
        "2024-02-30T00:00:00.000000Z",
        "2024-05-10T24:61:00.000000Z",
        "../../etc/passwdT00:00:000Z",
        "2024-05-10T00:00:00.000000Z\n",
        "٢٠٢٤-05-10T00:00:00.000000Z",
    ],
)
def test_a_foreign_timestamp_that_is_not_in_our_form_names_no_file(timestamp: str) -> None:
    with pytest.raises(ValueError):
        filing_day(timestamp, new_record_id(), START, NOW)


def test_a_range_holds_both_ends_and_a_leap_day() -> None:
    assert day_range("2024-02-28", "2024-03-01") == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert day_range("2024-02-28", "2024-02-28") == ["2024-02-28"]
    assert len(day_range("2023-01-01", "2023-12-31")) == 365


def test_swapped_dates_are_refused_with_the_cure() -> None:
    with pytest.raises(InvalidRange, match=r"start=2024-03-01 lies after end=2024-02-28: .*; swap the two"):
        day_range("2024-03-01", "2024-02-28")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2024",
        "2024-2-1",
        "20240201",
        "2024-W20-3",
        "2023-02-29",
        "2024-02-01T00",
        "yesterday",
        " 2024-02-01",
        None,
        5,
    ],
)
def test_what_is_no_date_is_refused_naming_the_option_and_the_value(text: object) -> None:
    with pytest.raises(InvalidRange) as caught:
        parse_day("end", text)  # type: ignore[arg-type]  # what callers without a type checker pass
    assert str(caught.value) == f"end={text!r}: expected a date as YYYY-MM-DD; pass one such as 2024-05-15"


def test_the_files_lie_where_the_contract_says(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    day = "2024-05-15"
    found = [
        paths.training("events", day),
        paths.latest_export("events"),
        paths.imported,
        paths.curated("events", day),
        paths.shard("events", day),
        paths.range_export("events", "2024-05-01", day),
        manifest_of(paths.range_export("events", "2024-05-01", day)),
        paths.quarantine("events", day),
        paths.ledger("events"),
        paths.lock("events"),
    ]
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "training/events/events_2024-05-15.csv",
        "training/events_training.jsonl",
        "training/imported",
        "curated/events/events_2024-05-15.parquet",
        "exports/events/days/events_2024-05-15.jsonl",
        "exports/events/ranges/events_training_2024-05-01_2024-05-15.jsonl",
        "exports/events/ranges/events_training_2024-05-01_2024-05-15.manifest.json",
        "quarantine/events/events_2024-05-15.jsonl",
        "state/events.sqlite",
        "state/events.lock",
    ]
    assert [day_of(paths.training(kind, day)) for kind in ("events", "tool_executions")] == [day, day]
    assert today() in {datetime.now(UTC).date(), (datetime.now(UTC) - timedelta(seconds=1)).date()}


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_and_files_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        target = tmp_path / "data" / "exports" / "events" / "days" / "events_2024-05-15.jsonl"
        with replacing(target) as out:
            out.write(b"{}\n")
    finally:
        os.umask(former)
    assert mode_of(target) == 0o600
    for folder in list(target.relative_to(tmp_path).parents)[:-1]:
        assert mode_of(tmp_path / folder) == 0o700


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    make_folder(shared / "data")
    make_folder(shared / "data")
    assert (mode_of(shared), mode_of(shared / "data")) == (0o755, 0o700)


def test_a_file_takes_anothers_place_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.jsonl"
    target.write_bytes(b"old")
    with replacing(target) as out:
        out.write(b"new")
        out.seek(0)
        assert out.read() == b"new"
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert names_in(tmp_path) == ["a.jsonl"]


def write_half(target: Path) -> None:
    with replacing(target) as out:
        out.write(b"half")
        raise KeyboardInterrupt


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a.jsonl"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_half(target)
    assert target.read_bytes() == b"old"
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        pass
    assert names_in(tmp_path) == ["a.jsonl"]
    assert not list(tmp_path.parent.glob(".*.tmp"))


def test_two_writers_of_one_file_dont_meet(tmp_path: Path) -> None:
    target = tmp_path / "a.jsonl"
    with replacing(target) as first:
        with replacing(target) as second:
            second.write(b"second")
        first.write(b"first")
    assert target.read_bytes() == b"first"
    assert names_in(tmp_path) == ["a.jsonl"]


def test_a_large_file_goes_to_the_disk_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "_UNSYNCED_BYTES", 1000)
    synced, sync = list[tuple[str, int]](), os.fsync

    def noting(descriptor: int) -> None:
        synced.append((threading.current_thread().name, os.fstat(descriptor).st_size))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    with replacing(tmp_path / "a.jsonl") as out:
        for _ in range(4):
            out.write(b"x" * 20_000)
            wait_for_thread("sync-behind")
        assert synced == [("sync-behind", 20_000 * written) for written in range(1, 5)]
    assert (tmp_path / "a.jsonl").read_bytes() == b"x" * 80_000
    assert synced[4] == ("MainThread", 80_000)


def test_a_disk_that_fails_while_a_file_is_written_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells it once: by the last sync it has forgotten it."""
    (tmp_path / "a.jsonl").write_bytes(b"old")
    monkeypatch.setattr(partitions, "_UNSYNCED_BYTES", 1000)
    sync = os.fsync

    def failing_behind(descriptor: int) -> None:
        if threading.current_thread().name == "sync-behind":
            raise OSError(errno.EIO, "a bad sector")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing_behind)
    with pytest.raises(OSError, match="a bad sector"):
        write_large(tmp_path / "a.jsonl")

    assert (tmp_path / "a.jsonl").read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.jsonl"]


def write_large(target: Path) -> None:
    with replacing(target) as out:
        out.write(b"x" * 20_000)
        wait_for_thread("sync-behind")
        out.write(b"y")


def wait_for_thread(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join()


KILLED_WHILE_WRITING = """
import sys, time
from pathlib import Path
from ingest.pipeline.partitions import replacing
with replacing(Path(sys.argv[1])) as out:
    out.write(b"half" * 100_000)
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_behind_goes_with_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "[a]*.jsonl"
    target.write_bytes(b"old")
    with subprocess.Popen([sys.executable, "-c", KILLED_WHILE_WRITING, str(target)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with replacing(target) as out:
            out.write(b"while it lives")
        assert len(names_in(tmp_path)) == 2
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(names_in(tmp_path)) == 2
    assert target.read_bytes() == b"while it lives"
    with replacing(target) as out:
        out.write(b"new")
    assert names_in(tmp_path) == [target.name]
    assert target.read_bytes() == b"new"
