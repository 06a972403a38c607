"""Cards and Croissant files: other people's programs read our files with their right types, and the same rows."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ingest.records import KINDS
from tds_dagster.export import export_range
from tds_dagster.export.card import CardFile, card_text
from tds_dagster.export.croissant import croissant
from tds_dagster.export.features import Features, ListOf, kind_features
from tests.stages.conftest import DAY, RawStore
from tests.stages.loading import croissant_rows, croissant_warnings, load_with_datasets, loaded_feature, rows_of

# A guess from the first rows would be wrong for each of these columns: of another shape in every row, or null at first.
SHAPES: list[Any] = [None, {"a": 1}, [1, "two", None, {"b": [2.5]}], {"a": "text", "c": {}}, "text", True, 7, [], {}]
STAMPS = ["0001-01-01T00:00:00.000001Z", "2024-05-15T08:30:00.000000Z", "9999-12-31T23:59:59.999999Z"]


def fill(store: RawStore, kind: str) -> None:
    """A day with a row for each shape, and a day without any."""
    columns = KINDS[kind].columns
    for number, shape in enumerate(SHAPES):
        fields: dict[str, Any] = {}
        for column in columns[:-1]:  # the last one, metadata, is null everywhere
            values = {
                "json": shape,
                "integer": [None, -(2**53), 2**53][number % 3],  # mlcroissant has doubles where a value is null
                "number": [None, 12.5, -0.25][number % 3],
                "timestamp": STAMPS[number % 3] if number > 2 else None,
                "text": ["é\n\0🐎", None, "007"][number % 3],
                "id": [None, f"a-{number}"][number % 2],
            }
            fields[column.name] = values[column.type]
        required = {name: f"x-{number}" for name in KINDS[kind].required if name not in KINDS[kind].choices}
        named = {name: choices[0] for name, choices in KINDS[kind].choices.items()}
        stamp = f"{DAY}T08:30:{number:02}.000000Z"
        given = {**fields, **required, **named, "timestamp": stamp, "record_id": f"r-{number}"}
        store.store(kind, {name: value for name, value in given.items() if name != "event_id"})


@pytest.fixture(scope="module", params=sorted(KINDS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a kind's export, named after it."""
    store, kind = RawStore(tmp_path_factory.mktemp("exported")), str(request.param)
    fill(store, kind)
    assert export_range(store.paths, kind, DAY, "2024-05-16").rows == len(SHAPES)
    return store.paths.exports(kind)


