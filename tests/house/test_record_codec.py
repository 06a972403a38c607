"""What a record holds survives the wire and the CSV, for every reader that the project promises."""

import csv
import io
import json
import math
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import UnknownKind
from ingest.records import (
    ALIASES,
    ARROW_CSV_OPTIONS,
    DUCKDB_CSV_OPTIONS,
    KINDS,
    Column,
    Kind,
    escape_text,
    kind_named,
    unescape_text,
)

AWKWARD = [
    "",
    " ",
    "null",
    "NULL",
    '"',
    '""',
    ",",
    "\\",
    "\\n",
    "\\\\n",
    "a\\",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\0",
    "a\0b",
    "\t",
    "\x0b\x0c\x1c\x85\u2028\u2029",
    "\ufeff",
    "😀 \U0010ffff",
    "=1+1",
    "'",
    "#",
    '日本,\n"\\',
]
texts = st.sampled_from(AWKWARD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
documents = st.recursive(
    st.none() | st.booleans() | numbers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
VALUES = {
    "id": texts,
    "text": texts,
    "timestamp": texts,
    "integer": numbers,
    "number": numbers | floats,
    "json": documents,
}


@st.composite
def fields_of(draw: st.DrawFn, kind: Kind) -> dict[str, object]:
    """Values for some of a kind's wire fields, null among them."""
    fields: dict[str, object] = {"record_id": draw(texts), "timestamp": draw(texts)}
    for name in (*kind.texts, *kind.numbers, *kind.documents):
        value = draw(VALUES[kind.types[name]] if name in kind.required else st.none() | VALUES[kind.types[name]])
        if value is not None:
            fields[name] = value
    return fields


def line_of(kind: Kind, fields: dict[str, object]) -> bytes:
    return msgspec.json.encode(kind.record(**fields))


def row_of(kind: Kind, line: bytes) -> str:
    (row,) = kind.csv_rows([kind.decoder.decode(line)], escaped=b"\\" in line)
    return row


def write_csv(path: Path, kind: Kind, lines: list[bytes]) -> None:
    path.write_bytes(kind.header + b"".join(row_of(kind, line).encode() for line in lines))


def read_by_csv_module(path: Path) -> list[dict[str, str | None]]:
    with path.open(newline="", encoding="utf-8") as source:
        return list(csv.DictReader(source))


def read_by_duckdb(path: Path) -> list[dict[str, str | None]]:
    options = ", ".join(
        f"{name} = {str(value).lower() if isinstance(value, bool) else duckdb_text(str(value))}"
        for name, value in DUCKDB_CSV_OPTIONS.items()
    )
    header = path.read_bytes().split(b"\n", 1)[0].decode().split(",")
    columns = ", ".join(f"'{name}': 'VARCHAR'" for name in header)
    with duckdb.connect() as con:
        found = con.execute(f"FROM read_csv($1, {options}, columns = {{{columns}}})", [str(path)])
        names = [name for name, *_ in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def duckdb_text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def read_by_pyarrow(path: Path) -> list[dict[str, str | None]]:
    header = path.read_bytes().split(b"\n", 1)[0].decode().split(",")
    options = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), **ARROW_CSV_OPTIONS)
    rows: list[dict[str, str | None]] = pa.csv.read_csv(path, convert_options=options).to_pylist()
    return rows


def value_of(column: Column, cell: str | None) -> object:
    """What a cell says, by the rules of the module's docstring."""
    if cell is None:
        return None
    if column.type in {"json", "integer", "number"}:
        return json.loads(cell)
    return unescape_text(cell)


def values_of(kind: Kind, row: dict[str, str | None]) -> dict[str, object]:
    return {column.name: value_of(column, row[column.name]) for column in kind.columns}


def stored_values(kind: Kind, fields: dict[str, object]) -> dict[str, object]:
    return {column.name: fields.get(ALIASES.get(column.name, column.name)) for column in kind.columns}


@pytest.mark.parametrize("reader", [read_by_duckdb, read_by_pyarrow])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_record_comes_back_equal_and_null_is_not_the_empty_text(
    tmp_path_factory: pytest.TempPathFactory, reader: object, data: st.DataObject
) -> None:
    kind = KINDS[data.draw(st.sampled_from(sorted(KINDS)))]
    stored = data.draw(st.lists(fields_of(kind), max_size=4))
    path = tmp_path_factory.mktemp("codec") / "day.csv"
    write_csv(path, kind, [line_of(kind, fields) for fields in stored])
    rows = reader(path)  # type: ignore[operator]  # one of the two above
    assert [values_of(kind, row) for row in rows] == [stored_values(kind, fields) for fields in stored]


@given(data=st.data())
def test_a_row_is_read_back_one_by_one_as_well(data: st.DataObject) -> None:
    kind = KINDS[data.draw(st.sampled_from(sorted(KINDS)))]
    fields = data.draw(fields_of(kind))
    found = kind.read_row(row_of(kind, line_of(kind, fields)))
    assert found == {name: value for name, value in stored_values(kind, fields).items() if value is not None}


@pytest.mark.parametrize("row", ["", '"r"', '"r","x",', '"a"b,' * 20, '"r",' + "," * 30])
def test_a_row_that_the_writer_did_not_write_is_not_guessed_at(row: str) -> None:
    with pytest.raises(ValueError):
        KINDS["events"].read_row(row)


def test_a_row_whose_document_is_no_json_names_the_column() -> None:
    row = '"e","x",,,,,,"t","{broken","e",,,,,\n'
    with pytest.raises(ValueError, match=r"payload='\{broken': expected JSON"):
        KINDS["events"].read_row(row)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_pythons_csv_module_finds_every_row_and_every_text(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kind = KINDS[data.draw(st.sampled_from(sorted(KINDS)))]
    stored = data.draw(st.lists(fields_of(kind), max_size=4))
    path = tmp_path_factory.mktemp("codec") / "day.csv"
    write_csv(path, kind, [line_of(kind, fields) for fields in stored])
    for row, fields in zip(read_by_csv_module(path), stored, strict=True):
        found = values_of(kind, {name: cell or None for name, cell in row.items()})
        wanted = stored_values(kind, fields)
        texts_of_it = {column.name for column in kind.columns if column.type not in {"json", "integer", "number"}}
        empty_or_null = {name for name in texts_of_it if wanted[name] == ""}  # it cannot tell the two apart
        assert found == wanted | dict.fromkeys(empty_or_null)


@settings(max_examples=200)
@given(data=st.data())
def test_one_line_is_one_row_whatever_it_holds(data: st.DataObject) -> None:
    kind = KINDS[data.draw(st.sampled_from(sorted(KINDS)))]
    line = line_of(kind, data.draw(fields_of(kind)))
    row = row_of(kind, line)
    assert b"\n" not in line
    assert row.count("\n") == 1
    assert row.endswith("\n")
    assert "\r" not in row
    assert len(next(csv.reader(io.StringIO(row, newline="")))) == len(kind.columns)


@given(texts)
def test_escaping_is_undone(text: str) -> None:
    escaped = escape_text(text)
    assert "\n" not in escaped
    assert "\r" not in escaped
    assert unescape_text(escaped) == text


@given(data=st.data())
def test_rows_made_together_are_those_made_one_by_one(data: st.DataObject) -> None:
    kind = KINDS[data.draw(st.sampled_from(list(KINDS)))]
    lines = [line_of(kind, fields) for fields in data.draw(st.lists(fields_of(kind), min_size=1, max_size=5))]
    records = kind.decoder.decode_lines(b"\n".join(lines))
    expected = [row_of(kind, line) for line in lines]
    assert kind.csv_rows(records, escaped=b"\\" in b"".join(lines)) == expected
    assert kind.csv_rows(records, escaped=True) == expected


def test_a_document_of_null_and_a_number_that_is_none_are_null_cells() -> None:
    kind = KINDS["tasks"]
    line = line_of(
        kind,
        {"record_id": "r", "timestamp": "t", "task_id": "x", "execution_time_ms": math.nan, "metadata": None},
    )
    line = line[:-1] + b',"input_data":null}'
    cells = row_of(kind, line).rstrip("\n").split(",")
    assert [cells[kind.header.decode().rstrip().split(",").index(name)] for name in ("input_data", "metadata")] == [
        "",
        "",
    ]
    assert cells[kind.header.decode().rstrip().split(",").index("execution_time_ms")] == ""


def test_a_foreign_producers_carriage_return_between_tokens_does_not_reach_the_file() -> None:
    kind = KINDS["events"]
    line = b'{"record_id":"r","timestamp":"t","event_type":"x","payload":{"a":\r1,\r"b":"\\r"}}'
    row = row_of(kind, line)
    assert "\r" not in row
    assert '{""a"": 1, ""b"":""\\r""}' in row


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("payload", b'"\xff"', UnicodeDecodeError),
        ("payload", b"{1:2}", msgspec.DecodeError),
        ("payload", b"[1,]", msgspec.DecodeError),
        ("payload", b"NaN", msgspec.DecodeError),
        ("payload", b'"\\ud800"', msgspec.DecodeError),
        ("payload", b"[" * 1100 + b"]" * 1100, RecursionError),
        ("source", b"5", msgspec.ValidationError),
        ("source", b'"\xff"', UnicodeDecodeError),
        ("event_type", b"null", msgspec.ValidationError),
    ],
)
def test_a_foreign_line_that_is_no_record_is_refused_before_it_is_a_row(
    field: str, value: bytes, error: type[Exception]
) -> None:
    line = b'{"record_id":"r","timestamp":"t","event_type":"x","%s":%s}' % (field.encode(), value)
    with pytest.raises(error):
        row_of(KINDS["events"], line)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**70, 2.5, True])
