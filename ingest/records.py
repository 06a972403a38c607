r"""Defines the kinds of record, their columns and types, and turns records into CSV rows.

The client's checks, the CSV header, the curated schema, the SQL, the docs table and the Dagster assets all
derive from `KINDS`; a further kind is one more entry there.

A record travels as one JSON object a line (null fields left out) and rests as one CSV row (RFC 4180, UTF-8,
LF). One line is one row: JSON columns hold JSON text, which has no raw line break, and text columns are
backslash-escaped (`\\`, `\n`, `\r`). Every field is quoted but null, which is an unquoted empty field.
"""

import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypedDict, cast

import msgspec
import uuid_utils

from ingest.errors import InvalidRecord, UnknownKind, shown

if TYPE_CHECKING:
    from ingest.plain_rows import PlainRow

ColumnType = Literal["id", "text", "json", "integer", "number", "timestamp"]
SCHEMA_VERSION = 1


class ArrowCsvOptions(TypedDict):
    """Those of pyarrow's `csv.ConvertOptions` that we set."""

    strings_can_be_null: bool
    quoted_strings_can_be_null: bool
    null_values: list[str]


# How readers tell null from the empty string. The keys are each reader's own names.
DUCKDB_CSV_OPTIONS: Mapping[str, object] = {
    "header": True,
    "delim": ",",
    "quote": '"',
    "escape": '"',
    "new_line": "\\n",
    "nullstr": "",
    "allow_quoted_nulls": False,
    "all_varchar": True,
    "auto_detect": False,
}
ARROW_CSV_OPTIONS: ArrowCsvOptions = {
    "strings_can_be_null": True,
    "quoted_strings_can_be_null": False,
    "null_values": [""],
}
SPARK_CSV_OPTIONS: Mapping[str, object] = {"header": True, "quote": '"', "escape": '"', "nullValue": "\x00"}

_CELL = re.compile(r'(?:^|(?<=,))(?:"[^"]*(?:""[^"]*)*"|)(?=,|$)')


class Column(NamedTuple):
    """One column of a kind: its name in every file, its type, and what it holds."""

    name: str
    type: ColumnType
    description: str


_COMMON = (
    Column("record_id", "id", "this row: a UUIDv7 of its ingest time, a UUIDv8 with an idempotency key"),
    Column("agent_id", "id", "the agent that it is about"),
    Column("workflow_id", "id", "the workflow that it belongs to"),
    Column("instance_id", "id", "the running instance of the agent"),
    Column("session_id", "id", "the session or conversation that it belongs to"),
    Column("trace_id", "id", "OpenTelemetry trace id"),
    Column("span_id", "id", "OpenTelemetry span id"),
    Column("parent_span_id", "id", "OpenTelemetry id of the parent span"),
    Column("metadata", "json", "anything else, as the caller gave it"),
)
_TIMESTAMP = Column("timestamp", "timestamp", "event time; RFC 3339, UTC, microseconds")

_MOST_DAYS = 4000  # whose numbers are kept
INTEGER_LIMIT = 2**63  # what an integer column holds in Parquet, SQL and JSON readers: -2**63 up to below it

# What the decoder lets in. Raw must not be part of a union: `Raw | None` refuses every value but null.
_WIRE_TYPES: Mapping[ColumnType, object] = {
    "id": str | None,
    "text": str | None,
    "timestamp": str | None,
    "integer": Annotated[int, msgspec.Meta(ge=-INTEGER_LIMIT, le=INTEGER_LIMIT - 1)] | None,
    "number": float | int | None,
    "json": msgspec.Raw,
}

# Columns whose wire value stands under another name: an event is its own record.
ALIASES: Mapping[str, str] = {"event_id": "record_id"}


