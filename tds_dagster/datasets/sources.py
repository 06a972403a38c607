"""Turns the day shards of a range into DuckDB views, redacted to the dataset's level, that examples are made from.

    exports' shards → hard links in a scratch folder, hashes checked → redacted copies, a group at a time → views

Everything that a dataset holds comes through here, so personal data has one door: a model's module sees redacted
columns only. The predicate and the lists of ids are asked of the exports as they are, under `exported_<kind>`.

| relation | rows |
|---|---|
| `<kind>` | of the range, curated names and types; JSON columns as JSON text, compact |
| `exported_<kind>` | the same, as the exports have them |
| `corrected_outputs(kind)` | `record_id, corrected_output`: the better answer that feedback holds |
| `targets` | `record_id` of the predicted rows; ask `record_id IN (FROM targets)`: a join takes memory from the sort |

The relations are no temporary ones, so that a cursor of the connection sees them too.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import msgspec

from ingest.errors import DamagedFile, SourceMissing
from ingest.pipeline.partitions import DataPaths, today
from ingest.records import KINDS, Column, Kind, kind_named
from ingest.redaction.redactor import Redactor, open_redactor
from ingest.settings import Settings
from tds_dagster.curate.artifacts import drop_manifest, is_intact, locked, read_manifest
from tds_dagster.curate.engine import Engine, engine_errors, open_engine
from tds_dagster.curate.raw import open_raw
from tds_dagster.curate.sql import glob_escaped, literal
from tds_dagster.datasets.recipe import PRIMARY, Entity, Recipe
from tds_dagster.export import Shard, build_days, require_complete

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is

# Of DuckDB; beyond it sorts and joins go to the scratch folder. With one thread, for two of them gave up ("Out of
# Memory") on 900 MB of events: one sorts four times as much in 650 MB.
_MEMORY, _THREADS = "512MiB", 1
_BATCH_ROWS = 256  # rows that are Python objects at the same time; a row may have 16 MiB
_INDEX_ROWS, _INDEX_BYTES = 4096, 1 << 20  # of an index of lines, or of lines to be indexed, at a time
_MOST_GROUP_BYTES = 64 << 20  # of a group whose lines are in memory together
_MOST_OPEN_FILES = 4 * len(KINDS)
# For the redactor, which then keeps the columns that some kind has as an id, time or number: no other kind has one of
# these names for anything else.
_OF_ALL_KINDS = "all"
_USUAL_LINE_BYTES = 1 << 20  # DuckDB takes two buffers a thread of the longest line: only longer ones pay for them

# What stands for an entity that a record does not name. The same for every kind, so that a session's events and its
# tasks meet.
_ENTITY_COLUMNS: Mapping[Entity, Sequence[str]] = {
    "session": ("session_id", "agent_id", "record_id"),
    "agent": ("agent_id", "session_id", "record_id"),
    "task": ("task_id", "session_id", "agent_id", "record_id"),
    "workflow": ("workflow_id", "session_id", "agent_id", "record_id"),
}
# What a correction may name, nearest first, and by which column: an answer to a whole session is no row's output.
_CORRECTED: Mapping[str, Sequence[tuple[str, str]]] = {
    "events": (("record", "record_id"),),
    "tasks": (("record", "record_id"), ("task", "task_id")),
    "tool_executions": (("record", "record_id"), ("record", "execution_id")),
    "workflows": (("record", "record_id"), ("workflow", "workflow_id")),
}


class _Lines(NamedTuple):
    """A file of lines, each with one JSON object."""

    path: Path
    longest_bytes: int  # of its lines


class _Keys(msgspec.Struct):
    """What of a line its place among the others depends on; the rest is passed over."""

    record_id: str
    timestamp: str
    session_id: str | None = None
    task_id: str | None = None
    workflow_id: str | None = None
    execution_id: str | None = None
    target_kind: str | None = None  # of feedback
    target_id: str | None = None


class Sources:
    """The records of a range, on one connection; made by `open_sources`."""

    def __init__(self, engine: Engine, shards: Sequence[Shard], redactor: Redactor) -> None:
        """Note what the views stand for."""
        self.connection: duckdb.DuckDBPyConnection = engine.connection
        self.folder = engine.folder  # for files of the moment
        self.shards = shards  # those used, by kind and day
        self.redactor = redactor
        self.left_out: Counter[str] = Counter()  # what no example was made of, by reason; a model's module adds to it
        self.unknown_ids: list[str] = []  # of the recipe's lists, which no record of the predicted kind has
        self.notes: dict[str, str] = {}  # what a model's module has to say, for the card
        self.others = 0  # examples about records of another kind than the predicted one; a model's module counts them

    def corrected_outputs(self, kind: str) -> str:
        """The table of better answers: `record_id` of a row of the kind, and its `corrected_output` as JSON text.

        A correction names a record (by its record_id or its kind's own id), a task or a workflow. The nearest one
        holds, and of these the latest by (timestamp, record_id).
        """
        name, ways = f"corrected_{kind}", _CORRECTED[kind]
        joins = " ".join(
            f"LEFT JOIN corrections AS c{n} ON c{n}.target_kind = {literal(target)} AND c{n}.target_id = r.{column}"
            for n, (target, column) in enumerate(ways)
        )
        nearest = ", ".join(f"c{n}.corrected_output" for n in range(len(ways)))
        self.connection.execute(
            f"CREATE TABLE IF NOT EXISTS {name} AS WITH corrections AS (SELECT target_kind, target_id, "
            "last(corrected_output ORDER BY timestamp, record_id) AS corrected_output FROM feedback "
            "WHERE corrected_output IS NOT NULL GROUP BY target_kind, target_id) "
            f"SELECT r.record_id, coalesce({nearest}) AS corrected_output FROM {kind} AS r {joins} "
            f"WHERE coalesce({nearest}) IS NOT NULL"
        )
        return name

    def rows(self, query: str) -> Iterator[dict[str, object]]:
        """The rows of a query as they come, some hundreds in memory at a time. Times must be asked for as text."""
        # A relation and not `execute`, which would hold the whole result; a cursor, so that two may run at a time.
        reader = self.connection.cursor().sql(query).to_arrow_reader(_BATCH_ROWS)
        for batch in reader:
            yield from batch.to_pylist()


def time_text(column: str) -> str:
    """A timestamp column as RFC 3339 text with microseconds, in SQL."""
    return f"strftime({column} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"


def entity_of(kind: str, entity: Entity) -> str:
    """The SQL of a row's entity: its id, or what stands for it where the record names none; never null."""
    present = [name for name in _ENTITY_COLUMNS[entity] if name in kind_named(kind).types]
    return f"coalesce({', '.join(present)})"


def resolved_range(paths: DataPaths, start: str | None, end: str | None) -> tuple[str, str]:
    """The days that a recipe means: what is not given is the first and the last day with data, but not today.

    Where data begins today, today is meant. Not yesterday for the end: the dataset of a finished log would be another
    one every day. Raises SourceMissing if there is no data at all.
    """
    days = [day for kind in KINDS for day in _days_with_rows(paths, kind)]
    if not days:
        raise SourceMissing(f"{paths.root}: expected records to make a dataset of, found none; store or import some")
    first = start or min(days)
    yesterday = (today() - timedelta(days=1)).isoformat()
    last = end or max(max((day for day in days if day <= yesterday), default=max(days)), first)
    return first, last


def build_shards(settings: Settings, recipe: Recipe, *, progress: Progress | None = None) -> list[Shard]:
    """The shards of all kinds that a recipe (with its range) needs, in order; those that are not current are built.

    Feedback is taken up to its last day: a verdict that came after the range is about it all the same. Raises
    Unbalanced for days that cannot be exported.
    """
    paths, redactor = DataPaths(settings.data_dir), open_redactor(settings, settings.redaction)
    first, last = resolved_range(paths, recipe.start, recipe.end)
    ends = {kind: "9999-12-31" if kind == "feedback" else last for kind in KINDS}
    return [
        shard
        for kind, end in ends.items()
        for shard in _build_shards(paths, redactor, kind, first, end, progress or _say_nothing)
    ]


@contextmanager
def open_sources(
    settings: Settings,
    recipe: Recipe,
    *,
    shards: Sequence[Shard] | None = None,
    redactor: Redactor | None = None,
    progress: Progress | None = None,
) -> Iterator[Sources]:
    """The records of a recipe's range, for the length of a `with`.

    `shards` are those of `build_shards` and `redactor` is that of the dataset's level, if they are at hand.

    Raises Unbalanced for days that cannot be exported, DamagedFile for a shard that somebody changed, and EngineFailed
    if DuckDB lacks disk or memory, also within the `with`.
    """
    paths, report = DataPaths(settings.data_dir), progress or _say_nothing
    redactor = redactor or open_redactor(settings, recipe.redaction or settings.dataset_redaction)
    built = build_shards(settings, recipe, progress=progress) if shards is None else shards
    taken: list[Shard] = []
    files: dict[str, list[_Lines]] = {kind: [] for kind in KINDS}
    with open_engine(paths) as engine, engine_errors(f"dataset {recipe.model}"):
        engine.connection.execute(f"SET memory_limit = '{_MEMORY}'")
        engine.connection.execute(f"SET threads = {_THREADS}")
        for done, shard in enumerate(built, 1):
            present, file = _take_shard(paths, shard, engine.folder)
            taken.append(present)
            files[shard.kind].append(file)
            report("reading exports", done, len(built))
        report("redacting", 0, 0)
        redacted = _redacted(redactor, engine, files)
        for kind in KINDS.values():
            engine.connection.execute(_view(f"exported_{kind.name}", kind, files[kind.name]))
            engine.connection.execute(_view(kind.name, kind, redacted[kind.name]))
        sources = Sources(engine, taken, redactor)
        _select_targets(sources, recipe)
        yield sources


def _say_nothing(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def _days_with_rows(paths: DataPaths, kind: str) -> list[str]:
    with open_raw(paths, kind) as raw_days:
        return [day for day in raw_days.days() if raw_days.day(day).rows]


def _build_shards(
    paths: DataPaths, redactor: Redactor, kind: str, start: str, end: str, report: Progress
) -> list[Shard]:
    days = [day for day in _days_with_rows(paths, kind) if start <= day <= end]
    shards: list[Shard] = []
    failed: dict[str, str] = {}
    for day, _, shard, error in build_days(
        paths, kind, days, redactor=redactor, progress=lambda _, n, of: report(f"{kind} days", n, of)
    ):
        if shard is not None:
            shards.append(shard)
        if error is not None:
            failed[day] = str(error)
    require_complete(kind, failed, allow_missing=False)
    return shards


def _take_shard(paths: DataPaths, shard: Shard, folder: Path) -> tuple[Shard, _Lines]:
    """A shard's manifest and a second name of its file, which stays what it is when the shard is replaced."""
    taken = folder / shard.path.name
    with locked(paths, f"{shard.kind}_{shard.day}"):
        present = read_manifest(paths.shard(shard.kind, shard.day), Shard)
        if present is None or not is_intact(present):
            raise SourceMissing(
                f"{paths.shard(shard.kind, shard.day)}: expected the shard with its manifest; run it again"
            )
        os.link(present.path, taken)
    digest, longest = hashlib.sha256(), 0
    with taken.open("rb") as lines:
        for line in lines:
            digest.update(line)
            longest = max(longest, len(line))
    if digest.hexdigest() != present.sha256:
        drop_manifest(present.path)  # so that the next build makes it again
        raise DamagedFile(
            f"{present.path}: its content is not what its manifest says, somebody changed it; "
            "no dataset was made: run it again, which builds the day anew"
        )
    return present, _Lines(taken, longest)


def _redacted(
    redactor: Redactor, engine: Engine, files: Mapping[str, Sequence[_Lines]]
) -> Mapping[str, Sequence[_Lines]]:
    """The lines at the redactor's level, by kind in a file each, by group; level none takes them as they are.

    A group's lines of all kinds are redacted together, those that the model does not read as well: a tool told the
    name that is in what was said.
    """
    if redactor.suspect is None:
        return files
    longest = dict.fromkeys(files, 0)
    copies = {kind: engine.folder / f"{kind}.redacted" for kind in files}
    kinds = [kind for kind, shards in files.items() for _ in shards]
    with ExitStack() as opened, engine_errors("redacting"):
        out = {kind: opened.enter_context(copy.open("wb")) for kind, copy in copies.items()}
        for numbers, lines in _groups(engine, [file for shards in files.values() for file in shards]):
            for number, line in zip(numbers, redactor.redact_together(_OF_ALL_KINDS, lines), strict=True):
                kind = kinds[number]
                out[kind].write(line + b"\n")
                longest[kind] = max(longest[kind], len(line) + 1)
    return {kind: [_Lines(copies[kind], longest[kind])] if longest[kind] else [] for kind in files}


def _groups(engine: Engine, files: Sequence[_Lines]) -> Iterator[tuple[list[int], list[bytes]]]:
    """The lines of each group, in order of time, and the file that each is of; a very long group comes in parts.

    Only the lines' keys and places are sorted. A sort of whole lines in DuckDB parsed each for its keys, and four lines
    of 16 MiB were more than its memory.
    """
    index = engine.folder / "lines.parquet"
    _write_index(files, index)
    reader = engine.connection.sql(
        f"SELECT name, file, offset_bytes, size_bytes FROM {_write_groups(engine, index)} "
        "ORDER BY name, timestamp, record_id, file"
    ).to_arrow_reader(_INDEX_ROWS)
    numbers: list[int] = []
    lines: list[bytes] = []
    size, current = 0, None
    for name, number, line in _read_lines(files, reader):
        if name != current or size > _MOST_GROUP_BYTES:
            if lines:
                yield numbers, lines
            numbers, lines, size, current = [], [], 0, name
        numbers.append(number)
        lines.append(line)
        size += len(line)
    if lines:
        yield numbers, lines


def _write_groups(engine: Engine, index: Path) -> str:
    """The relation of an index with the `name` of each line's group: of the lines that one row may be made of.

    A group is a session; without one that of the record's task, the task, that of its workflow, the workflow, else the
    record alone. Feedback is in the group of its target, in whose row its better answer stands. Ids of several kinds
    are names of one sort, as they are where conversations are made: at worst two groups are redacted together.

    Written in steps, for a join beside a sort shares its memory.
    """
    lines = f"read_parquet({literal(glob_escaped(index))})"
    known, grouped = engine.folder / "lines_known.parquet", engine.folder / "lines_grouped.parquet"
    first = "SELECT {0}, min(session_id) AS session FROM " + lines + " WHERE {0} IS NOT NULL GROUP BY {0}"
    engine.connection.execute(
        "COPY (SELECT l.*, coalesce(session_id, t.session, l.task_id, w.session, l.workflow_id, record_id) AS name "
        f"FROM {lines} AS l LEFT JOIN ({first.format('task_id')}) AS t ON t.task_id = l.task_id "
        f"LEFT JOIN ({first.format('workflow_id')}) AS w ON w.workflow_id = l.workflow_id) "
        f"TO {literal(known)} (FORMAT parquet)"
    )
    relation = f"read_parquet({literal(glob_escaped(known))})"
    ways = {"record_id": "record", "execution_id": "record"} | {f"{k}_id": k for k in ("task", "workflow", "session")}
    targets = " UNION ALL ".join(
        f"SELECT {literal(kind)} AS kind, {column} AS id, name FROM {relation} WHERE {column} IN "
        f"(SELECT target_id FROM {relation} WHERE target_kind = {literal(kind)})"
        for column, kind in ways.items()
    )
    engine.connection.execute(
        "COPY (SELECT l.* REPLACE (coalesce(target.name, l.name) AS name) "
        f"FROM {relation} AS l LEFT JOIN (SELECT kind, id, min(name) AS name FROM ({targets}) GROUP BY kind, id) "
        f"AS target ON target.kind = l.target_kind AND target.id = l.target_id) TO {literal(grouped)} (FORMAT parquet)"
    )
    return f"read_parquet({literal(glob_escaped(grouped))})"


def _write_index(files: Sequence[_Lines], index: Path) -> None:
    """Where each line is and what its group and its place there depend on, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"file": pa.int32(), "offset_bytes": pa.int64(), "size_bytes": pa.int64()}
    names = (*_Keys.__struct_fields__, *types)
    schema = pa.schema([pa.field(name, types.get(name, pa.string())) for name in names])
    decoder = msgspec.json.Decoder(_Keys)
    with pq.ParquetWriter(index, schema) as entries:
        for number, file in enumerate(files):
            offset = 0
            with file.path.open("rb") as content:
                while lines := content.readlines(_INDEX_BYTES):
                    rows = []
                    for line in lines:
                        keys = decoder.decode(line)
                        rows.append((*msgspec.structs.astuple(keys), number, offset, len(line) - 1))
                        offset += len(line)
                    columns = zip(zip(*rows, strict=True), schema, strict=True)
                    arrays = [pa.array(column, field.type) for column, field in columns]
                    entries.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _read_lines(files: Sequence[_Lines], reader: "pa.RecordBatchReader") -> Iterator[tuple[str, int, bytes]]:
    """Each line of an index, with its group and the number of its file.

    A group's lines mostly are of one day, a file a kind, so a few files are open: a year has 1,825 of them.
    """
    opened: dict[int, BinaryIO] = {}
    try:
        for batch in reader:
            for name, number, offset, size in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                content = opened.get(number)
                if content is None:
                    if len(opened) == _MOST_OPEN_FILES:
                        opened.pop(next(iter(opened))).close()
                    content = opened[number] = files[number].path.open("rb")
                content.seek(offset)
                yield name, number, content.read(size)
    finally:
        for content in opened.values():
            content.close()


def _read_arguments(files: Sequence[_Lines]) -> str:
    """What DuckDB's JSON readers are told of shards: where they are, and how long a line may be."""
    longest = max(_USUAL_LINE_BYTES, *(file.longest_bytes for file in files))
    paths = ", ".join(literal(glob_escaped(file.path)) for file in files)
    return f"[{paths}], format = 'newline_delimited', maximum_object_size = {longest}, hive_partitioning = false"


def _view(name: str, kind: Kind, files: Sequence[_Lines]) -> str:
    """The SQL of a view over shards; without any it has no rows."""
    if not files:
        columns = ", ".join(f'NULL::{_sql_type(column)} AS "{column.name}"' for column in kind.columns)
        return f"CREATE VIEW {name} AS SELECT {columns} WHERE FALSE"
    columns = ", ".join(f"{literal(column.name)}: {literal(_json_type(column))}" for column in kind.columns)
    typed = ", ".join(f'"{column.name}"::{_sql_type(column)} AS "{column.name}"' for column in kind.columns)
    return f"CREATE VIEW {name} AS SELECT {typed} FROM read_json({_read_arguments(files)}, columns = {{{columns}}})"


def _json_type(column: Column) -> str:
    """As what a column is read: JSON text keeps integers of any size, and the reader's own times are not UTC's."""
    return {"json": "JSON", "integer": "BIGINT", "number": "DOUBLE"}.get(column.type, "VARCHAR")


def _sql_type(column: Column) -> str:
    return {"integer": "BIGINT", "number": "DOUBLE", "timestamp": "TIMESTAMPTZ"}.get(column.type, "VARCHAR")


def _select_targets(sources: Sources, recipe: Recipe) -> None:
    """Make `targets` of the rows of the predicted kind that the predicate and the lists of ids leave."""
    kind = kind_named(PRIMARY[recipe.model])
    records = f"exported_{kind.name}"
    conditions = []
    if recipe.where is not None:
        conditions.append(f"record_id IN ({_matching(sources, kind.name, records, recipe.where)})")
    ids = [column.name for column in kind.columns if column.type == "id"]
    for name, chosen in (("include", recipe.include), ("exclude", recipe.exclude)):
        sources.connection.execute(f"CREATE TABLE {name}d AS SELECT unnest($1::VARCHAR[]) AS id", [list(chosen)])
        named = " OR ".join(f"coalesce({column} IN (SELECT id FROM {name}d), FALSE)" for column in ids)
        if chosen:
            conditions.append(f"({named})" if name == "include" else f"NOT ({named})")
            sources.unknown_ids += _unknown_ids(sources, f"{name}d", records, ids)
    wanted = " AND ".join(conditions) or "TRUE"
    sources.connection.execute(f"CREATE TABLE targets AS SELECT DISTINCT record_id FROM {records} WHERE {wanted}")


def _unknown_ids(sources: Sources, listed: str, records: str, columns: Sequence[str]) -> list[str]:
    """The ids of a table that no record has in any of these columns, in order."""
    found = " UNION ALL ".join(f"SELECT {column} AS id FROM {records}" for column in columns)
    rows = sources.connection.execute(
        f"SELECT id FROM {listed} WHERE id NOT IN (SELECT id FROM ({found}) WHERE id IN (FROM {listed})) ORDER BY id"
    ).fetchall()
    return [str(row[0]) for row in rows]


def _matching(sources: Sources, kind: str, records: str, where: str) -> str:
    """The SQL of the ids of the rows that match a predicate, with the feedback it reads at hand."""
    from tds_dagster.export.feedback import latest_feedback, matching
    from tds_dagster.export.predicate import parse_predicate

    predicate = parse_predicate(kind, where)
    if predicate.feedback:
        latest_feedback(
            sources.connection, kind, predicate.feedback,
            records=records, tasks="exported_tasks", feedback="exported_feedback",
        )  # fmt: skip
    return matching(predicate, records)
