"""What is no good row goes to quarantine with reason and origin, and the rest of the day goes on."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.pipeline.ledger import Reject
from tds_dagster.curate import curate_day
from tds_dagster.export import export_range, unbalanced_days
from tests.stages.conftest import DAY, RawStore

ReadJsonl = Callable[[Path], list[dict[str, object]]]


def bad_rows(raw_store: RawStore) -> dict[str, tuple[bytes, str]]:
    """(row, reason) by what is wrong with it."""
    good = raw_store.row("tasks", raw_store.record("tasks", record_id="bad", input_data="DOC", retry_count=7))

    def with_document(text: bytes) -> bytes:
        return good.replace(b'"""DOC"""', b'"' + text.replace(b'"', b'""') + b'"')

    return {
        "a column missing": (good.split(b",", 1)[1], "22 columns instead of 23"),
        "a column too many": (b'"",' + good, "24 columns instead of 23"),
        "a null too many": (good.replace(b"\n", b",\n"), "24 columns instead of 23"),
        "an empty line": (b"\n", "an empty line"),
        "an open quote": (good.replace(b'"bad"', b'"bad'), "not CSV: a quote is missing or out of place"),
        "not UTF-8": (good.replace(b'"bad"', b'"b\xe2\x82"'), "not UTF-8: byte"),
        "a surrogate": (good.replace(b'"bad"', b'"b\xed\xa0\x80"'), "not UTF-8: byte"),
        "not JSON": (with_document(b"{a:1}"), "input_data is not JSON"),
        "an empty document": (with_document(b""), "input_data is not JSON"),
        "NaN": (with_document(b'{"a":NaN}'), "input_data is not JSON"),
        "minus Infinity": (with_document(b"-Infinity"), "input_data is not JSON"),
        "inf in small letters": (with_document(b"[1, inf ]"), "input_data is not JSON"),
        "a trailing comma": (with_document(b'{"a":[1, ],"b":2}'), "input_data is not JSON"),
        "a raw NUL in JSON": (with_document(b'"\0"'), "input_data is not JSON"),
        "a number that is none": (good.replace(b'"7"', b'"seven"'), "retry_count is not a whole number of 64 bits"),
        "a half": (good.replace(b'"7"', b'"7.5"'), "retry_count is not a whole number of 64 bits"),
        "65 bits": (good.replace(b'"7"', b'"18446744073709551616"'), "retry_count is not a whole number of 64 bits"),
        "a time that is none": (
            good.replace(b"T08:30:00.000000Z", b"T25:30:00.000000Z"),
            "timestamp is not an RFC 3339",
        ),
        "a 30th of February": (good.replace(DAY.encode(), b"2024-02-30"), "timestamp is not an RFC 3339"),
        "no offset": (good.replace(b".000000Z", b".000000"), "timestamp is not an RFC 3339"),
        "no record_id": (good.replace(b'"bad"', b""), "record_id is null"),
        "no timestamp": (good.replace(f'"{DAY}T08:30:00.000000Z"'.encode(), b""), "timestamp is null"),
    }


@pytest.mark.parametrize("what", sorted(bad_rows(RawStore(Path()))))
def test_a_bad_row_goes_to_quarantine_and_its_neighbours_are_kept(
    raw_store: RawStore, read_jsonl: ReadJsonl, what: str
) -> None:
    row, reason = bad_rows(raw_store)[what]
    before, after = (raw_store.row("tasks", raw_store.record("tasks", record_id=i)) for i in ("before", "after"))
    raw_store.commit("tasks", [before, row, after])

    export = export_range(raw_store.paths, "tasks", DAY, DAY)

    assert [line["record_id"] for line in read_jsonl(export.path)] == ["after", "before"]
    (quarantined,) = read_jsonl(raw_store.paths.quarantine("tasks", DAY))
    assert str(quarantined["reason"]).startswith(reason)
    header = raw_store.paths.training("tasks", DAY).read_bytes().index(b"\n") + 1
    assert quarantined["origin"] == f"tasks_{DAY}.csv line 3 byte {header + len(before)}"
    text = str(quarantined["line"])
    line = base64.b64decode(text) if quarantined.get("encoding") == "base64" else text.encode()
    assert line == row.removesuffix(b"\n")
    assert unbalanced_days(raw_store.paths, "tasks") == []


def test_all_sorts_of_bad_rows_in_one_day_lose_no_good_row(raw_store: RawStore, read_jsonl: ReadJsonl) -> None:
    bad = [row for row, _ in bad_rows(raw_store).values()]
    good = [raw_store.row("tasks", raw_store.record("tasks", record_id=f"{n:02d}")) for n in range(len(bad))]
    raw_store.commit("tasks", [line for pair in zip(bad, good, strict=True) for line in pair])

    built = curate_day(raw_store.paths, "tasks", DAY)

    assert (built.rows, built.quarantined, built.duplicates) == (len(good), len(bad), 0)
    origins = [str(line["origin"]).split()[2] for line in read_jsonl(raw_store.paths.quarantine("tasks", DAY))]
    assert origins == [str(number) for number in range(2, 2 + 2 * len(bad), 2)]


def test_a_row_over_two_lines_is_two_bad_lines(raw_store: RawStore) -> None:
    good = raw_store.row("tasks", raw_store.record("tasks", error="a b"))
    raw_store.commit("tasks", [good, good.replace(b"a b", b"a\nb"), good.replace(b'"a b"', b'""')])
    # The ledger counts line feeds when it takes over an edit, and the fixture counts rows.
    path = raw_store.paths.training("tasks", DAY)
    stamp = path.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(stamp, stamp))

    built = curate_day(raw_store.paths, "tasks", DAY)

    assert (built.source_rows, built.rows, built.duplicates, built.quarantined) == (4, 1, 1, 2)


def test_a_day_of_nothing_but_bad_rows_is_an_artifact_of_no_rows(raw_store: RawStore) -> None:
    raw_store.commit("tasks", [row for row, _ in bad_rows(raw_store).values()])

    export = export_range(raw_store.paths, "tasks", DAY, DAY)

    assert (export.rows, export.accounting.quarantined) == (0, len(bad_rows(raw_store)))


@pytest.mark.parametrize(
    "document",
    ['"finance, nan,"', '{"inf":[1,{"a":",]"}]}', '"we inform, nan] "', "1e5", '"NaN"', '["Infinity"]', '",]"'],
)
def test_a_good_document_that_only_looks_lenient_is_kept(raw_store: RawStore, document: str) -> None:
    raw_store.store("events", raw_store.record("events", payload=json.loads(document)))

    assert curate_day(raw_store.paths, "events", DAY).quarantined == 0


@pytest.mark.parametrize(
    "stamp", ["2024-05-15T08:30:00Z", "2024-05-15T10:30:00.5+02:00", "1970-01-01T00:00:00.000000Z"]
)
def test_other_forms_of_rfc_3339_are_read(raw_store: RawStore, stamp: str, read_jsonl: ReadJsonl) -> None:
    row = raw_store.row("tasks", raw_store.record("tasks", started_at="HERE")).replace(b"HERE", stamp.encode())
    raw_store.commit("tasks", [row])

    export = export_range(raw_store.paths, "tasks", DAY, DAY)

    assert str(read_jsonl(export.path)[0]["started_at"])[10:] in {
        "T08:30:00.000000Z",
        "T08:30:00.500000Z",
        "T00:00:00.000000Z",
    }


def test_the_writers_rejects_stand_before_those_of_curation(raw_store: RawStore, read_jsonl: ReadJsonl) -> None:
    rejects = [
        Reject(DAY, "no JSON", "producer p seq 7", b'{"a'),
        Reject(DAY, "appended by another program", f"events_{DAY}.csv byte 900", b"\xff\0\n"),
    ]
    raw_store.commit("events", [b"\n"], rejects=rejects, quarantined=1, foreign=1)

    built = curate_day(raw_store.paths, "events", DAY)

    lines = read_jsonl(raw_store.paths.quarantine("events", DAY))
    assert [line["reason"] for line in lines] == ["no JSON", "appended by another program", "an empty line"]
    assert (lines[0]["line"], lines[1]["encoding"]) == ('{"a', "base64")
    assert base64.b64decode(str(lines[1]["line"])) == b"\xff\0\n"
    assert (built.source_rejects, built.source_foreign, built.quarantined) == (2, 1, 1)


def test_the_quarantine_file_goes_when_the_day_was_mended(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events", payload="DOC"))
    raw_store.overwrite("events", b'"""DOC"""', b'"""DOC","')
    assert curate_day(raw_store.paths, "events", DAY).quarantined == 1
    assert raw_store.paths.quarantine("events", DAY).exists()

    raw_store.overwrite("events", b'"""DOC","', b'"""DOC"""')

    assert curate_day(raw_store.paths, "events", DAY).quarantined == 0
    assert not raw_store.paths.quarantine("events", DAY).exists()
