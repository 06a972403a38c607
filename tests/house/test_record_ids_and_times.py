"""Ids and times: what a record is called, and what its moment is written as."""

import hashlib
import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import InvalidRecord
from ingest.records import (
    ingest_time,
    is_keyed,
    keyed_record_id,
    new_record_id,
    now_text,
    timestamp_text,
)

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


def test_a_new_id_is_a_uuid7_that_holds_its_ingest_time() -> None:
    before = time.time()
    record_id = new_record_id()
    parsed = uuid.UUID(record_id)
    assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, record_id)
    ingested = ingest_time(record_id)
    assert ingested is not None
    assert before - 0.002 <= ingested.timestamp() <= time.time()
    assert not is_keyed(record_id)


def test_new_ids_are_unique_and_in_the_order_they_were_made() -> None:
    ids = [new_record_id() for _ in range(20_000)]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)


def test_a_keyed_id_is_a_uuid8_of_kind_and_key_and_never_changes() -> None:
    record_id = keyed_record_id("events", "order-7")
    digest = hashlib.sha256(b"events\0order-7").digest()
    parsed = uuid.UUID(record_id)
    assert (parsed.version, parsed.variant) == (8, uuid.RFC_4122)
    assert parsed.bytes[:6] == digest[:6]
    assert parsed.bytes[9:16] == digest[9:16]
    assert record_id == keyed_record_id("events", "order-7") == "1e216f12-1c0d-8325-9a38-edda85fc9d88"
    assert record_id != keyed_record_id("tasks", "order-7")
    assert is_keyed(record_id)
    assert ingest_time(record_id) is None


def test_a_key_may_be_any_text() -> None:
    assert is_keyed(keyed_record_id("events", "\ud800 😀 \0"))
    assert keyed_record_id("events", "") != keyed_record_id("events", "\0")


@pytest.mark.parametrize(
    "foreign",
    ["", "7", "not-an-id", "evt-123456789-7zz", "ffffffff-ffff-7fff-bfff-ffffffffffff", str(uuid.UUID(int=0))],
)
def test_somebody_elses_id_has_no_ingest_time(foreign: str) -> None:
    assert ingest_time(foreign) is None


def test_the_present_time_is_written_with_microseconds_and_follows_the_clock() -> None:
    for _ in range(1000):
        before = datetime.now(UTC)
        text = now_text()
        after = datetime.now(UTC)
        assert RFC_3339.fullmatch(text)
        assert before <= datetime.fromisoformat(text) <= after


def test_the_present_time_follows_a_clock_that_is_set_forward_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for second in (1_700_000_000, 1_700_000_001, 1_600_000_000, 0):
        monkeypatch.setattr("time.time_ns", lambda second=second: second * 1_000_000_000 + 250_000_999)
        assert datetime.fromisoformat(now_text()) == datetime.fromtimestamp(second + 0.25, UTC)


@given(st.datetimes(timezones=st.none() | st.timezones()))
def test_any_moment_is_written_in_utc_and_read_back_equal(moment: datetime) -> None:
    try:
        wanted = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        with pytest.raises(InvalidRecord):
            timestamp_text("timestamp", moment)
        return
    text = timestamp_text("timestamp", moment)
    assert RFC_3339.fullmatch(text)
    assert datetime.fromisoformat(text) == wanted
    assert timestamp_text("timestamp", text) == text


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


class NoOffset(tzinfo):
    """A zone that does not know its offset: such a datetime is naive (Python's datetime documentation)."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2024-05-15T08:30:00Z", "2024-05-15T08:30:00.000000Z"),
        ("2024-05-15t08:30:00z", "2024-05-15T08:30:00.000000Z"),
        ("2024-05-15 08:30:00.5+02:00", "2024-05-15T06:30:00.500000Z"),
        ("2024-05-15T08:30:00", "2024-05-15T08:30:00.000000Z"),
        ("2024-05-15T23:59:59-00:00", "2024-05-15T23:59:59.000000Z"),
        ("2024-05-15T01:00:00+05:45", "2024-05-14T19:15:00.000000Z"),
        ("2024-05-15T08:30:00.123456789Z", "2024-05-15T08:30:00.123456Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000000Z"),
        ("2016-12-31T23:59:60.25+01:00", "2016-12-31T23:00:00.250000Z"),
        ("2024-05-15", "2024-05-15T00:00:00.000000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        (datetime(1970, 1, 1), "1970-01-01T00:00:00.000000Z"),  # noqa: DTZ001 - naive is what it is about
        (datetime(2199, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-1))), "2200-01-01T00:59:00.000000Z"),
        (datetime(2024, 5, 15, 8, tzinfo=NoOffset()), "2024-05-15T08:00:00.000000Z"),
        (pd.Timestamp("2024-05-15T08:30:00.123456789+02:00"), "2024-05-15T06:30:00.123456Z"),
    ],
)
@pytest.mark.usefixtures("in_tokyo")
def test_a_moment_is_taken_in_any_usual_form_wherever_the_machine_stands(value: object, text: str) -> None:
    assert timestamp_text("timestamp", value) == text


@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "2024-13-01",
        "2024-05-15T25:00:00Z",
        "2024-05-15T08:30:61Z",
        "2024-05-15T08:30:00+24:00",
        "0001-01-01T00:00:00+05:00",
        "9999-12-31T23:59:60Z",
        "2024-05-15T08:30:00Z\n",
        "٢٠٢٤-05-15",
        "\ud800",
        "1715761800",
        1715761800,
        1715761800.5,
        True,
        None,
        date(2024, 5, 15),
        pd.NaT,
        b"2024-05-15T08:30:00Z",
    ],
)
def test_what_is_no_moment_is_refused_naming_field_value_and_expectation(value: object) -> None:
    with pytest.raises(InvalidRecord, match=r"completed_at=.* \(\w+\): expected a datetime or RFC 3339 text"):
        timestamp_text("completed_at", value)


def test_an_endless_text_in_place_of_a_moment_is_shown_in_part() -> None:
    with pytest.raises(InvalidRecord) as caught:
        timestamp_text("timestamp", "x" * 100_000)
    assert len(str(caught.value)) < 300
