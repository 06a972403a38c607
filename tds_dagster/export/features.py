"""Turns what is known of a file's columns into types that readers of datasets understand.

A `Feature` is a scalar's name, a list of one feature, or a struct of named ones. `json` is a value of any shape,
another one in each row: a document of the caller's that no fixed type holds.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from ingest.records import ColumnType, Kind

Scalar = Literal["string", "int64", "float64", "bool", "timestamp", "json"]


class ListOf(msgspec.Struct, frozen=True):
    """A list whose items are all of one feature."""

    item: "Feature"


Feature = Scalar | ListOf | Mapping[str, "Feature"]  # a mapping is a struct: its keys in order
Features = Mapping[str, Feature]  # the columns of a row, in order

_OF_COLUMNS: Mapping[ColumnType, Scalar] = {
    "id": "string",
    "text": "string",
    "json": "json",
    "integer": "int64",
    "number": "float64",
    "timestamp": "timestamp",  # RFC 3339 text in JSONL
}


def kind_features(kind: Kind) -> Features:
    """The features of a row of a kind's export."""
    return {name: _OF_COLUMNS[column_type] for name, column_type in kind.types.items()}


def type_text(feature: Feature) -> str:
    """A feature as people read it: `list of {role: string, content: string}`."""
    if isinstance(feature, ListOf):
        return f"list of {type_text(feature.item)}"
    if isinstance(feature, Mapping):
        return "{" + ", ".join(f"{name}: {type_text(part)}" for name, part in feature.items()) + "}"
    return feature
