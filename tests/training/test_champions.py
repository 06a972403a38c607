"""A model takes the place of another only if it is better, at once and whole, and somebody can go back."""

import json
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from ingest import Settings, TrainingDataStore
from ingest.errors import DamagedFile, InvalidRecord, ModelMissing, TrainingFailed
from ingest.pipeline.partitions import DataPaths
from tds_dagster.curate.artifacts import locked
from tds_dagster.datasets.manifest import Dataset, find_dataset
from tds_dagster.training import champion, run
from tds_dagster.training.champion import ERASED, Decision, decisions, load_champion, rollback
from tds_dagster.training.contract import Report
from tds_dagster.training.manifest import (
    CHAMPION,
    LATEST,
    MANIFEST,
    PREDICTIONS,
    TAINTED,
    champion_of,
    champion_version,
    find_model,
    latest_trained,
    read_model,
)
from tds_dagster.training.pruning import prune_datasets
from tds_dagster.training.questions import read_split
from tds_dagster.training.run import Trained, train_model
from tests.training.training_parts import build, settings_of, store_sessions

MODEL = "task_completion"

# A trainer that has learned nothing but what it was told: the classes it answers, by the task's priority.
TOLD = """
import json, os, sys
from pathlib import Path
from tds_dagster.training.contract import run_trainer

def train(dataset, output, report):
    (output / "answers.json").write_text(os.environ["ANSWERS"])

def predict(output):
    answers = json.loads((output / "answers.json").read_text())
    return lambda question: (answers[question["priority"]], 1.0)

run_trainer(train, predict)
"""
RIGHT, HALF, WRONG = ({"low": low, "high": high} for low, high in (
    ("failed", "completed"), ("completed", "completed"), ("completed", "failed")
))  # fmt: skip


