"""Makes, from a kind's columns, the SQL that turns its CSV text into typed rows and says what is wrong with the others.

The tables are `source` (the CSV, all text, in file order) and `excluded` (the rows of it that are not kept: `place`
is the row's number from 0, `reason` is null for a duplicate).

| column type | Parquet | accepted text |
|---|---|---|
| id, text | VARCHAR | any, backslash-escaped |
| json | VARCHAR, the text as it was stored | RFC 8259 |
| integer | BIGINT | digits with an optional minus, 64 bits |
| number | DOUBLE | a JSON number that is finite as a double |
| timestamp | TIMESTAMP WITH TIME ZONE: microseconds, UTC | RFC 3339, capital T and Z, at most 6 digits of fraction |
"""

from collections.abc import Collection, Mapping, Sequence

from ingest.records import DUCKDB_CSV_OPTIONS, Column, Kind

_CLOCK_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d"
# The text's form, whether its value (? is the column) has room in the Parquet type, and what was expected.
_ACCEPTED: Mapping[str, tuple[str, str, str]] = {
    "integer": (r"-?\d+", "TRY_CAST(? AS BIGINT) IS NOT NULL", "a whole number of 64 bits"),
    "number": (
        r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?",
        "isfinite(TRY_CAST(? AS DOUBLE))",
        "a finite number",
    ),
    "timestamp": (
        rf"\d{{4}}-\d\d-\d\dT{_CLOCK_TIME}(\.\d{{1,6}})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)",
        "year(TRY_CAST(? AS TIMESTAMPTZ)) BETWEEN 1 AND 9999",
        "an RFC 3339 time of at most microseconds",
    ),
}
# json_valid lets NaN, Infinity and trailing commas pass. These find every cell that has one, and a few good ones
# ("either, nan, or" inside a string), which are then parsed one by one. Each begins with one character, which RE2
# looks for with memchr: a pattern that may begin with `n` or `i` takes 79 ms for a day of 50 MB, these three 30.
_NO_NUMBER = r"[ \t\r\n]*[-+]?(?i:nan|inf|infinity)[ \t\r\n]*(?:[,\]}]|$)"
_LENIENT_JSON = (
    rf",(?:{_NO_NUMBER}|[ \t\r\n]*[\]}}])",
    rf":{_NO_NUMBER}",
    rf"\[{_NO_NUMBER}",
    rf"^{_NO_NUMBER}",
)
_USUAL_LINE_BYTES = 2 << 20  # DuckDB's own limit
_LONG_JSON_BYTES = 16 << 10  # longer cells are parsed one at a time


def literal(value: object) -> str:
    """A text, flag or number as an SQL literal."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def glob_escaped(path: object) -> str:
    """A path for DuckDB's readers, which take `*`, `?` and `[` for patterns."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in str(path))


def load_source(header: Sequence[str], longest_line_bytes: int) -> str:
    """Create `source` from a CSV file ($1) with these columns; a file that is not wholly as expected is an error."""
    return f"CREATE OR REPLACE TEMP TABLE source AS SELECT * FROM {_csv_reader(header, '[$1]', longest_line_bytes)}"


def _csv_reader(header: Sequence[str], files: str, longest_line_bytes: int, *, with_name: bool = False) -> str:
    """A table function that reads CSV files with these columns as text; `with_name` adds the column `filename`."""
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in header)
    options = {**DUCKDB_CSV_OPTIONS, "strict_mode": True, "max_line_size": longest_line_bytes, "filename": with_name}
    # Without it a folder such as agent_id=7 above the file would stand for the column of that name.
    options["hive_partitioning"] = False
    settings = ", ".join(f"{name} = {literal(value)}" for name, value in options.items())
    return f"read_csv({files}, columns = {{{columns}}}, {settings})"


def empty_source(header: Sequence[str]) -> str:
    """Create `source` without rows."""
    return f"CREATE OR REPLACE TEMP TABLE source ({', '.join(f'{_quoted(name)} VARCHAR' for name in header)})"


