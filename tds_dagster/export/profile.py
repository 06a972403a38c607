"""Turns an artifact's rows into figures: missing values, distinct and most frequent values, lengths, shape.

The figures are streamed: passes of DuckDB over the rows, whatever the format, in bounded memory (1 GB of JSONL: 2 s of
processor time a pass, 0.45 GB). Medians and quantiles are estimates (t-digest), and so are distinct values unless they
are counted (HyperLogLog); everything else is exact: https://duckdb.org/docs/stable/sql/functions/aggregates.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ingest.records import ColumnType

if TYPE_CHECKING:
    import duckdb

ProfileType = ColumnType | Literal["flag"]  # "flag": true or false, which no column of a kind is
Advance = Callable[[str, int, int], None]

SHAPE_BINS = 24  # bars of a column's shape
SHOWN_CHARACTERS = 100  # of a value; longer ones are cut before they are compared
_TOP_VALUES = 3
_REPEATING = 0.9  # a column with more distinct values a row than this has none worth naming; estimates are off by 3 %
_NUMBERS = ("integer", "number")
_RFC_3339 = "%Y-%m-%dT%H:%M:%S.%fZ"


class ValueCount(msgspec.Struct, frozen=True):
    """A value, at most 100 characters of it, and how many rows have it."""

    value: str
    rows: int


class Lengths(msgspec.Struct, frozen=True):
    """Lengths of a column's values in bytes of UTF-8."""

    median: int
    p95: int
    longest: int


class ColumnProfile(msgspec.Struct, frozen=True):
    """The figures of one column."""

    name: str
    type: ProfileType
    nulls: int  # rows without a value
    distinct: int  # values; estimated unless asked for exactly
    least: str | None = None  # in the order of the type; None for documents and empty columns
    greatest: str | None = None
    median: float | None = None  # of numbers, estimated
    top: list[ValueCount] = []  # most frequent first; empty where no value repeats, and for long documents
    lengths: Lengths | None = None  # of texts and documents
    shape: list[int] = []  # rows in 24 equal parts from least to greatest, of numbers and times


class Profile(msgspec.Struct, frozen=True):
    """The figures of a relation."""

    rows: int
    columns: list[ColumnProfile]
    parts: dict[str, int]  # rows by the value of the relation's `part` column, in the order of its text


def profile_relation(
    connection: "duckdb.DuckDBPyConnection",
    relation: str,
    types: Mapping[str, ProfileType],
    *,
    exact: bool = False,
    advance: Advance | None = None,
) -> Profile:
    """The figures of a relation that has a text column `part` and the columns of `types`.

    With `exact` distinct values are counted and not estimated, in memory that grows with them.
    Columns hold what `tds_dagster.curate.sql` makes of the types; documents are JSON text, flags booleans. Raises
    DuckDB's errors as they come: the caller knows which file it is.
    """
    names = list(types)
    parts_query = f"SELECT part, count(*) FROM {relation} GROUP BY part ORDER BY part"
    parts = dict(run_query(connection, parts_query, what="counting rows", advance=advance))
    select = ", ".join(expression for name in names for expression in _first_pass(name, types[name], exact=exact))
    first_query = f"SELECT count(*), {select} FROM {relation}"
    first = run_query(connection, first_query, what="reading columns", advance=advance)[0]
    rows, rest = int(first[0]), iter(first[1:])
    columns = [
        _column(name, types[name], rows, [next(rest) for _ in _first_pass(name, types[name], exact=exact)])
        for name in names
    ]
    return Profile(rows, _second_pass(connection, relation, columns, advance), parts)


def line_lengths(paths: Iterable[Path]) -> dict[int, int]:
    """How many lines of files have a length of so many bytes, by power of two: 10 for 1,024 to 2,047 bytes.

    0.6 s for 1 GB of lines of 640 bytes.
    """
    counts = Counter[int]()
    for path in paths:
        with path.open("rb") as lines:
            counts.update(len(line).bit_length() - 1 for line in lines)
    return dict(sorted(counts.items()))


def missing_values(parquets: Iterable[Path]) -> tuple[dict[str, int], int]:
    """How many rows of Parquet files are null in each column, and how many rows there are, both from the footers."""
    import pyarrow.parquet as pq

    missing, rows = Counter[str](), 0
    for path in parquets:
        footer = pq.read_metadata(path)
        rows += footer.num_rows
        for group in (footer.row_group(place) for place in range(footer.num_row_groups)):
            for place in range(group.num_columns):
                column = group.column(place)
                nulls = None if column.statistics is None else column.statistics.null_count
                missing[column.path_in_schema] += nulls or 0
    return dict(missing), rows


def _first_pass(name: str, column_type: ProfileType, *, exact: bool) -> list[str]:
    """The aggregates of one column, in the order in which `_column` reads them."""
    column = _quoted(name)
    counts = [f"count({column})", f"count(DISTINCT {column})" if exact else f"approx_count_distinct({column})"]
    lengths = [f"approx_quantile(strlen({column}), [0.5, 0.95])", f"max(strlen({column}))"]
    top = f"approx_top_k({_shown(column)}, {_TOP_VALUES})"
    if column_type == "json":
        return [*counts, top, *lengths]
    if column_type == "timestamp":
        return [*counts, *(f"strftime({pick}({column}) AT TIME ZONE 'UTC', '{_RFC_3339}')" for pick in ("min", "max"))]
    if column_type in _NUMBERS:
        return [*counts, f"min({column})::VARCHAR", f"max({column})::VARCHAR", top, f"approx_quantile({column}, 0.5)"]
    shown = _shown(column)
    return [*counts, f"min({shown})", f"max({shown})", top, *(lengths if column_type != "flag" else [])]


