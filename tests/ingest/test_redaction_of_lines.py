"""What a level promises to be gone is gone, wherever in a line it stood, and what looks like it stays."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import re2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ingest.redaction.plain_text import FOLDABLE, folded
from ingest.redaction.redactor import Leak, Redactor, open_redactor
from ingest.redaction.rules import ActiveRules
from ingest.settings import Settings

KEYED = Settings(redaction_key="a key for the tests")
FULL, SECRETS = open_redactor(KEYED, "full"), open_redactor(KEYED, "secrets")
RECORD = {"record_id": "0190f3a2-1234-7abc-8def-0123456789ab", "timestamp": "2024-05-15T15:00:00.000000Z"}

ARABIC = "\u0664\u0661\u0665"  # 415

PERSONAL = {
    "email": [
        "alice@example.com", "Bob.Smith+tag@mail.example.co.uk", "joe@bücher.example", "maría@example.es",
        "user%40example.com",
    ],
    "phone": [
        "+1 415 555 0101", "+14155550101", "+44 20 7946 0958", "(415) 555-2671", "call:415-555-2671", "415.555.2671",
        "1-800-555-0199", "030 901820", "+49 (0)30 901820", ARABIC + "-555-2671", "415\u2013555\u20132671",
        "415\u00a0555\u00a02671", "0049 30 901820", "001 415 555 0101",
        "0049 (0)30 901820",
    ],
    "card": [
        "4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "6011000990139424",
        "\uff14\uff11\uff11\uff11 1111 1111 1111", "4111  1111  1111  1111", "4111.1111.1111.1111", "3782.822463.10005",
        "4111111111111111.0",
    ],
    "iban": ["DE89 3704 0044 0532 0130 00", "DE89370400440532013000", "GB82WEST12345698765432", "nl91abna0417164300"],
    "ip": ["203.0.113.7", "10.1.2.3", "2001:db8::8a2e:370:7334", "fe80::1"],
    "birth_date": ["1990-04-05", "1957/10/05", "April 12, 2001", "5th of May 1957", "12.04.2001", "Oct 5, 1957"],
    "ssn": ["123-45-6789", "SSN: 123 45 6789", "social security number is 219099999"],
    "payment_id": ["credit_card_4421486", "gift_card_7219486", "certificate_7504069"],
}  # fmt: skip
SECRET = {
    "api_key": [
        "sk-proj-abcdefghij0123456789", "sk-ant-api03-abcdefghij0123456789", "ghp_" + "a1B2" * 9, "hf_" + "aB" * 17,
        "xoxb-123456789012-abcdef", "AIza" + "Sy0-_" * 7, "SG." + "a" * 22 + "." + "b" * 43,
        "glpat-abcdefghij0123456789",
    ],
    "cloud_credential": ["AKIAIOSFODNN7EXAMPLE"],
    "jwt": ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"],
    "bearer": ["Bearer 0123456789abcdef.ghij"],
    "basic_auth": ["Basic dXNlcjpwYXNzd29yZA=="],
    "url_password": ["postgres://app:p4ss@db.example/app", "https://user:geheim@example.com/"],
    "assignment": [
        "API_KEY=abc123def456", "password: hunter22", "Pwd='tr0ub4dor'", "pwd=letmein!", "**Password:** hunter22",
        "export SECRET_TOKEN=abcd1234EFGH5678ijkl", '{"token": "abcd1234EFGH5678ijkl"}', "'DB_PWD': 'hunter22x'",
    ],
    "cookie": ["Cookie: session=abcd1234EFGH5678", "set-cookie: sid=abcd1234EFGH; Path=/; csrf=ijkl5678MNOP"],
    "private_key": ["-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nAQEF\n-----END RSA PRIVATE KEY-----"],
}  # fmt: skip
BOTH = [(rule, text) for rules in (SECRET, PERSONAL) for rule, texts in rules.items() for text in texts]


def line_of(payload: object, *, ascii_only: bool = False, **columns: object) -> bytes:
    record = {**RECORD, "event_type": "message", **columns, "payload": payload}
    return json.dumps(record, ensure_ascii=ascii_only, separators=(",", ":")).encode()


def redacted(payload: object, redactor: Redactor = FULL) -> object:
    return json.loads(redactor.redact_line("events", line_of(payload)))["payload"]


def wrappings(text: str) -> Iterator[object]:
    """The places in which a value can stand."""
    yield f"It is {text}."
    yield [text]
    yield {"deep": [{"er": {"note": text}}]}
    yield {text: 1}
    inner = json.dumps({"note": f"use {text} now"})
    yield {"tool_calls": [{"function": {"name": "f", "arguments": inner}}]}
    yield json.dumps({"again": inner})
    yield f"cut off: {inner[:-2]}"
    yield repr({"note": text})


@pytest.mark.parametrize(("rule", "text"), BOTH)
def test_a_value_goes_from_wherever_it_stands_in_a_line(rule: str, text: str) -> None:
    last = text.rsplit(maxsplit=1)[-1]
    value = last if len(last) > 4 else text[-9:]
    for wrapped in wrappings(text):
        for ascii_only in (False, True):
            for line in (
                line_of(wrapped, ascii_only=ascii_only),
                line_of(None, ascii_only=ascii_only, event_type=str(wrapped)),
                line_of(wrapped, ascii_only=ascii_only).replace(b"/", b"\\/"),
                line_of(wrapped, ascii_only=ascii_only).replace(b"@", b"\\u0040"),
            ):
                assert rule in {leak.detector for leak in FULL.find_leaks(line)}, line
                gone = FULL.redact_line("events", line)
                assert value not in json.dumps(json.loads(gone), ensure_ascii=False), gone
                assert FULL.find_leaks(gone) == []
                assert FULL.redact_line("events", gone) == gone


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in SECRET.items() for text in texts])
def test_a_secret_goes_at_the_level_secrets_and_personal_data_stays(rule: str, text: str) -> None:
    gone = str(redacted({"note": f"use {text} for alice@example.com"}, SECRETS))
    assert text.rsplit(maxsplit=1)[-1] not in gone
    assert "alice@example.com" in gone


@pytest.mark.parametrize(
    "text",
    [
        "0190f3a2-1234-7abc-8def-0123456789ab",  # a record's id
        "11111111-2222-4333-8444-555555555555",
        "2024-05-15T15:00:00.000000Z", "2024-05-15 15:00:00", "1970-01-01T00:00:00Z", "15:00:00",
        "1715785200", "1715785200000", "1715785200000000",  # times of the clock
        "da39a3ee5e6b4b0d3255bfef95601890afd80709", "9e107d9d372bb6826bd81d3542a419d6",
        "$1,234.50", "0.4111111111111111", "1234567.89", "12345678", "order 4021-3341", "order_id: 4155550101",
        "4111111111111112",  # a card but for its sum
        "DE88370400440532013000",  # an account but for its check digits
        "v1.2.3.4", "1.2.3.4.5", "127.0.0.1", "std::vec", "Foo::Bar", "::1", "#45-56", "HAT136", "call_JmKVGbUGGXVk",
        "14:58:02.954242", "Boston, MA 02110-1301", "[1::2, 0]", "#section-3.4.1.2", "Section 3.4.1.2", "redis://[name]:[password]@host/0",
        "password = password.encode('utf-8')", "secret_key = os.environ.get('KEY')", "api_key=********",
        "password={pw}", "f(access_token = self.access_token, 1)", "postgres://$USER:$PASSWORD@db/x", "Basic economy",
        "Basic Q29udHJvbHM5", "the password: contains eight letters", "password policy", "@alice", "a hotel 2024-05-20",
        "connect(password=password, secret_key=secret_key)", "password: string", "Password: required.",
        "the API key: missing", '{"password": StringSource, "pwd": ClearText}',
        "PWD=/home/alice1/project", '{"pwd": "/home/alice1"}', "max_tokens: 1500",
        "token: the-quick-brown-fox-jumps", "token = tokens[index1234567890]", "token=2024-05-15T15:00:00Z",
        "cookie: chocolate=chip", "987-65-4321", "3.1415926535897931", "007 123456",
        "0012345678", "4111.1111.1111.1112", "4111111111111111.25",
        "risk-assessment-of-the-whole-management", "May 20, 2024", "https://example.com:8080/a@b", "sk-learn",
        "C:\\new\\x",
    ],
)  # fmt: skip
def test_ids_times_hashes_prices_and_prose_stay(text: str) -> None:
    for wrapped in wrappings(text):
        line = line_of(wrapped)
        assert FULL.redact_line("events", line) == line
        assert FULL.find_leaks(line) == []


def test_numbers_that_are_cards_or_phones_become_tokens_and_other_numbers_keep_their_digits() -> None:
    line = line_of(None).replace(
        b"null", b'{"phone": 4155550101, "n": [4111111111111111, 1715785200000, 1.50, 1e3, -0]}'
    )
    gone = FULL.redact_line("events", line)
    assert b"4155550101" not in gone
    assert b"4111111111111111" not in gone
    assert b'", 1715785200000, 1.50, 1e3, -0]' in gone
    phone = json.loads(gone)["payload"]["phone"]
    assert phone == redacted("+1 (415) 555-0101"), "one number, one token"


def test_the_same_value_has_the_same_token_however_it_is_written() -> None:
    for spellings in (
        ["Alice@Example.com", "alice@example.com"],
        ["+1 415 555 0101", "(415) 555-0101", "+14155550101"],
        ["4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111", "4111.1111.1111.1111"],
        ["DE89 3704 0044 0532 0130 00", "de89370400440532013000"],
        ["+49 30 901820", "0049 30 901820"],
        ["April 5, 1990", "1990-04-05", "5 Apr 1990", "1990/4/5"],
    ):
        assert len({str(redacted(text)) for text in spellings}) == 1
    assert redacted({"dob": "1990-04-05"}) == {"dob": redacted("1990-04-05")}
    assert redacted({"ssn": "123-45-6789"}) == {"ssn": redacted("123-45-6789")}
    assert redacted({"dob": "not 1990-04-05"}) != {"dob": redacted("1990-04-05")}
    assert redacted("alice@example.com") != redacted("bob@example.com")


def test_a_value_has_another_token_under_another_label_so_that_no_field_tells_of_another() -> None:
    gone = redacted({"first_name": "Olive", "street": "Olive"})
    assert isinstance(gone, dict)
    assert gone["first_name"][-17:] != gone["street"][-17:]


def test_a_token_depends_on_the_key_and_on_nothing_else() -> None:
    again = open_redactor(KEYED, "full")
    other = open_redactor(Settings(redaction_key="another key of the tests"), "full")
    assert redacted("a@b.example", again) == redacted("a@b.example")
    assert redacted("a@b.example", other) != redacted("a@b.example")
    assert again.version == FULL.version
    assert len({FULL.version, other.version, SECRETS.version}) == 3


def test_fields_of_persons_go_by_their_key_in_any_spelling_and_depth() -> None:
    inner = json.dumps({"passengers": [{"First Name": "Mia", "LAST-NAME": "Li", "dob": "5.4.90"}]})
    gone = redacted({"first_name": "Mia", "user": {"lastName": "Li", "street": "12 Elm", "age": 7}, "arguments": inner})
    assert isinstance(gone, dict)
    assert gone["user"]["age"] == 7
    passenger = json.loads(gone["arguments"])["passengers"][0]
    assert passenger["First Name"] == gone["first_name"]
    assert passenger["LAST-NAME"] == gone["user"]["lastName"]
    assert passenger["dob"].startswith("<DATE_OF_BIRTH:")
    assert "Elm" not in str(gone)


@pytest.mark.parametrize("redactor", [SECRETS, FULL])
@pytest.mark.parametrize(
    ("fields", "secret"),
    [
        ({"env": {"OPENAI_API_KEY": "abcd1234EFGH5678ijkl"}}, "abcd"),
        ({"env": {"DB_PASSWORD": "correct horse"}}, "horse"),
        ({"env": {"AWS_SESSION_TOKEN": "abcd"}}, "abcd"),
        ({"dbPassword": "hunter22x"}, "hunter"),
        ({"token": "abcd1234EFGH5678ijkl"}, "abcd"),
        ({"pwd": "hunter22x"}, "hunter"),
        ({"cookie": "session=abcd"}, "abcd"),
        ({"client_secret_value": "abcd efgh"}, "efgh"),
        ({"password": {"value": "hunter two"}}, "hunter"),
        ({"stripe-secret": [{"value": "abcd"}]}, "abcd"),
        ("Password: correcthorse", "horse"),
        ("Password: correcthorse.\nUser: alice", "horse"),
        ('password = "correcthorse"', "horse"),
    ],
)
def test_a_secret_goes_by_the_end_of_its_key(redactor: Redactor, fields: object, secret: str) -> None:
    for payload in (fields, {"arguments": json.dumps(fields)}):
        for ascii_only in (False, True):
            line = line_of(payload, ascii_only=ascii_only)
            assert redactor.find_leaks(line) != []
            gone = redactor.redact_line("events", line)
            assert secret.encode() not in gone
            assert redactor.find_leaks(gone) == []


def test_a_secret_goes_by_the_end_of_its_key_from_a_document_that_was_cut_off() -> None:
    cut = json.dumps({"a": 1, "b": "x", "DB_PASSWORD": "correct horse", "OPENAI_API_KEY": "abcd efgh"})[:-1]
    gone = redacted([cut, repr({"a": "x", "DB_PASSWORD": "correct horse", "STRIPE_API_KEY": "ab"})], SECRETS)
    assert str(gone).count("<SECRET:") == 4
    assert "horse" not in str(gone)


def test_a_schema_that_only_speaks_of_a_field_stays() -> None:
    schema = {"properties": {"first_name": {"type": "string"}, "password": {"type": "string"}}, "required": ["dob"]}
    assert redacted({"parameters": schema, "first_name": None, "dob": ""}) == {
        "parameters": schema, "first_name": None, "dob": "",
    }  # fmt: skip


def test_a_name_told_by_its_field_goes_from_the_rest_of_its_line() -> None:
    gone = redacted(
        {"first_name": "Mia", "last_name": "Li", "text": "Thank you, Mia Li! Mial, DeMia, li and MIA. Mia's"}
    )
    assert isinstance(gone, dict)
    first, last = gone["first_name"], gone["last_name"]
    assert gone["text"] == f"Thank you, {first} {last}! Mial, DeMia, li and MIA. {first}'s"


def test_a_columns_vocabulary_stays_though_a_customer_has_its_name() -> None:
    line = line_of({"first_name": "Order", "text": "Dear Order"}, event_type="order_created", severity="order")
    gone = json.loads(FULL.redact_line("events", line))
    assert (gone["event_type"], gone["severity"]) == ("order_created", "order")
    assert gone["payload"]["text"] == f"Dear {gone['payload']['first_name']}"


def test_a_month_stays_though_a_passenger_has_its_name() -> None:
    gone = redacted({"first_name": "May", "text": "on May 20, 2024"})
    assert isinstance(gone, dict)
    assert gone["text"] == "on May 20, 2024"


@pytest.mark.parametrize("name", ["User", "assistant", "unknown", "N/A", "string", "Guest", "Test", "find_order"])
def test_what_is_typed_where_a_name_is_missing_is_not_taken_out_of_other_texts(name: str) -> None:
    text = f"the {name} said {name.lower()}: " + repr({"role": name.lower()})
    gone = redacted({"first_name": name, "text": text})
    assert isinstance(gone, dict)
    assert gone["first_name"] != name
    assert gone["text"] == text


STRUCTURE = [
    {
        "role": "zebulon",
        "type": "Zebulon",
        "status": "zebulon",
        "event_type": "zebulon_said",
        "severity": "Zebulon",
        "phase": "zebulon",
    },
    {
        "taskType": "zebulon",
        "task-type": "zebulon",
        "finish_reason": "zebulon",
        "tool_name": "zebulon",
        "toolName": "zebulon",
    },
    {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "zebulon", "arguments": "{}"}}]},
    {
        "tool_calls": [{"name": "zebulon", "args": {}}],
        "functionCall": {"name": "zebulon"},
        "tools": [{"name": "zebulon"}],
    },
    {"content": [{"type": "tool_use", "id": "c", "name": "zebulon", "input": {}}]},
    [{"role": "tool", "tool_call_id": "c", "name": "zebulon"}, {"role": "function", "name": "zebulon", "content": ""}],
    {
        "definitions": json.dumps(
            [{"name": "zebulon", "input_schema": {"properties": {"x": {"enum": ["zebulon", "b"]}}}}]
        )
    },
    {"messages": [{"content": {"name": "Mia"}, "name": "zebulon", "arguments": {"name": "Mia"}}]},
]


@pytest.mark.parametrize("structure", STRUCTURE)
def test_roles_kinds_states_and_tools_names_stay_though_a_customer_has_their_name(structure: object) -> None:
    gone = redacted({"first_name": "Zebulon", "text": "Dear Zebulon", "said": structure})
    assert isinstance(gone, dict)
    assert gone["said"] == structure
    assert gone["text"] == f"Dear {gone['first_name']}"


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Zebulon"},
        {"role": "user", "name": "Zebulon", "content": "hello"},
        [{"role": "tool", "tool_call_id": "c"}, {"name": "Zebulon"}],
        {"status": "waiting for Zebulon"},
        {"tool_calls": [{"function": {"name": "f", "arguments": json.dumps({"name": "Zebulon"})}}]},
        {"functions": {"name": "ask Zebulon"}},
    ],
)
def test_a_persons_name_and_prose_lose_what_a_field_tells_beside_a_tool_as_well(fields: object) -> None:
    gone = redacted({"first_name": "Zebulon", "said": fields})
    assert "Zebulon" not in json.dumps(gone)


def test_lines_redacted_together_share_what_their_fields_tell() -> None:
    lines = [line_of("I am Mia Lopez"), line_of({"first_name": "Mia"}), line_of("Hello, Mia")]
    gone = [json.loads(line)["payload"] for line in FULL.redact_together("events", lines)]
    token = gone[1]["first_name"]
    assert [gone[0], gone[2]] == [f"I am {token} Lopez", f"Hello, {token}"]
    assert json.loads(FULL.redact_line("events", lines[2]))["payload"] == "Hello, Mia"


def test_ids_and_times_are_kept_even_where_they_look_personal() -> None:
    line = line_of("x", agent_id="alice@example.com", session_id="4111111111111111", timestamp="1990-04-05T00:00:00Z")
    assert FULL.redact_line("events", line) == line
    assert FULL.find_leaks(line) == []
    assert FULL.find_leaks(b'  "agent_id": "alice@example.com",') == [], "in a manifest, a line of which is no object"
    assert FULL.find_leaks(b'{"row":{"agent_id":"alice@example.com"}}') != []
    nested = line_of({"agent_id": "alice@example.com"})
    assert [leak.detector for leak in FULL.find_leaks(nested)] == ["email"]
    assert b"alice" not in FULL.redact_line("events", nested)


def test_what_is_not_redacted_keeps_its_bytes_its_keys_their_order_and_their_repetition() -> None:
    line = (
        b'{"record_id":"r","payload":{ "b" : 1.0, "a":"\\u00e9\\/", "b":"x@y.example" ,"c":[ ] },"metadata":{"z": 1E2}}'
    )
    gone = FULL.redact_line("events", line)
    before, _, after = gone.partition(json.dumps(redacted("x@y.example")).encode())
    assert (before, after) == (
        b'{"record_id":"r","payload":{ "b" : 1.0, "a":"\\u00e9\\/", "b":',
        b' ,"c":[ ] },"metadata":{"z": 1E2}}',
    )


def test_what_was_replaced_is_counted_by_rule() -> None:
    redactor = open_redactor(KEYED, "full")
    redactor.redact_line("events", line_of({"a": "x@y.example and z@y.example", "first_name": "Mia", "b": "Mia"}))
    assert redactor.counts == Counter(email=2, name=2)


def test_level_none_changes_and_promises_nothing(tmp_path: Path) -> None:
    redactor = open_redactor(Settings(data_dir=tmp_path), "none")
    line = line_of("alice@example.com sk-abcdefghij0123456789")
    assert (redactor.version, redactor.suspect) == ("none", None)
    assert redactor.redact_line("events", line) is line
    assert redactor.find_leaks(line) == []
    assert list(tmp_path.iterdir()) == []


def test_a_leak_says_where_and_not_what() -> None:
    text = b'# A card\n{"text":"write to alice@example.com"}\n'
    leaks = FULL.find_leaks(text)
    assert leaks == [Leak("email", text.index(b"alice"))]
    assert "alice" not in repr(leaks)


def test_a_redactor_that_misses_something_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line_of({"arguments": json.dumps({"note": text})}) for _, text in BOTH]
    redactor = open_redactor(KEYED, "full")
    with monkeypatch.context() as broken:
        broken.setattr("ingest.redaction.documents.inner_document", lambda _scalar: None)
        broken.setattr("ingest.redaction.redactor.Redactor._redacted_text", lambda _self, _before, text: text)
        missed = [redactor.redact_line("events", line) for line in lines]
    for line in missed:
        assert redactor.find_leaks(line), line


@pytest.mark.parametrize("redactor", [SECRETS, FULL])
def test_duckdb_finds_the_same_lines_suspect(redactor: Redactor) -> None:
    lines = [line_of(wrapped) for _, text in BOTH for wrapped in wrappings(text)] + [line_of("Basic economy, please")]
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT regexp_matches(line, $1) FROM unnest($2) AS t(line)",
            [redactor.suspect, [line.decode() for line in lines]],
        ).fetchall()
    expected = [redactor.redact_line("events", line) != line for line in lines]
    assert all(is_suspect or not is_changed for (is_suspect,), is_changed in zip(found, expected, strict=True))
    assert found[-1] == (False,)


def test_a_pattern_that_backtracks_for_ever_elsewhere_takes_linear_time_here(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("""extends = "default"\n[rules.evil]\nlabel = "EVIL"\nlevel = "full"\npatterns = ['(a+)+$']\n""")
    redactor = open_redactor(Settings(redaction_key=KEYED.redaction_key, redaction_policy=policy), "full")
    started = time.process_time()
    for text in ("a" * (1 << 20) + "!", "a!" * (1 << 15), ("a" * 1000 + "!") * 100):
        redactor.redact_line("events", line_of({"text": text}))
        redactor.find_leaks(line_of({"text": text}))
    assert time.process_time() - started < 10  # 1 s; the first one takes the standard library's `re` longer than a life
    assert redactor.find_leaks(line_of({"text": "b aaa"}))


@pytest.mark.parametrize(
    "piece",
    ["a@", "a@b.cc ", "4111 ", "4111 1111 1111 1111,", "+1", "DE89", "basic ", "://:", "\\u0041", "phone: ", "1.1.",
     "1:",
     "password: a1b2c3d4 ", "token=", "token=abcd1234EFGH5678ijkl ", "Cookie: a=b; ", "pwd=letmein ",
     "-----BEGIN PRIVATE KEY-----", "'first_name': '", "\u0661", "{", '{"a":'],
)  # fmt: skip
def test_no_text_makes_a_detector_slow(piece: str) -> None:
    line = line_of({"text": piece * ((1 << 16) // len(piece))})
    started = time.process_time()
    FULL.redact_line("events", line)
    FULL.find_leaks(line)
    assert time.process_time() - started < 3  # at most 0.2 s


# ---- properties

PIECES = [text for _, text in BOTH] + [
    "'first_name': 'Mia'", '"dob": "1990-04-05"', "phone: 4155550101", "C:\\new\\u0041", "\\", '"', "\n", "\t", " ",
    ".", ",", "-", "x", "n", "u0040", "é", "—", "<EMAIL:abcdefghijklmnop>", "<NAME>", "0", "12",
    "password", "token=", "pwd:", "Cookie: ", "abcd1234EFGH5678ijkl", "letmein", "**",
    "\u017fk-abcdefghij0123456789",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=5).map("".join)
names = st.one_of(
    st.sampled_from(
        ["first_name", "phone", "phones", "API-Key", "DB_PASSWORD", "token", "value", "dob", "session_id", "arguments"]
    ),
    texts,
)
numbers = st.one_of(
    st.sampled_from([4155550101, 4111111111111111, 19900405]), st.integers(), st.floats(allow_nan=False)
)
documents = st.recursive(
    st.one_of(texts, numbers, st.none(), st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3), inner.map(json.dumps)
    ),
    max_leaves=6,
)
lines = st.builds(line_of, documents, ascii_only=st.booleans(), event_type=texts, agent_id=texts)
PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@PROPERTY
@given(lines, st.sampled_from([SECRETS, FULL]))
@example(line_of({"password": {"value": float("inf")}}), SECRETS)  # no JSON by the letter
@example(line_of("\U0001d7cesk-proj-abcdefghij0123456789", ascii_only=True), FULL)  # a digit of two escapes
def test_whatever_a_line_holds_nothing_is_left_and_a_second_time_changes_nothing(
    line: bytes, redactor: Redactor
) -> None:
    gone = redactor.redact_line("events", line)
    assert redactor.find_leaks(gone) == []
    assert redactor.redact_line("events", gone) == gone
    assert list(json.loads(gone)) == list(json.loads(line))


def without_hints(redactor: Redactor) -> Redactor:
    """The same, but every rule looks at every text."""
    for rule in redactor._rules.all:
        rule.has_hint = lambda _text: True  # type: ignore[assignment]
    redactor._rules._groups = [(lambda _text: True, redactor._rules.all)]  # type: ignore[list-item]
    redactor._is_suspect = lambda _text, _position=0: True  # type: ignore[assignment]
    return redactor


THOROUGH = {level: without_hints(open_redactor(KEYED, level)) for level in ("secrets", "full")}


@PROPERTY
@given(st.one_of(lines, st.text(max_size=40).map(line_of)), st.sampled_from([SECRETS, FULL]))
def test_a_line_that_is_not_suspect_holds_nothing(line: bytes, redactor: Redactor) -> None:
    if redactor._is_suspect is not None and redactor._is_suspect(line) is None:
        thorough = THOROUGH[redactor.level]
        assert thorough.redact_line("events", line) == line
        assert thorough._leaks_in_line(line) == []


@pytest.mark.parametrize("redactor", [SECRETS, FULL])
def test_no_character_hides_a_line_by_being_escaped(redactor: Redactor) -> None:
    thorough, is_suspect = THOROUGH[redactor.level], re2.compile(redactor.suspect).search
    for _, text in BOTH:
        plain = line_of({"text": f"use {text} now"})
        start = plain.find(b"use ") + 4
        for place in range(start, plain.find(b" now", start)):
            before, sign, after = plain[:place], plain[place], plain[place + 1 :]
            if 0x20 < sign < 0x7F and sign not in b'"\\':
                for escape in (b"\\u%04x", b"\\u%04X", b"\\\\x%02x", b"\\\\u%04x"):
                    line = before + escape % sign + after
                    assert is_suspect(line) or thorough.redact_line("events", line) == line, line


def test_every_character_that_is_read_as_another_makes_a_line_suspect_at_level_full() -> None:
    is_foldable = re2.compile(FOLDABLE).fullmatch
    characters = map(chr, (*range(0x80, 0xD800), *range(0xE000, 0x20000)))
    assert [sign for sign in characters if folded(sign) is not None and is_foldable(sign) is None] == []


def test_the_rules_of_the_property_above_are_those_of_the_policy() -> None:
    assert isinstance(FULL._rules, ActiveRules)
    assert {rule.name for rule in FULL._rules.all} >= {rule for rule, _ in BOTH}