def survey_source(kind: Kind, header: Sequence[str]) -> str:
    """Query one row about `source`: how many of its rows are not fine as they are, and whether any text is escaped.

    The first two figures are rows with a flaw or with JSON that another parser has to judge, and rows less record_ids.
    A day without flaws, which is nearly every one, needs no other look.
    """
    return f"SELECT {_figures(kind, header)} FROM source"


def survey_files(kind: Kind, header: Sequence[str], paths: Sequence[str]) -> str:
    """Query (file, the figures of `survey_source`) for each of many CSV files with these columns."""
    files = ", ".join(literal(glob_escaped(path)) for path in paths)
    reader = _csv_reader(header, f"[{files}]", _USUAL_LINE_BYTES, with_name=True)
    return f"SELECT filename, {_figures(kind, header)} FROM {reader} GROUP BY filename"


def _figures(kind: Kind, header: Sequence[str]) -> str:
    doubts = " OR ".join(f"coalesce({_is_doubtful(name)}, FALSE)" for name in kind.documents if name in header)
    texts = ", ".join(_quoted(name) for name in text_columns(kind, header)) or "''"
    repeated = "count(*) - count(DISTINCT record_id)" if "record_id" in header else "0"
    return (
        f"count_if(({_flaw_cases(kind, header)}) IS NOT NULL OR {doubts or 'FALSE'}), {repeated}, "
        f"coalesce(bool_or(contains(concat({texts}), '\\')), FALSE)"
    )


def find_escaped(kind: Kind, header: Sequence[str]) -> str:
    """Query one row: for each of `text_columns`, whether any of its cells is escaped."""
    flags = [f"coalesce(bool_or(contains({_quoted(name)}, '\\')), FALSE)" for name in text_columns(kind, header)]
    return f"SELECT {', '.join(flags)} FROM source"


def text_columns(kind: Kind, header: Sequence[str]) -> list[str]:
    """The columns of a file whose cells may be escaped."""
    return [name for name, of_type in kind.types.items() if of_type in {"id", "text"} and name in header]


def exclude_flawed(kind: Kind, header: Sequence[str]) -> str:
    """Create `excluded` with every row that has a flaw which SQL can see, and its reason."""
    return (
        "CREATE OR REPLACE TEMP TABLE excluded AS SELECT place, reason FROM "
        f"(SELECT rowid AS place, {_flaw_cases(kind, header)} AS reason FROM source) WHERE reason IS NOT NULL"
    )


def _flaw_cases(kind: Kind, header: Sequence[str]) -> str:
    """A row's first flaw in words, or null."""
    present = [column for column in kind.columns if column.name in header]
    flaws = [flaw for column in present for flaw in _flaws(column)]
    flaws += [("TRUE", f"{name} is null") for name in ("record_id", "timestamp") if name not in header]
    return f"CASE {' '.join(f'WHEN {condition} THEN {literal(reason)}' for condition, reason in flaws)} END"


def _flaws(column: Column) -> list[tuple[str, str]]:
    """(condition, reason) pairs; a condition that is null does not hold, so that null passes."""
    name = _quoted(column.name)
    found = [(f"{name} IS NULL", f"{column.name} is null")] if column.name in {"record_id", "timestamp"} else []
    if column.type == "json":
        # A CASE, for AND does not keep an order. Long cells are parsed one by one elsewhere (`find_doubtful_json`).
        is_invalid = f"CASE WHEN strlen({name}) <= {_LONG_JSON_BYTES} THEN NOT json_valid({name}) ELSE FALSE END"
        found.append((is_invalid, f"{column.name} is not JSON"))
    elif column.type in _ACCEPTED:
        pattern, is_in_range, expected = _ACCEPTED[column.type]
        is_good = f"regexp_full_match({name}, {literal(pattern)}) AND coalesce({is_in_range.replace('?', name)}, FALSE)"
        found.append((f"{name} IS NOT NULL AND NOT ({is_good})", f"{column.name} is not {expected}"))
    return found


