"""The benchmark of retraining fills a real storage, and both ways count in it what there is."""

from pathlib import Path

import pytest

from benchmarks import retraining
from benchmarks.retraining import DAYS, ROWS, WAYS, Counted, Figures, fill, last_days, leave_model, ours, page, plain
from ingest.pipeline.partitions import DataPaths

EVENTS = 2 * len(DAYS) + 10


def test_both_ways_count_distinct_days_and_the_page_has_a_line_for_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "TICKS", 2)
    fill(tmp_path, EVENTS)
    everything = Counted(len(DAYS), ROWS * len(DAYS))
    assert plain(tmp_path, 0).counted == everything
    assert plain(tmp_path, EVENTS).counted == Counted(0, 0)
    assert ours(tmp_path).counted == everything
    leave_model(DataPaths(tmp_path), last_days(EVENTS))
    assert ours(tmp_path).counted == Counted(0, 0)

    figures = Figures(1.0, 2.0, 3.0, 4.0, everything)
    text = page({way: [figures] for way in WAYS}, ["Processor: one"], events=EVENTS, runs=1)
    assert [way for way in WAYS if f"| {way} | 1.0 | 2.0 | 3.0 | 4.0 |" not in text] == []
