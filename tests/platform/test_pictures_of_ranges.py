"""The last event of a range run shows the range in pictures, and nothing that a record says."""

import base64

import dagster as dg

from ingest import Settings, TrainingDataStore
from tests.platform.dagster_parts import days_from, metadata_of, run_days, store_day

DAYS = days_from("2024-05-01", 3)
PICTURES = ("rows_a_day", "missing_values", "record_lengths")


def test_a_range_is_shown_in_pictures_on_its_last_day_alone(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    for day, rows in zip(DAYS, (1, 4, 2), strict=True):
        store_day(store, day, rows=rows, payload={"said": "a secret word"}, session_id="s")
    assert run_days(instance, settings, DAYS, "curated/events", "exports/events").success
    last, first = (metadata_of(instance, "exports/events", day) for day in (DAYS[-1], DAYS[0]))
    assert [name for name in PICTURES if name in first] == []
    pictures = [str(last[name]) for name in PICTURES]
    words = [picture.partition("](")[0] for picture in pictures]
    assert words[0] == "![rows a day: 3 days, 7 rows, at most 4 a day"
    assert "trace_id 100.0%" in words[1]
    assert "session_id" not in words[1]
    assert words[2] == "![record lengths: 7 from 256 B"
    for picture in pictures:
        svg = base64.b64decode(picture.partition("base64,")[2].removesuffix(")")).decode()
        assert "secret" not in picture + svg
        assert "step" not in svg  # the event type of all of them


def test_a_range_without_a_record_is_shown_too(settings: Settings, instance: dg.DagsterInstance) -> None:
    assert run_days(instance, settings, DAYS, "curated/events", "exports/events").success
    assert "0 rows" in str(metadata_of(instance, "exports/events", DAYS[-1])["rows_a_day"])