def test_an_integer_column_refuses_on_the_wire_what_64_bits_cannot_hold(value: object) -> None:
    kind = KINDS["tasks"]
    line = line_of(kind, {"record_id": "r", "timestamp": "t", "task_id": "x", "retry_count": value})
    with pytest.raises(msgspec.ValidationError, match="retry_count"):
        kind.decoder.decode(line)


def test_fields_that_a_later_version_adds_to_the_wire_are_no_error() -> None:
    line = b'{"record_id":"r","timestamp":"t","event_type":"x","colour":"red"}'
    assert row_of(KINDS["events"], line).startswith('"r","x",')


def test_the_columns_are_the_contracts_in_its_order() -> None:
    common = "record_id agent_id workflow_id instance_id session_id trace_id span_id parent_span_id metadata"
    first = {
        "events": "event_id event_type agent_id workflow_id session_id source severity timestamp payload",
        "tasks": "task_id agent_id instance_id task_type priority status retry_count execution_time_ms timestamp "
        "input_data output_data error max_retries timeout_seconds started_at completed_at",
        "tool_executions": "execution_id agent_id task_id tool_name tool_category status execution_time_ms "
        "timestamp input_params output_result error completed_at",
        "workflows": "workflow_id workflow_type phase timestamp state_data step_results error name description "
        "current_step total_steps completed_steps assigned_agents tags",
        "feedback": "target_kind target_id name value source corrected_output comment timestamp",
    }
    for name, kind in KINDS.items():
        own = first[name].split()
        wanted = [*own, *(column for column in common.split() if column not in own)]
        assert kind.header == (",".join(wanted) + "\n").encode()
    assert list(KINDS) == list(first)


def test_a_further_kind_is_one_entry_and_nothing_else(tmp_path: Path) -> None:
    messages = Kind(
        "messages",
        "what was said",
        (
            Column("message_id", "id", "the message"),
            Column("timestamp", "timestamp", "event time"),
            Column("tokens", "integer", "its length"),
            Column("body", "json", "the message"),
        ),
        required=("message_id",),
    )
    fields: dict[str, object] = {"record_id": "r", "timestamp": "t", "message_id": "1", "tokens": 7, "body": ["\n"]}
    write_csv(tmp_path / "m.csv", messages, [line_of(messages, fields)])
    row = read_by_pyarrow(tmp_path / "m.csv")[0]
    assert values_of(messages, row) == stored_values(messages, fields)
    assert messages.header.endswith(b"parent_span_id,metadata\n")


def test_an_unknown_kind_is_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownKind, match=r"kind='event': expected one of events, tasks, .*; pass"):
        kind_named("event")
    assert kind_named("events") is KINDS["events"]
