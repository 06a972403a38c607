"""Predicates: one condition over a kind's columns and feedback; nothing else gets through."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import InvalidPredicate, UnknownKind
from tds_dagster.export.predicate import parse_predicate


@pytest.mark.parametrize(
    ("text", "columns", "feedback"),
    [
        ("feedback.reward >= 1 AND status = 'completed'", ("status",), ("reward",)),
        ('feedback."odd ""name""" IS NOT NULL', (), ('odd "name"',)),
        ("NOT feedback.solved OR feedback.reward BETWEEN 0 AND .5", (), ("reward", "solved")),
        ("input_data->>'$.a' IN ('x', 'y') AND (input_data->'a')->>'b' LIKE 'x%'", ("input_data",), ()),
        ("Status = 'a' AND AGENT_ID IS NULL", ("agent_id", "status"), ()),
        ("timestamp >= '2024-05-01' AND timestamp < DATE '2024-05-03' + INTERVAL 3 DAY", ("timestamp",), ()),
        ("CASE WHEN retry_count > 0 THEN error IS NULL ELSE error ~ '^a' END", ("retry_count", "error"), ()),
        ("error NOT LIKE 'a#%' ESCAPE '#' -- and a remark", ("error",), ()),
        ("json_extract_string(output_data, '$.n')::INT % 2 = 1", ("output_data",), ()),
        ("records.status IS DISTINCT FROM 'x' /* ; DROP TABLE records */", ("status",), ()),
        ("coalesce(feedback.reward, 0) + retry_count > -1", ("retry_count",), ("reward",)),
    ],
)  # fmt: skip
def test_a_condition_says_what_it_reads(text: str, columns: tuple[str, ...], feedback: tuple[str, ...]) -> None:
    predicate = parse_predicate("tasks", f"  {text}\n")

    assert (predicate.text, predicate.columns, predicate.feedback) == (text, columns, feedback)
    assert "--" not in predicate.sql
    assert "/*" not in predicate.sql


OTHER_STATEMENTS = """
status = 'a'; DROP TABLE records
COPY records TO 'out.csv'
ATTACH 'x.db'
PRAGMA database_list
INSTALL httpfs
WITH x AS (SELECT 1) SELECT true
true FROM records WHERE (true
true UNION SELECT true
true ORDER BY 1
true LIMIT 1
DISTINCT status = 'a'
true, true
true AS x
x: true
status = 'a') OR (true
1) --
true; --
*
COLUMNS('status') = 'a'
""".strip().splitlines()
READERS = """
status = (SELECT 'a')
EXISTS (FROM 'secret.csv')
status IN (FROM read_csv('secret.csv'))
status = ANY(['a'])
read_text('secret.csv') = ''
glob('*') = ''
getenv('HOME') = ''
current_setting('threads') = 1
query('SELECT 1') = 1
unnest([true])
count(*) > 1
sum(retry_count) OVER () > 1
row_number() OVER () < 5
list_filter([1], x -> x > 1) = []
list_transform([1], LAMBDA x: x) = []
main.lower(status) = 'a'
lower(status ORDER BY error) = 'a'
concat(DISTINCT status) = 'a'
status::main.mytype = 'a'
status::STRUCT(a INT) IS NULL
status COLLATE nocase = 'a'
$1 = status
? = status
#1 = 'a'
status = DEFAULT
TRY(status = 'a')
random() < 0.5
now() > timestamp
current_date > timestamp
nextval('s') = 1
repeat('a', 1000000000000) = 'a'
error('boo')
sleep_ms(1000) IS NULL
""".strip().splitlines()


@pytest.mark.parametrize("text", [*OTHER_STATEMENTS, *READERS])
def test_nothing_but_a_condition_gets_through(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.csv").write_text("a\n1\n")

    with pytest.raises(InvalidPredicate, match=r"(?s)predicate .*Expected one SQL condition"):
        parse_predicate("tasks", text)

    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is nothing in it"),
        ("status = 'é' AND )", r"at character 18: syntax error at or near \"\)\""),
        ("'é' = sttus", "at character 7: tasks has no column 'sttus'; did you mean status.* it has task_id, agent_id"),
        ("status", "gives VARCHAR; expected true or false"),
        ("retry_count + 1", "gives BIGINT"),
        ("feedback.reward + 1", "gives DOUBLE"),
        ("feedback = 1", "no column 'feedback'"),
        ("feedback.a.b = 1", "feedback.a.b: expected a column, or feedback.<name>"),
        ("input_data.a.b = 1", r"write input_data->>'\$\.a\.b'"),
        ("status = 'a' AND input_data->'a' IS NULL", "`->` binds weaker"),
        ("feedback.A = feedback.a", "differ in case only"),
        ("regexp_matches(status, '(')", r"missing \)"),
        ("status = 'it", "unterminated"),
        ("status\0 = 'a'", "control character"),
        ("status = '\ud800'", "surrogate"),
        ("NOT " * 900 + "true", "nested too deeply"),
        ("(" * 5000 + "true" + ")" * 5000, "depth limit"),
        ("status = '" + "x" * (1 << 20) + "'", "1,048,587 characters"),
    ],
)
def test_an_error_says_where_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(InvalidPredicate, match=f"(?s){message}") as raised:
        parse_predicate("tasks", text)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "text", ["length(feedback.label) > 3", "strlen(feedback.label) = 4", "json_array_length(feedback.steps) >= 2"]
)
def test_what_is_measured_of_a_feedback_value_is_its_text(text: str) -> None:
    assert "VARCHAR" in parse_predicate("events", text).sql


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnknownKind):
        parse_predicate("task", "true")


def test_a_list_of_many_ids_is_taken() -> None:
    ids = ", ".join(f"'{number:036}'" for number in range(3000))

    assert parse_predicate("events", f"record_id IN ({ids})").columns == ("record_id",)


PIECES = """
status 'a' 1 ( ) = < AND OR NOT ; -- /* */ , . feedback.reward feedback " ' SELECT FROM (SELECT 1) read_csv -> ->> ::
getenv('HOME') INT $1 ? * lower( || IN BETWEEN CASE WHEN THEN END true NULL records x [ ] { }
""".split()  # noqa: SIM905 - one word a piece, and fifty lines less


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, "\n"]), max_size=8).map(" ".join) | st.text(max_size=12))
def test_whatever_is_typed_is_refused_or_reads_the_same_when_it_is_read_again(text: str) -> None:
    try:
        predicate = parse_predicate("tasks", text)
    except InvalidPredicate:
        return
    again = parse_predicate("tasks", predicate.sql)
    assert (again.sql, again.columns, again.feedback) == (predicate.sql, predicate.columns, predicate.feedback)