def _column(name: str, column_type: ProfileType, rows: int, found: Sequence[Any]) -> ColumnProfile:
    """One column's figures so far; the values in `top` have a count of 0 yet."""
    present, distinct, *rest = found
    column = ColumnProfile(name, column_type, nulls=rows - present, distinct=min(distinct, present))
    if not present:
        return column
    repeats = distinct < present * _REPEATING or present <= _TOP_VALUES
    if column_type == "json":
        top, *rest = rest
        lengths = _lengths(rest)
        repeats = repeats and lengths.longest <= SHOWN_CHARACTERS  # beginnings of documents would all be alike
        return msgspec.structs.replace(column, lengths=lengths, top=_uncounted(top) if repeats else [])
    least, greatest, *rest = rest
    column = msgspec.structs.replace(column, least=least, greatest=greatest)
    if column_type == "timestamp":
        return column
    top, *rest = rest
    if repeats:
        column = msgspec.structs.replace(column, top=_uncounted(top))
    if column_type in _NUMBERS:
        return msgspec.structs.replace(column, median=float(rest[0]))
    return msgspec.structs.replace(column, lengths=_lengths(rest) if rest else None)


def _uncounted(values: Sequence[str]) -> list[ValueCount]:
    return [ValueCount(value, 0) for value in values]


def _second_pass(
    connection: "duckdb.DuckDBPyConnection", relation: str, columns: Sequence[ColumnProfile], advance: Advance | None
) -> list[ColumnProfile]:
    """The columns with what takes the first pass's values: counts of the top ones, and shapes."""
    asked = [question for column in columns for question in _questions(column)]
    if not asked:
        return list(columns)
    select = ", ".join(question for question, _ in asked)
    values = [value for _, parameters in asked for value in parameters]
    query = f"SELECT {select} FROM {relation}"
    answers = iter(run_query(connection, query, values, what="counting values", advance=advance)[0])
    return [_answered(column, [next(answers) for _ in _questions(column)]) for column in columns]


def _questions(column: ColumnProfile) -> list[tuple[str, list[str]]]:
    """What the second pass asks of a column: an expression for each top value, then its shape."""
    name = _quoted(column.name)
    asked = [(f"count(*) FILTER (WHERE {_shown(name)} = ?)", [value.value]) for value in column.top]
    if column.type in {*_NUMBERS, "timestamp"} and column.least != column.greatest:
        value = "(epoch_us({})::DOUBLE)" if column.type == "timestamp" else "({}::DOUBLE)"
        given = "?::TIMESTAMPTZ" if column.type == "timestamp" else "?"
        low, high, here = value.format(given), value.format(given), value.format(name)
        part = f"({here} - {low}) / ({high} - {low}) * {SHAPE_BINS}"
        bounds = [str(column.least), str(column.greatest), str(column.least)]
        asked.append((f"histogram(least({SHAPE_BINS - 1}, floor({part}))::INTEGER)", bounds))
    return asked


def _answered(column: ColumnProfile, answers: Sequence[Any]) -> ColumnProfile:
    counts = answers[: len(column.top)]
    top = [ValueCount(value.value, rows) for value, rows in zip(column.top, counts, strict=True)]
    top = sorted((value for value in top if value.rows > 1), key=lambda value: (-value.rows, value.value))
    bins = answers[-1] if len(answers) > len(column.top) else None
    shape = [] if bins is None else [bins.get(place, 0) for place in range(SHAPE_BINS)]
    return msgspec.structs.replace(column, top=top, shape=shape)


def _lengths(found: Sequence[Any]) -> Lengths:
    (median, p95), longest = found
    return Lengths(int(median), int(p95), int(longest))


def _shown(column: str) -> str:
    """A value's beginning as text: what is compared and shown."""
    return f"left({column}::VARCHAR, {SHOWN_CHARACTERS})"


def run_query(
    connection: "duckdb.DuckDBPyConnection",
    query: str,
    values: Sequence[str] = (),
    *,
    what: str,
    advance: Advance | None,
) -> list[Any]:
    """All rows of a query; `advance` is told ten times a second how many percent of `what` are done."""
    if advance is None:
        return connection.execute(query, list(values)).fetchall()
    # Of a query whose progress nobody may ask for, DuckDB says -1; printed it would stand where results belong.
    connection.execute(
        "SET enable_progress_bar = true; SET enable_progress_bar_print = false; SET progress_bar_time = 0"
    )
    with ThreadPoolExecutor(1) as worker:
        result = worker.submit(lambda: connection.execute(query, list(values)).fetchall())
        try:
            while not wait([result], timeout=0.1).done:
                advance(what, max(0, int(connection.query_progress())), 100)
        except BaseException:  # Ctrl-C: the worker would finish its query first
            connection.interrupt()
            raise
        advance(what, 100, 100)
        return result.result()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
