"""A model is trained again when its policy says so, once for the same data, and each tick tells why or why not."""

import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import msgspec
import pytest

from ingest import Settings
from ingest.errors import InvalidTrainingPolicy
from ingest.pipeline.partitions import today
from tds_dagster.automation.retraining import KEY, SENTENCE, retraining_sensor, retraining_sensors
from tds_dagster.datasets.recipe import MODELS
from tests.parts import PROJECT
from tests.platform.dagster_parts import days_from
from tests.platform.retraining_parts import (
    MODEL,
    NOW,
    ask,
    check_on_new_days,
    day_of,
    days_of,
    export,
    run_of,
    starts,
    taint,
    train,
    waits,
)

DAYS = days_from("2024-05-01", 10)
LEARNED = days_of(DAYS, 100)
NEXT = "2024-05-11"
LAST = "2024-05-31"
Status = dg.DagsterRunStatus


@pytest.fixture
def trained(instance: dg.DagsterInstance, settings: Settings) -> Settings:
    """Ten days of a hundred rows, all of them exported and learned from."""
    export(instance, LEARNED)
    train(settings, LEARNED)
    return settings


def with_policy(settings: Settings, text: str) -> Settings:
    path = settings.data_dir.parent / "policy.toml"
    path.write_text(text)
    return msgspec.structs.replace(settings, training_policy=path)


# ---- what starts a training


def test_without_any_data_it_waits_and_says_so(instance: dg.DagsterInstance, settings: Settings) -> None:
    assert waits(ask(instance, settings)) == ("event_prediction waits: no exported day of events before 2024-06-01 yet")
    export(instance, {"2024-06-01": day_of(5000), "2024-05-31": day_of(0)})  # the present day, and one without rows
    assert "no exported day of events" in waits(ask(instance, settings))