class Kind:
    """A kind of record and what follows from its columns. Immutable by convention; made once at import.

    `columns` are in file order. `texts`, `numbers` and `documents` are the names that a call fills, by type
    and in file order: text and ids and extra timestamps, integers and floats, JSON documents.
    """

    def __init__(
        self,
        name: str,
        description: str,
        columns: Sequence[Column],
        *,
        required: Sequence[str],
        legacy_columns: int = 0,
        choices: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Derive the record type and the codecs.

        `required` are the leading text columns that must not be null, `legacy_columns` is how many of the
        first columns form the header of the old store's files (0: it had no such kind), `choices` are the
        values that a column is restricted to.
        """
        own = {column.name for column in columns}
        self.name = name
        self.description = description
        self.columns = (*columns, *(column for column in _COMMON if column.name not in own))
        self.required = tuple(required)
        self.legacy_header = tuple(column.name for column in columns[:legacy_columns])
        self.choices = dict(choices or {})
        self.header = (",".join(column.name for column in self.columns) + "\n").encode()
        set_by_us = {"record_id", "timestamp", *ALIASES}
        stored = [column for column in self.columns if column.name not in set_by_us]
        self.texts = tuple(c.name for c in stored if c.type in {"id", "text", "timestamp"})
        self.numbers = tuple(c.name for c in stored if c.type in {"integer", "number"})
        self.documents = tuple(c.name for c in stored if c.type == "json")
        self.types: Mapping[str, ColumnType] = {column.name: column.type for column in self.columns}
        self.fields = (*self.texts, *self.numbers, *self.documents)
        self.record = self._record_type()
        self.plain_record = self._compile_plain_record()
        self.decoder: msgspec.json.Decoder[msgspec.Struct] = msgspec.json.Decoder(self.record)
        wire_names = [ALIASES.get(column.name, column.name) for column in self.columns]
        self._cells = attrgetter(*wire_names)

    def __repr__(self) -> str:
        """Show the kind by its name."""
        return f"<Kind {self.name}>"

    def _record_type(self) -> type[msgspec.Struct]:
        """The wire's shape. A document is kept as the bytes it came in (Raw), never parsed on the way."""
        fields: list[tuple[str, object] | tuple[str, object, object]] = [
            ("record_id", str),
            ("timestamp", str),
        ]
        for name in self.fields:
            optional = (name, _WIRE_TYPES[self.types[name]], None)
            fields.append((name, str) if name in self.required else optional)
        return msgspec.defstruct(
            self.name, cast("list[str | tuple[str, type]]", fields), frozen=True, omit_defaults=True, gc=False
        )

    def _compile_plain_record(self) -> Callable[[str, str, tuple[object, ...]], msgspec.Struct | None]:
        """A function that makes the record of an id, a timestamp and the values of `fields`, or None.

        None is for values that are not what the columns hold as they stand, and need care. Compiled from the columns,
        as `namedtuple` compiles its class: 0.3 microseconds a call. Types looked up in a set took 0.5 for the checks
        alone.
        """
        names = [f"v{place}" for place in range(len(self.fields))]
        checks = [self._plain_check(name, value) for name, value in zip(self.fields, names, strict=True)]
        source = (
            f"def plain_record(record_id, timestamp, values):\n"
            f"    {', '.join(names)} = values\n"
            f"    if {' and '.join(filter(None, checks))}:\n"
            f"        return record(record_id, timestamp, {', '.join(names)})\n"
        )
        scope: dict[str, object] = {"record": self.record}
        exec(source, scope)  # noqa: S102 - made of the columns above and nothing else
        return cast("Callable[[str, str, tuple[object, ...]], msgspec.Struct | None]", scope["plain_record"])

    def _plain_check(self, name: str, value: str) -> str:
        """The expression that says whether `value` may stand in the column as it is; "" for a document."""
        if self.types[name] == "json":
            return ""
        check = self.type_check(name, value)
        return check if name in self.required else f"({value} is None or {check})"

    def type_check(self, name: str, value: str) -> str:
        """The expression that says whether `value`, which is not None, may stand in a column of text or numbers."""
        column_type = self.types[name]
        if column_type == "integer":
            check = f"type({value}) is int and {-INTEGER_LIMIT} <= {value} < {INTEGER_LIMIT}"
        elif column_type == "number":
            check = f"(type({value}) is float or type({value}) is int)"
        else:
            check = f"type({value}) is str"
        if name in self.choices:
            check += f" and {value} in {self.choices[name]!r}"
        return check

    @cached_property
    def plain_row(self) -> "PlainRow":
        """A function that makes a call's CSV row (`plain_rows.compile_plain_row`), compiled at its first use."""
        from ingest.plain_rows import compile_plain_row  # for agents without Redis only

        return compile_plain_row(self)

    def csv_rows(self, records: Sequence[msgspec.Struct], *, escaped: bool) -> list[str]:
        """The CSV rows of decoded records, each with its line break.

        `escaped` says whether any of their JSON lines has a backslash: only then can a text hold a character
        that needs care (JSON escapes quotes, backslashes and line breaks). The work is done a column at a time: of a
        few hundred records each costs 1.7 microseconds, where a row at a time took 3.1.
        Raises ValueError for a document that is not UTF-8 or has line breaks, which the decoder lets through.
        """
        pieces, between = list[Iterable[str]](), ""  # columns, and the text that stands between two of them
        for column, values in zip(self.columns, zip(*map(self._cells, records), strict=True), strict=True):
            if column.type in {"json", "integer", "number"}:
                quote, cells = _json_cells(values, is_document=column.type == "json")
            else:
                quote, cells = _text_cells(values, escaped=escaped)
            if cells:
                pieces += [repeat(between + quote), cells]
                between = quote
            between += ","
        pieces.append(repeat(between[:-1] + "\n"))
        return list(map("".join, zip(*pieces, strict=False)))

    def json_line(self, row: bytes) -> bytes:
        """The JSON of a row of this kind's header, given without its line break. Raises as `read_row`."""
        values = {ALIASES.get(name, name): value for name, value in self.read_row(row.decode()).items()}
        return msgspec.json.encode(values)

    def widen_row(self, names: Sequence[str], row: bytes) -> bytes:
        """A row of an older version of ours, with cells for the columns `names`, as one with all columns of today.

        Raises InvalidRecord for a column that is not known: its cells must not get lost.
        """
        unknown = set(names).difference(column.name for column in self.columns)
        if unknown:
            raise InvalidRecord(
                f"{', '.join(sorted(unknown))}: expected columns of {self.name}; a newer version of this package "
                "made the row: import it with that one"
            )
        found = _CELL.findall(row.decode().rstrip("\n"))
        if len(found) != len(names):
            return row  # edited by hand: curation puts it into quarantine as it is
        cells = dict(zip(names, found, strict=True))
        return (",".join(cells.get(column.name, "") for column in self.columns) + "\n").encode()

    def read_stamp(self, row: str) -> tuple[str, str]:
        """The timestamp and the record id of a row. Raises ValueError for one that does not have all columns."""
        cells = dict(zip((column.name for column in self.columns), _CELL.findall(row), strict=True))
        return cells["timestamp"][1:-1], cells["record_id"][1:-1]

    def read_row(self, row: str) -> dict[str, object]:
        """Undo `csv_rows`: a row of this kind's header as a dict of what is not null, JSON columns and numbers decoded.

        Raises ValueError for a row that the writer did not write.
        """
        cells = [None if cell == "" else cell[1:-1].replace('""', '"') for cell in _CELL.findall(row.rstrip("\n"))]
        values: dict[str, object] = {}
        for column, cell in zip(self.columns, cells, strict=True):
            if cell is None:
                continue
            is_json = column.type in {"json", "integer", "number"}
            try:
                values[column.name] = msgspec.json.decode(cell) if is_json else unescape_text(cell)
            except msgspec.DecodeError as err:
                raise InvalidRecord(f"{column.name}={shown(cell)}: expected JSON") from err
        return values


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "events",
            "what an agent did or met, as it happened",
            (
                Column("event_id", "id", "the same as record_id"),
                Column("event_type", "text", "what happened, such as agent_started"),
                Column("agent_id", "id", "the agent that it happened to"),
                Column("workflow_id", "id", "the workflow that it belongs to"),
                Column("session_id", "id", "the session or conversation that it belongs to"),
                Column("source", "text", "the program that reported it"),
                Column("severity", "text", "debug, info, warning, error or critical"),
                _TIMESTAMP,
                Column("payload", "json", "the event's data"),
            ),
            required=("event_type",),
            legacy_columns=9,
        ),
        Kind(
            "tasks",
            "a task at one moment: stored again with a new status, it is the task's history",
            (
                Column("task_id", "id", "the task; its latest row by (timestamp, record_id) is its state"),
                Column("agent_id", "id", "the agent that works on it"),
                Column("instance_id", "id", "the running instance of the agent"),
                Column("task_type", "text", "what sort of task"),
                Column("priority", "text", "low, normal, high or a word of yours"),
                Column("status", "text", "pending, running, completed, failed or a word of yours"),
                Column("retry_count", "integer", "how often it was tried again so far"),
                Column("execution_time_ms", "number", "time it took, in milliseconds"),
                _TIMESTAMP,
                Column("input_data", "json", "what it was given"),
                Column("output_data", "json", "what it brought forth"),
                Column("error", "text", "why it failed"),
                Column("max_retries", "integer", "how often it may be tried again"),
                Column("timeout_seconds", "integer", "how long it may take, in seconds"),
                Column("started_at", "timestamp", "when work on it began"),
                Column("completed_at", "timestamp", "when work on it ended"),
            ),
            required=("task_id",),
            legacy_columns=12,
        ),
        Kind(
            "tool_executions",
            "one call of a tool: what went in, what came out",
            (
                Column("execution_id", "id", "the call"),
                Column("agent_id", "id", "the agent that called"),
                Column("task_id", "id", "the task that it served"),
                Column("tool_name", "text", "the tool's name"),
                Column("tool_category", "text", "what sort of tool"),
                Column("status", "text", "completed, failed or a word of yours"),
                Column("execution_time_ms", "number", "time it took, in milliseconds"),
                _TIMESTAMP,
                Column("input_params", "json", "the call's arguments"),
                Column("output_result", "json", "what the tool returned"),
                Column("error", "text", "why it failed"),
                Column("completed_at", "timestamp", "when the call ended"),
            ),
            required=("execution_id",),
            legacy_columns=11,
        ),
        Kind(
            "workflows",
            "a workflow's state at one moment",
            (
                Column("workflow_id", "id", "the workflow; its rows are its history"),
                Column("workflow_type", "text", "what sort of workflow"),
                Column("phase", "text", "the phase that it is in"),
                _TIMESTAMP,
                Column("state_data", "json", "its state"),
                Column("step_results", "json", "results of the steps so far"),
                Column("error", "text", "why it failed"),
                Column("name", "text", "its name for people"),
                Column("description", "text", "what it is for"),
                Column("current_step", "text", "the step that it is at"),
                Column("total_steps", "integer", "how many steps it has"),
                Column("completed_steps", "integer", "how many of them are done"),
                Column("assigned_agents", "json", "the agents that take part"),
                Column("tags", "json", "labels"),
            ),
            required=("workflow_id",),
            legacy_columns=7,
        ),
        Kind(
            "feedback",
            "a score, a label or a better answer for something stored earlier; the latest one holds",
            (
                Column("target_kind", "text", "what it is about: record, task, session or workflow"),
                Column("target_id", "id", "that one's id"),
                Column("name", "text", "what is judged, such as reward"),
                Column("value", "json", "the score or label: a number, true or false, or text"),
                Column("source", "text", "who judged: human, judge or code"),
                Column("corrected_output", "json", "the answer that would have been right"),
                Column("comment", "text", "a remark"),
                _TIMESTAMP,
            ),
            required=("target_kind", "target_id", "name"),
            choices={
                "target_kind": ("record", "task", "session", "workflow"),
                "source": ("human", "judge", "code"),
            },
        ),
    )
}


