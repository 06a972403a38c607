"""Splits share no entity, no record and no example, whatever the examples are."""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import SplitLeak
from tds_dagster.datasets.examples import Example
from tds_dagster.datasets.recipe import SPLITS, Recipe, read_recipe
from tds_dagster.datasets.splits import (
    Assigned,
    Placed,
    assign_splits,
    check_splits,
    normalised,
    placed_rows,
    row_reader,
    share_of,
    write_examples,
)

Splits = dict[str, list[tuple[Placed, bytes]]]
Split = Callable[..., tuple[Assigned, Splits]]


def recipe_of(**values: object) -> Recipe:
    return read_recipe("event_prediction", {"entity": "session", **values})


def example(n: int, entity: str, *, label: str = "a", time: int | None = None, row: object = None) -> Example:
    moment = (
        f"2024-05-15T{(n if time is None else time) // 3600:02d}:{(n if time is None else time) // 60 % 60:02d}:00Z"
    )
    content = {
        "record_id": f"r{n:06d}",
        "timestamp": moment,
        "text": f"text {n}" if row is None else row,
        "label": label,
    }
    return Example(f"r{n:06d}", entity, moment, label, json.dumps(content).encode())


def split_examples(folder: Path, examples: Sequence[Example], recipe: Recipe) -> tuple[Assigned, Splits]:
    rows, index = folder / "rows", folder / "index.parquet"
    assert write_examples(iter(examples), rows, index, recipe.seed) == len(examples)
    with duckdb.connect() as connection, row_reader(rows) as read:
        connection.execute("CREATE TABLE targets AS SELECT unnest($1::VARCHAR[]) AS record_id", [
            [each.record_id for each in examples]
        ])  # fmt: skip
        assigned = assign_splits(connection, index, recipe)
        return assigned, {
            split: [(placed, read(placed)) for placed in placed_rows(connection, split)] for split in SPLITS
        }


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return lambda examples, **values: split_examples(tmp_path, examples, recipe_of(**values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("splits")


some_examples = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 40), st.sampled_from("abc"), st.integers(0, 12)), max_size=60
)


@settings(max_examples=25, deadline=None)
@given(
    drawn=some_examples,
    seed=st.integers(-3, 3),
    split_by=st.sampled_from(["entity", "time"]),
    balance=st.sampled_from(["none", "downsample"]),
    fractions=st.sampled_from([[0.8, 0.1, 0.1], [0.34, 0.33, 0.33], [0.5, 0.0, 0.5], [0.7, 0.3, 0.0]]),
)
def test_no_entity_record_or_example_is_in_two_splits_and_every_example_is_accounted_for(
    folder: Path, drawn: list[tuple[int, int, str, int]], seed: int, split_by: str, balance: str, fractions: list[float]
) -> None:
    examples = [
        example(n, f"s{entity}", label=label, time=60 * time, row=f"text {text}")
        for n, (entity, time, label, text) in enumerate(drawn)
    ]
    recipe = recipe_of(seed=seed, split_by=split_by, balance=balance, fractions=fractions)
    assigned, splits = split_examples(folder, examples, recipe)
    for facet in (
        lambda placed, _: placed.entity,
        lambda placed, _: placed.record_id,
        lambda _, row: (json.loads(row)["text"], json.loads(row)["label"]),
    ):
        found = [{facet(placed, row) for placed, row in rows} for rows in splits.values()]
        assert sum(map(len, found)) == len(set().union(*found))
    assert sum(map(len, splits.values())) + sum(assigned.left_out.values()) == assigned.examples == len(examples)
    by_id = {each.record_id: each.row for each in examples}
    assert all(by_id[placed.record_id] == row for rows in splits.values() for placed, row in rows)
    for rows in splits.values():
        assert [placed.timestamp for placed, _ in rows] == sorted(placed.timestamp for placed, _ in rows)
    if split_by == "time":
        ends = [(rows[0][0].timestamp, rows[-1][0].timestamp) for rows in splits.values() if rows]
        assert all(earlier[1] < later[0] for earlier, later in pairwise(ends))
    for share, rows in zip(fractions, splits.values(), strict=True):
        assert share or not rows


def test_an_entity_stays_in_its_split_when_others_come(split: Split) -> None:
    few, many = range(40), range(80)
    home: list[dict[str, str]] = []
    for count in (few, many):
        _, splits = split([example(n, f"s{n}") for n in count])
        home.append({placed.entity: name for name, rows in splits.items() for placed, _ in rows})
    assert home[0].items() <= home[1].items()
    assert set(home[1].values()) == set(SPLITS)


def test_the_share_of_an_entity_is_the_first_64_bits_of_a_sha_256() -> None:
    expected = int(hashlib.sha256(b"7:s1").hexdigest()[:16], 16) / 2**64
    assert share_of(7, "s1") == expected != share_of(8, "s1")