def test_a_model_that_was_never_trained_is_trained_on_all_days_before_today(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    export(instance, LEARNED | {"2024-06-01": day_of(5000)})
    asked = ask(instance, settings)
    assert starts(asked) == (
        "event_prediction starts: it was never trained (1,000 rows in 10 days of events are exported)"
    )
    assert isinstance(asked, dg.RunRequest)
    assert asked.asset_selection == [dg.AssetKey(["datasets", MODEL]), dg.AssetKey(["models", MODEL])]
    assert asked.run_config == {"ops": {"datasets__event_prediction": {"config": {"end": DAYS[-1]}}}}
    assert asked.tags[KEY] == asked.run_key


def test_a_first_model_waits_for_rows_to_learn_from(instance: dg.DagsterInstance, settings: Settings) -> None:
    export(instance, {DAYS[0]: day_of(99)})
    assert "a first model takes 100 rows (99 rows in 1 day of events are exported)" in waits(ask(instance, settings))
    settings.data_dir.mkdir()
    starts(ask(instance, with_policy(settings, "[default]\nnew_rows = 20\n")))


def test_what_was_learned_from_is_not_new(instance: dg.DagsterInstance, trained: Settings) -> None:
    assert waits(ask(instance, trained)) == (
        "event_prediction waits: nothing changed (0 rows in 0 days of events changed since aaaa00000000, which learned "
        "up to 2024-05-10)"
    )


def test_enough_new_rows_start_it_and_fewer_do_not(instance: dg.DagsterInstance, trained: Settings) -> None:
    export(instance, {NEXT: day_of(999)})
    assert "waits: new_rows 999 of 1,000; max_age_days 1 of 30 (" in waits(ask(instance, trained))
    export(instance, {NEXT: day_of(1000)})
    assert "starts: new_rows 1,000 of 1,000 (" in starts(ask(instance, trained))


def test_enough_new_days_start_it_where_the_policy_counts_days(instance: dg.DagsterInstance, trained: Settings) -> None:
    settings = with_policy(trained, "[default]\nnew_rows = 0\n[event_prediction]\nnew_days = 2\n")
    export(instance, {NEXT: day_of(9999)})
    assert "waits: new_days 1 of 2; max_age_days" in waits(ask(instance, settings))
    export(instance, {"2024-05-12": day_of(1)})
    assert "starts: new_days 2 of 2 (" in starts(ask(instance, settings))


def test_rows_count_and_not_files_and_a_day_that_is_exported_twice_counts_once(
    instance: dg.DagsterInstance, trained: Settings
) -> None:
    for _ in range(3):
        export(instance, LEARNED | {NEXT: day_of(600)})
    assert "600 rows in 1 day of events changed" in waits(ask(instance, trained))


def test_a_day_with_other_rows_counts_their_difference_and_one_with_other_content_counts_one(
    instance: dg.DagsterInstance, trained: Settings
) -> None:
    export(instance, {DAYS[0]: day_of(70), DAYS[1]: day_of(105), DAYS[2]: day_of(100, "other"), DAYS[3]: day_of(0)})
    assert "136 rows in 4 days of events changed" in waits(ask(instance, trained))  # 30 + 5 + 1 + 100


def test_late_rows_of_an_old_day_count(instance: dg.DagsterInstance, trained: Settings) -> None:
    export(instance, {"2024-03-01": day_of(400), DAYS[0]: day_of(800)})
    asked = ask(instance, trained)
    assert "1,100 rows in 2 days" in starts(asked)
    assert isinstance(asked, dg.RunRequest)
    assert asked.run_config["ops"]["datasets__event_prediction"]["config"]["end"] == DAYS[-1]


def test_400_days_at_once_are_one_run_with_all_their_rows(instance: dg.DagsterInstance, trained: Settings) -> None:
    many = days_of(days_from("2023-04-01", 385), 7) | days_of(days_from(NEXT, 15), 7)
    export(instance, many)
    asked = ask(instance, trained)
    assert "2,800 rows in 400 days of events" in starts(asked)
    train(trained, LEARNED | many, version="bbbb00000000")
    assert "nothing changed" in waits(ask(instance, trained))


def test_the_present_day_is_never_learned_from(instance: dg.DagsterInstance, trained: Settings) -> None:
    export(instance, {"2024-06-01": day_of(5000), "2024-06-02": day_of(5000)})
    assert "nothing changed" in waits(ask(instance, trained))


def test_an_old_model_is_trained_again_if_there_is_anything_new(
    instance: dg.DagsterInstance, trained: Settings
) -> None:
    later = NOW + timedelta(days=30)
    assert "nothing changed" in waits(ask(instance, trained, later))
    export(instance, {NEXT: day_of(1)})
    assert "max_age_days 1 of 30" in waits(ask(instance, trained))
    assert "starts: max_age_days 31 of 30 (" in starts(ask(instance, trained, later))


def test_drift_on_new_days_starts_it_and_a_check_of_days_that_were_learned_from_does_not(
    instance: dg.DagsterInstance, trained: Settings
) -> None:
    export(instance, {NEXT: day_of(10)})
    check_on_new_days(instance, start=NEXT, end=LAST, drift=0.22)
    assert "drift 0.22, 0.03 of it chance, of 0.2" in waits(ask(instance, trained))
    check_on_new_days(instance, start=DAYS[-1], end=LAST, drift=0.9)  # of an earlier champion
    assert "drift" not in waits(ask(instance, trained))
    check_on_new_days(instance, start=NEXT, end=LAST, drift=0.9, rows=49)
    assert "drift" not in waits(ask(instance, trained))
    check_on_new_days(instance, start=NEXT, end=LAST, drift=0.9, champion="another")
    assert "drift" not in waits(ask(instance, trained))
    check_on_new_days(instance, start=NEXT, end=LAST, drift=0.23)
    assert "starts: drift 0.23, 0.03 of it chance, of 0.2 (" in starts(ask(instance, trained))


def test_one_drift_starts_one_training_though_the_champion_stays(
    instance: dg.DagsterInstance, trained: Settings
) -> None:
    export(instance, {NEXT: day_of(10)})
    check_on_new_days(instance, start=NEXT, end=LAST, drift=0.5)
    starts(ask(instance, trained))
    train(trained, LEARNED | {NEXT: day_of(10)}, version="bbbb00000000", promote=False)
    export(instance, {"2024-05-12": day_of(10)})
    check_on_new_days(instance, start=NEXT, end=LAST, drift=0.5)
    assert "waits: new_rows 10 of 1,000; max_age_days 1 of 30 (" in waits(ask(instance, trained))


def test_lost_accuracy_starts_it_if_it_is_no_chance(instance: dg.DagsterInstance, trained: Settings) -> None:
    export(instance, {NEXT: day_of(10)})  # the champion has 0.80 on its test split, 0.47 at least
    check_on_new_days(instance, start=NEXT, end=LAST, accuracy=0.76, low=0.7, high=0.79)
    assert "quality_drop 0.04 of 0.05 (" in waits(ask(instance, trained))
    check_on_new_days(instance, start=NEXT, end=LAST, accuracy=0.4, low=0.3, high=0.48)
    assert "quality_drop 0.40 of 0.05 (" in waits(ask(instance, trained))
    check_on_new_days(instance, start=NEXT, end=LAST, accuracy=0.4, low=0.3, high=0.46)
    assert "quality_drop 0.40 of 0.05 (0.80 on its test split, 0.47 at least; 0.40 on new days, 0.46 at most)" in (
        starts(ask(instance, trained))
    )


def test_a_champion_that_learned_from_erased_records_is_replaced(
    instance: dg.DagsterInstance, trained: Settings
) -> None:
    first = ask(instance, trained)
    waits(first)
    taint(trained)
    asked = ask(instance, trained)
    assert "records that its champion aaaa00000000 learned from were erased" in starts(asked)
    train(trained, LEARNED, version="bbbb00000000", promote=False)
    assert "bbbb00000000 learned from all that is there now and was not better" in waits(ask(instance, trained))
    export(instance, {NEXT: day_of(1)})
    assert "were erased" in starts(ask(instance, trained))


def test_an_erasure_starts_it_though_a_run_on_the_same_days_has_succeeded(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    export(instance, LEARNED)
    asked = ask(instance, settings)
    assert isinstance(asked, dg.RunRequest)
    run = run_of(instance, f"models/{MODEL}", Status.STARTED, asked)
    train(settings, LEARNED)
    instance.report_run_canceled(run)
    taint(settings)
    assert "were erased" in starts(ask(instance, settings))


def test_a_dataset_that_was_erased_with_its_days_is_no_reason_to_fail(
    instance: dg.DagsterInstance, trained: Settings
) -> None:
    (trained.data_dir / "datasets" / MODEL / "daaa00000000" / "manifest.json").unlink()
    assert "learned up to a day that is not known any more" in starts(ask(instance, trained))


# ---- what keeps it from starting twice


def test_a_training_that_failed_is_tried_again_when_the_data_changes_and_not_before(
    instance: dg.DagsterInstance, trained: Settings
) -> None:
    export(instance, {NEXT: day_of(1000)})
    asked = ask(instance, trained)
    assert isinstance(asked, dg.RunRequest)
    failed = run_of(instance, f"models/{MODEL}", Status.FAILURE, asked)
    for _ in range(2):
        told = waits(ask(instance, trained))
        assert f"run {failed.run_id[:8]} on the same data failed" in told
        assert "its reason to start: new_rows 1,000 of 1,000 (" in told
    export(instance, {NEXT: day_of(1001)})
    again = ask(instance, trained)
    assert "1,001 rows" in starts(again)  # the mark is where it was: what failed is counted again
    assert isinstance(again, dg.RunRequest)
    assert again.run_key != asked.run_key


def test_a_training_that_was_canceled_is_not_started_again_behind_that_persons_back(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    export(instance, LEARNED)
    asked = ask(instance, settings)
    assert isinstance(asked, dg.RunRequest)
    run_of(instance, f"models/{MODEL}", Status.CANCELED, asked)
    assert "was canceled" in waits(ask(instance, settings))


def test_another_recipe_or_trainer_is_tried_on_the_same_data(instance: dg.DagsterInstance, settings: Settings) -> None:
    export(instance, LEARNED)
    asked = ask(instance, settings)
    assert isinstance(asked, dg.RunRequest)
    run_of(instance, f"models/{MODEL}", Status.FAILURE, asked)
    settings.data_dir.mkdir(exist_ok=True)
    starts(ask(instance, with_policy(settings, "[event_prediction.recipe]\nallow_empty_splits = true\n")))
    starts(ask(instance, msgspec.structs.replace(settings, trainer="python other.py")))
    waits(ask(instance, settings))


def test_two_ticks_at_once_ask_for_one_run(instance: dg.DagsterInstance, settings: Settings) -> None:
    export(instance, LEARNED)
    asked = [ask(instance, settings), ask(instance, settings, NOW + timedelta(seconds=1))]
    assert len({each.run_key for each in asked if isinstance(each, dg.RunRequest)}) == 1
    assert isinstance(asked[0], dg.RunRequest)
    run = run_of(instance, f"models/{MODEL}", Status.STARTED, asked[0])
    assert f"run {run.run_id[:8]} is training it" in waits(ask(instance, settings))


def test_a_training_that_a_person_started_is_waited_for(instance: dg.DagsterInstance, settings: Settings) -> None:
    export(instance, LEARNED)
    run = run_of(instance, f"models/{MODEL}", Status.STARTED)
    run_of(instance, "models/task_completion", Status.STARTED)
    assert f"run {run.run_id[:8]} is training it" in waits(ask(instance, settings))
    instance.report_run_failed(run)
    starts(ask(instance, settings))


def test_days_that_are_being_exported_are_waited_for_but_not_for_ever(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    export(instance, LEARNED)
    run = run_of(instance, "exports/events", Status.STARTED)
    run_of(instance, "exports/tasks", Status.STARTED)
    now = datetime.now(NOW.tzinfo)
    assert f"run {run.run_id[:8]} is exporting days" in waits(ask(instance, settings, now))
    starts(ask(instance, settings, now + timedelta(hours=7)))


def test_a_daemon_in_a_new_process_comes_to_the_same_decision(settings: Settings, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        export(instance, LEARNED)
        asked = ask(instance, settings)
        assert isinstance(asked, dg.RunRequest)
        code = (
            "import sys, pathlib, dagster as dg; from ingest import Settings; "
            "from tests.platform.retraining_parts import ask; "
            "asked = ask(dg.DagsterInstance.local_temp(sys.argv[1]), Settings(data_dir=pathlib.Path(sys.argv[2]))); "
            "print(asked.run_key if isinstance(asked, dg.RunRequest) else asked.skip_message)"
        )
        command = [sys.executable, "-W", "ignore", "-c", code, str(home), str(settings.data_dir)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == asked.run_key


@pytest.mark.parametrize("cursor", [None, "", "rubbish", '{"events": 12345}'])
def test_a_cursor_that_was_lost_changes_nothing(
    cursor: str | None, instance: dg.DagsterInstance, trained: Settings
) -> None:
    sensor = retraining_sensor("event_prediction")
    export(instance, {NEXT: day_of(2000)})
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"settings": trained})
    asked = sensor(context)
    assert isinstance(asked, dg.RunRequest)
    expected = ask(instance, trained)
    assert isinstance(expected, dg.RunRequest)
    assert asked.run_key == expected.run_key
    assert context.cursor == cursor


# ---- its policy and its definition


def test_the_recipe_of_the_policy_decides_which_days_count_and_what_the_dataset_is_built_with(
    instance: dg.DagsterInstance, trained: Settings
) -> None:
    recipe = (
        "[event_prediction.recipe]\nstart = 2024-05-12\nwhere = \"severity = 'error'\"\nfractions = [0.6, 0.2, 0.2]\n"
    )
    settings = with_policy(trained, recipe)
    export(instance, {NEXT: day_of(5000), "2024-05-12": day_of(999)})
    assert "999 rows in 1 day" in waits(ask(instance, settings))
    export(instance, {"2024-05-13": day_of(1)})
    asked = ask(instance, settings)
    assert isinstance(asked, dg.RunRequest)
    assert asked.run_config["ops"]["datasets__event_prediction"]["config"] == {
        "start": "2024-05-12", "end": "2024-05-13", "where": "severity = 'error'", "fractions": [0.6, 0.2, 0.2],
    }  # fmt: skip


def test_a_policy_that_cannot_be_used_fails_the_tick_with_what_to_mend(
    instance: dg.DagsterInstance, trained: Settings
) -> None:
    with pytest.raises(InvalidTrainingPolicy, match=r"policy\.toml: \[event_prediction\] new_rows=-1: expected"):
        ask(instance, with_policy(trained, "[event_prediction]\nnew_rows = -1\n"))


def test_every_model_has_a_sensor_that_runs_without_being_switched_on() -> None:
    sensors = retraining_sensors()
    assert [sensor.name for sensor in sensors] == [f"retrain_{model}" for model in MODELS]
    for sensor in sensors:
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
        assert sensor.minimum_interval_seconds == 30


def test_the_sensor_looks_at_the_clock_and_tells_its_reason(instance: dg.DagsterInstance, settings: Settings) -> None:
    export(instance, {today().isoformat(): day_of(1)})
    context = dg.build_sensor_context(instance=instance, resources={"settings": settings})
    asked = retraining_sensor("event_prediction")(context)
    assert isinstance(asked, dg.SkipReason)
    assert f"before {today()} yet" in str(asked.skip_message)
    export(instance, {(today() - timedelta(days=1)).isoformat(): day_of(100)})
    asked = retraining_sensor("event_prediction")(context)
    assert isinstance(asked, dg.RunRequest)
    assert "it was never trained" in asked.tags[SENTENCE]
