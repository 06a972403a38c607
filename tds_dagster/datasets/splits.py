"""Turns a stream of examples into splits that share no entity, no record and no example.

    examples → rows in one scratch file, an index of them in Parquet → duplicates, splits, balance in SQL → placed rows

Memory holds no row but the one at hand: the index has ids, times, labels and hashes, and DuckDB spills.

**By entity**: SHA-256 of (seed, entity) as a number from 0 to 1, held against the fractions. So an entity stays in its
split whatever else is stored later. **By time**: the examples in order of time are cut at the fractions; an entity
belongs where its first example is, and examples of it behind that split's end are left out, for they would be another
split's time.

**Duplicates** are rows that are equal after normalisation (`normalised`). All copies outside the split of the first
one, by (timestamp, record_id), are left out: the first is there whatever is stored later. Copies within that split
stay: how often something follows something is what is to be learned.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from ingest.errors import SplitLeak
from ingest.records import KINDS
from tds_dagster.curate.sql import literal
from tds_dagster.datasets.examples import Example, parsed
from tds_dagster.datasets.recipe import SPLITS, Recipe, Split

if TYPE_CHECKING:
    import duckdb

_BATCH_EXAMPLES = 4096
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
_NOTHING = frozenset[str]()
_SPACE_OF_HASHES = float(1 << 64)
# Ids and times by the names that they have in records and in chat messages: two rows that differ in them only teach
# the same.
LEFT_OUT_OF_DUPLICATES = frozenset(
    {column.name for kind in KINDS.values() for column in kind.columns if column.type in {"id", "timestamp"}}
    | {"tool_call_id", "created", "created_at"}
)
# Not within these: what a tool is asked for and a workflow's state are what is to be learned, an order's id included.
KEPT_WHOLE = frozenset({"arguments", "input", "input_params", "state_data", "step_results"})
# A row's column: inferred from other calls of the agent, it differs where the conversation and the call are the same.
_TOOLS = "tools"
# As they stand in a row's bytes; within a string the quotes have backslashes.
_NAMED_ID_OR_TIME = re.compile(
    rb'"(?:'
    + "|".join(sorted(LEFT_OUT_OF_DUPLICATES)).encode()
    + rb')":(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"|null|[0-9.eE+-]++),?'
)
_COLUMNS = "place, offset_bytes, size_bytes, record_id, entity, timestamp, label, share, example, row_hash"


class Placed(msgspec.Struct, frozen=True):
    """A row that has its split."""

    offset: int  # of the row in the scratch file
    size: int
    record_id: str
    entity: str
    timestamp: str
    label: str
    row_hash: str  # see `hash_row`


class Assigned(msgspec.Struct, frozen=True):
    """What became of the examples."""

    examples: int
    left_out: dict[str, int]  # by reason
    duplicate_groups: int
    duplicates_removed: int
    duplicates_kept: int
    rule: str  # how the splits were made, as a sentence


def write_examples(examples: Iterable[Example], rows: Path, index: Path, seed: int) -> int:
    """Write each example's row, one after the other, and the index; gives how many there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"share": pa.float64(), **dict.fromkeys(("place", "offset_bytes", "size_bytes"), pa.int64())}
    schema = pa.schema([pa.field(name, types.get(name, pa.string())) for name in _COLUMNS.split(", ")])
    count = 0
    with rows.open("wb") as out, pq.ParquetWriter(index, schema) as entries:
        for batch in _batches(_entries(examples, out, seed)):
            entries.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _entries(examples: Iterable[Example], out: BinaryIO, seed: int) -> Iterator[dict[str, object]]:
    offset = 0
    for place, example in enumerate(examples):
        out.write(example.row)
        yield {
            "place": place,
            "offset_bytes": offset,
            "size_bytes": len(example.row),
            "record_id": example.record_id,
            "entity": example.entity,
            "timestamp": example.timestamp,
            "label": example.label,
            "share": share_of(seed, example.entity),
            "example": hashlib.sha256(normalised(example.row)).hexdigest()[:32],
            "row_hash": hash_row(example.row),
        }
        offset += len(example.row)


def _batches(entries: Iterator[dict[str, object]]) -> Iterator[list[dict[str, object]]]:
    batch: list[dict[str, object]] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == _BATCH_EXAMPLES:
            yield batch
            batch = []
    if batch:
        yield batch


