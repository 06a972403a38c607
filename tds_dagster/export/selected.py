"""Turns what was selected of a range into one file of lines, of compressed lines, or of Parquet, with its manifest.

Rows are taken from the curated days that the range's shards were made from, a day at a time and in order, formatted
and redacted as for shards. Nothing holds more than a day's row numbers, a bit each, and some thousand rows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

import ingest.records
from ingest.errors import InvalidPredicate, SourceMissing, Unbalanced, shown
from ingest.pipeline.partitions import DataPaths, replacing
from ingest.records import kind_named
from ingest.redaction.redactor import Redactor
from tds_dagster.curate.artifacts import (
    CHUNK_BYTES,
    code_version_of,
    drop_manifest,
    is_intact,
    locked,
    read_manifest,
    require_unchanged,
    write_manifest,
)
from tds_dagster.curate.day import CuratedDay, read_curated
from tds_dagster.curate.engine import engine_errors, open_engine
from tds_dagster.curate.raw import open_raw
from tds_dagster.curate.sql import glob_escaped, literal
from tds_dagster.export import feedback, lines
from tds_dagster.export import predicate as predicate_module
from tds_dagster.export import rows as rows_module
from tds_dagster.export import selection as selection_module
from tds_dagster.export.accounting import total_account
from tds_dagster.export.days import Progress, build_days
from tds_dagster.export.feedback import latest_feedback, matching
from tds_dagster.export.lines import Choice, counting_anew, select_rows
from tds_dagster.export.manifest import RangeExport, Shard
from tds_dagster.export.predicate import Predicate, quoted
from tds_dagster.export.rows import open_rows
from tds_dagster.export.selection import Selection

if TYPE_CHECKING:
    import duckdb

_DAY = "records_of_day"
_BEHIND = {"feedback": "all_feedback", "tasks": "all_tasks"}  # what a predicate over feedback reads besides


def write_selected(
    paths: DataPaths,
    shards: Sequence[Shard],
    wanted: RangeExport,
    selection: Selection,
    redactor: Redactor,
    *,
    progress: Progress | None = None,
) -> RangeExport:
    """Write what a selection leaves of the shards' records to `wanted.path`, with its manifest.

    Raises SourceMissing or DamagedFile if a curated day is gone or changed, InvalidPredicate if the predicate fails
    on a record, RedactionLeak if something is left that the redactor's level promises to be gone.
    """
    redactor = counting_anew(redactor)
    with ExitStack() as stack:
        # With one thread batches are of the same rows each time, and so are the groups of a Parquet file.
        engine = stack.enter_context(open_engine(paths, threads=1))
        out = stack.enter_context(replacing(wanted.path))
        chooser = _Chooser(paths, wanted.kind, selection, engine.connection, shards)
        rows = open_rows(selection.format, kind_named(wanted.kind), redactor, selection.columns, out)
        taken = 0
        with engine_errors(f"{wanted.kind} {wanted.start} to {wanted.end}"), _predicate_errors(selection):
            chooser.prepare(progress)
            for done, shard in enumerate(shards, 1):
                if chooser.rows_left(taken) != 0:
                    with _curated_day(paths, shard) as curated:
                        choice = chooser.choose(curated, taken)
                        if choice is not None:
                            taken += rows.add(engine, curated.path, choice)
                if progress is not None:
                    progress("rows selected of days", done, len(shards))
        rows.close()
        size, sha256 = _measure(out)
        drop_manifest(wanted.path)
    written = msgspec.structs.replace(
        wanted,
        rows=taken,
        bytes=size,
        sha256=sha256,
        accounting=total_account(wanted.kind, [shard.account for shard in shards]),
        redacted=dict(sorted(redactor.counts.items())),
    )
    write_manifest(written)
    return written


def selected_code_version() -> str:
    """The version of the code that decides the bytes of what was selected."""
    modules = (feedback, lines, predicate_module, rows_module, selection_module, ingest.records)
    return code_version_of([__file__, *(str(module.__file__) for module in modules)])


def selection_sources(paths: DataPaths, predicate: Predicate | None) -> dict[str, str]:
    """Bring up to date what a predicate over feedback reads besides its own records: a hash of each kind's days.

    Raises Unbalanced naming the days that cannot be curated.
    """
    found: dict[str, str] = {}
    if predicate is None or not predicate.feedback:
        return found
    for kind in _BEHIND:
        digest, failed = hashlib.sha256(), {}
        with open_raw(paths, kind) as raw_days:
            days = [day for day in raw_days.days() if raw_days.day(day).rows]
        for day, curated, _, error in build_days(paths, kind, days, stages=("curated",)):
            if curated is not None:
                digest.update(f"{day} {curated.sha256}\n".encode())
            if error is not None:
                failed[day] = str(error)
        if failed:
            reasons = "\n".join(f"  {day}: {reason}" for day, reason in failed.items())
            raise Unbalanced(f"{kind}: the predicate reads feedback, and these days of it cannot be read\n{reasons}")
        found[kind] = digest.hexdigest()
    return found


class _Chooser:
    """Says for each day which of its rows are selected."""

    def __init__(
        self,
        paths: DataPaths,
        kind: str,
        selection: Selection,
        connection: "duckdb.DuckDBPyConnection",
        shards: Sequence[Shard],
    ) -> None:
        self._paths, self._kind, self._selection = paths, kind, selection
        self._connection, self._shards = connection, shards
        self._predicate = selection.predicate(kind)
        self._conditions: list[str] = []

    def prepare(self, progress: Progress | None) -> None:
        """Find what is the same for all days: the feedback, and how far the sample reaches."""
        predicate, threshold = self._predicate, self._selection.sample_threshold
        if predicate is not None and predicate.feedback:
            self._show_day(None)
            for kind, name in _BEHIND.items():
                self._show(name, kind, self._curated_files(kind))
            latest_feedback(
                self._connection, self._kind, predicate.feedback,
                records=_DAY, tasks=_BEHIND["tasks"], feedback=_BEHIND["feedback"],
            )  # fmt: skip
        elif predicate is not None:
            self._conditions.append(f"({predicate.sql})")
        if threshold is not None and threshold < 1 << 128:
            self._conditions.append(f"{self._hash} < '{threshold:032x}'")
        if self._selection.sample_rows is not None:
            self._conditions.append(self._within_sample(self._selection.sample_rows, progress))

    @property
    def _hash(self) -> str:
        """A record's place in the order of the sample: MD5 (RFC 1321) of its id and the seed, which any engine has."""
        return f"md5(concat(records.record_id, '|', {self._selection.seed}))"

    def _within_sample(self, most: int, progress: Progress | None) -> str:
        """The condition of those `most` rows, of all days together, whose hashes are the smallest."""
        self._connection.execute("CREATE OR REPLACE TEMP TABLE smallest (hash VARCHAR, record_id VARCHAR)")
        for done, shard in enumerate(self._shards, 1):
            with _curated_day(self._paths, shard) as curated:
                choice = self.choose(curated, None)
                if choice is None:
                    continue
                self._connection.execute(
                    f"INSERT INTO smallest {select_rows(f'{self._hash}, records.record_id', choice)}",
                    [glob_escaped(curated.path), *choice.parameters],
                )
            self._connection.execute(
                "CREATE OR REPLACE TEMP TABLE smallest AS FROM smallest ORDER BY hash, record_id LIMIT $1", [most]
            )
            if progress is not None:
                progress("days looked through for the sample", done, len(self._shards))
        last = self._connection.execute(
            "SELECT hash, record_id FROM smallest ORDER BY hash DESC, record_id DESC LIMIT 1"
        ).fetchall()
        if not last:
            return "FALSE"
        ((of_hash, record_id),) = last
        return f"({self._hash}, records.record_id) <= ({literal(of_hash)}, {literal(record_id)})"

    def rows_left(self, taken: int) -> int | None:
        """How many rows may follow those that were taken; None: any number."""
        limits = [limit for limit in (self._selection.limit, self._selection.sample_rows) if limit is not None]
        return min(limits) - taken if limits else None

    def choose(self, curated: CuratedDay, taken: int | None) -> Choice | None:
        """The rows of a day, after `taken` rows of earlier days (None: that does not count); None if there are none."""
        conditions, parameters = list(self._conditions), tuple[object, ...]()
        if self._predicate is not None and self._predicate.feedback:
            places = self._matching_places(curated, self._predicate) if curated.rows else None
            if places is None:
                return None
            # Not a join, which may put rows in another order.
            conditions.append("get_bit($2::BIT, records.file_row_number::INTEGER) = 1")
            parameters = (places,)
        left = None if taken is None else self.rows_left(taken)
        return Choice(self._selection.columns, " AND ".join(conditions) or "TRUE", parameters, left)

    def _matching_places(self, curated: CuratedDay, predicate: Predicate) -> str | None:
        """A digit for each row of the day: 1 if the predicate holds; None if it never does."""
        self._show_day(curated.path)
        (row,) = self._connection.execute(
            f"SELECT bitstring_agg(file_row_number, 0, {curated.rows - 1})::VARCHAR FROM {_DAY} "
            f"WHERE record_id IN ({matching(predicate, _DAY)})"
        ).fetchall()
        return None if row[0] is None else str(row[0])

    def _show_day(self, parquet: Path | None) -> None:
        self._show(_DAY, self._kind, [] if parquet is None else [parquet])

    def _show(self, view: str, kind: str, files: Sequence[Path]) -> None:
        """Make a view of curated files; without any it has no rows."""
        names = ", ".join(literal(glob_escaped(file)) for file in files)
        source = f"FROM read_parquet([{names}], hive_partitioning = false, file_row_number = true)"
        if not files:
            types = {"integer": "BIGINT", "number": "DOUBLE", "timestamp": "TIMESTAMPTZ"}
            cells = [
                f"NULL::{types.get(of, 'VARCHAR')} AS {quoted(name)}" for name, of in kind_named(kind).types.items()
            ]
            source = f"SELECT {', '.join(cells)}, NULL::BIGINT AS file_row_number WHERE FALSE"
        self._connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {source}")

    def _curated_files(self, kind: str) -> list[Path]:
        with open_raw(self._paths, kind) as raw_days:
            days = [day for day in raw_days.days() if raw_days.day(day).rows]
        return [_unchanged(self._paths, kind, day).path for day in days]