def jsonl_rows(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("ranges/*.jsonl")
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_load_dataset_gives_every_column_its_type_and_every_row_its_values(exported: Path, tmp_path: Path) -> None:
    dataset = load_with_datasets(exported, tmp_path / "cache", split="train")

    assert dataset.features == loaded_feature(kind_features(KINDS[exported.name]))
    assert rows_of(dataset) == jsonl_rows(exported)


def test_load_dataset_keeps_64_bit_integers_exact(raw_store: RawStore, tmp_path: Path) -> None:
    for number in (None, -(2**63), 2**63 - 1):
        raw_store.store("tasks", raw_store.record("tasks", retry_count=number))
    export_range(raw_store.paths, "tasks", DAY, DAY)

    dataset = load_with_datasets(raw_store.paths.exports("tasks"), tmp_path / "cache", split="train")

    assert sorted(dataset["retry_count"], key=str) == [-(2**63), 2**63 - 1, None]


def test_the_json_loader_takes_the_features_of_the_card(exported: Path, tmp_path: Path) -> None:
    from datasets import load_dataset_builder

    features = load_dataset_builder(str(exported), cache_dir=str(tmp_path / "cache")).info.features
    (path,) = exported.glob("ranges/*.jsonl")

    dataset = load_with_datasets("json", tmp_path / "cache", data_files=str(path), features=features, split="train")

    assert dataset.features == features
    assert rows_of(dataset) == jsonl_rows(exported)


def test_mlcroissant_finds_nothing_wrong_and_reads_the_same_rows(
    exported: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert croissant_warnings(exported / "croissant.json", caplog, monkeypatch) == []

    read = croissant_rows(exported / "croissant.json", "train")

    columns = [name for name, feature in kind_features(KINDS[exported.name]).items() if feature != "json"]
    assert read == [{name: row[name] for name in columns} for row in jsonl_rows(exported)]


def test_croissant_names_json_columns_beside_the_fields_that_its_readers_know(exported: Path) -> None:
    (records,) = json.loads((exported / "croissant.json").read_text())["recordSet"]

    documents = [name for name, feature in kind_features(KINDS[exported.name]).items() if feature == "json"]
    assert [note["name"] for note in records["annotation"]] == documents
    assert len(records["field"]) + len(documents) == len(KINDS[exported.name].columns)


NESTED: Features = {
    "id": "string",
    "done": "bool",
    "tags": ListOf("string"),
    "messages": ListOf({"role": "string", "content": "string"}),
    "task": {"type": "string", "retries": "int64"},
    "calls": ListOf("json"),
    "history": ListOf({"at": "int64", "payload": "json"}),
}
NESTED_ROWS: list[dict[str, Any]] = [
    {
        "id": f"a{number}",
        "done": number == 1,
        "tags": ["x"] * number,
        "messages": [{"role": "user", "content": None if turn else "hi"} for turn in range(number)],
        "task": {"type": "t", "retries": number},
        "calls": [{"name": "n", "arguments": {"k" * (number + 1): number}}, 5],
        "history": [{"at": step, "payload": {"p" * (step + 1): step}} for step in range(number)],
    }
    for number in range(3)
]


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A folder of two splits with rows and one without, of nested features, with its card and its Croissant file."""
    folder = tmp_path / "folder"
    for name in ("flat", "documents"):
        (folder / name).mkdir(parents=True)
    files = []
    for config, split, rows in (
        ("default", "train", NESTED_ROWS),
        ("default", "validation", []),
        ("default", "test", NESTED_ROWS[:1]),
        ("flat", "train", [{"text": "one"}]),
        ("documents", "train", [{"chat": [{"role": "user"}, {"content": "hi"}]}]),
    ):
        name = f"{split}.jsonl" if config == "default" else f"{config}/{split}.jsonl"
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files.append(CardFile(config, split, name, len(rows), len(content), digest))
    features: dict[str, Features] = {
        "default": NESTED, "flat": {"text": "string"}, "documents": {"chat": ListOf("json")},
    }  # fmt: skip
    told = {"title": 'A "title": with # signs', "description": "What it is.", "facts": {"a | b": "c\nd"}}
    (folder / "README.md").write_text(card_text(files=files, features=features, license="mit", **told))  # type: ignore[arg-type]
    text = croissant(files=files, features=features, name="x", version="12ab", date=DAY, **told)  # type: ignore[arg-type]
    (folder / "croissant.json").write_text(json.dumps(text))
    return folder


def test_splits_and_configs_load_by_name_and_nested_values_come_back(described: Path, tmp_path: Path) -> None:
    dataset = load_with_datasets(described, tmp_path / "cache", name="default")

    assert rows_of(dataset["train"]) == NESTED_ROWS
    assert rows_of(dataset["test"]) == NESTED_ROWS[:1]
    flat = load_with_datasets(described, tmp_path / "cache", name="flat", split="train")
    assert rows_of(flat) == [{"text": "one"}]
    documents = load_with_datasets(described, tmp_path / "cache", name="documents", split="train")
    assert rows_of(documents) == [{"chat": [{"role": "user"}, {"content": "hi"}]}]


def test_a_split_without_rows_is_told_in_the_card_and_not_offered_to_load(described: Path, tmp_path: Path) -> None:
    assert set(load_with_datasets(described, tmp_path / "cache", name="default")) == {"train", "test"}
    card = (described / "README.md").read_text()
    assert "| `validation.jsonl` | validation | 0 | 0 |" in card
    assert "not among the splits that `load_dataset` offers: validation.jsonl" in card


def test_mlcroissant_reads_nested_fields_of_each_split(
    described: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert croissant_warnings(described / "croissant.json", caplog, monkeypatch) == []

    kept = [{name: row[name] for name in NESTED if name not in {"calls", "history"}} for row in NESTED_ROWS]
    for plain_row, row in zip(kept, NESTED_ROWS, strict=True):
        plain_row["history"] = [{"at": step["at"]} for step in row["history"]]
    assert croissant_rows(described / "croissant.json", "train") == kept
    assert croissant_rows(described / "croissant.json", "test") == kept[:1]
    assert croissant_rows(described / "croissant.json", "flat_train") == [{"text": "one"}]


def test_a_card_shows_its_facts_in_a_table_that_no_text_can_break(described: Path) -> None:
    card = (described / "README.md").read_text()

    assert "| a \\| b | c d |" in card
    assert 'pretty_name: "A \\"title\\": with # signs"\n' in card
    assert "| `messages` | list of {role: string, content: string} |" in card


def test_equal_data_give_equal_descriptions_and_the_latest_range_is_the_one_described(tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        store = RawStore(tmp_path / name)
        store.store("events", store.record("events", record_id="r", payload={"a": 1}))
        export_range(store.paths, "events", DAY, DAY)
        folder = store.paths.exports("events")
        texts.append([(folder / file).read_bytes() for file in ("README.md", "croissant.json")])
        export_range(store.paths, "events", DAY, "2024-05-16")
        assert f"events from {DAY} to 2024-05-16" in (folder / "README.md").read_text()
        export_range(store.paths, "events", DAY, DAY)
        assert [(folder / file).read_bytes() for file in ("README.md", "croissant.json")] == texts[-1]
    assert texts[0] == texts[1]


def test_of_a_range_without_records_nothing_is_loaded_and_nothing_guessed(
    raw_store: RawStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_range(raw_store.paths, "workflows", DAY, DAY)
    folder = raw_store.paths.exports("workflows")

    with pytest.raises(FileNotFoundError, match=r"No \(supported\) data files found"):
        load_with_datasets(folder, tmp_path / "cache")  # without configs it would take the manifest for a row
    assert croissant_warnings(folder / "croissant.json", caplog, monkeypatch) == []
