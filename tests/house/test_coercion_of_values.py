"""Whatever a caller passes becomes something JSON can hold, and no value breaks the call."""

import dataclasses
import enum
import json
import re
import sys
import uuid
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import NamedTuple
from unittest.mock import MagicMock

import msgspec
import numpy as np
import orjson
import pandas as pd
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.coercion import (
    MAX_DEPTH,
    deep_text,
    plain_document,
    plain_numbers,
    plain_texts,
    whole_text,
)
from ingest.errors import InvalidRecord, safe_repr, shown


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, Decimal("2.5"))


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


@dataclasses.dataclass
class Point:
    x: int
    y: object = None


class Pair(NamedTuple):
    a: int
    b: int


class Node(msgspec.Struct):
    value: object
    following: "Node | None" = None


class Model(pydantic.BaseModel):
    name: str
    when: datetime
    inner: dict[str, list[Decimal]]


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"


class Count(int):
    def __int__(self) -> int:
        raise RuntimeError


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Hostile(dict[str, object]):
    def items(self) -> Iterator[tuple[str, object]]:  # type: ignore[override]
        raise RuntimeError("no items")

    def __repr__(self) -> str:
        return "<Hostile>"


class Converting:
    def model_dump(self) -> object:
        raise RuntimeError("no dump")

    def __repr__(self) -> str:
        return "<Converting>"


def stored(value: object) -> object:
    """What a reader finds after the value went through the slow path."""
    encoded = msgspec.json.encode(plain_document(value))
    assert orjson.loads(encoded) == json.loads(encoded)
    return json.loads(encoded)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (datetime(2024, 5, 15, 8, tzinfo=UTC), "2024-05-15T08:00:00Z"),
        (date(2024, 5, 15), "2024-05-15"),
        (time(8, 30), "08:30:00"),
        (timedelta(minutes=1), "PT60S"),
        (pd.Timestamp("2024-05-15T08:00:00Z"), "2024-05-15T08:00:00+00:00"),
        (pd.NaT, None),
        (pd.Timedelta(minutes=1), "PT60S"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Decimal("1.50"), "1.50"),
        (Colour.RED, "red"),
        (Colour.PAIR, [1, "2.5"]),
        (Level.HIGH, 3),
        (Word.YES, "yes"),
        (Point(1, {2: Point(3)}), {"x": 1, "y": {"2": {"x": 3, "y": None}}}),
        (Node(1, Node({3})), {"value": 1, "following": {"value": [3], "following": None}}),
        (
            Model(name="a", when=datetime(2024, 5, 15, tzinfo=UTC), inner={"b": [Decimal("1.5")]}),
            {"name": "a", "when": "2024-05-15T00:00:00Z", "inner": {"b": ["1.5"]}},
        ),
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (np.bool_(1), True),
        (np.str_("a"), "a"),
        (np.datetime64("2024-05-15"), "2024-05-15"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([np.inf, 1.5]), [None, 1.5]),
        (pd.Series([1, 2]), [1, 2]),
        (Loud("quiet"), "quiet"),
        (Count(7), 7),
        (b"\x00\xff", "AP8="),
        (bytearray(b"ab"), "YWI="),
        (memoryview(b"abcd")[::2], "YWM="),
        ({1}, [1]),
        (frozenset({"a"}), ["a"]),
        ((1, (2,)), [1, [2]]),
        (Pair(1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(int, a=1), {"a": 1}),
        (UserDict(a=1), {"a": 1}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (deque([1]), "deque([1])"),
        (range(2), "range(0, 2)"),
        (
            {None: 1, True: 2, 3: 4, 1.5: 5, (6, 7): 8, Colour.RED: 9, date(2024, 5, 15): 10, b"k": 11},
            {"null": 1, "true": 2, "3": 4, "1.5": 5, "[6,7]": 8, "red": 9, "2024-05-15": 10, "aw==": 11},
        ),
        ({"\ud800": {"\udfff": 1}}, {"\\ud800": {"\\udfff": 1}}),
        (float("nan"), None),
        ([float("inf"), -float("inf")], [None, None]),
        (2**63, 2**63),
        (2**70, 2**70),
        ("\ud83d\ude00", "😀"),
        ("a\ud83db", "a\\ud83db"),
        ("\0", "\0"),
        (Point, "<class 'test_coercion_of_values.Point'>"),
        (len, "<built-in function len>"),
        (ValueError("no"), "ValueError('no')"),
        (1 + 2j, "(1+2j)"),
        (Silent(), "<Silent: repr failed>"),
        ([Hostile(a=1), Converting(), 2], ["<Hostile>", "<Converting>", 2]),
    ],
)
def test_a_value_that_json_does_not_know_takes_the_form_that_a_reader_expects(value: object, found: object) -> None:
    assert stored(value) == found


