"""Turns what a caller wants of a range (a predicate, columns, a sample, a format) into one checked value with a name.

The same selection of the same shards is the same file; its name carries eight digits of a hash of the selection.
"""

import hashlib
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

import msgspec

from ingest.errors import InvalidSelection, shown
from ingest.records import INTEGER_LIMIT, Kind, kind_named
from ingest.redaction.redactor import Redactor
from ingest.settings import RedactionLevel
from tds_dagster.export.predicate import Predicate, parse_predicate

Format = Literal["records", "jsonl.zst", "parquet"]
SUFFIXES: dict[Format, str] = {"records": "jsonl", "jsonl.zst": "jsonl.zst", "parquet": "parquet"}
FORMATS: tuple[Format, ...] = get_args(Format)

_ROWS = re.compile(r"[1-9][0-9]{0,17}")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,12})?)%")


class Selection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What of a range is written, and how. Without any field set it is the range as it is."""

    where: str | None = None  # a predicate
    columns: tuple[str, ...] = ()  # in the kind's order; empty: all
    limit: int | None = None  # the first rows of what the other fields leave
    sample: str | None = None  # a number of rows, or a share such as `5%`
    seed: int = 0  # of the sample
    format: Format = "records"
    redaction: RedactionLevel | None = None  # None: as the shards

    @property
    def is_whole(self) -> bool:
        """Whether it selects nothing and changes nothing."""
        return self == Selection()

    @property
    def digest(self) -> str:
        """Eight digits of SHA-256 over its fields."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:8]

    def predicate(self, kind: str) -> Predicate | None:
        """Its predicate, checked. Raises InvalidPredicate."""
        return None if self.where is None else parse_predicate(kind, self.where)

    def redacted(self, redactor: Redactor, kind: str) -> "Selection":
        """The selection as a manifest shows it: its predicate may name people."""
        if self.where is None:
            return self
        line = redactor.redact_line(kind, msgspec.json.encode({"where": self.where}))
        return msgspec.structs.replace(self, where=msgspec.json.decode(line, type=dict[str, str])["where"])

    def is_of(self, artifact: Path) -> bool:
        """Whether it is all of what an artifact was selected by, as that one's name tells; a redacted one is not."""
        return artifact.name.partition(".")[0].endswith(f"_{self.digest}")

    @property
    def sample_rows(self) -> int | None:
        """How many rows the sample has; None if it has a share of them, or there is none."""
        return int(self.sample) if self.sample is not None and not self.sample.endswith("%") else None

    @property
    def sample_threshold(self) -> int | None:
        """The share of the sample of 2**128, rounded down; None if it has none."""
        if self.sample is None or not self.sample.endswith("%"):
            return None
        return int(Decimal(self.sample[:-1]) / 100 * 2**128)


def select(
    kind: str,
    *,
    where: str | None = None,
    columns: Sequence[str] | str | None = None,
    limit: int | None = None,
    sample: str | int | None = None,
    seed: int = 0,
    format: str = "records",  # noqa: A002 - the word that users know it by
    redaction: str | None = None,
) -> Selection:
    """Check what a caller wants of a kind's records.

    `columns` are names, or one text of names with commas. Raises UnknownKind, InvalidPredicate for `where`, and
    InvalidSelection for the rest, naming the value and what was expected.
    """
    of_kind = kind_named(kind)
    predicate = None if where is None else parse_predicate(kind, where)
    levels = get_args(RedactionLevel)
    if format not in FORMATS:
        raise _invalid("format", format, f"one of {', '.join(FORMATS)}")
    if redaction is not None and redaction not in levels:
        raise _invalid("redaction", redaction, f"one of {', '.join(levels)}")
    if limit is not None and (isinstance(limit, bool) or not 1 <= limit < INTEGER_LIMIT):
        raise _invalid("limit", limit, "1 row or more, and less than 2**63")
    return Selection(
        where=None if predicate is None else predicate.text,
        columns=_checked_columns(of_kind, columns),
        limit=limit,
        sample=None if sample is None else _checked_sample(str(sample).strip()),
        seed=0 if sample is None else seed,
        format=msgspec.convert(format, Format),
        redaction=None if redaction is None else msgspec.convert(redaction, RedactionLevel),
    )


def _checked_columns(kind: Kind, columns: Sequence[str] | str | None) -> tuple[str, ...]:
    """The columns named, each once and in the kind's order; all of them are none in particular."""
    if columns is None:
        return ()
    names = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else list(columns)
    unknown = [name for name in names if name not in kind.types]
    if unknown or not names:
        raise _invalid("columns", ", ".join(unknown), f"some of {', '.join(kind.types)}")
    chosen = tuple(name for name in kind.types if name in names)
    return () if len(chosen) == len(kind.types) else chosen


def _checked_sample(text: str) -> str:
    share = _PERCENT.fullmatch(text)
    if share is not None and 0 < Decimal(share[1]) <= 100:
        return text
    if _ROWS.fullmatch(text) is None:
        raise _invalid("sample", text, "a number of rows such as 1000, or a share above 0% up to 100%")
    return text


def _invalid(name: str, value: object, expected: str) -> InvalidSelection:
    return InvalidSelection(f"{name}={shown(value)}: expected {expected}; correct it")
