"""Turns any Python value into one that JSON can hold: the slow path, taken only when plain encoding fails.

msgspec encodes what JSON knows and much more (datetimes, UUIDs, Decimals, enums, dataclasses) by itself. What
it refuses lands here: odd keys, cycles, unknown objects, lone surrogates, nesting without end. Nothing here
raises for a document that a caller may have passed: what has no JSON form is kept as its `repr`.
"""

import math
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import singledispatch
from typing import NamedTuple

import msgspec

from ingest.errors import InvalidRecord, safe_repr, shown

# Decoders stop at 997 to 1,024 levels, orjson's encoder at 254, Python's stack at 1,000 frames, of which a
# level takes up to six here: what lies deeper is kept as its JSON text.
MAX_DEPTH = 100

_MAX_DEEP_PARTS = 1_000_000  # a mapping that makes up its children as it is asked would never end
_MAX_INTEGER_BITS = 14_000  # Python refuses to write more than 4,300 digits
_INTEGER_RANGE = range(-(2**63), 2**63)  # what an integer column holds in Parquet, SQL and JSON readers


def plain_texts(names: Iterable[str], values: Iterable[object], types: Mapping[str, str]) -> tuple[str | None, ...]:
    """Ids and texts as `str`: an int or UUID id becomes text, a text column's other values their JSON text.

    Raises InvalidRecord for an id of any other type.
    """
    return tuple(_plain_text(name, value, types[name]) for name, value in zip(names, values, strict=True))


def _plain_text(name: str, value: object, column_type: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, Enum):
        value = value.value
    if column_type == "id" and (isinstance(value, bool) or not isinstance(value, (str, int, uuid.UUID))):
        raise InvalidRecord(
            f"{name}={shown(value)} ({type(value).__name__}): expected str, int, UUID or None; pass str({name})"
        )
    return _text_of(value)


def plain_numbers(
    names: Iterable[str], values: Iterable[object], types: Mapping[str, str] | None = None
) -> tuple[float | int | None, ...]:
    """Numbers as `int` or `float`, also from bools, Decimals, numpy scalars and whole floats.

    `types` are the columns' types, as in `Kind.types`. Raises InvalidRecord for anything else, and in an
    integer column for a fraction and for what 64 bits cannot hold.
    """
    types = types or {}
    return tuple(_plain_number(name, value, types.get(name)) for name, value in zip(names, values, strict=True))


def _plain_number(name: str, value: object, column_type: str | None) -> float | int | None:
    if value is None:
        return None
    number = _as_number(value)
    if number is None:
        raise _no_number(name, value, "a number or None; pass int or float")
    if column_type != "integer" or (isinstance(number, float) and not math.isfinite(number)):
        return number  # what is not finite is null in JSON
    if number != int(number) or int(number) not in _INTEGER_RANGE:
        raise _no_number(name, value, "a whole number of at most 64 bits or None; round it or put it in metadata")
    return int(number)


def _as_number(value: object) -> float | int | None:
    if isinstance(value, Enum):
        value = value.value
    try:
        if isinstance(value, int) or hasattr(value, "__index__"):
            return int.__index__(value) if isinstance(value, int) else int(value)
        if hasattr(value, "__float__") and not isinstance(value, (str, bytes, timedelta)):
            return float(value)
    except Exception:  # noqa: BLE001 - a stranger's conversion may raise anything; the caller is told what was expected
        return None
    return None


def _no_number(name: str, value: object, expected: str) -> InvalidRecord:
    return InvalidRecord(f"{name}={shown(value)} ({type(value).__name__}): expected {expected}")


def plain_document(value: object) -> object:
    """A value that msgspec encodes and every JSON reader of the project reads back. Raises nothing.

    NaN and Infinity become null, what is nested more than `MAX_DEPTH` levels deep its JSON text, a value
    inside itself `<cycle: type>`, and what cannot be converted its `repr`.
    """
    return _plain(value, 0, set())


def _plain(value: object, depth: int, parents: set[int]) -> object:
    try:
        return _form.dispatch(type(value))(value, depth, parents)
    except Exception:  # noqa: BLE001 - a stranger's methods may raise anything, and the record must survive them
        return whole_text(safe_repr(value))


@singledispatch
def _form(value: object, depth: int, parents: set[int]) -> object:
    """An object of no known type: by its fields, by its own conversion, or else by its `repr`."""
    if not isinstance(value, type) and depth < MAX_DEPTH:
        fields = getattr(type(value), "__dataclass_fields__", None) or getattr(value, "__struct_fields__", ())
        if fields:
            return _within(value, parents, lambda: _mapping({f: getattr(value, f) for f in fields}, depth, parents))
        for method in ("model_dump", "tolist"):  # pydantic models; numpy arrays and scalars, torch tensors
            convert = getattr(value, method, None)
            if callable(convert):
                return _plain(convert(), depth + 1, parents)
    return whole_text(safe_repr(value))


@_form.register
def _raw(value: msgspec.Raw, depth: int, parents: set[int]) -> object:
    """JSON text of the caller's own, which may have line breaks, or be none."""
    try:
        return _plain(msgspec.json.decode(value), depth, parents)
    except (msgspec.DecodeError, RecursionError):
        return whole_text(bytes(value).decode(errors="replace"))