def test_rows_that_differ_in_ids_times_whitespace_and_the_order_of_keys_are_duplicates() -> None:
    one = {"session_id": "s1", "history": [{"timestamp": "2024", "payload": {"text": "a  b\n", "n": 1}}], "label": "x"}
    two = {"label": "x", "history": [{"payload": {"n": 1, "text": "a b"}, "timestamp": "2025"}], "session_id": "s2"}
    assert normalised(json.dumps(one).encode()) == normalised(json.dumps(two, indent=2).encode())
    calls = [
        {"tool_calls": [{"id": f"c{n}", "function": {"arguments": {"id": order}}}]}
        for n, order in ((1, 7), (2, 7), (1, 8))
    ]
    same, again, other_order = (normalised(json.dumps(call).encode()) for call in calls)
    assert same == again != other_order
    offered = [json.dumps({"messages": ["hi"], "tools": [tool]}).encode() for tool in ("find", "send")]
    assert normalised(offered[0]) == normalised(offered[1])  # what the tools at hand are is told by other records
    recorded = [json.dumps({"history": [{"payload": {"tools": [tool]}}]}).encode() for tool in ("find", "send")]
    assert normalised(recorded[0]) != normalised(recorded[1])
    for other in ({**two, "label": "y"}, {**two, "history": [{"payload": {"n": 1.5, "text": "a b"}}]}):
        assert normalised(json.dumps(one).encode()) != normalised(json.dumps(other).encode())


def test_rows_too_deep_to_be_read_are_duplicates_if_only_ids_and_times_differ() -> None:
    def row(session: str, time: str | None, text: str, depth: int) -> bytes:
        state = '{"a":' * depth + f'["session_id\\":1",{text}]' + "}" * depth
        ids = {"session_id": session, "timestamp": time}
        return json.dumps(ids, separators=(",", ":")).encode()[:-1] + f',"state":{state}'.encode() + b"}"

    for depth in (150, 250, 1500):
        one, two = normalised(row("s1", None, "1", depth)), normalised(row('s"2', "2024", "1", depth))
        assert one == two != normalised(row("s1", None, "2", depth))
        assert b"session_id" in one


def test_copies_of_an_example_stay_in_the_split_of_the_first_one_and_are_counted(split: Split) -> None:
    same = [example(n, f"s{n}", row="hello") for n in range(50)]
    assigned, splits = split(same)
    home = next(name for name, rows in splits.items() if rows)
    assert next(placed.record_id for placed, _ in splits[home]) == "r000000"
    kept = len(splits[home])
    assert (assigned.duplicate_groups, assigned.duplicates_removed, assigned.duplicates_kept) == (1, 50 - kept, kept)
    assert assigned.left_out == {"a copy of an example of another split": 50 - kept}
    assert 0 < kept < 50


def test_downsampling_gives_the_classes_of_train_one_size_and_leaves_the_other_splits(split: Split) -> None:
    examples = [example(n, f"s{n}", label="rare" if n % 5 == 0 else "frequent") for n in range(200)]
    fractions = [0.2, 0.4, 0.4]  # so that the other splits have more of each class than the smallest of train
    _, plain = split(examples, fractions=fractions)
    assigned, balanced = split(examples, fractions=fractions, balance="downsample")
    labels = [placed.label for placed, _ in balanced["train"]]
    rare = sum(placed.label == "rare" for placed, _ in plain["train"])
    assert labels.count("rare") == labels.count("frequent") == rare
    assert (balanced["validation"], balanced["test"]) == (plain["validation"], plain["test"])
    assert assigned.left_out == {"over the size of the smallest class": len(plain["train"]) - 2 * rare}


def test_by_time_an_entity_is_where_its_first_example_is_and_its_later_ones_are_left_out(split: Split) -> None:
    examples = [example(n, "long" if n in {0, 99} else f"s{n}", time=60 * n) for n in range(100)]
    assigned, splits = split(examples, split_by="time")
    assert [len(rows) for rows in splits.values()] == [80, 10, 9]
    assert assigned.left_out == {"an example of an entity behind the end of its split": 1}
    assert splits["train"][0][0].entity == "long"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("('train', 's1', 'r1', 'e1', '1'), ('test', 's1', 'r2', 'e2', '2')", "1 of session in two splits"),
        ("('train', 's1', 'r1', 'e1', '1'), ('test', 's2', 'r1', 'e2', '2')", "1 of record in two splits"),
        ("('train', 's1', 'r1', 'e1', '1'), ('test', 's2', 'r2', 'e1', '2')", "1 of example in two splits"),
        ("('train', 's1', 'r1', 'e1', '2'), ('test', 's2', 'r2', 'e2', '2')", "begins before the one ahead of it"),
    ],
)
def test_whatever_placed_the_rows_a_leak_is_found_before_anything_is_written(rows: str, told: str) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE placed AS SELECT * FROM (VALUES "
            f"{rows}) AS placed(split, entity, record_id, example, timestamp)"
        )
        with pytest.raises(SplitLeak, match=told):
            check_splits(connection, recipe_of(split_by="time"))
