"""Round trip: whatever was stored comes back equal from the JSONL."""

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.records import KINDS, Kind
from ingest.settings import Settings
from tds_dagster.export import accounts, export_range
from tests.stages.conftest import DAY, RawStore

ReadJsonl = Callable[[Path], list[dict[str, object]]]

# Surrogates do not reach a file: the client turns them into visible text.
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\\"\n\r\0,n😀'), max_size=12)
doubles = st.floats(allow_nan=False, allow_infinity=False)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | doubles | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=8,
)
times = st.datetimes().map(lambda moment: moment.isoformat(timespec="microseconds") + "Z")
values = {
    "id": texts,
    "text": texts,
    "json": documents,
    "integer": st.integers(-(2**63), 2**63 - 1),
    "number": doubles | st.integers(-(2**53), 2**53),
    "timestamp": times,
}


def records_of(kind: Kind) -> st.SearchStrategy[dict[str, object]]:
    names = {*kind.texts, *kind.numbers, *kind.documents}
    required = dict.fromkeys(kind.required, texts)
    fields: dict[str, st.SearchStrategy[object]] = {
        name: st.none() | values[kind.types[name]] for name in names if name not in required
    }
    always = {"record_id": st.uuids(version=4).map(str), "timestamp": times, **required}
    return st.fixed_dictionaries(always, optional=fields)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_was_stored_comes_back_equal_from_the_jsonl(
    tmp_path: Path, read_jsonl: ReadJsonl, kind: str, data: st.DataObject
) -> None:
    stored = data.draw(
        st.lists(records_of(KINDS[kind]), max_size=12, unique_by=lambda record: str(record["record_id"]))
    )
    store = RawStore(tmp_path / uuid.uuid4().hex)
    store.store(kind, *stored)

    # Unredacted: a text that is drawn may look like a secret, and {"SECRET": 0} does.
    export = export_range(store.paths, kind, DAY, DAY, settings=Settings(data_dir=store.paths.root, redaction="none"))

    columns = [column.name for column in KINDS[kind].columns]
    expected = [
        {name: record.get("record_id" if name == "event_id" else name) for name in columns}
        for record in sorted(stored, key=lambda record: (record["timestamp"], record["record_id"]))
    ]
    assert read_jsonl(export.path) == json.loads(json.dumps(expected))
    assert accounts(store.paths, kind).exported == len(stored)
    shutil.rmtree(store.paths.root)