def find_doubtful_json(kind: Kind, header: Sequence[str]) -> str:
    """Query (place, column, cell) of JSON cells that another parser has to judge.

    They are those that DuckDB takes for JSON but RFC 8259 may not, and long ones: `json_valid` keeps the memory of
    all parses of a vector, 2,048 cells, and a day of 300 KB documents ended in 2 GiB.
    """
    parts = [
        f"SELECT rowid, {literal(name)}, {_quoted(name)} FROM source WHERE {_is_doubtful(name)} "
        f"AND rowid NOT IN (SELECT place FROM excluded)"
        for name in kind.documents
        if name in header
    ]
    return " UNION ALL ".join(parts) or "SELECT 0, '', '' WHERE FALSE"


def _is_doubtful(name: str) -> str:
    """Whether another parser has to judge a JSON cell."""
    cell = _quoted(name)
    is_lenient = " OR ".join(f"regexp_matches({cell}, {literal(pattern)})" for pattern in _LENIENT_JSON)
    return (
        f"CASE WHEN strlen({cell}) > {_LONG_JSON_BYTES} THEN TRUE "
        f"WHEN {is_lenient} THEN json_valid({cell}) ELSE FALSE END"
    )


# Of rows with one record_id the first by (timestamp, file order) is kept.
EXCLUDE_DUPLICATES = (
    "INSERT INTO excluded SELECT place, NULL FROM (SELECT rowid AS place, row_number() OVER "
    "(PARTITION BY record_id ORDER BY timestamp::TIMESTAMPTZ, rowid) AS turn "
    "FROM source WHERE rowid NOT IN (SELECT place FROM excluded)) WHERE turn > 1"
)


def write_parquet(
    kind: Kind,
    header: Sequence[str],
    *,
    escaped: Collection[str],
    has_excluded: bool,
) -> str:
    """Copy the kept rows of `source`, typed and sorted by (timestamp, record_id), to a Parquet file ($1).

    `escaped` are the columns with a backslash somewhere: to bind the undoing of eleven columns takes 5 ms, half of a
    small day. Without `has_excluded` all rows are kept. The bytes depend on the rows alone and not on the number of
    threads: they are sorted (unsorted, the row groups of a day of 300,000 rows did differ), and a row group holds so
    many of them. They come from a table and not from the CSV reader, for DuckDB knows which columns of a table have no
    nulls, and writes those without levels. Level 1 of zstd is a fifth faster here than its default, and the file no
    larger.
    """
    names = [column.name for column in kind.columns]
    select = ", ".join(
        f"{_typed(column, header, is_escaped=column.name in escaped)} AS {_quoted(column.name)}"
        for column in kind.columns
    )
    kept = " WHERE rowid NOT IN (SELECT place FROM excluded)" if has_excluded else ""
    order = f"{names.index('timestamp') + 1}, {names.index('record_id') + 1}"
    return (
        f"COPY (SELECT {select} FROM source{kept} ORDER BY {order}) TO $1 "
        "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 20480, USE_TMP_FILE FALSE)"
    )


def _typed(column: Column, header: Sequence[str], *, is_escaped: bool) -> str:
    name = _quoted(column.name) if column.name in header else "NULL"
    if column.type in {"id", "text"}:
        return f"{_unescaped(name) if is_escaped else name}::VARCHAR"
    sql_type = {"json": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE", "timestamp": "TIMESTAMPTZ"}[column.type]
    return f"{name}::{sql_type}"


def _unescaped(name: str) -> str:
    """`ingest.records.unescape_text` as SQL: what lies between two escaped backslashes is taken piece by piece."""
    piece = r"replace(replace(piece, '\n', chr(10)), '\r', chr(13))"
    pieces = rf"list_transform(string_split({name}, '\\'), lambda piece: {piece})"
    return rf"CASE WHEN contains({name}, '\') THEN array_to_string({pieces}, '\') ELSE {name} END"


def _quoted(name: str) -> str:
    return f'"{name}"'