def test_an_integer_longer_than_python_writes_in_digits_is_kept_in_hexadecimal() -> None:
    assert stored({"n": 10**5000}) == {"n": hex(10**5000)}


def test_a_mock_that_answers_to_every_name_ends_as_its_repr() -> None:
    assert "MagicMock" in json.dumps(stored({"client": MagicMock()}))


def test_a_value_inside_itself_is_cut_where_it_comes_round_and_twice_beside_itself_is_kept() -> None:
    loop: dict[str, object] = {"a": 1}
    loop["again"] = [loop]
    assert stored(loop) == {"a": 1, "again": ["<cycle: dict>"]}
    node = Node(1)
    node.following = node
    assert stored(node) == {"value": 1, "following": "<cycle: Node>"}
    shared = {"s": 1}
    assert stored([shared, shared]) == [{"s": 1}, {"s": 1}]


def nested(levels: int, leaf: object, *, as_list: bool = False) -> object:
    value = leaf
    for _ in range(levels):
        value = [value] if as_list else {"a": value}
    return value


@pytest.mark.parametrize("as_list", [True, False])
def test_what_is_nested_1100_levels_deep_is_kept_whole_its_depth_as_json_text(as_list: bool) -> None:
    found = stored(nested(1100, {"end": {1, 2}, "t": "\ud800"}, as_list=as_list))
    for _ in range(MAX_DEPTH):
        found = found[0] if isinstance(found, list) else found["a"]  # type: ignore[index]
    assert isinstance(found, str)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        rest = json.loads(found)
    finally:
        sys.setrecursionlimit(limit)
    for _ in range(1100 - MAX_DEPTH):
        rest = rest[0] if as_list else rest["a"]
    assert rest == {"end": [1, 2], "t": "\\ud800"}


def test_a_chain_of_1100_objects_and_a_cycle_far_below_end() -> None:
    chain = None
    for number in range(1100):
        chain = Node(number, chain)
    assert isinstance(stored(chain), dict)
    loop: list[object] = []
    loop.append(nested(300, loop))
    assert len(json.dumps(stored(nested(300, loop)))) < 10_000


def test_the_slow_path_holds_when_the_callers_own_stack_is_nearly_used_up() -> None:
    def below(levels: int) -> object:
        return below(levels - 1) if levels else stored(nested(150, {1}))

    depth = len(list(frames()))
    assert below(sys.getrecursionlimit() - depth - 120)


def frames() -> Iterator[object]:
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters())
        | st.binary(max_size=5)
        | st.decimals()
        | st.datetimes(timezones=st.none() | st.timezones())
        | st.timedeltas()
        | st.uuids()
        | st.builds(Silent),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.tuples(inner)
            | st.builds(Point, st.integers(), inner)
            | st.dictionaries(st.text(st.characters()) | st.integers() | st.tuples(st.floats()), inner, max_size=4)
        ),
    )
)
def test_any_value_is_encoded_and_read_back_alike_by_every_json_reader(value: object) -> None:
    stored(value)


@given(st.text(st.characters()))
def test_text_that_utf8_can_hold_is_not_touched_and_any_other_becomes_so(text: str) -> None:
    whole = whole_text(text)
    whole.encode()
    if not re.search("[\ud800-\udfff]", text):
        assert whole == text


