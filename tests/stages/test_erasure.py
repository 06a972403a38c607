"""Erasing: nothing of the subject is left anywhere, every other row keeps its bytes, and the accounts add up."""

import asyncio
import errno
import json
import os
import shutil
import signal
import sqlite3
from contextlib import aclosing, closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from ingest import Settings, TrainingDataStore
from ingest.errors import DamagedFile, TrainingFailed, WriterBusy
from ingest.pipeline.accounting import account
from ingest.pipeline.erasure import Doomed, DoomedSets, Failpoint, erase_rows, holding_writers
from ingest.pipeline.exactly_once import Writer
from ingest.pipeline.failpoints import Step
from ingest.pipeline.ledger import CommittedFile, Ledger, open_ledger, put_rewritten_in_place, settle_edits
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import DataPaths, today
from ingest.pipeline.spool import Batch
from ingest.pipeline.subscription import first_unread
from ingest.pipeline.writer import drain
from ingest.records import KINDS, keyed_record_id
from tds_dagster.curate.day import curate_day
from tds_dagster.curate.raw import still_prefix
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.manifest import find_dataset, latest_version
from tds_dagster.datasets.recipe import read_recipe
from tds_dagster.erasure import Receipt, Selector, erase
from tds_dagster.erasure.journal import ErasedDataset, TaintedModel
from tds_dagster.export import accounts, export_range, select, unbalanced_days
from tds_dagster.training.champion import load_champion
from tds_dagster.training.contract import Figures
from tds_dagster.training.manifest import trained_versions
from tds_dagster.training.run import train_model
from tests.parts import csv_rows, run_python
from tests.stages.erasure_parts import (
    DAYS,
    KILLED,
    SUBJECT,
    end_state,
    erase_agent,
    export_all,
    files_with,
    import_a_record_id_of_two_days,
    rows_without,
    store_days,
)
from tests.training.training_parts import build, settings_of, store_sessions

STEPS = ("plan", "rewrite:2", "erase", "rename:2", "leftovers:3", "rebuild", "receipt")
IMPORTED_DAY, QUIET_DAY = "2024-05-18", "2024-05-20"  # of another store's file, and without the subject
_WIRE = b'{"record_id":"r%d","timestamp":"2024-05-15T08:30:00.000000Z","event_type":%s,"agent_id":"%s"}'
REJECTED = [_WIRE % (1, b"1", SUBJECT.encode()), _WIRE % (2, b"2", b"the-subject-2")]
STRANGERS = [b'"the-subject","a stranger"\n', b'"somebody","a stranger"\n']


class Case(NamedTuple):
    """A folder with everything in it, before and after an erasure of the subject."""

    before: Path
    settings: Settings
    receipt: Receipt
    told: list[tuple[str, list[ErasedDataset], list[TaintedModel]]]
    datasets: tuple[str, str, str]  # versions: of a plain recipe, of one that names the subject, and the latest
    imported: tuple[str, list[str]]  # header and rows of a day file of another store


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days, exported; tests take a copy."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("stored") / "data")
    store_days(settings)
    export_all(settings)
    return settings.data_dir


