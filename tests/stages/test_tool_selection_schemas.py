"""What calls tell of a tool: its parameters as JSON Schema, and how they drift from day to day."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tds_dagster.datasets.tool_schemas import ToolSchemas, tool_definition, tool_name


def parameters(*calls: Mapping[str, object]) -> dict[str, object]:
    schemas = ToolSchemas()
    for call in calls:
        schemas.observe("book", call, "2024-05-15")
    function = schemas.definition("book")["function"]
    assert isinstance(function, dict)
    return dict(function["parameters"])


def test_a_parameter_is_required_only_if_every_call_had_it() -> None:
    schema = parameters({"to": "JFK", "bags": 1}, {"to": "SEA"})
    assert schema == {
        "type": "object",
        "properties": {"bags": {"type": "integer"}, "to": {"type": "string"}},
        "required": ["to"],
    }


def test_types_that_were_seen_are_all_told_and_number_covers_integer() -> None:
    schema = parameters({"a": 1, "b": None, "c": True}, {"a": 2.5, "b": "x", "c": [1]})
    assert schema["properties"] == {
        "a": {"type": "number"},
        "b": {"type": ["null", "string"]},
        "c": {"type": ["array", "boolean"], "items": {"type": "integer"}},
    }


def test_objects_in_lists_have_their_own_parameters() -> None:
    schema = parameters({"who": [{"first": "A", "age": 3}, {"first": "B"}]}, {"who": []})
    assert schema["properties"] == {
        "who": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"age": {"type": "integer"}, "first": {"type": "string"}},
                "required": ["first"],
            },
        }
    }


def test_words_that_come_again_and_again_are_an_enum() -> None:
    cabins = ["economy", "basic_economy"] * 10
    assert parameters(*({"cabin": cabin} for cabin in cabins))["properties"] == {
        "cabin": {"type": "string", "enum": ["basic_economy", "economy"]}
    }


@pytest.mark.parametrize(
    ("reason", "texts"),
    [
        ("seldom seen", ["economy", "business"] * 9),
        ("one of them seen twice", ["economy"] * 30 + ["business"] * 2),
        ("names of people", ["Mia Li", "Noah Khan"] * 20),
        ("ids", ["user_4421", "user_9987"] * 20),
        ("too many", [word for word in ("a", "b", "c", "d", "e", "f", "g", "h", "i") for _ in range(5)]),
        ("a single one", ["economy"] * 40),
    ],
)
def test_no_text_gets_into_a_schema_that_is_not_plainly_one_of_a_few_words(reason: str, texts: list[str]) -> None:
    assert parameters(*({"x": text} for text in texts))["properties"] == {"x": {"type": "string"}}, reason


def test_an_object_of_very_many_names_is_told_by_its_type_alone() -> None:
    schema = parameters(*({"prices": {f"day-{n}": n}} for n in range(65)))
    assert schema["properties"] == {"prices": {"type": "object"}}


def test_calls_nested_for_ever_end_at_eight_levels() -> None:
    deep: dict[str, object] = {}
    for _ in range(300):
        deep = {"more": deep}
    assert str(parameters(deep)).count("'properties'") == 8


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1, 1) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.dictionaries(st.text(max_size=2), VALUES, max_size=3), st.integers(0, 3)), max_size=6))
def test_the_order_of_calls_changes_neither_schema_nor_drift(calls: list[tuple[dict[str, object], int]]) -> None:
    told = []
    for order in (calls, sorted(calls, key=repr)):
        schemas = ToolSchemas()
        for call, day in order:
            schemas.observe("book", call, f"2024-05-1{day}")
        told.append((schemas.definition("book"), schemas.drifts()))
    assert told[0] == told[1]


def test_a_recorded_definition_is_taken_as_it_is_and_the_latest_one_holds() -> None:
    schemas = ToolSchemas()
    schemas.observe("book", {"to": 1}, "2024-05-17")
    for day, text in (("2024-05-16", "new"), ("2024-05-15", "old")):
        definition = tool_definition({"name": "book", "description": text, "input_schema": {"type": "object"}})
        assert definition is not None
        schemas.record(definition, day)
    assert schemas.definition("book") == {
        "type": "function",
        "function": {"name": "book", "description": "new", "parameters": {"type": "object"}},
    }
    assert schemas.inferred == []


def drift_of(*days: list[dict[str, object]]) -> list[str]:
    schemas = ToolSchemas()
    for n, calls in enumerate(days):
        for call in calls:
            schemas.observe("book", call, f"2024-05-1{n}")
    return [str(drift) for drift in schemas.drifts()]


def test_a_parameter_that_comes_later_was_added() -> None:
    assert drift_of([{"to": "JFK"}], [{"to": "SEA", "seat": "1A"}]) == ["2024-05-11 book: seat added (string)"]


def test_a_parameter_that_every_call_had_and_none_has_any_more_was_removed() -> None:
    assert drift_of([{"to": "JFK", "seat": 1}], [{"to": "SEA"}], [{"to": "SEA"}]) == [
        "2024-05-11 book: seat removed (integer)"
    ]


def test_an_optional_parameter_that_is_not_used_on_a_day_is_no_drift() -> None:
    assert drift_of([{"to": "JFK", "seat": 1}, {"to": "JFK"}], [{"to": "SEA"}]) == []


def test_another_type_is_drift_but_an_integer_among_numbers_is_none() -> None:
    assert drift_of([{"a": 1.5, "b": 1}], [{"a": 2, "b": "1"}]) == ["2024-05-11 book: b integer → string"]


def test_drift_is_seen_inside_lists_of_objects() -> None:
    assert drift_of([{"who": [{"name": "A"}]}], [{"who": [{"name": "A", "dob": "1990"}]}]) == [
        "2024-05-11 book: who[].dob added (string)"
    ]


def test_drift_of_recorded_definitions_is_told_apart_from_that_of_calls() -> None:
    schemas = ToolSchemas()
    for day, kind in (("2024-05-15", "string"), ("2024-05-16", "integer")):
        schemas.record(
            {
                "type": "function",
                "function": {"name": "book", "parameters": {"type": "object", "properties": {"to": {"type": kind}}}},
            },
            day,
        )
    (drift,) = schemas.drifts()
    assert (drift.source, drift.change, drift.parameter, drift.before, drift.after) == (
        "recorded", "type", "to", ("string",), ("integer",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "name"), [("files.read", "files_read"), ("a" * 70, "a" * 64), ("", None), (" ", None)]
)
def test_names_of_tools_are_told_in_the_letters_that_chat_formats_take(given: str, name: str | None) -> None:
    assert tool_name(given) == name


@pytest.mark.parametrize("key", ["parameters", "input_schema", "inputSchema"])
def test_a_recorded_schema_is_an_objects_in_every_form_that_tools_are_recorded_in(key: str) -> None:
    definition = tool_definition({"name": "book", key: {"properties": {"to": {}}}})
    assert definition is not None
    assert definition["function"] == {
        "name": "book", "description": "", "parameters": {"type": "object", "properties": {"to": {}}},
    }  # fmt: skip


@pytest.mark.parametrize("given", [None, "find", {}, {"name": 3}, {"function": "find"}, {"name": ""}])
def test_what_is_no_tool_is_no_definition(given: object) -> None:
    assert tool_definition(given) is None