class Lab:
    """A data folder with a dataset, and a trainer that answers as it is told."""

    def __init__(self, root: Path, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trainer.write_text(TOLD)
        self.settings = settings_of(root, trainer=f"{sys.executable} {trainer}")
        self.paths = DataPaths(root)
        self.monkeypatch = monkeypatch
        self.home = self.paths.models(MODEL)

    @property
    def dataset(self) -> Dataset:
        return find_dataset(self.paths, MODEL)

    def train(self, answers: Mapping[str, str], margin: float | None = None) -> Trained:
        """Train a model that answers so."""
        self.monkeypatch.setenv("ANSWERS", json.dumps(answers))
        return train_model(self.settings, self.dataset, run_trainer=self.write, margin=margin)

    def again(self, seed: int) -> None:
        """Build another version of the dataset."""
        build(self.paths.root, MODEL, seed=seed, fractions=[0.5, 0.1, 0.4])

    def write(self, _dataset: Path, output: Path, _report: Report) -> None:
        (output / "answers.json").write_text(os.environ["ANSWERS"])


@pytest.fixture
def lab(training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(training_data, tmp_path / "told.py", monkeypatch)
    # Every version is compared on the rows of its own split, of which none is of a session the champion knows.
    monkeypatch.setattr(champion, "_seen_entities", lambda _paths, _model, _rows: set())
    lab.again(0)
    return lab


def test_the_first_model_that_beats_its_baselines_is_the_champion(lab: Lab) -> None:
    trained = lab.train(RIGHT)
    assert trained.decision.promoted
    assert trained.model.metrics.score.accuracy == 1.0
    assert champion_version(lab.paths, MODEL) == trained.model.version
    assert str((lab.home / CHAMPION).readlink()) == trained.model.version
    assert (lab.home / CHAMPION / MANIFEST).is_file()


def test_a_model_that_does_not_beat_its_baselines_is_kept_and_not_promoted(lab: Lab) -> None:
    trained = lab.train(WRONG)
    assert not trained.decision.promoted
    assert "0.0% on" in trained.decision.reason
    assert "does not beat majority" in trained.decision.reason
    assert champion_of(lab.paths, MODEL) is None
    latest = latest_trained(lab.paths, MODEL)
    assert latest is not None
    assert latest.version == trained.model.version
    assert "it is not promoted" in (trained.model.folder / "README.md").read_text()


def test_a_better_one_takes_its_place_and_a_worse_one_does_not(lab: Lab) -> None:
    partly = {"low": "failed", "high": "failed"}
    first = lab.train(partly)
    if not first.decision.promoted:  # which class is the commonest hangs on the split
        partly = {"low": "completed", "high": "completed"}
    lab.again(1)
    better = lab.train(RIGHT)
    assert better.decision.promoted
    lab.again(2)
    worse = lab.train(partly, margin=0.0)
    assert not worse.decision.promoted
    assert champion_version(lab.paths, MODEL) == better.model.version
    assert [each.promoted for each in decisions(lab.paths, MODEL)][-2:] == [True, False]


def test_one_that_is_as_good_needs_a_margin_of_0(lab: Lab) -> None:
    first = lab.train(RIGHT)
    lab.again(1)
    second = lab.train(RIGHT)
    assert not second.decision.promoted
    assert "less than the margin of 1.0 points" in second.decision.reason
    assert train_model(lab.settings, lab.dataset, margin=0.0).decision.promoted
    assert champion_version(lab.paths, MODEL) == second.model.version != first.model.version


def test_two_models_are_held_together_on_rows_that_are_new_to_the_champion(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.train(RIGHT)
    monkeypatch.undo()
    lab.monkeypatch.setenv("ANSWERS", "{}")
    known = {row.entity for split in ("train", "validation") for row in read_split(lab.dataset, split)}
    lab.again(1)
    fresh = [row for row in read_split(lab.dataset, "test") if row.entity not in known]
    monkeypatch.setattr(champion, "FEWEST_ROWS", len(fresh))
    decision = lab.train(RIGHT, margin=0.0).decision
    assert decision.figures["compared_rows"] == len(fresh) < decision.figures["rows"]
    assert decision.promoted
    monkeypatch.setattr(champion, "FEWEST_ROWS", len(fresh) + 1)
    refused = train_model(lab.settings, lab.dataset, margin=0.0).decision
    assert (refused.promoted, refused.reason) == (False, "it is the champion already")


def test_sessions_that_the_champion_knows_by_the_name_of_another_entity_are_known(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lab.train(RIGHT).model
    monkeypatch.undo()
    known = {row.record_id for split in ("train", "validation") for row in read_split(lab.dataset, split)}
    rows = [msgspec.structs.replace(row, entity=f"another {row.entity}") for row in read_split(lab.dataset, "train")]
    rows += [msgspec.structs.replace(rows[0], record_id="of the same"), *read_split(lab.dataset, "test")]
    seen = champion._seen_entities(lab.paths, first, rows)
    assert seen == {row.entity for row in rows if row.record_id in known}
    assert rows[-1].entity not in seen


def test_a_champion_that_does_not_answer_stays_and_the_reason_says_what_to_do(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.train(RIGHT)
    lab.again(1)
    other = msgspec.structs.replace(lab.settings, trainer=f"{lab.settings.trainer} ")  # the same, by another name
    decision = train_model(other, lab.dataset, run_trainer=lab.write).decision
    assert not decision.promoted
    assert "cannot be held against it" in decision.reason
    assert f"`tds rollback {MODEL} --to {decision.challenger}` puts this one in use" in decision.reason


def test_a_champion_whose_file_is_damaged_is_not_asked_and_holds_nobody_back(lab: Lab) -> None:
    first = lab.train(RIGHT)
    lab.again(1)
    (first.model.content / "answers.json").write_text(json.dumps(WRONG))
    with pytest.raises(TrainingFailed, match=f"`tds train {MODEL}` trains it again"):
        load_champion(lab.settings, MODEL)
    decision = lab.train(RIGHT, margin=0.5).decision
    assert decision.promoted
    assert "is damaged or gone" in decision.reason


def test_a_margin_that_is_just_reached_is_reached(lab: Lab) -> None:
    first = lab.train(RIGHT).model
    for rows in range(20, 400):
        compared = champion.Comparison((rows - 1) / rows, (rows - 2) / rows, rows, 0)
        assert champion._outcome(compared, first, 1 / rows)[0], rows
        assert not champion._outcome(compared, first, 1.01 / rows)[0], rows


def test_going_back_twice_goes_back_by_two(lab: Lab) -> None:
    lab.train(RIGHT)
    made = [lab.train(RIGHT).model.version]
    for seed in (1, 2, 3):
        lab.again(seed)
        made.append(lab.train(RIGHT, margin=0.0).model.version)
    assert [rollback(lab.settings, MODEL).challenger for _ in range(2)] == [made[2], made[1]]
    rollback(lab.settings, MODEL, made[3])
    assert [rollback(lab.settings, MODEL).challenger for _ in range(2)] == [made[1], made[0]]
    with pytest.raises(ModelMissing, match="no earlier champion"):
        rollback(lab.settings, MODEL)


def test_a_damaged_line_of_decisions_is_named_and_nothing_is_overwritten(lab: Lab) -> None:
    lab.train(RIGHT)
    log = lab.home / "promotions.jsonl"
    log.write_bytes(log.read_bytes() + b'{"at": 7}\n\xff\n')
    before = log.read_bytes()
    with pytest.raises(DamagedFile, match=r"promotions\.jsonl, line 2: expected a decision"):
        lab.train(HALF)
    assert log.read_bytes() == before


def test_a_folder_in_the_place_of_the_link_is_named(lab: Lab) -> None:
    lab.home.mkdir(parents=True)
    (lab.home / CHAMPION).mkdir()
    with pytest.raises(DamagedFile, match="expected a link to the version in use"):
        champion_of(lab.paths, MODEL)


def test_the_mark_of_a_training_moves_when_it_has_been_decided(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lab.train(RIGHT)
    lab.again(1)
    with monkeypatch.context() as faults:
        die = kill_at(1)
        faults.setattr(run, "decide", lambda *_arguments, **_more: die("decide"))
        with pytest.raises(Killed):
            lab.train(RIGHT)
    latest = latest_trained(lab.paths, MODEL)
    assert latest is not None
    assert latest.version == first.model.version
    ended = lab.train(RIGHT, margin=0.0)
    assert ended.model.reused
    assert ended.decision.promoted


def test_with_too_few_new_rows_nobody_can_tell_and_the_champion_stays(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.train(RIGHT)
    lab.again(1)
    monkeypatch.setattr(champion, "FEWEST_ROWS", 1000)
    decision = lab.train(RIGHT, margin=0.0).decision
    assert not decision.promoted
    assert "take more days" in decision.reason


def test_a_champion_whose_records_were_erased_is_replaced_by_any_that_beats_its_baselines(lab: Lab) -> None:
    first = lab.train(RIGHT)
    (first.model.folder / TAINTED).write_text("{}")
    lab.again(1)
    second = lab.train(RIGHT, margin=0.5)
    assert second.decision.promoted
    assert "are erased" in second.decision.reason


def test_a_model_of_erased_records_takes_no_place(lab: Lab) -> None:
    refused = lab.train(RIGHT).model
    (lab.home / CHAMPION).unlink()
    (lab.home / "promotions.jsonl").unlink()
    (refused.folder / TAINTED).write_text("{}")
    decision = lab.train(RIGHT).decision
    assert (decision.promoted, decision.challenger) == (False, refused.version)
    assert ERASED in decision.reason


def test_the_same_dataset_trainer_and_code_are_not_trained_again(lab: Lab) -> None:
    first = lab.train(RIGHT)
    before = first.model.folder.stat().st_ino
    again = lab.train(RIGHT)
    assert (again.model.version, again.model.reused) == (first.model.version, True)
    assert again.model.folder.stat().st_ino == before
    assert len(decisions(lab.paths, MODEL)) == 1


@pytest.mark.parametrize("name", ["model/answers.json", PREDICTIONS, "README.md"])
def test_a_model_that_somebody_changed_is_trained_anew(lab: Lab, name: str) -> None:
    first = lab.train(RIGHT)
    (first.model.folder / name).write_text("changed")
    again = lab.train(RIGHT)
    assert (again.model.version, again.model.reused) == (first.model.version, False)
    assert (again.model.folder / name).read_text() != "changed"
    assert not list(lab.home.glob(".building-*"))


def test_rollback_puts_the_former_champion_back_and_keeps_it(lab: Lab) -> None:
    first = lab.train(RIGHT)
    lab.again(1)
    second = train_model(lab.settings, lab.dataset, run_trainer=lab.write, margin=0.0)
    assert second.decision.promoted
    decision = rollback(lab.settings, MODEL)
    assert (decision.challenger, decision.champion) == (first.model.version, second.model.version)
    assert champion_version(lab.paths, MODEL) == first.model.version
    again = train_model(lab.settings, lab.dataset, margin=0.0)
    assert not again.decision.promoted
    assert "it was rolled back" in again.decision.reason
    back = rollback(lab.settings, MODEL, second.model.version[:6])
    assert champion_version(lab.paths, MODEL) == back.challenger == second.model.version
    assert [each.kind for each in decisions(lab.paths, MODEL)].count("rollback") == 2


@pytest.mark.parametrize(("to", "problem"), [(None, "no earlier champion"), ("", "found"), ("zzz", "found 0")])
def test_where_there_is_nothing_to_go_back_to_rollback_says_so(lab: Lab, to: str | None, problem: str) -> None:
    lab.train(RIGHT)
    with pytest.raises(ModelMissing, match=problem):
        rollback(lab.settings, MODEL, to)


def test_a_folder_of_a_model_is_private_and_its_predictions_have_no_ids(lab: Lab) -> None:
    trained = lab.train(RIGHT)
    for path in trained.model.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    rows = list(read_split(lab.dataset, "test"))
    written = (trained.model.folder / PREDICTIONS).read_text()
    assert len(written.splitlines()) == len(rows) == trained.model.metrics.rows
    assert not any(row.record_id in written or row.entity in written for row in rows)


def test_a_trainer_that_fails_moves_no_mark_and_leaves_no_folder(lab: Lab) -> None:
    first = lab.train(RIGHT)
    lab.again(1)

    def fails(_dataset: Path, output: Path, _report: Report) -> None:
        (output / "half").write_text("x")
        raise TrainingFailed("no")

    with pytest.raises(TrainingFailed):
        train_model(lab.settings, lab.dataset, run_trainer=fails)
    latest = latest_trained(lab.paths, MODEL)
    assert latest is not None
    assert latest.version == first.model.version
    assert {path.name for path in lab.home.iterdir()} == {first.model.version, CHAMPION, LATEST, "promotions.jsonl"}


@pytest.mark.parametrize("made", ["nothing", "a link"])
def test_what_a_trainer_leaves_has_to_be_a_model(lab: Lab, made: str) -> None:
    def odd(_dataset: Path, output: Path, _report: Report) -> None:
        if made == "a link":
            (output / "link").symlink_to("/etc/passwd")

    with pytest.raises(TrainingFailed, match="wrote nothing" if made == "nothing" else "a link in the output folder"):
        train_model(lab.settings, lab.dataset, run_trainer=odd)


def test_a_dataset_that_somebody_changed_is_not_trained_on(lab: Lab) -> None:
    train = lab.dataset.folder / "train.jsonl"
    train.write_bytes(train.read_bytes().replace(b"high", b"free"))
    with pytest.raises(DamagedFile, match="build the dataset again"):
        lab.train(RIGHT)


class Killed(BaseException):
    """What a process that is killed there does not live to see."""


def kill_at(step: int) -> Callable[[str], None]:
    seen = 0

    def here(_name: str) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            raise Killed

    return here


@pytest.mark.parametrize("step", range(1, 12))
def test_killed_at_any_step_the_next_training_ends_it(lab: Lab, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lab.train(RIGHT)
    lab.again(1)
    die = kill_at(step)
    with monkeypatch.context() as faults:
        for module, name in [
            (run, "put_in_place"), (run, "replacing"), (run, "decide"), (run, "record"), (run, "prune_models"),
            (champion, "replace_link"), (run, "synced_file"), (run, "measure"), (run, "model_card"), (run, "settle"),
            (run, "described_files"),
        ]:  # fmt: skip
            real = getattr(module, name)

            def dying(
                *arguments: object, _real: Callable[..., object] = real, _name: str = name, **more: object
            ) -> object:
                die(_name)
                return _real(*arguments, **more)

            faults.setattr(module, name, dying)
        with pytest.raises(Killed):
            lab.train(RIGHT, margin=0.0)
    present = champion_of(lab.paths, MODEL)
    assert present is not None
    with load_champion(lab.settings, MODEL) as loaded:
        assert loaded.predict([{"task_type": "support", "priority": "low"}])[0].prediction == "failed"
    ended = lab.train(RIGHT, margin=0.0)
    assert champion_version(lab.paths, MODEL) == ended.model.version != first.model.version
    assert not list(lab.home.glob(".building-*"))
    assert [each.challenger for each in decisions(lab.paths, MODEL) if each.promoted][-1] == ended.model.version


def test_a_decision_that_was_written_and_not_carried_out_is_carried_out(lab: Lab) -> None:
    first = lab.train(RIGHT)
    lab.again(1)
    second = train_model(lab.settings, lab.dataset, run_trainer=lab.write, margin=0.5)
    assert not second.decision.promoted
    promoted = msgspec.structs.replace(second.decision, promoted=True)
    with (lab.home / "promotions.jsonl").open("ab") as log:
        log.write(msgspec.json.encode(promoted) + b"\n" + b'{"at": "cut o')
    assert champion_version(lab.paths, MODEL) == first.model.version
    champion.settle(lab.paths, MODEL)
    assert champion_version(lab.paths, MODEL) == second.model.version
    found: list[Decision] = decisions(lab.paths, MODEL)
    assert found[-1].promoted
    assert len(found) == 3


def test_old_versions_go_and_what_a_champion_was_made_from_stays(lab: Lab) -> None:
    settings = msgspec.structs.replace(lab.settings, keep_versions=2)
    made = []
    for seed in range(6):
        lab.again(seed)
        made.append(train_model(settings, lab.dataset, run_trainer=lab.write, margin=0.5) if seed else lab.train(RIGHT))
    assert [each.decision.promoted for each in made] == [True, *[False] * 5]
    prune_datasets(lab.paths, MODEL, 2)
    folders = {path.name for path in lab.home.iterdir() if path.is_dir() and not path.is_symlink()}
    assert folders == {made[n].model.version for n in (0, 4, 5)}
    datasets = {path.name for path in lab.paths.datasets(MODEL).iterdir() if path.is_dir()}
    assert datasets == {made[n].model.dataset for n in (0, 4, 5)}


def test_no_dataset_goes_while_a_model_is_trained(lab: Lab) -> None:
    lab.again(1)
    lab.again(2)
    with locked(lab.paths, f"model_{MODEL}"):
        assert prune_datasets(lab.paths, MODEL, 1) == []
    assert len(prune_datasets(lab.paths, MODEL, 1)) == 3


def test_going_back_to_a_model_of_erased_records_says_so(lab: Lab) -> None:
    first = lab.train(RIGHT)
    lab.again(1)
    train_model(lab.settings, lab.dataset, run_trainer=lab.write, margin=0.0)
    (first.model.folder / TAINTED).write_text("{}")
    assert rollback(lab.settings, MODEL).reason.endswith(ERASED)


def test_a_model_is_found_by_its_name_its_version_and_its_folder(lab: Lab) -> None:
    first = lab.train(RIGHT)
    lab.again(1)
    lab.train(WRONG)
    version = first.model.version
    for text in (MODEL, f"{MODEL}/{version}", version[:5], f"{MODEL}/champion", str(first.model.folder)):
        assert find_model(lab.paths, text).version == version
    for text in ("weather", f"{MODEL}/zzz", "", "tool_selection"):
        with pytest.raises(ModelMissing):
            find_model(lab.paths, text)


def test_a_manifest_that_was_changed_is_no_model(lab: Lab) -> None:
    folder = lab.train(RIGHT).model.folder
    manifest = folder / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"correct":', b'"correct" :'))
    with pytest.raises(ModelMissing, match="changed at byte"):
        read_model(folder)


def test_the_store_loads_the_champion_and_asks_it(training_data: Path) -> None:
    settings: Settings = settings_of(training_data)
    store = TrainingDataStore(settings)
    with pytest.raises(ModelMissing, match="tds train tool_selection"):
        store.load_champion("tool_selection")
    trained = train_model(settings, find_dataset(DataPaths(training_data), "tool_selection"))
    assert trained.decision.promoted
    with store.load_champion("tool_selection") as loaded:
        question = {"messages": [{"role": "user", "content": "Please find flights number 7."}]}
        (answer,) = loaded.predict([question])
        assert (loaded.version, loaded.is_tainted, answer.prediction) == (trained.model.version, False, "find_flights")
        with pytest.raises(InvalidRecord):
            loaded.predict([{"message": "x"}])
    store.sync.close()


def test_a_model_of_another_trainer_says_which_one_to_set(lab: Lab) -> None:
    lab.train(RIGHT)
    ours = msgspec.structs.replace(lab.settings, trainer=None)
    with pytest.raises(ModelMissing, match="set TDS_TRAINER="):
        load_champion(ours, MODEL)


def test_an_hour_later_sessions_of_other_days_make_another_version(lab: Lab) -> None:
    first = lab.train(RIGHT)
    store_sessions(lab.paths.root, range(200, 220), day="2024-05-16")
    lab.again(0)
    assert lab.train(RIGHT).model.version != first.model.version


def test_a_link_that_was_not_put_in_place_stops_nothing(lab: Lab) -> None:
    lab.train(RIGHT)
    (lab.home / ".building-left").symlink_to("nowhere")
    lab.again(1)
    assert lab.train(RIGHT).model.version
    assert not list(lab.home.glob(".building-*"))


def test_a_champion_that_is_damaged_is_replaced_and_the_reason_says_so(lab: Lab) -> None:
    first = lab.train(RIGHT)
    (first.model.folder / MANIFEST).write_text("{")
    lab.again(1)
    decision = lab.train(RIGHT, margin=0.5).decision
    assert (decision.promoted, decision.champion) == (True, first.model.version)
    assert f"the champion {first.model.version} is damaged or gone" in decision.reason


def test_no_dataset_is_removed_while_a_model_does_not_say_which_one_it_is_of(lab: Lab) -> None:
    first = lab.train(RIGHT)
    for seed in range(1, 4):
        lab.again(seed)
    (first.model.folder / MANIFEST).write_text("{")
    assert prune_datasets(lab.paths, MODEL, 1) == []