@pytest.fixture(scope="module")
def case(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    shutil.copytree(stored, folder / "data")
    settings = Settings(data_dir=folder / "data")
    imported = _import_day_file(settings)
    _put_into_quarantine(settings)
    recipe = read_recipe("event_prediction", {"redaction": "none", "allow_empty_splits": True})
    plain = build_dataset(settings, recipe).version
    named = build_dataset(settings, msgspec.structs.replace(recipe, exclude=(SUBJECT,))).version
    for where in (None, f"agent_id <> '{SUBJECT}'"):
        selection = select("tasks", where=where, columns="task_id,agent_id")
        export_range(DataPaths(settings.data_dir), "tasks", *DAYS, selection=selection)
    others = {
        build_dataset(settings, each).version: each for each in (recipe, msgspec.structs.replace(recipe, window=1))
    }
    latest = min(others)
    build_dataset(settings, others[latest])  # the first to be built again, and from now on the latest
    store = TrainingDataStore(settings)
    store.sync.store_workflow_data("w", timestamp=f"{QUIET_DAY}T08:00:00Z")
    store.sync.flush()
    store.sync.close()
    export_range(DataPaths(settings.data_dir), "workflows", QUIET_DAY, QUIET_DAY)  # the latest, without the subject
    _train_models(settings, {"m1": plain, "m2": "another"})
    _leave_things_behind(settings)
    shutil.copytree(settings.data_dir, folder / "before")
    told: list[tuple[str, list[ErasedDataset], list[TaintedModel]]] = []
    (receipt,), _ = erase(
        settings,
        Selector(agent_ids=(SUBJECT,)),
        observe=lambda *given: told.append(given),
        progress=lambda *_: None,
    )
    return Case(folder / "before", settings, receipt, told, (plain, named, latest), imported)


def _import_day_file(settings: Settings) -> tuple[str, list[str]]:
    day_file = DataPaths(settings.data_dir).training("events", IMPORTED_DAY)
    header = "event_id,event_type,agent_id,workflow_id,session_id,source,severity,timestamp,payload\n"
    rows = [
        f'{n},said,{agent},,,,info,{IMPORTED_DAY}T08:30:0{n},"{{""by"": ""{agent}""}}"\n'
        for n, agent in enumerate(["somebody", SUBJECT, "somebody", SUBJECT])
    ]
    day_file.write_text(header + "".join(rows))
    drain(settings, ["events"])
    return header, rows


def _put_into_quarantine(settings: Settings) -> None:
    paths = DataPaths(settings.data_dir)
    writer = Writer(settings, KINDS["events"])
    writer.write([Batch("another", 1, 2, b"\n".join(REJECTED))])
    writer.close()
    with paths.training("events", DAYS[0]).open("ab") as file:
        file.writelines(STRANGERS)
    Writer(settings, KINDS["events"]).close()  # sets them aside
    rejected = paths.quarantine("events", "").parent / "events_2024-05-15.abc.csv"
    rejected.parent.mkdir(parents=True, exist_ok=True)
    rejected.write_text('strange,columns\n1,"of the-subject,\nin two lines"\n2,of somebody\n')


def _train_models(settings: Settings, datasets: dict[str, str]) -> None:
    for model, dataset in datasets.items():
        manifest = settings.data_dir / "models" / "event_prediction" / model / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"dataset": dataset, "weights": "w"}))


def _leave_things_behind(settings: Settings) -> None:
    for name in (
        "exports/events/days/.events_2023-01-01.jsonl.0123.tmp",
        "training/.old_training.jsonl.link",
        "exports/events/ranges/events_training_2024-05-15_2024-05-15.jsonl",
        "state/scratch/tmpx/copy.csv",
        "datasets/event_prediction/.building-0123/train.jsonl",
    ):
        path = settings.data_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"record_id": "r", "agent": "{SUBJECT}"}}\n')


@pytest.fixture
def erased(case: Case, tmp_path: Path) -> Settings:
    """A copy of the folder after the erasure."""
    shutil.copytree(case.settings.data_dir, tmp_path / "data")
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def full(stored: Path, tmp_path: Path) -> Settings:
    """A copy of two days, exported."""
    shutil.copytree(stored, tmp_path / "data")
    return Settings(data_dir=tmp_path / "data")


def test_nothing_of_an_agent_is_left_in_any_file(case: Case) -> None:
    ids = [keyed_record_id("events", f"{day}-{n}") for day in DAYS for n in (1, 4)]
    others = (b"the-subject-2", b"another")
    assert len(files_with(case.before, SUBJECT, *ids)) > 30
    assert files_with(case.settings.data_dir, SUBJECT, *ids, besides=others) == []


