"""A policy is checked before the first record is read, says where a rule applies, and never shows its key."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingest import Settings, TrainingDataStore
from ingest.errors import InvalidPolicy, InvalidSetting
from ingest.redaction.policy import is_wide, read_policy, without_assertions
from ingest.redaction.redactor import Redactor, open_redactor
from ingest.redaction.tokens import read_key
from ingest.settings import RedactionLevel
from tests.parts import csv_rows, run_python

RULE = '[rules.mine]\nlabel = "MINE"\nlevel = "full"\n'


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def redactor_of(policy: Path, text: str, level: RedactionLevel = "full") -> Redactor:
    policy.write_text(text, encoding="utf-8")
    settings = Settings(redaction_key="a key for the tests", redaction_policy=policy, data_dir=policy.parent)
    return open_redactor(settings, level)


def redacted(redactor: Redactor, payload: object) -> object:
    line = json.dumps({"record_id": "r", "agent_id": "a-17", "payload": payload}).encode()
    assert redactor.find_leaks(redactor.redact_line("events", line)) == []
    return json.loads(redactor.redact_line("events", line))["payload"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RULE + "patterns = ['(unclosed']", ["rules.mine.patterns='(unclosed'", "missing )"]),
        (RULE + r"patterns = ['(a)\1']", ["invalid escape sequence", "no backreferences"]),
        (RULE + "patterns = ['a(?=b)']", ["invalid perl operator", "look-around"]),
        (RULE + "patterns = ['a*']", ["'a*': matches the empty text", "write + for *"]),
        (RULE + r"patterns = ['\b']", ["matches the empty text"]),
        (RULE + r"patterns = ['\Qx']", ["rules.mine.patterns=", "RE2 says"]),
        (RULE + "patterns = ['(?P<value>)x']", ["'(?P<value>)x': its group value is empty", "put into the group"]),
        (RULE + r"patterns = ['(?<value>\b)x']", ["its group value is empty"]),
        (RULE + "patterns = ['(?:[a-z]{1000}){1000}']", ["rules.mine.patterns=", "RE2 says"]),
        (RULE + "patterns = []", ["rules.mine.patterns=[]: expected a list of one text or more"]),
        (RULE + "patterns = [1]", ["rules.mine.patterns=[1]: expected a list"]),
        (RULE + 'detector = "emial"', ["rules.mine.detector='emial': expected one of", "email"]),
        (RULE + 'paths = ["payloud.name"]', ["'payloud.name': expected ** or a column first", "**.payloud.name"]),
        (RULE + 'paths = ["timestamp"]', ["'timestamp': expected a column of text, JSON or ids"]),
        (RULE + 'paths = ["**"]', ["'**': expected a key or a column by name"]),
        (RULE + 'paths = ["payload..name"]', ["'payload..name': expected keys joined by dots"]),
        (RULE + 'paths = ["payload.a**b"]', ["** standing alone"]),
        (RULE, ["rules.mine: expected one of detector, patterns and paths"]),
        (RULE + "patterns = ['x']\ndetector = 'ip'", ["rules.mine: expected one of detector, patterns and paths"]),
        (RULE + "patterns = ['x']\nspread = true", ["rules.mine.spread=True: expected false"]),
        (RULE + "patterns = ['x']\nbounded = 1", ["rules.mine.bounded=1: expected true or false"]),
        (RULE + "patterns = ['x']\nplaces = ['server']", ["'server': expected client or export"]),
        (RULE + "patterns = ['x']\nreplace = 'mask'", ["rules.mine.replace='mask': expected one of token, label"]),
        (RULE + "detector = 'phone'\nregions = ['Germany']", ["'Germany': expected two capital letters"]),
        (RULE + "detector = 'phone'\nregions = ['UK']", ["'UK': expected two capital letters", "GB"]),
        (RULE + "patern = 'x'", ["rules.mine.patern='x': expected one of the fields label, level"]),
        ('[rules.mine]\nlevel = "full"\ndetector = "ip"', ["rules.mine.label: expected a value"]),
        ('[rules.mine]\nlabel = "mine"\nlevel = "full"', ["rules.mine.label='mine': expected capital letters"]),
        ('[rules.mine]\nlabel = "M"\nlevel = "ful"', ["rules.mine.level='ful': expected one of secrets, full, never"]),
        ('[rules."My rule"]\nlabel = "M"', ["rules.My rule: expected a name of small letters"]),
        ('extends = "mine"', ["'mine'", 'extends = "default"']),
        ("rules = 1", ["expected TOML with tables [rules.NAME]"]),
        ("[rules.mine", ["expected TOML"]),
    ],
)
def test_a_rule_that_cannot_be_used_is_named_with_what_was_expected(policy: Path, text: str, said: list[str]) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        redactor_of(policy, text)
    assert str(policy) in str(caught.value)
    for part in said:
        assert part in str(caught.value)


def test_a_policy_that_is_not_there_or_no_text_is_an_error(policy: Path) -> None:
    with pytest.raises(InvalidPolicy, match="expected a TOML file"):
        open_redactor(Settings(data_dir=policy.parent, redaction_policy=policy), "full")
    policy.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidPolicy, match="expected a TOML file"):
        open_redactor(Settings(data_dir=policy.parent, redaction_policy=policy), "full")


def test_a_policy_replaces_the_one_that_comes_with_the_package_or_extends_it(policy: Path) -> None:
    own = RULE + r"""patterns = ['user_(?P<value>[0-9]+)']"""
    text = "user_17 a@b.example"
    assert str(redacted(redactor_of(policy, own), text)).endswith("> a@b.example")
    both = str(redacted(redactor_of(policy, f'extends = "default"\n{own}'), text))
    assert both.startswith("user_<MINE:")
    assert "@" not in both
    without = 'extends = "default"\n[rules.email]\nlabel = "EMAIL"\nlevel = "never"\ndetector = "email"\n'
    assert redacted(redactor_of(policy, without), text) == text


def test_a_value_may_be_removed_instead_so_that_nothing_links_its_places(policy: Path) -> None:
    redactor = redactor_of(policy, RULE + 'patterns = ["x[0-9]+"]\nreplace = "label"\n')
    assert redacted(redactor, "x1, x2 and [x3]") == "<MINE>, <MINE> and [<MINE>]"


@pytest.mark.parametrize(
    ("path", "replaced"),
    [
        ("payload.user.name", {"user.name"}),
        ("payload.**.name", {"name", "user.name", "user.deep.name"}),
        ("payload.*.name", {"user.name"}),
        ("**.user.name", {"user.name"}),
        ("payload.user.**", {"user.name", "user.deep.name"}),
        ("payload.us*.name", {"user.name"}),
        ("payload", {"name", "user.name", "user.deep.name"}),
        ("metadata.**.name", set()),
    ],
)
def test_a_path_names_a_key_a_depth_or_all_that_lies_below(policy: Path, path: str, replaced: set[str]) -> None:
    gone = redacted(
        redactor_of(policy, f'{RULE}paths = ["{path}"]'), {"name": "a", "user": {"name": ["b"], "deep": {"name": "c"}}}
    )
    assert isinstance(gone, dict)
    found = {"name": gone["name"], "user.name": gone["user"]["name"][0], "user.deep.name": gone["user"]["deep"]["name"]}
    assert {name for name, value in found.items() if value.startswith("<MINE:")} == replaced


@pytest.mark.parametrize("pattern", ["[a-z]+", "event"])
def test_a_pattern_that_matches_a_columns_name_leaves_the_column(policy: Path, pattern: str) -> None:
    redactor = redactor_of(policy, f"{RULE}patterns = ['{pattern}']\nreplace = 'label'")
    gone = redactor.redact_line("events", b'{"event_type":"event","agent_id":"a","payload":{"event":"event"}}')
    assert gone == b'{"event_type":"<MINE>","agent_id":"a","payload":{"<MINE>":"<MINE>"}}'
    assert redactor.find_leaks(gone) == []


def test_what_stands_at_a_path_is_a_leak_until_it_is_a_token(policy: Path) -> None:
    redactor = redactor_of(policy, RULE + 'paths = ["agent_id", "payload.user.name"]')
    line = json.dumps({"agent_id": "a", "payload": json.dumps({"user": {"name": ["Mia"]}, "name": "b"})}).encode()
    assert [(leak.detector, line[leak.offset :][:3]) for leak in redactor.find_leaks(line)] == [
        ("mine", b'a",'), ("mine", b"Mia"),
    ]  # fmt: skip
    assert redactor.find_leaks(redactor.redact_line("events", line)) == []


def test_an_id_that_the_policy_names_gets_one_token_in_every_kind_so_that_joins_hold(policy: Path) -> None:
    redactor = redactor_of(policy, RULE + 'paths = ["agent_id"]')
    event = json.loads(
        redactor.redact_line("events", b'{"record_id":"r","agent_id":"a-17","payload":{"agent_id":"x"}}')
    )
    task = json.loads(redactor.redact_line("tasks", b'{"task_id":"t","agent_id":"a-17","input_data":null}'))
    assert event["agent_id"] == task["agent_id"] != "a-17"
    assert (event["record_id"], event["payload"]) == ("r", {"agent_id": "x"})


def test_a_path_of_any_depth_leaves_the_columns_of_times_and_numbers(policy: Path) -> None:
    redactor = redactor_of(policy, RULE + 'paths = ["**.time*", "**.retry_count"]')
    line = b'{"timestamp":"2024-05-15T15:00:00.000000Z","retry_count":3,"input_data":{"times":"x","retry_count":3}}'
    gone = json.loads(redactor.redact_line("tasks", line))
    assert (gone["timestamp"], gone["retry_count"]) == ("2024-05-15T15:00:00.000000Z", 3)
    assert gone["input_data"]["times"].startswith("<MINE:")
    assert gone["input_data"]["retry_count"].startswith("<MINE:")
    assert redactor.find_leaks(json.dumps(gone).encode()) == []


def test_anchors_and_boundaries_of_a_pattern_hold_within_a_line_of_text(policy: Path) -> None:
    redactor = redactor_of(policy, RULE + r"""patterns = ['^secret$', '\bkey[0-9]+\b', 'ü[a-z]+']""")
    assert redacted(redactor, ["secret", "a secret", "one\nsecret\n", "key1 xkey2 key3x", "über"])[0].startswith("<")  # type: ignore[index]
    gone = redacted(redactor, ["a secret", "one\nsecret\ntwo", "xkey2 key3x", "über \\u00fcber"])
    assert isinstance(gone, list)
    assert (gone[0], gone[2]) == ("a secret", "xkey2 key3x")
    assert gone[1].startswith("one\n<MINE:")
    assert "ber" not in gone[3]


def test_a_pattern_with_letters_of_other_scripts_is_found_in_their_escapes_at_every_level(policy: Path) -> None:
    redactor = redactor_of(policy, RULE.replace("full", "secrets") + "patterns = ['ü[a-z]+']", level="secrets")
    assert redactor.level == "secrets"
    assert b"ber" not in redactor.redact_line("events", b'{"payload":"\\u00fcber"}')
    assert redactor.find_leaks(b'{"payload":"\\u00fcber"}') != []


def test_a_pattern_does_not_match_over_a_quote_a_backslash_or_a_line_break(policy: Path) -> None:
    redactor = redactor_of(policy, RULE + "patterns = ['x[^z]y']")
    kept = ['x"y', "x\ny", "x\\y"]
    assert redacted(redactor, kept) == kept
    gone = redacted(redactor, 'x"y and x-y')
    assert str(gone).startswith('x"y and <MINE:')


@pytest.mark.parametrize(
    ("pattern", "loose", "wide"),
    [
        (r"^a\b[$^\b]\$\z", r"(?:)a(?:)[$^\b]\$(?:)", False),
        (r"(?P<value>a)(?:b)", r"(?:a)(?:b)", False),
        ("[]^]+[^a]", "[]^]+[^a]", True),
        (r"\d\w\s[0-9]\.", r"\d\w\s[0-9]\.", False),
        (r"a.b", r"a.b", True),
        (r"\pL\W", r"\pL\W", True),
        ("(?i)k", "(?i)k", True),
        (r"[\x{e9}]", r"[\x{e9}]", True),
        ("é", "é", True),
    ],
)
def test_a_pattern_without_its_assertions_matches_where_it_did(pattern: str, loose: str, wide: bool) -> None:
    assert without_assertions(pattern) == loose
    assert is_wide(pattern) is wide


def test_the_policy_of_the_package_needs_no_look_at_lines_that_merely_hold_other_scripts() -> None:
    rules = [rule for rule in read_policy(None).rules.values() if rule.level == "secrets"]
    assert [pattern for rule in rules for pattern in rule.patterns if is_wide(pattern)] == []


def test_the_version_says_level_policy_and_key(policy: Path) -> None:
    first = redactor_of(policy, RULE + "patterns = ['x']")
    assert first.version == redactor_of(policy, RULE + "# the same\npatterns = ['x']").version
    assert first.version != redactor_of(policy, RULE + "patterns = ['y']").version
    assert len(first.version) == 12


def test_the_key_is_made_once_for_its_owner_only_whoever_is_first(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: read_key(settings), range(32)))
    path = tmp_path / "data" / "state" / "redaction.key"
    assert len(keys) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["redaction.key"]
    elsewhere = Settings(data_dir=tmp_path / "elsewhere", redaction_key=keys.pop().decode())
    assert open_redactor(elsewhere, "full").version == open_redactor(settings, "full").version


def test_a_key_file_that_was_emptied_is_an_error_and_not_a_key(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    read_key(settings)
    (tmp_path / "state" / "redaction.key").write_text("\n")
    with pytest.raises(InvalidSetting, match=r"redaction.key: 0 characters; expected a key of 16 or more"):
        open_redactor(settings, "secrets")


def test_a_key_that_cannot_be_made_says_which_variable_to_set(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    with pytest.raises(InvalidSetting, match="set TDS_REDACTION_KEY"):
        read_key(Settings(data_dir=tmp_path))


# ---- in the client

CLIENT = """
extends = "default"
[rules.email]
label = "EMAIL"
level = "full"
detector = "email"
places = ["client", "export"]
"""


def test_a_rule_for_the_client_keeps_a_value_off_the_disk(policy: Path, settings: Settings) -> None:
    policy.write_text(CLIENT)
    redacting = Settings(data_dir=settings.data_dir, redaction_policy=policy, redaction_key="a key for the tests")
    store = TrainingDataStore(redacting)
    record_id = store.sync.store_agent_event(
        "message", agent_id="a@b.example", payload={"text": "alice@example.com, +1 415 555 0101"}, idempotency_key="1"
    )
    store.sync.flush()
    spooled = b"".join(path.read_bytes() for path in settings.data_dir.rglob("*") if path.is_file())
    store.sync.close()
    assert record_id is not None
    assert b"alice@example.com" not in spooled
    (row,) = csv_rows(redacting, "events")
    assert (row["agent_id"], row["record_id"]) == ("a@b.example", record_id)
    token = json.loads(open_redactor(redacting, "full").redact_line("x", b'{"t":"alice@example.com"}'))["t"]
    assert row["payload"] == {"text": f"{token}, +1 415 555 0101"}, "the same token as an export's"


def test_a_bad_policy_is_told_when_the_store_is_made(policy: Path, settings: Settings) -> None:
    policy.write_text(RULE + "patterns = ['a*']\nplaces = ['client']")
    with pytest.raises(InvalidPolicy, match="matches the empty text"):
        TrainingDataStore(Settings(data_dir=settings.data_dir, redaction_policy=policy))


@pytest.mark.parametrize("text", [None, RULE + "patterns = ['x']"])
def test_a_client_without_such_a_rule_loads_nothing_of_it(policy: Path, settings: Settings, text: str | None) -> None:
    if text is not None:
        policy.write_text(text)
    told = Settings(data_dir=settings.data_dir, redaction_policy=None if text is None else policy)
    done = run_python(
        "import sys, ingest\n"
        "store = ingest.get_training_data_store()\n"
        "store.sync.store_agent_event('e')\n"
        "loaded = {'re2', 'phonenumbers', 'stdnum', 'ingest.redaction.redactor', 'tomllib'} & set(sys.modules)\n"
        "from ingest.pipeline.spool import Spool\n"
        "print(sorted(loaded), type(store.sync.recorder.spools['events']) is Spool)",
        told,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("[] True" if text is None else "['tomllib'] True")
