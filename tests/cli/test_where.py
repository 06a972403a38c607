"""`tds where`: the place of a thing, for a person and for a program."""

import json
from collections.abc import Callable

from typer.testing import Result


def test_a_place_is_told_with_its_call_and_its_reason(tds: Callable[..., Result]) -> None:
    told = tds("where", "the rating a user gave an answer").stdout.splitlines()
    assert told[0] == "feedback: the training data store, kind feedback"
    assert told[1] == "  call  await store.store_feedback(target_kind, target_id, name, value)"
    assert told[3] == "  from  rating"
    assert json.loads(tds("where", "agent_interactions", "--json").stdout)["place"] == "conversations"


def test_what_cannot_be_told_is_asked(tds: Callable[..., Result]) -> None:
    told = tds("where", "spreadsheet cells").stdout.splitlines()
    assert told[0] == "case_by_case: not decided yet"
    assert len([line for line in told if line.strip()[0].isdigit()]) == 12