@_form.register(type(None))
@_form.register(bool)
def _same(value: object, _depth: int, _parents: set[int]) -> object:
    return value


@_form.register
def _string(value: str, _depth: int, _parents: set[int]) -> object:
    return whole_text(str.__str__(value))  # a subclass may have a __str__ of its own


@_form.register
def _integer(value: int, _depth: int, _parents: set[int]) -> object:
    number = int.__int__(value)
    return number if number.bit_length() <= _MAX_INTEGER_BITS else hex(number)


@_form.register
def _float(value: float, _depth: int, _parents: set[int]) -> object:
    return float.__float__(value)  # msgspec writes null for NaN and Infinity


@_form.register
def _enum(value: Enum, depth: int, parents: set[int]) -> object:
    return _plain(value.value, depth + 1, parents)


@_form.register(date)  # and datetime, its subclass
@_form.register(time)
def _moment(value: date | time, _depth: int, _parents: set[int]) -> object:
    if type(value) in {datetime, date, time}:
        return value
    text = value.isoformat()
    return None if text == "NaT" else text  # pandas' missing time, a datetime to isinstance


@_form.register
def _duration(value: timedelta, _depth: int, _parents: set[int]) -> object:
    return timedelta(value.days, value.seconds, value.microseconds)


@_form.register
def _decimal(value: Decimal, _depth: int, _parents: set[int]) -> object:
    return Decimal.__str__(value)


@_form.register
def _uuid(value: uuid.UUID, _depth: int, _parents: set[int]) -> object:
    return str(value)


@_form.register(bytes)
@_form.register(bytearray)
@_form.register(memoryview)
def _bytes(value: bytes | bytearray | memoryview, _depth: int, _parents: set[int]) -> object:
    return bytes(value)  # msgspec writes them as base64


@_form.register(Mapping)
def _mapping(value: Mapping[object, object], depth: int, parents: set[int]) -> object:
    if depth >= MAX_DEPTH:
        return deep_text(value)
    return _within(value, parents, lambda: {_text_of(k): _plain(v, depth + 1, parents) for k, v in list(value.items())})


@_form.register(list)
@_form.register(tuple)
@_form.register(set)
@_form.register(frozenset)
def _sequence(value: Iterable[object], depth: int, parents: set[int]) -> object:
    if depth >= MAX_DEPTH:
        return deep_text(value)
    return _within(value, parents, lambda: [_plain(child, depth + 1, parents) for child in list(value)])


def _within(value: object, parents: set[int], convert: Callable[[], object]) -> object:
    """What `convert` gives while `value` counts as a parent; a value that is one already is inside itself."""
    if id(value) in parents:
        return f"<cycle: {type(value).__name__}>"
    parents.add(id(value))
    try:
        return convert()
    finally:
        parents.remove(id(value))


def _text_of(value: object) -> str:
    """Any value as text: a text is itself, an exception its message, anything else the text of its JSON."""
    if isinstance(value, BaseException):
        try:
            return whole_text(str(value))
        except Exception:  # noqa: BLE001 - as in safe_repr
            return safe_repr(value)
    plain = plain_document(value)
    if isinstance(plain, str):
        return plain
    text = msgspec.json.encode(plain).decode()
    return str(msgspec.json.decode(text)) if text.startswith('"') else text


def whole_text(text: str) -> str:
    r"""Text that UTF-8 can hold: surrogate pairs are joined, a lone one becomes the visible text `\udXXX`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return "".join(f"\\u{ord(char):04x}" if "\ud800" <= char <= "\udfff" else char for char in joined)
    return text


class _Piece(NamedTuple):
    """JSON text that is ready, and the container that it closes."""

    text: str
    closes: int = 0


def deep_text(value: object) -> str:
    """The JSON text of a value nested too deep to encode, made without recursion."""
    parts: list[str] = []
    parents: set[int] = set()
    ahead: list[object] = [value]
    while ahead:
        item = ahead.pop()
        if isinstance(item, _Piece):
            parts.append(item.text)
            parents.discard(item.closes)
        elif id(item) in parents or len(parts) > _MAX_DEEP_PARTS:
            parts.append(f'"<cycle: {type(item).__name__}>"')
        elif isinstance(item, (Mapping, list, tuple, set, frozenset)):
            parents.add(id(item))
            ahead += reversed(_pieces(item))
        else:
            parts.append(msgspec.json.encode(_plain(item, MAX_DEPTH, set())).decode())
    return "".join(parts)


def _pieces(container: Mapping[object, object] | Iterable[object]) -> list[object]:
    """A container as its brackets, commas and keys, ready, and its children between them."""
    pieces: list[object] = []
    if isinstance(container, Mapping):
        for key, child in list(container.items()):
            pieces += [_Piece(f",{msgspec.json.encode(_text_of(key)).decode()}:"), child]
    else:
        for child in list(container):
            pieces += [_Piece(","), child]
    opening, closing = "{}" if isinstance(container, Mapping) else "[]"
    if pieces:
        pieces[0] = _Piece(pieces[0].text[1:])  # type: ignore[attr-defined]  # always a _Piece: no comma before the first
    return [_Piece(opening), *pieces, _Piece(closing, id(container))]