def hash_row(row: bytes) -> str:
    """64 bits of SHA-256 over a row: its first 16 hex digits written as letters, 0 to f as a to p.

    Written as digits, one in 2,000 has no letter, and every tenth of these is a valid card number.
    """
    return hashlib.sha256(row).hexdigest()[:16].translate(_LETTERS)


def share_of(seed: int, entity: str) -> float:
    """Where an entity lies between 0 and 1: the first 64 bits of SHA-256 over `<seed>:<entity>`."""
    digest = hashlib.sha256(f"{seed}:{entity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / _SPACE_OF_HASHES


def normalised(row: bytes) -> bytes:
    """What of a row decides whether it is a duplicate: its JSON in canonical form, without ids and times.

    Keys are sorted, runs of whitespace in texts are one blank, and keys named in `LEFT_OUT_OF_DUPLICATES` are gone
    at every depth but below those of `KEPT_WHOLE`. So is the `id` of a chat message's tool call, and a row's own
    `tools`. Of a row too deep to be read its bytes decide, without these keys wherever they stand.
    """
    value = parsed(row)
    if isinstance(value, msgspec.Raw):
        return _NAMED_ID_OR_TIME.sub(b"", row)
    if isinstance(value, dict):
        value.pop(_TOOLS, None)
    return msgspec.json.encode(_normal(value, LEFT_OUT_OF_DUPLICATES), order="sorted")


def _normal(value: Any, left_out: frozenset[str]) -> object:  # noqa: ANN401 - any JSON
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, dict):
        gone = left_out | {"id"} if left_out and "function" in value else left_out
        return {
            name: _normal(part, _NOTHING if name in KEPT_WHOLE else left_out)
            for name, part in value.items()
            if name not in gone
        }
    return [_normal(part, left_out) for part in value] if isinstance(value, list) else value


def assign_splits(connection: "duckdb.DuckDBPyConnection", index: Path, recipe: Recipe) -> Assigned:
    """Make the table `placed`, every row of it with its split, and say what became of the others.

    Reads the index; what the recipe chose is the models' business. Raises SplitLeak if the splits share anything.
    """
    connection.execute(f"CREATE TABLE chosen AS SELECT {_COLUMNS} FROM read_parquet({literal(index)})")
    split_of, rule = _SPLITTERS[recipe.split_by](connection, recipe)
    connection.execute(f"CREATE TABLE with_split AS SELECT *, {split_of} AS split FROM chosen")
    connection.execute(
        "CREATE TABLE once AS SELECT *, first(split) OVER (PARTITION BY example ORDER BY timestamp, record_id, place) "
        "AS home, count(*) OVER (PARTITION BY example) AS copies FROM with_split WHERE split IS NOT NULL"
    )
    connection.execute(f"CREATE TABLE placed AS {_balanced(recipe)}")
    examples, straddling, groups, removed, kept, placed = _counts(connection)
    check_splits(connection, recipe)
    reasons = {
        "an example of an entity behind the end of its split": straddling,
        "a copy of an example of another split": removed,
        "over the size of the smallest class": examples - straddling - removed - placed,
    }
    left_out = {reason: n for reason, n in reasons.items() if n}
    return Assigned(examples, left_out, groups, removed, kept, rule)


def _counts(connection: "duckdb.DuckDBPyConnection") -> Sequence[int]:
    found = connection.execute(
        "SELECT (SELECT count(*) FROM chosen), (SELECT count(*) FROM with_split WHERE split IS NULL), "
        "count(DISTINCT example) FILTER (copies > 1), count(*) FILTER (split != home), "
        "count(*) FILTER (copies > 1 AND split = home), (SELECT count(*) FROM placed) FROM once"
    ).fetchone()
    return found or (0,) * 6


def _by_entity(_connection: "duckdb.DuckDBPyConnection", recipe: Recipe) -> tuple[str, str]:
    train, validation, _ = recipe.fractions
    # The last split that has a share takes the end, so that rounding leaves no gap below 1.
    rest = "'test'" if recipe.fractions[2] else "'validation'" if validation else "'train'"
    second = f"WHEN share < {train + validation!r} THEN 'validation'"
    return f"CASE WHEN share < {train!r} THEN 'train' {second} ELSE {rest} END", (
        f"by {recipe.entity}: SHA-256 of ({recipe.seed}, {recipe.entity}) as a number from 0 to 1; "
        f"below {train:g} train, below {train + validation:g} validation, else test"
    )