def kind_named(name: str) -> Kind:
    """The kind of that name; raises UnknownKind listing the known ones."""
    kind = KINDS.get(name)
    if kind is None:
        raise UnknownKind(f"kind={name!r}: expected one of {', '.join(KINDS)}; pass one of these names")
    return kind


def new_record_id() -> str:
    """A UUIDv7 (RFC 9562) of the present time."""
    return str(uuid_utils.uuid7())


def keyed_record_id(kind: str, key: str) -> str:
    """The one record id of an idempotency key: a UUIDv8 (RFC 9562) of SHA-256 over kind, NUL and key."""
    import hashlib  # 3 ms, a twentieth of `import ingest`

    digest = bytearray(hashlib.sha256(f"{kind}\0{key}".encode("utf-8", "surrogatepass")).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(digest)))


def is_keyed(record_id: str) -> bool:
    """Whether an id was made from an idempotency key (its version digit is 8)."""
    return record_id[14:15] == "8"


def has_keyed(record_ids: Iterable[str]) -> bool:
    """`is_keyed` for any of many ids, 40 ns each."""
    return "8" in [record_id[14:15] for record_id in record_ids]


def ingest_time(record_id: str) -> datetime | None:
    """The ingest time that a UUIDv7 holds, in milliseconds; None for any other id."""
    try:
        parsed = uuid.UUID(record_id)
        if parsed.version == 7:
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=parsed.int >> 80)
    except (ValueError, OverflowError):
        pass  # somebody else's id: no UUID, or a time beyond the year 9999
    return None


