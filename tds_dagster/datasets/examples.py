"""Defines what every model's module makes, one example and the JSON that its row is, and how documents are read."""

from collections.abc import Mapping

import msgspec

DEEPEST = 200  # levels of a document that is read: what walks through one takes two of Python's 1000 frames each


class Example(msgspec.Struct, frozen=True):
    """One row of a dataset on its way."""

    record_id: str  # of the record that is predicted
    entity: str  # what must not be in two splits: a session, agent, task or workflow id
    timestamp: str  # RFC 3339, of the record that is predicted
    label: str  # its class, for balance and plots
    row: bytes  # the example as one JSON object, keys in the model's order; what trainers read


class ExtraFile(msgspec.Struct, frozen=True):
    """A file that a model writes into the dataset's folder beside the splits."""

    config: str  # files of one config have the same columns: a dialect's name, or what the file is
    split: str  # of a dialect; else what part it holds
    path: str  # relative to the dataset's folder
    rows: int  # lines, or events of a log


def encode_row(row: Mapping[str, object]) -> bytes:
    """A row as one JSON object, in the mapping's order. Documents go in as `msgspec.Raw`, byte by byte."""
    return msgspec.json.encode(row)


def document(text: str | None) -> msgspec.Raw:
    """A JSON column's text as a part of a row; null where there is none."""
    return msgspec.Raw(b"null" if text is None else text.encode())


def parsed(text: str | bytes) -> object:
    """JSON text as Python objects; as `msgspec.Raw` what is nested more than `DEEPEST` levels deep.

    A fixed number, and not the error that Python raises: that depends on who calls, and a dataset must not.
    """
    document = text.encode() if isinstance(text, str) else text
    try:
        value = msgspec.json.decode(document)
    except RecursionError:
        return msgspec.Raw(document)
    may_be_deep = document.count(b"{") + document.count(b"[") > DEEPEST
    return msgspec.Raw(document) if may_be_deep and _is_too_deep(value) else value


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(level)