def _by_time(connection: "duckdb.DuckDBPyConnection", recipe: Recipe) -> tuple[str, str]:
    row = connection.execute("SELECT count(*) FROM chosen").fetchone()
    total = int(row[0]) if row is not None else 0
    train, validation, _ = recipe.fractions
    cuts = []
    for share in (train, train + validation):
        found = connection.execute(
            "SELECT timestamp FROM chosen ORDER BY timestamp, record_id, place LIMIT 1 OFFSET $1",
            [round(share * total)],
        ).fetchone()
        cuts.append("9999" if found is None else str(found[0]))
    first, second = (literal(cut) for cut in cuts)

    def side(moment: str) -> str:
        return f"CASE WHEN {moment} < {first} THEN 'train' WHEN {moment} < {second} THEN 'validation' ELSE 'test' END"

    own, home = side("timestamp"), side("min(timestamp) OVER (PARTITION BY entity)")
    return f"CASE WHEN {own} = {home} THEN {own} END", (
        f"by time: train before {cuts[0]}, validation before {cuts[1]}, then test; a {recipe.entity} is where its "
        "first example is, and its later ones behind that split's end are left out"
    )


_SPLITTERS: Mapping[str, Callable[["duckdb.DuckDBPyConnection", Recipe], tuple[str, str]]] = {
    "entity": _by_entity,
    "time": _by_time,
}


def _balanced(recipe: Recipe) -> str:
    """The SQL of the rows that stay. Validation and test keep the classes as they are: they have to be like life."""
    kept = "SELECT * FROM once WHERE split = home"
    if recipe.balance == "none":
        return kept
    dice = f"sha256(concat({literal(str(recipe.seed))}, ':', record_id, ':', example))"
    turn = f"row_number() OVER (PARTITION BY split, label ORDER BY {dice}, place)"
    smallest = "SELECT min(n) FROM (SELECT count(*) AS n FROM kept WHERE split = 'train' GROUP BY label)"
    return (
        f"WITH kept AS ({kept}), turns AS (SELECT *, {turn} AS turn FROM kept) "
        f"SELECT * EXCLUDE (turn) FROM turns WHERE split != 'train' OR turn <= ({smallest})"
    )


def check_splits(connection: "duckdb.DuckDBPyConnection", recipe: Recipe) -> None:
    """Raise SplitLeak if two splits of `placed` share an entity, a record or an example, or are not in time's order.

    It asks the rows as they are placed, whatever placed them.
    """
    for column, noun in (("entity", recipe.entity or "entity"), ("record_id", "record"), ("example", "example")):
        row = connection.execute(
            f"SELECT count(*) FROM (SELECT {column} FROM placed GROUP BY {column} HAVING count(DISTINCT split) > 1)"
        ).fetchone()
        if row is not None and row[0]:
            raise SplitLeak(
                f"{recipe.model}: {row[0]} of {noun} in two splits, expected none; nothing was put in place. "
                "Report this with the recipe; meanwhile another `entity` may help"
            )
    if recipe.split_by == "time":
        ends = dict.fromkeys(SPLITS, ("", ""))
        found = connection.execute("SELECT split, min(timestamp), max(timestamp) FROM placed GROUP BY split").fetchall()
        ends |= {split: (first, last) for split, first, last in found}
        held = [ends[split] for split in SPLITS if ends[split] != ("", "")]
        if any(earlier[1] >= later[0] for earlier, later in pairwise(held)):
            raise SplitLeak(
                f"{recipe.model}: a split begins before the one ahead of it ends, expected train, validation, test one "
                "after the other; nothing was put in place. Report this with the recipe"
            )


def placed_rows(connection: "duckdb.DuckDBPyConnection", split: Split) -> Iterator[Placed]:
    """The rows of a split, by (timestamp, record_id) and then in the order in which they were made."""
    reader = (
        connection.cursor()
        .sql(
            "SELECT offset_bytes, size_bytes, record_id, entity, timestamp, label, row_hash FROM placed "
            f"WHERE split = {literal(split)} ORDER BY timestamp, record_id, place"
        )
        .to_arrow_reader(_BATCH_EXAMPLES)
    )
    for batch in reader:
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield Placed(*values)


@contextmanager
def row_reader(rows: Path) -> Iterator[Callable[[Placed], bytes]]:
    """A function that gives a placed row's bytes from the scratch file."""
    with rows.open("rb") as content:

        def read(placed: Placed) -> bytes:
            content.seek(placed.offset)
            return content.read(placed.size)

        yield read