def test_every_other_row_keeps_its_bytes_and_its_order(case: Case) -> None:
    files = [
        *(path for kind in KINDS for path in case.before.glob(f"training/{kind}/*.csv")),
        *case.before.glob("exports/*/days/*.jsonl"),
        *case.before.glob("exports/*/ranges/*_training_????-??-??_????-??-??.jsonl"),
    ]
    for path in files:
        now = case.settings.data_dir / path.relative_to(case.before)
        if now.exists() or rows_without(path, SUBJECT):
            assert now.read_bytes() == rows_without(path, SUBJECT), path
    assert len(files) > 15


def test_the_receipt_has_counts_and_files_and_none_of_the_data(case: Case) -> None:
    text = (case.settings.data_dir / "state" / "erasures" / f"{case.receipt.id}.json").read_text()
    assert SUBJECT not in text
    assert msgspec.json.decode(text, type=Receipt) == case.receipt
    assert case.receipt.records == {
        kind: dict.fromkeys((*DAYS, *([IMPORTED_DAY] if kind == "events" else [])), 2) for kind in KINDS
    }
    assert [sum(days.values()) for days in case.receipt.rejects.values()] == [1]
    raw = next(change for change in case.receipt.files if change.path == f"training/events/events_{DAYS[0]}.csv")
    assert raw.old_sha256 != raw.new_sha256
    assert not list((case.settings.data_dir / "state" / "erasures").glob("*.journal"))


def test_the_accounts_add_up_with_what_was_erased(case: Case) -> None:
    for kind in KINDS:
        counted = account(case.settings, kind)
        assert counted.balanced
        # Rows of other days that stay, rows of these that were erased, rejects that were erased.
        more = {"events": (2, 2, 1), "workflows": (1, 0, 0)}.get(kind, (0, 0, 0))
        assert (counted.rows, counted.erased) == (8 + more[0], 4 + more[1] + more[2])
        of_days = accounts(DataPaths(case.settings.data_dir), kind)
        assert (of_days.balanced, of_days.exported >= 8, of_days.erased) == (True, True, counted.erased)
        assert unbalanced_days(DataPaths(case.settings.data_dir), kind) == []


def test_lines_in_quarantine_that_hold_the_id_go_and_others_stay(case: Case) -> None:
    with open_ledger(DataPaths(case.settings.data_dir), "events") as ledger:
        left = [reject.line for day in ledger.files() for reject in ledger.rejects(day)]
        left += [reject.line for reject in ledger.rejects(today().isoformat())]
    assert sorted(left) == sorted([REJECTED[1], STRANGERS[1]])
    counted = account(case.settings, "events")
    assert (counted.quarantined, counted.foreign) == (1, 1)


def test_a_file_that_was_rejected_whole_loses_the_records_too(case: Case) -> None:
    rejected = case.settings.data_dir / "quarantine" / "events" / "events_2024-05-15.abc.csv"
    assert rejected.read_text() == "strange,columns\n2,of somebody\n"


def test_an_imported_file_keeps_its_other_rows_and_their_numbers(case: Case, erased: Settings) -> None:
    header, rows = case.imported
    (imported,) = DataPaths(erased.data_dir).imported.glob("*.csv")
    assert imported.read_text() == header + rows[0] + "\n" + rows[2] + "\n"
    erase_agent(erased, "somebody")
    assert imported.read_text() == header + "\n" * 4


def test_datasets_of_erased_days_are_built_again_and_models_of_them_are_marked(case: Case) -> None:
    plain, named, _ = case.datasets
    again = {dataset.version: dataset.built_again_as for dataset in case.receipt.datasets}
    assert again.keys() > {plain, named}
    assert again[named] is None, "its recipe names the agent"
    home = case.settings.data_dir / "datasets" / "event_prediction"
    assert {path.name for path in home.iterdir() if path.is_dir()} == {*again.values()} - {None}
    assert again.keys().isdisjoint(again.values())
    assert [model.version for model in case.receipt.models] == ["m1"]
    models = case.settings.data_dir / "models" / "event_prediction"
    assert json.loads((models / "m1" / "tainted.json").read_text()) == {"erasure": case.receipt.id, "dataset": plain}
    assert not (models / "m2" / "tainted.json").exists()
    assert case.told == [(case.receipt.id, case.receipt.datasets, case.receipt.models)]


