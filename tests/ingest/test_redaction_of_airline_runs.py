"""160 real runs of an airline agent, with what was planted in them: at level full nothing personal is left.

What there was is counted by patterns of their own, over the log itself, which share nothing with the detectors.
"""

import json
import re
from collections import Counter
from datetime import UTC, datetime

import pytest
import re2

from ingest.chat_logs import read_runs, run_calls
from ingest.records import KINDS
from ingest.redaction.redactor import Redactor, open_redactor
from ingest.settings import Settings
from tests.parts import PROJECT

AIRLINE_RUNS = PROJECT.parent / "shared" / "data" / "airline_runs.jsonl.gz"
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
SCANS = {
    "email": re.compile(rb"[\w.+-]+@[\w-]+\.[\w.]+"),
    "payment": re.compile(rb"(?:credit_card|gift_card|certificate)_[0-9]+"),
    "birth": re.compile(
        rf"(?:19[0-9]{{2}}|200[0-9])-[0-9]{{2}}-[0-9]{{2}}|(?:{MONTHS}) [0-9]+, (?:19|200)[0-9]+".encode()
    ),
    "dob": re.compile(rb'dob\\*": *\\*"[0-9]'),
    "name": re.compile(rb'(?:first|last)_name\\*": *\\*"[A-Z]'),
}
PLANTED = [
    "+1 415 555 0132",
    "4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00",
    "sk-proj-Abc0123456789Abc0123456789",
]
MOMENT = datetime(2024, 5, 15, tzinfo=UTC)
Lines = dict[str, list[bytes]]


def line_of(kind: str, fields: dict[str, object]) -> bytes:
    record = {column.name: fields.get(column.name) for column in KINDS[kind].columns}
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=str).encode()


@pytest.fixture(scope="module")
def source() -> Lines:
    """The log's records of every kind as exported, and four more with the planted values."""
    lines: Lines = {kind: [] for kind in KINDS}
    for run in read_runs(AIRLINE_RUNS):
        for call in run_calls(run, MOMENT):
            lines[call.kind].append(line_of(call.kind, call.fields))
    said = " and ".join(PLANTED)
    arguments = json.dumps({"passengers": [{"note": said, "dob": "1990-04-05"}]})
    lines["events"].append(
        line_of(
            "events",
            {"event_type": said, "payload": {"content": said, "tool_calls": [{"function": {"arguments": arguments}}]}},
        )
    )
    lines["tool_executions"].append(line_of("tool_executions", {"output_result": json.dumps([said]), "error": said}))
    return lines


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return open_redactor(Settings(redaction_key="a key for the tests"), "full")


@pytest.fixture(scope="module")
def gone(source: Lines, redactor: Redactor) -> Lines:
    return {kind: [redactor.redact_line(kind, line) for line in lines] for kind, lines in source.items()}


def counted(lines: Lines) -> dict[str, int]:
    text = b"\n".join(line for of_kind in lines.values() for line in of_kind)
    planted = sum(text.count(value.encode()) for value in PLANTED)
    return {name: len(scan.findall(text)) for name, scan in SCANS.items()} | {"planted": planted}


def test_of_what_the_log_held_nothing_is_left(source: Lines, gone: Lines, redactor: Redactor) -> None:
    held = counted(source)
    assert held == {"email": 211, "payment": 3605, "birth": 2328, "dob": 2277, "name": 4552, "planted": 20}
    assert counted(gone) == dict.fromkeys(held, 0)
    assert sum(redactor.counts.values()) > sum(held.values())
    assert redactor.find_leaks(b"\n".join(line for lines in gone.values() for line in lines)) == []
    assert len(redactor.find_leaks(b"\n".join(line for lines in source.values() for line in lines))) > 10_000


def test_nothing_else_is_touched(source: Lines, gone: Lines, redactor: Redactor) -> None:
    """No flight, price, time, reservation or id: what a rule replaced beside fields and planted values is listed."""
    changed = Counter(kind for kind in source for old, new in zip(source[kind], gone[kind], strict=True) if old != new)
    assert sum(changed.values()) < sum(map(len, source.values())) / 3
    looked_for = ("phone", "card", "iban", "api_key", "ip", "assignment", "cookie", "ssn")
    assert {rule: redactor.counts[rule] for rule in looked_for} == {
        "phone": 5, "card": 5, "iban": 5, "api_key": 5, "ip": 0, "assignment": 0, "cookie": 0, "ssn": 0,
    }  # fmt: skip
    assert redactor.counts["email"] == 211
    assert redactor.counts["payment_id"] == 3605
    for kind in source:
        for old, new in zip(source[kind], gone[kind], strict=True):
            before, after = json.loads(old), json.loads(new)
            kept = [column.name for column in KINDS[kind].columns if column.type not in {"json", "text"}]
            assert [before[name] for name in kept] == [after[name] for name in kept]


def test_at_level_secrets_the_log_is_clean_and_hardly_a_line_is_looked_at(source: Lines) -> None:
    redactor = open_redactor(Settings(redaction_key="a key for the tests"), "secrets")
    changed = [
        redactor.redact_line(kind, line) for kind in source for line in source[kind] if redactor.find_leaks(line)
    ]
    assert len(changed) == 2
    assert dict(redactor.counts) == {"api_key": 5}
    is_suspect = re2.compile(redactor.suspect).search
    assert sum(is_suspect(line) is not None for lines in source.values() for line in lines) == 2


def test_one_customer_has_one_token_in_all_runs_and_another_one_has_another(source: Lines, gone: Lines) -> None:
    addresses = {found.lower() for lines in source.values() for line in lines for found in SCANS["email"].findall(line)}
    tokens = {found for lines in gone.values() for line in lines for found in re.findall(rb"<EMAIL:[a-p]{16}>", line)}
    assert len(tokens) == len(addresses) == 35
