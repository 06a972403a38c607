"""What an erasure finds: by id, text or predicate, with all that hangs on it. Nothing is erased here."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from ingest import Settings, TrainingDataStore
from ingest.errors import InvalidPredicate
from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS
from tds_dagster.erasure import Selector, find_doomed
from tests.parts import csv_rows
from tests.stages.erasure_parts import DAYS, SUBJECT, import_a_record_id_of_two_days, store_days

SESSION = f"session-of-{SUBJECT}"
ALL = dict.fromkeys(KINDS, 4)  # records of the subject


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Two days of two agents, with feedback on both sessions, and feedback on feedback."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("stored") / "data")
    store_days(settings)
    store = TrainingDataStore(settings)
    for session in (SESSION, "session-of-somebody"):
        judged = store.sync.store_feedback("session", session, "good", True, timestamp=f"{DAYS[0]}T09:00:00Z")
        store.sync.store_feedback("record", str(judged), "agreed", True, timestamp=f"{DAYS[0]}T09:00:00Z")
    store.sync.flush()
    store.sync.close()
    return settings


def found(settings: Settings, **selector: object) -> Mapping[str, int]:
    """How many records of each kind a selector finds."""
    result = find_doomed(DataPaths(settings.data_dir), msgspec.convert(selector, Selector), lambda *_: None)
    return {kind: sum(days.values()) for kind, days in result.records.items()}


def test_an_agent_has_its_records_in_every_kind_and_the_feedback_on_them(settings: Settings) -> None:
    assert found(settings, agent_ids=[SUBJECT]) == {**ALL, "feedback": 6}


def test_a_session_has_the_feedback_on_it_and_on_its_tasks(settings: Settings) -> None:
    assert found(settings, session_ids=[SESSION]) == {**ALL, "feedback": 6}


def test_one_record_has_the_feedback_on_what_it_leaves_nothing_of(settings: Settings) -> None:
    rows = {kind: csv_rows(settings, kind)[0]["record_id"] for kind in ("events", "tasks")}
    assert found(settings, record_ids=[rows["events"]]) == {"events": 1}
    assert found(settings, record_ids=[rows["tasks"]]) == {"tasks": 1, "feedback": 1}


def test_a_predicate_finds_a_record_and_whole_sessions_all_that_belongs_to_it(settings: Settings) -> None:
    where = f"contains(payload, 'of {SUBJECT}') AND timestamp < '{DAYS[1]}'"
    assert found(settings, where=where) == {"events": 2}
    assert found(settings, where=where, whole_sessions=True) == {**ALL, "feedback": 6}


def test_feedback_that_matches_leads_to_the_session_of_its_target(settings: Settings) -> None:
    by_comment = f"comment = 'on {SUBJECT}' AND value = '1'"
    assert found(settings, where=by_comment) == {"feedback": 2}
    assert found(settings, where=by_comment, whole_sessions=True) == {**ALL, "feedback": 6}


def test_a_predicate_reads_feedback(settings: Settings) -> None:
    assert found(settings, where="feedback.reward >= 4", kinds=["tasks"]) == {"tasks": 4, "feedback": 4}


def test_kinds_limit_where_is_looked(settings: Settings) -> None:
    assert found(settings, agent_ids=[SUBJECT], kinds=["events"]) == {"events": 4}


def test_a_predicate_is_asked_of_the_kinds_that_have_its_columns(settings: Settings) -> None:
    assert found(settings, where=f"error = '{SUBJECT}'") == {"tool_executions": 4}


def test_a_predicate_that_no_kind_or_not_every_named_kind_understands_is_an_error(settings: Settings) -> None:
    with pytest.raises(InvalidPredicate):
        found(settings, where="no_such_column = 1")
    with pytest.raises(InvalidPredicate):
        found(settings, where="error IS NOT NULL", kinds=["tasks", "events"])


@pytest.mark.parametrize("text", [f'"of {SUBJECT}"\n', f"of {SUBJECT}"])
def test_a_text_is_found_as_it_is_and_as_json_writes_it(settings: Settings, text: str) -> None:
    assert found(settings, texts=[text], kinds=["events"]) == {"events": 4}


def test_a_text_is_looked_for_in_every_column_of_every_kind(settings: Settings) -> None:
    assert found(settings, texts=[SUBJECT]) == {**ALL, "feedback": 6}


def test_any_one_of_several_ways_is_enough(settings: Settings) -> None:
    one = csv_rows(settings, "workflows")[0]
    assert found(settings, session_ids=[SESSION], record_ids=[one["record_id"]]) == {
        **ALL,
        "workflows": 5,
        "feedback": 6,
    }


def test_what_no_predicate_can_judge_is_counted(settings: Settings, tmp_path: Path) -> None:
    quarantine = DataPaths(settings.data_dir).quarantine("tasks", "2024-05-20")
    quarantine.parent.mkdir(parents=True, exist_ok=True)
    quarantine.write_text(
        f'{{"reason":"r","origin":"o","line":"{SUBJECT}"}}\n{{"reason":"r","origin":"o","line":"x"}}\n'
    )
    try:
        paths = DataPaths(settings.data_dir)
        by_where = find_doomed(paths, Selector(where="task_type = 'x'"), lambda *_: None)
        both = find_doomed(paths, Selector(where="task_type = 'x'", texts=(SUBJECT,)), lambda *_: None)
    finally:
        quarantine.unlink()
    assert by_where.unjudged == {"tasks": 2}
    assert both.unjudged == {"tasks": 1}
    assert list(both.doomed["tasks"].lines) == ["2024-05-20"]


def test_a_record_id_that_two_days_have_is_a_record_of_each(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    import_a_record_id_of_two_days(settings)
    paths = DataPaths(settings.data_dir)
    find = {
        "of the agent": Selector(agent_ids=(SUBJECT,)),
        "by a predicate": Selector(where=f"agent_id = '{SUBJECT}'"),
        "the session": Selector(agent_ids=(SUBJECT,), whole_sessions=True),
    }
    records = {name: find_doomed(paths, each, lambda *_: None).records for name, each in find.items()}
    assert records == {
        "of the agent": {"events": {DAYS[0]: 1}},
        "by a predicate": {"events": {DAYS[0]: 1}},
        "the session": {"events": {DAYS[0]: 1, DAYS[1]: 1}},
    }