def test_the_json_text_of_deep_values_is_json() -> None:
    value = {"a": [1, {"b": None, "c": []}, 'x"\n'], "d": {}, 5: {2}}
    assert json.loads(deep_text(value)) == {"a": [1, {"b": None, "c": []}, 'x"\n'], "d": {}, "5": [2]}


TYPES = {"agent_id": "id", "error": "text", "retry_count": "integer", "execution_time_ms": "number"}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("agent_id", 42, "42"),
        ("agent_id", uuid.UUID(int=7), str(uuid.UUID(int=7))),
        ("agent_id", Level.HIGH, "3"),
        ("agent_id", Loud("a\ud800"), "a\\ud800"),
        ("agent_id", None, None),
        ("error", ValueError("no\ud800"), "no\\ud800"),
        ("error", {"code": 1}, '{"code":1}'),
        ("error", 1.5, "1.5"),
        ("error", True, "true"),
        ("error", datetime(2024, 5, 15), "2024-05-15T00:00:00"),  # noqa: DTZ001 - as a caller may have it
        ("error", Silent(), "<Silent: repr failed>"),
    ],
)
def test_an_id_or_a_text_of_another_type_becomes_text(name: str, value: object, text: str | None) -> None:
    assert plain_texts([name], [value], TYPES) == (text,)


@pytest.mark.parametrize("value", [4.2, True, b"a", ["a"], {"a": 1}, object(), Silent(), np.int64(3)])
def test_an_id_that_is_no_str_int_or_uuid_is_refused_with_the_cure(value: object) -> None:
    with pytest.raises(InvalidRecord, match=r"agent_id=.* \(\w+\): expected str, int, UUID.*pass str\(agent_id\)"):
        plain_texts(["agent_id"], [value], TYPES)


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("execution_time_ms", Decimal("12.5"), 12.5),
        ("execution_time_ms", np.float32(0.5), 0.5),
        ("execution_time_ms", np.int64(5), 5),
        ("execution_time_ms", True, 1),
        ("execution_time_ms", Level.HIGH, 3),
        ("execution_time_ms", 2**70, 2**70),
        ("retry_count", 3.0, 3),
        ("retry_count", True, 1),
        ("retry_count", np.int64(5), 5),
        ("retry_count", 2**63 - 1, 2**63 - 1),
        ("retry_count", -(2**63), -(2**63)),
        ("retry_count", Count(7), 7),
        ("retry_count", None, None),
    ],
)
def test_a_number_of_another_type_becomes_a_plain_one(name: str, value: object, number: object) -> None:
    (found,) = plain_numbers([name], [value], TYPES)
    assert found == number
    assert type(found) is type(number)


@pytest.mark.parametrize("name", ["retry_count", "execution_time_ms"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("nan"), Decimal("NaN")])
def test_a_number_that_is_not_finite_is_null(name: str, value: object) -> None:
    assert json.loads(msgspec.json.encode(plain_numbers([name], [value], TYPES))) == [None]


@pytest.mark.parametrize("value", ["12", b"1", [1], {}, object(), timedelta(1), 1j, Silent(), pd.NaT, "١٢"])
def test_what_is_no_number_is_refused_in_a_number_column(value: object) -> None:
    with pytest.raises(InvalidRecord, match=r"execution_time_ms=.* \(\w+\): expected a number or None; pass"):
        plain_numbers(["execution_time_ms"], [value], TYPES)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2.5, Decimal("1.5"), 1e300])
def test_what_64_bits_cannot_hold_is_refused_in_an_integer_column(value: object) -> None:
    with pytest.raises(InvalidRecord, match=r"retry_count=.*: expected a whole number of at most 64 bits"):
        plain_numbers(["retry_count"], [value], TYPES)


def test_a_message_shows_a_value_in_part_and_survives_its_repr() -> None:
    assert shown("x" * 1000) == "'" + "x" * 76 + "..."
    assert shown(Silent()) == safe_repr(Silent()) == "<Silent: repr failed>"
