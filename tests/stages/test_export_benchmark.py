"""The benchmark of exports measures what it says: every way writes every record, and what is missing is no figure."""

from pathlib import Path

import pytest

from benchmarks import export_peers as peers
from benchmarks import exports
from ingest.pipeline.partitions import DataPaths, day_range

DAYS = day_range("2024-05-01", "2024-05-02")


def test_every_peer_writes_every_record_of_the_same_files(tmp_path: Path) -> None:
    exports.make_days(tmp_path, DAYS, 40)
    files = [DataPaths(tmp_path).training("events", day) for day in DAYS]
    for write in (peers.duckdb_jsonl, peers.polars_jsonl, peers.pandas_jsonl, peers.pyarrow_jsonl):
        folder = tmp_path / write.__name__
        folder.mkdir()
        assert exports.peer(write, files, folder).rows == 80, write.__name__
    exports.change_day(tmp_path, DAYS[1])
    assert exports.ours(tmp_path, DAYS, "secrets").rows == 81


def test_a_way_that_was_not_measured_meets_no_goal_and_stands_in_the_table_with_its_reason() -> None:
    measured = {way: exports.Measured([], "no such package") for way in exports.WAYS}
    assert not any(goal.is_met for goal in exports.goals(measured))
    text = exports.page(measured, ["Processor: one"], size_mb=1, runs=1)
    assert text.count("not measured: no such package") == len(exports.WAYS)


def test_the_goals_are_met_by_figures_that_are_good_enough() -> None:
    seconds = dict.fromkeys(exports.WAYS, 1.0) | {exports.COLD: 1.9, exports.ONE_DAY: 0.1}
    measured = {way: exports.Measured([exports.Figures(took, 100, -1)]) for way, took in seconds.items()}
    assert all(goal.is_met for goal in exports.goals(measured))
    measured[exports.COLD] = exports.Measured([exports.Figures(2.1, 2000, -1)])
    assert [goal.is_met for goal in exports.goals(measured)] == pytest.approx([0, 1, 0, 1, 1, 1])