def test_a_trained_model_is_marked_once_and_its_champion_is_replaced_by_the_next_training(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "data")
    store_sessions(settings.data_dir, range(60))
    first = train_model(settings, build(settings.data_dir, "tool_selection")).model
    selector = Selector(session_ids=("s7",))
    (receipt,), _ = erase(settings, selector, observe=lambda *_: None, progress=lambda *_: None)
    assert [(model.model, model.version) for model in receipt.models] == [("tool_selection", first.version)]
    with load_champion(settings, "tool_selection") as champion:
        assert (champion.version, champion.is_tainted) == (first.version, True)
    paths = DataPaths(settings.data_dir)
    second = train_model(settings, find_dataset(paths, "tool_selection"), margin=1.0)
    assert second.decision.promoted
    assert second.model.version != first.version
    assert not second.model.is_tainted


def test_a_model_in_training_while_its_records_are_erased_is_not_put_in_place(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "data")
    store_sessions(settings.data_dir, range(60))
    dataset = build(settings.data_dir, "tool_selection")
    receipts: list[Receipt] = []

    def erase_meanwhile(message: str, _figures: Figures) -> None:
        if message == "asking the model about the test split":  # whose rows are read by then
            selector = Selector(session_ids=("s7",))
            receipts.extend(erase(settings, selector, observe=lambda *_: None, progress=lambda *_: None)[0])

    with pytest.raises(TrainingFailed, match="an erasure or somebody removed it"):
        train_model(settings, dataset, report=erase_meanwhile)
    assert [(each.datasets[0].version, each.models) for each in receipts] == [(dataset.version, [])]
    paths = DataPaths(settings.data_dir)
    assert trained_versions(paths, "tool_selection") == []
    again = train_model(settings, find_dataset(paths, "tool_selection"))
    assert again.decision.promoted
    assert not again.model.is_tainted


def test_selections_are_made_again_unless_their_condition_names_the_subject(case: Case) -> None:
    def selected(folder: Path) -> list[Path]:
        return sorted(folder.glob("exports/tasks/ranges/tasks_training_*_*_*.jsonl"))

    assert len(selected(case.before)) == 2
    (kept,) = selected(case.settings.data_dir)
    assert len(kept.read_bytes().splitlines()) == 8
    assert ["condition names" in reason for reason in case.receipt.not_built.values() if "recipe" not in reason] == [
        True
    ]


def test_the_latest_export_and_the_latest_dataset_are_those_that_were(case: Case) -> None:
    paths = DataPaths(case.settings.data_dir)
    assert paths.latest_export("workflows").samefile(paths.range_export("workflows", QUIET_DAY, QUIET_DAY))
    again = {dataset.version: dataset.built_again_as for dataset in case.receipt.datasets}
    assert latest_version(paths, "event_prediction") == again[case.datasets[2]]


def test_what_an_erasure_took_cannot_be_forgotten_unseen(erased: Settings) -> None:
    with closing(sqlite3.connect(DataPaths(erased.data_dir).ledger("tasks"))) as db, db:
        db.execute("DELETE FROM erasures WHERE day = ?", (DAYS[0],))
    assert unbalanced_days(DataPaths(erased.data_dir), "tasks") == [DAYS[0]]


def test_a_subject_that_is_gone_is_no_error_and_leaves_no_receipt(erased: Settings) -> None:
    before = end_state(erased)
    receipts, found = erase_agent(erased)
    assert (receipts, found.doomed) == ([], {})
    assert end_state(erased) == before


def test_an_import_that_is_run_again_does_not_bring_erased_records_back(erased: Settings) -> None:
    store_days(erased)
    assert len(csv_rows(erased, "events")) == 10
    assert len(csv_rows(erased, "tasks")) == 8 + 12, "these had no keys"