def _unchanged(paths: DataPaths, kind: str, day: str) -> CuratedDay:
    built = read_curated(paths, kind, day)
    if built is None:
        raise SourceMissing(f"{paths.curated(kind, day)}: expected the curated day; run the export again")
    require_unchanged(built)
    return built


@contextmanager
def _curated_day(paths: DataPaths, shard: Shard) -> Iterator[CuratedDay]:
    """The curated day that a shard was made from; nobody replaces it in the meantime."""
    with locked(paths, f"{shard.kind}_{shard.day}"):
        path = paths.curated(shard.kind, shard.day)
        built = read_manifest(path, CuratedDay)
        if built is None or not is_intact(built) or built.sha256 != shard.source_sha256:
            raise SourceMissing(f"{path}: expected the curated day that its shard was made from; run the export again")
        require_unchanged(built)
        yield built


@contextmanager
def _predicate_errors(selection: Selection) -> Iterator[None]:
    """Turn what DuckDB says of a predicate that fails on a value into InvalidPredicate, without the value."""
    import duckdb

    try:
        yield
    except (duckdb.DataError, duckdb.InvalidInputException) as err:
        if selection.where is None:
            raise
        raise InvalidPredicate(
            f"predicate {shown(selection.where)}: it fails on a record ({type(err).__name__}); expected a condition "
            "that can be asked of every record: use TRY_CAST where it makes a number or a time of a text"
        ) from None


def _measure(out: BinaryIO) -> tuple[int, str]:
    """Size and SHA-256 of what was written."""
    out.flush()
    out.seek(0)
    digest = hashlib.sha256()
    while chunk := out.read(CHUNK_BYTES):
        digest.update(chunk)
    return out.tell(), digest.hexdigest()