_FIRST_DAY = date(1970, 1, 1).toordinal()


def day_text(number: int) -> str:
    """The day with that number, counted from 1970, as YYYY-MM-DD."""
    return date.fromordinal(_FIRST_DAY + number).isoformat()


class DayNumbers(dict[str, int]):
    """The numbers of days by their text, counted from 1970; 0 for a day before 1971. Made when they are asked for."""

    def __missing__(self, day: str) -> int:
        """The number of a day that was not asked for before."""
        if len(self) > _MOST_DAYS:
            self.clear()
        number = self[day] = max(0, date.fromisoformat(day).toordinal() - _FIRST_DAY)
        return number


_this_second = (0, "")


def now_text() -> str:
    """The present time as RFC 3339, UTC, microseconds: `2024-05-15T08:30:00.000000Z`."""
    global _this_second  # noqa: PLW0603 - the second's text is formatted once a second: 250 ns instead of 900
    now_ns = time.time_ns()
    second = now_ns // 1_000_000_000
    known = _this_second
    if known[0] != second:
        known = _this_second = (second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S."))
    return f"{known[1]}{str(now_ns)[-9:-3]}Z"


def timestamp_text(field: str, value: object) -> str:
    """A datetime, or RFC 3339 text, as RFC 3339 in UTC with microseconds; without an offset it means UTC.

    Text may be in any form that `datetime.fromisoformat` reads, a date alone is its midnight, what is finer
    than a microsecond is cut off, and a leap second (RFC 3339, 5.7) is the first second after it.
    Raises InvalidRecord naming `field` if the value is neither.
    """
    try:
        moment = _moment(value) if isinstance(value, str) else value
        if isinstance(moment, datetime):
            # A tzinfo may know no offset: astimezone would take this machine's zone then.
            aware = moment.replace(tzinfo=UTC) if moment.utcoffset() is None else moment.astimezone(UTC)
            return aware.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    except (ValueError, OverflowError) as err:
        raise _not_a_time(field, value) from err
    raise _not_a_time(field, value)


def _moment(text: str) -> datetime:
    text = text.upper()  # RFC 3339 allows t and z
    if text[16:19] == ":60":
        return datetime.fromisoformat(f"{text[:16]}:59{text[19:]}") + timedelta(seconds=1)
    return datetime.fromisoformat(text)


def _not_a_time(field: str, value: object) -> InvalidRecord:
    return InvalidRecord(
        f"{field}={shown(value)} ({type(value).__name__}): expected a datetime or RFC 3339 text such as "
        "2024-05-15T08:30:00Z; pass one of these or leave it out"
    )


# A column of CSV cells: the quote that stands around each ("" where the cells have their own), and the cells; none if
# all are null.
_Cells = tuple[Literal["", '"'], Sequence[str]]


def _needs_care(text: str) -> bool:
    """Whether anything in a text has to be escaped or doubled. A regular expression takes 20 times as long."""
    return '"' in text or "\\" in text or "\n" in text or "\r" in text


def _text_cells(values: Sequence[str | None], *, escaped: bool) -> _Cells:
    """A column of texts."""
    present = [value for value in values if value is not None] if None in values else values
    if not present:
        return "", ()
    if escaped and _needs_care("".join(cast("Sequence[str]", present))):
        values = [None if value is None else escape_text(value).replace('"', '""') for value in values]
    if len(present) == len(values):
        return '"', cast("Sequence[str]", values)
    return "", ["" if value is None else f'"{value}"' for value in values]


def _json_cells(values: Sequence[object], *, is_document: bool) -> _Cells:
    """A column of documents (`msgspec.Raw`) or of numbers, as JSON text."""
    if values[0] is None and values.count(None) == len(values):  # `count` alone compares each document: 0.3 us
        return "", ()
    if is_document:
        # A foreign producer's JSON may have a raw CR between its tokens, the one line break in a line.
        documents = [b"null" if value is None else value for value in values]
        text = b"\n".join(cast("Iterable[bytes]", documents)).replace(b'"', b'""').replace(b"\r", b" ").decode()
        cells = text.split("\n")
        if len(cells) != len(values):
            raise InvalidRecord("a line break inside a document: expected one record a line")
    else:
        cells = msgspec.json.encode(values)[1:-1].decode().split(",")
    nulls = cells.count("null")
    if not nulls:
        return '"', cells
    return ("", ()) if nulls == len(cells) else ("", ["" if cell == "null" else f'"{cell}"' for cell in cells])


def escape_text(text: str) -> str:
    """Text as it stands in a CSV cell: backslash, LF and CR escaped, so that one line is one row."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def unescape_text(text: str) -> str:
    """Undo `escape_text`."""
    if "\\" not in text:
        return text
    # NUL may be part of a text, so the stand-in for an escaped backslash is split, not substituted.
    return "\\".join(part.replace("\\n", "\n").replace("\\r", "\r") for part in text.split("\\\\"))
