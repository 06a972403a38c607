"""The ledger: whole transactions, opened by many at once."""

import sqlite3
import threading
from pathlib import Path

import pytest

from ingest.pipeline.ledger import Commit, CommittedFile, Ledger, Reject


def test_many_that_open_a_new_ledger_at_once_all_get_it(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def open_it(path: Path, barrier: threading.Barrier) -> None:
        barrier.wait()
        try:
            ledger = Ledger(path)
            ledger.close()
        except BaseException as err:  # noqa: BLE001 - told to the test below
            failures.append(err)

    for round_ in range(120):
        barrier = threading.Barrier(4)
        path = tmp_path / str(round_) / "events.sqlite"
        threads = [threading.Thread(target=open_it, args=(path, barrier)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [file.name for file in path.parent.iterdir() if not file.name.startswith(path.name)] == []
    assert failures == []


def test_a_commit_that_fails_leaves_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "events.sqlite")
    good = Commit(files={"2026-01-01": CommittedFile(10, 1, "a", 5)}, marks={"p": 1})
    ledger.commit(good)
    bad = Commit(files={"2026-01-01": CommittedFile(20, 2, "b", 6)}, marks={"p": 2})
    bad.rejects.append(Reject("2026-01-01", "reason", "origin", None))  # type: ignore[arg-type]
    with pytest.raises(Exception, match="NOT NULL"):
        ledger.commit(bad)
    assert ledger.file("2026-01-01") == good.files["2026-01-01"]
    assert ledger.marks() == {"p": 1}
    ledger.close()


def test_a_mark_never_goes_back_and_counters_add_up(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "events.sqlite")
    for mark in (5, 3):
        change = Commit(marks={"p": mark})
        change.count("2026-01-01", "duplicates", 2)
        ledger.commit(change)
    assert ledger.marks() == {"p": 5}
    assert ledger.counts() == {("2026-01-01", "duplicates"): 4}
    ledger.close()


def test_a_ledger_of_an_earlier_version_gets_the_tables_that_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    ledger = Ledger(path)
    ledger.commit(Commit(marks={"p": 3}))
    ledger.close()
    old = sqlite3.connect(path)
    old.executescript("DROP TABLE groups; PRAGMA user_version = 0")
    old.close()
    ledger = Ledger(path)
    ledger.place_group("g", {"2026-01-02": 7})
    assert ledger.groups() == {"g": {"": 0, "2026-01-02": 7}}
    assert ledger.marks() == {"p": 3}
    ledger.close()