def test_what_the_agent_stores_later_is_new_and_stays(erased: Settings) -> None:
    store = TrainingDataStore(erased)
    store.sync.store_agent_event("again", agent_id=SUBJECT)
    store.sync.flush()
    store.sync.close()
    assert [row["event_type"] for row in csv_rows(erased, "events") if row["agent_id"] == SUBJECT] == ["again"]


def test_killed_at_every_step_in_turn_it_ends_as_if_never_killed(full: Settings, tmp_path: Path) -> None:
    quiet = Settings(data_dir=tmp_path / "quiet" / "data")
    shutil.copytree(full.data_dir, quiet.data_dir)
    erase_agent(quiet)
    for step in STEPS:
        kill(full, step)
    (receipt,), found = erase_agent(full)
    assert receipt.total == 20
    assert not found.doomed, "what was cut off was finished first, and then there was nothing left to find"
    killed_state, quiet_state = end_state(full), end_state(quiet)
    assert killed_state.keys() == quiet_state.keys()
    assert [name for name, state in quiet_state.items() if killed_state[name] != state] == []
    assert files_with(full.data_dir, SUBJECT) == []


def kill(settings: Settings, step: str) -> None:
    killed = run_python(KILLED, msgspec.structs.replace(settings, failpoint=step))
    assert killed.returncode == -signal.SIGKILL, f"{step}: {killed.stderr}"


def test_killed_around_the_ledger_readers_and_writers_see_old_rows_or_new_ones(full: Settings) -> None:
    day_file = DataPaths(full.data_dir).training("events", DAYS[0])
    before, after = day_file.read_bytes(), rows_without(day_file, SUBJECT)
    kill(full, "rewrite")
    assert list(day_file.parent.glob("*.csv.*"))
    Writer(full, KINDS["events"]).close()
    assert not list(day_file.parent.glob("*.csv.*")), "litter, which the next writer removes"
    kill(full, "erase")
    assert day_file.read_bytes() == before, "killed before the rename"
    store = TrainingDataStore(full)
    assert set(store.load("events", start_date=DAYS[0], end_date=DAYS[0])["agent_id"]) == {"somebody"}
    store.sync.store_agent_event("late", timestamp=f"{DAYS[0]}T09:00:00Z")
    store.sync.flush()
    store.sync.close()
    assert day_file.read_bytes().startswith(after)
    assert account(full, "events").quarantined == account(full, "events").foreign == 0


def test_a_writer_that_lives_lets_go_and_what_it_wrote_is_gone_from_its_spool(full: Settings) -> None:
    store = TrainingDataStore(full)
    store.sync.store_agent_event("before", agent_id=SUBJECT, payload=f"{SUBJECT} said so")
    store.sync.flush()
    assert FileLock.is_taken(DataPaths(full.data_dir).lock("events")), "this process writes events now"
    erase_agent(full)
    assert files_with(full.data_dir, SUBJECT) == [], "nor in the segment that this process has open"
    store.sync.store_agent_event("after", agent_id="somebody")
    store.sync.flush()
    store.sync.close()
    assert csv_rows(full, "events")[-1]["event_type"] == "after"
    assert account(full, "events").balanced


