"""The accounting identity: every stored record is somewhere, and a lost one shows."""

import pytest

from ingest.errors import UnknownKind
from ingest.pipeline.ledger import Reject
from tds_dagster.curate import curate_day
from tds_dagster.curate.raw import open_raw
from tds_dagster.export import DayAccount, accounts, day_account, export_day, export_range, unbalanced_days
from tests.stages.conftest import DAY, RawStore


def figures(account: DayAccount) -> dict[str, int]:
    names = ("stored", "exported", "pending", "duplicates", "quarantined")
    return {name: getattr(account, name) for name in names if getattr(account, name)}


@pytest.fixture
def mixed(raw_store: RawStore) -> RawStore:
    """3 rows: a good one, its duplicate, a bad one; the writer dropped 4 for their key, rejected 1, found 1 foreign."""
    good = raw_store.row("events", raw_store.record("events"))
    rejects = [Reject(DAY, "no JSON", "producer p seq 1", b"{"), Reject(DAY, "appended", "events byte 9", b"hello\n")]
    raw_store.commit("events", [good, good, b"\n"], rejects=rejects, duplicates=4, quarantined=1, foreign=1)
    return raw_store


def test_before_anything_is_built_every_row_is_pending(mixed: RawStore) -> None:
    account = day_account(mixed.paths, "events", DAY)

    assert figures(account) == {"stored": 8, "pending": 4, "duplicates": 4}
    assert account.balanced


def test_a_curated_day_without_its_shard_is_pending_too(mixed: RawStore) -> None:
    curate_day(mixed.paths, "events", DAY)

    assert figures(day_account(mixed.paths, "events", DAY)) == {"stored": 8, "pending": 4, "duplicates": 4}


def test_after_the_export_every_record_has_its_place(mixed: RawStore) -> None:
    export_range(mixed.paths, "events", DAY, DAY)

    account = day_account(mixed.paths, "events", DAY)
    assert figures(account) == {"stored": 8, "exported": 1, "duplicates": 5, "quarantined": 2}
    assert account.balanced


def test_what_comes_later_is_pending(mixed: RawStore) -> None:
    export_range(mixed.paths, "events", DAY, DAY)
    rejects = [Reject(DAY, "no JSON", f"producer p seq {seq}", b"{") for seq in (2, 3)]
    late = [mixed.row("events", mixed.record("events"))] * 2
    mixed.commit("events", late, rejects=rejects, quarantined=1, foreign=1, duplicates=1)

    expected = {"stored": 12, "exported": 1, "pending": 3, "duplicates": 6, "quarantined": 2}
    assert figures(day_account(mixed.paths, "events", DAY)) == expected

    curate_day(mixed.paths, "events", DAY)
    account = day_account(mixed.paths, "events", DAY)
    assert figures(account) == expected
    assert account.balanced

    export_day(mixed.paths, "events", DAY)
    assert figures(day_account(mixed.paths, "events", DAY)) == {
        "stored": 12,
        "exported": 2,
        "duplicates": 7,
        "quarantined": 3,
    }


def test_an_edit_that_removes_rows_makes_the_day_pending_as_a_whole(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events", agent_id="a"), raw_store.record("events", payload="zz"))
    export_range(raw_store.paths, "events", DAY, DAY)
    content = raw_store.paths.training("events", DAY).read_bytes()
    first = content.splitlines(keepends=True)[1]
    raw_store.overwrite("events", first, first.replace(b"\n", b"x"))
    curate_day(raw_store.paths, "events", DAY)

    account = day_account(raw_store.paths, "events", DAY)

    assert figures(account) == {"stored": 1, "pending": 1}
    assert account.balanced


@pytest.mark.parametrize("loss", ["shard", "quarantine"])
def test_a_line_lost_from_a_file_shows(mixed: RawStore, loss: str) -> None:
    export_range(mixed.paths, "events", DAY, DAY)
    path = mixed.paths.shard("events", DAY) if loss == "shard" else mixed.paths.quarantine("events", DAY)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))

    assert not day_account(mixed.paths, "events", DAY).balanced
    assert unbalanced_days(mixed.paths, "events") == [DAY]
    assert unbalanced_days(mixed.paths, "events", ["2024-05-01"]) == []


def test_a_shard_without_any_stored_record_shows(mixed: RawStore) -> None:
    export_range(mixed.paths, "events", DAY, DAY)
    mixed.paths.ledger("events").unlink()

    assert unbalanced_days(mixed.paths, "events") == [DAY]


def test_the_sum_is_over_all_days(mixed: RawStore) -> None:
    mixed.store("events", mixed.record("events"), day="2024-05-16")
    export_range(mixed.paths, "events", "2024-05-14", "2024-05-15")

    account = accounts(mixed.paths, "events")

    assert account.day == ""
    assert figures(account) == {"stored": 9, "exported": 1, "pending": 1, "duplicates": 5, "quarantined": 2}


def test_a_kind_without_records_is_balanced(raw_store: RawStore, kind: str) -> None:
    assert figures(accounts(raw_store.paths, kind)) == {}
    assert unbalanced_days(raw_store.paths, kind) == []


def test_an_unknown_kind_has_no_account(raw_store: RawStore) -> None:
    for ask in (accounts, unbalanced_days):
        with pytest.raises(UnknownKind):
            ask(raw_store.paths, "spans")


def test_what_is_committed_while_the_ledger_is_open_is_seen_when_it_is_asked_for(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events"))
    with open_raw(raw_store.paths, "events") as raw_days:
        for rows in (2, 3):
            raw_store.store("events", raw_store.record("events"))
            assert raw_days.day(DAY).rows == rows - 1
            raw_days.refresh()
            assert raw_days.day(DAY).rows == rows