def test_what_waits_in_the_spool_is_erased_as_well(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.store.Carrier", _Nobody)
    store = TrainingDataStore(settings)
    store.sync.store_agent_event("waiting", agent_id=SUBJECT)
    assert account(settings, "events").waiting == 1
    erase_agent(settings)
    assert files_with(settings.data_dir, SUBJECT) == []
    assert account(settings, "events").erased == 1
    store.sync.close()


class _Nobody:
    """A carrier that carries nothing."""

    is_running = True

    def __init__(self, *_: object) -> None: ...

    def stop(self) -> None: ...

    def wake(self) -> None: ...


def test_a_ledger_that_somebody_keeps_open_has_nothing_in_its_log_either(settings: Settings) -> None:
    writer = Writer(settings, KINDS["events"])
    kept_open = Ledger(DataPaths(settings.data_dir).ledger("events"))
    kept_open.files()
    writer.write([Batch("another", 1, 2, b"\n".join(REJECTED))])
    writer.close()
    log = "state/events.sqlite-wal"
    assert any(name.startswith(log) for name in files_with(settings.data_dir, '"the-subject"'))
    erase_agent(settings)
    assert files_with(settings.data_dir, '"the-subject"') == []
    kept_open.close()


def test_a_ledger_that_somebody_keeps_reading_is_named_and_the_erasure_is_finished_afterwards(
    full: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.pipeline.erasure._READER_PATIENCE_S", 0.1)
    ledger = DataPaths(full.data_dir).ledger("events")
    with closing(sqlite3.connect(ledger, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM files").fetchone()
        with pytest.raises(WriterBusy, match=r"events\.sqlite: .*close what reads it and run this again"):
            erase_agent(full)
        assert not FileLock.is_taken(DataPaths(full.data_dir).lock("events")), "writers go on"
    (receipt,), _ = erase_agent(full)
    assert receipt.total == 20
    assert files_with(full.data_dir, SUBJECT) == []


def test_a_reader_that_knew_the_ledger_from_before_an_erasure_takes_no_day_for_damaged(
    full: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = DataPaths(full.data_dir)
    with open_ledger(paths, "events") as ledger:
        former = ledger.files()
        erase_agent(full)
        monkeypatch.setattr(Ledger, "files", lambda _: former)
        settle_edits(ledger, paths, "events")
        paths.training("events", DAYS[1]).write_bytes(b"cut short")
        with pytest.raises(DamagedFile, match=DAYS[1]):
            settle_edits(ledger, paths, "events")


def test_a_writer_that_does_not_let_go_is_named(full: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.pipeline.erasure._PATIENCE_S", 0.2)
    lock = FileLock(DataPaths(full.data_dir).lock("tasks"))
    assert lock.acquire()
    before = end_state(full)
    with pytest.raises(WriterBusy, match=r"process \d+ writes this kind.*nothing was erased"):
        erase_agent(full)
    lock.release()
    assert end_state(full) == before


def test_two_erasures_at_once_are_one_and_an_error(full: Settings) -> None:
    lock = FileLock(DataPaths(full.data_dir).lock("erasure"))
    assert lock.acquire()
    with pytest.raises(WriterBusy, match="another erasure"):
        erase_agent(full)
    lock.release()


@pytest.mark.parametrize("group", [None, "trainer"])
def test_whoever_follows_files_between_the_ledgers_commit_and_the_rename_is_given_the_rows_that_count(
    full: Settings, group: str | None
) -> None:
    day_file = DataPaths(full.data_dir).training("events", DAYS[0])
    with open_ledger(DataPaths(full.data_dir), "events") as ledger:
        ledger.place_group("trainer", {})
    kill(full, "erase")
    assert SUBJECT in day_file.read_text(), "killed before the rename"

    async def follow() -> list[object]:
        after = None if group else "00000000-0000-7000-8000-000000000000"
        stream = TrainingDataStore(full).subscribe("events", group=group, after=after)
        async with aclosing(stream), asyncio.timeout(20):
            return [(await anext(stream))["agent_id"] for _ in range(4 + 6)]

    found = asyncio.run(follow())
    assert found.count(SUBJECT) == 2, "those of the day that the erasure had not come to"
    assert SUBJECT not in day_file.read_text()


def test_a_group_that_follows_files_loses_nothing_and_is_given_nothing_twice(settings: Settings) -> None:
    async def follow() -> list[str]:
        store = TrainingDataStore(settings)
        for agent in (SUBJECT, "somebody", SUBJECT, "somebody"):
            await store.store_agent_event("early", agent_id=agent, timestamp=f"{DAYS[0]}T08:00:00Z")
        await store.flush()
        stream = store.subscribe("events", group="trainer")
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.3)  # it stands at the end of every file now
        for n in range(3):
            await store.store_agent_event(f"before-{n}", timestamp=f"{DAYS[0]}T09:00:00Z")
        seen = [str((await first)["event_type"])]
        await asyncio.to_thread(erase_agent, settings)
        for n in range(3):
            await store.store_agent_event(f"after-{n}", timestamp=f"{DAYS[0]}T09:00:00Z")
        async with asyncio.timeout(20):
            seen += [str((await anext(stream))["event_type"]) for _ in range(5)]
        await stream.aclose()
        await store.close()
        return seen

    assert asyncio.run(follow()) == [*(f"before-{n}" for n in range(3)), *(f"after-{n}" for n in range(3))]


class _Interrupted(Failpoint):
    """Ends an erasure when the first day is committed, before its file is renamed."""

    def reach(self, step: Step) -> None:
        if step == "erase":
            raise KeyboardInterrupt


def erase_rows_of_subject(settings: Settings, failpoint: Failpoint | None = None) -> None:
    """The part of an erasure that other processes see: the subject's events, by their keys."""
    doomed = Doomed({day: [keyed_record_id("events", f"{day}-{n}") for n in (1, 4)] for day in DAYS})
    with holding_writers(settings, ["events"]):
        erase_rows(settings, "events", "an-erasure", doomed, lambda *_: None, failpoint or Failpoint(None))


def test_a_day_that_is_erased_from_while_it_is_loaded_is_loaded_as_it_counts(
    full: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settle_early(*given: object) -> None:
        settle_edits(*given)  # type: ignore[arg-type]  # as given
        with pytest.raises(KeyboardInterrupt):
            erase_rows_of_subject(full, _Interrupted(None))

    monkeypatch.setattr("ingest.reading.settle_edits", settle_early)
    loaded = TrainingDataStore(full).load("events")
    assert list(loaded["agent_id"]) == [*["somebody"] * 4, *["somebody", SUBJECT, "somebody"] * 2]


@pytest.mark.parametrize("group", [None, "trainer"])
def test_whoever_begins_to_follow_files_beside_an_erasure_is_given_the_rows_that_are_left(
    full: Settings, monkeypatch: pytest.MonkeyPatch, group: str | None
) -> None:
    def look_late(path: Path, committed: CommittedFile) -> bool:
        monkeypatch.undo()
        erase_rows_of_subject(full)
        return put_rewritten_in_place(path, committed)

    async def follow() -> list[object]:
        after = "00000000-0000-7000-8000-000000000000"
        stream = TrainingDataStore(full).subscribe("events", group=group, after=after)
        async with aclosing(stream), asyncio.timeout(20):
            return [(await anext(stream))["agent_id"] for _ in range(8)]

    monkeypatch.setattr("ingest.pipeline.subscription.put_rewritten_in_place", look_late)
    assert asyncio.run(follow()) == ["somebody"] * 8


def test_how_far_a_group_is_behind_is_told_beside_an_erasure_too(
    full: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_late(path: Path, committed: CommittedFile) -> bool:
        monkeypatch.undo()
        erase_rows_of_subject(full)
        return put_rewritten_in_place(path, committed)

    paths = DataPaths(full.data_dir)
    expected = first_unread(paths, "events", {})
    monkeypatch.setattr("ingest.pipeline.subscription.put_rewritten_in_place", look_late)
    assert first_unread(paths, "events", {}) == expected


def test_a_day_that_is_erased_from_while_it_is_built_is_built_of_what_is_left(
    full: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = DataPaths(full.data_dir)
    paths.curated("events", DAYS[0]).unlink()

    def read_late(*given: object) -> Path:
        monkeypatch.undo()
        erase_rows_of_subject(full)
        return still_prefix(*given)  # type: ignore[arg-type]  # as given

    monkeypatch.setattr("tds_dagster.curate.day.still_prefix", read_late)
    assert curate_day(paths, "events", DAYS[0]).rows == 4


def test_a_damaged_day_is_named_in_the_receipt_and_everything_else_is_erased(
    full: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failpoint, "reach", _Interrupted.reach)
    with pytest.raises(KeyboardInterrupt):
        erase_agent(full)
    monkeypatch.undo()
    day_file = DataPaths(full.data_dir).training("events", DAYS[1])
    os.truncate(day_file, day_file.stat().st_size - 10)
    remains = day_file.read_bytes()
    with pytest.raises(DamagedFile, match=rf"{day_file.name}: ends at byte {len(remains)}"):
        erase_agent(full)
    folder = full.data_dir / "state" / "erasures"
    assert not list(folder.glob("*.journal")), "which names the subject"
    (receipt,) = (msgspec.json.decode(path.read_bytes(), type=Receipt) for path in folder.glob("*.json"))
    assert [*receipt.not_erased] == [f"training/events/{day_file.name}"]
    assert receipt.total == 18
    assert day_file.read_bytes() == remains
    assert not list(day_file.parent.glob("*.csv.*"))
    left = {name.partition(":")[0] for name in files_with(full.data_dir, SUBJECT)}
    assert {Path(name).name.partition(".")[0] for name in left} == {f"events_{DAYS[1]}"}


def test_a_rewriting_that_fails_leaves_no_draft_behind(full: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("ingest.pipeline.erasure.os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        erase_rows_of_subject(full)
    assert not list(DataPaths(full.data_dir).training("events", DAYS[0]).parent.glob("*.csv.*"))


def test_somebody_with_the_same_record_id_on_another_day_loses_nothing(settings: Settings) -> None:
    import_a_record_id_of_two_days(settings)
    paths = DataPaths(settings.data_dir)
    export_range(paths, "events", *DAYS)
    erase_agent(settings)
    assert [row["agent_id"] for row in csv_rows(settings, "events")] == ["somebody"]
    imported = b"".join(path.read_bytes() for path in sorted(paths.imported.iterdir()))
    assert (imported.count(SUBJECT.encode()), imported.count(b"somebody")) == (0, 1)
    line = b'{"record_id":"r","timestamp":"%s"}'
    sets = DoomedSets(Doomed({DAYS[0]: ["r"]}, shared={"r": [DAYS[1]]}))
    assert [sets.has_record(line % f"{day}T08:30:00.000000Z".encode()) for day in DAYS] == [True, False]


def test_a_strangers_line_that_was_erased_is_not_taken_for_one_that_came_since(
    full: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = DataPaths(full.data_dir)
    _append_stranger(full, STRANGERS[0])
    curate_day(paths, "events", DAYS[0])
    monkeypatch.setattr(Failpoint, "reach", _Interrupted.reach)
    selector = Selector(texts=('"a stranger"',), kinds=("events",))
    with pytest.raises(KeyboardInterrupt):
        erase(full, selector, observe=lambda *_: None, progress=lambda *_: None)
    monkeypatch.undo()
    _append_stranger(full, b'"somebody","of the day after"\n')
    erase(full, selector, observe=lambda *_: None, progress=lambda *_: None)
    assert files_with(full.data_dir, "a stranger") == []
    assert b"of the day after" in paths.quarantine("events", DAYS[0]).read_bytes()


def test_a_line_that_is_left_in_a_quarantine_file_alone_goes_with_the_file(full: Settings) -> None:
    paths = DataPaths(full.data_dir)
    _append_stranger(full, STRANGERS[0])
    curate_day(paths, "events", DAYS[0])
    with closing(sqlite3.connect(paths.ledger("events"))) as db, db:
        db.execute("UPDATE rejects SET line = ?", (b'"somebody"',))
    erase(full, Selector(texts=("a stranger",)), observe=lambda *_: None, progress=lambda *_: None)
    assert files_with(full.data_dir, "a stranger") == []


def _append_stranger(settings: Settings, line: bytes) -> None:
    with DataPaths(settings.data_dir).training("events", DAYS[0]).open("ab") as file:
        file.write(line)
    Writer(settings, KINDS["events"]).close()  # sets it aside
