"""Turns one raw day, as far as it is committed, into its curated Parquet file and its quarantine file.

    committed prefix → lines that are rows → all as text → flawed values and duplicates excluded → typed, sorted Parquet

Every line of the file is judged and counted apart from DuckDB (`sieve`), and rows in = rows out + duplicates +
quarantined, or the day is not built. Order of writes: manifest away, Parquet, quarantine, manifest (see `artifacts`).
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

import ingest.records
from ingest.errors import DamagedFile, Unbalanced
from ingest.pipeline.partitions import DataPaths, parse_day, replacing
from ingest.records import SCHEMA_VERSION, kind_named
from tds_dagster.curate import header as header_module
from tds_dagster.curate import quarantine, raw, sql, survey
from tds_dagster.curate import sieve as sieve_module
from tds_dagster.curate.artifacts import (
    code_version_of,
    drop_manifest,
    is_intact,
    locked,
    made_now,
    read_manifest,
    write_manifest,
)
from tds_dagster.curate.engine import Engine, engine_errors, open_engine
from tds_dagster.curate.header import read_header
from tds_dagster.curate.raw import RawDay, RawDays, open_raw, still_prefix
from tds_dagster.curate.sieve import Sieve
from tds_dagster.curate.survey import Stamp, stamp_of

_USUAL_LINE_BYTES = 2 << 20  # DuckDB buffers 16 lines of the longest size: only a file with a longer one pays for it


class CuratedDay(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One curated day: what its manifest says."""

    kind: str
    day: str
    path: Path  # the Parquet file
    rows: int  # in the Parquet file
    bytes: int  # its size
    sha256: str  # hex digest of its bytes
    source_version: str  # the raw day's version that it was made from
    source_rows: int  # committed rows of that version = rows + duplicates + quarantined
    source_rejects: int  # lines among the ledger's rejects, all in the quarantine file
    source_foreign: int  # of these, lines that other programs appended to the day file
    duplicates: int  # rows left out because their record_id was there already
    quarantined: int  # rows that curation rejected
    schema_version: int
    code_version: str
    made_at: str  # RFC 3339; the one field in which two builds of the same data differ
    reused: bool = False  # nothing had changed since it was built; not in the manifest


def code_version() -> str:
    """The version of the code that decides a curated file's bytes."""
    modules = (ingest.records, sql, header_module, survey, sieve_module, raw, quarantine)
    return code_version_of([__file__, *(str(module.__file__) for module in modules)])


def curate_day(
    paths: DataPaths,
    kind: str,
    day: str,
    *,
    raw_days: RawDays | None = None,
    engine: Engine | None = None,
    fine: Stamp | None = None,
) -> CuratedDay:
    """Bring a day's curated Parquet and quarantine file up to date with its raw file.

    A day that the ledger does not know becomes an artifact of 0 rows. Whoever builds many days passes `raw_days`
    and `engine`, opened once, and `fine` if `find_fine_days` has found the day so.

    Raises UnknownKind or InvalidRange for what is no kind or no day, DamagedFile if the raw file is not what the
    ledger says, Unbalanced if a row of it can't be accounted for, EngineFailed if DuckDB lacks disk or memory.
    """
    parse_day("day", day)
    with ExitStack() as stack:
        if raw_days is None:
            raw_days = stack.enter_context(open_raw(paths, kind_named(kind).name))
        source = raw_days.settled_day(day)
        current = current_curated(paths, kind, source)
        if current is not None:
            return current
        stack.enter_context(locked(paths, f"{kind}_{day}"))
        raw_days.settle([day])  # another process may have built it, from later rows, while this one waited
        source = raw_days.settled_day(day)
        current = current_curated(paths, kind, source)
        if current is not None:
            return current
        engine = engine or stack.enter_context(open_engine(paths))
        try:
            return _Build(raw_days, source, engine, fine=fine).run()
        except (DamagedFile, Unbalanced):
            raw_days.settle([day])
            present = raw_days.settled_day(day)
            if present.version == source.version:
                raise
        return _Build(raw_days, present, engine).run()  # it was rewritten while it was read


def read_curated(paths: DataPaths, kind: str, day: str) -> CuratedDay | None:
    """The curated day as it was built last; None if it is not built, or not whole."""
    built = read_manifest(paths.curated(kind, day), CuratedDay)
    return built if built is not None and is_intact(built) else None


def current_curated(paths: DataPaths, kind: str, source: RawDay) -> CuratedDay | None:
    """The curated day if it was made from this source by this code; None if it has to be made (again)."""
    built = read_curated(paths, kind, source.day)
    if built is None or built.source_version != source.version or built.code_version != code_version():
        return None
    if (built.quarantined or built.source_rejects) and not paths.quarantine(kind, source.day).exists():
        return None
    return msgspec.structs.replace(built, reused=True)


def rebuild_day(raw_days: RawDays, source: RawDay, engine: Engine, output: DataPaths) -> CuratedDay:
    """Curate a raw day into another data folder, `output`: what its files would be if they were built now.

    Raises as `curate_day` does.
    """
    return _Build(raw_days, source, engine, output).run()


class _Build:
    """One day on its way."""

    def __init__(
        self,
        raw_days: RawDays,
        source: RawDay,
        engine: Engine,
        output: DataPaths | None = None,
        *,
        fine: Stamp | None = None,
    ) -> None:
        self.raw_days, self.source, self.engine, self.fine = raw_days, source, engine, fine
        self.paths, self.kind = raw_days.paths, kind_named(raw_days.kind)
        self.output = output or self.paths
        self.raw_file = self.paths.training(self.kind.name, source.day)
        self.rows = self.duplicates = 0
        self.reasons: dict[int, str] = {}  # line number: why the row is no good
        self._line_numbers: Sequence[int] = []  # of each row of `source`

    def run(self) -> CuratedDay:
        try:
            return self._run()
        finally:
            for copy in self.engine.folder.glob("*.csv"):  # a range of a year would collect one for each day
                copy.unlink()

    def _run(self) -> CuratedDay:
        with engine_errors(f"{self.kind.name} {self.source.day}"):
            target = self.output.curated(self.kind.name, self.source.day)
            with replacing(target) as out:
                file = self._curate_prefix(out.name)
                sha256 = hashlib.file_digest(out, "sha256").hexdigest()
                size = os.fstat(out.fileno()).st_size
                drop_manifest(target)
            return self._finish(file, size, sha256)

    def _curate_prefix(self, parquet: str) -> Path | None:
        """Curate the committed rows; gives the file that they were read from, None if there are none."""
        size = 0 if self.source.file is None else self.source.file.size
        if not size:
            self._curate(None, parquet)
            return None
        still = still_prefix(self.raw_file, size, self.engine.folder)
        try:
            self._curate(still, parquet)
        except (DamagedFile, Unbalanced):
            if still.stat().st_size == size:
                raise
        if still.stat().st_size != size:  # the writer appended while it was read: now there is a copy to read
            still = still_prefix(self.raw_file, size, self.engine.folder)
            self._curate(still, parquet)
        return still

    def _curate(self, file: Path | None, parquet: str) -> None:
        """Fill the Parquet file, `rows`, `duplicates` and `reasons`."""
        self.reasons, self.duplicates = {}, 0
        is_fine = file is not None and self.fine == stamp_of(file)
        header = self._load(file)
        escaped, has_excluded = self._survey(header) if not is_fine or self.reasons else ((), False)
        self.rows = self._count(
            sql.write_parquet(self.kind, header, escaped=escaped, has_excluded=has_excluded), parquet
        )
        if is_fine and file is not None and stamp_of(file) != self.fine:  # it changed since it was looked at
            self.fine = None
            self._curate(file, parquet)
            return
        if self.rows + self.duplicates + len(self.reasons) != self.source.rows:
            raise Unbalanced(
                f"{self.raw_file}: {self.source.rows} rows committed, but {self.rows} curated + {self.duplicates} "
                f"duplicates + {len(self.reasons)} quarantined; report this with the file"
            )

    def _survey(self, header: Sequence[str]) -> tuple[Sequence[str], bool]:
        """Exclude what is no good; gives the columns with escapes, and whether any row is excluded."""
        ((doubtful, repeated, is_escaped),) = self.engine.execute(sql.survey_source(self.kind, header)).fetchall()
        has_excluded = bool(doubtful or repeated)
        self.duplicates = self._exclude(header) if has_excluded else 0
        return self._escaped_columns(header) if is_escaped else (), has_excluded

    def _escaped_columns(self, header: Sequence[str]) -> Sequence[str]:
        (flags,) = self.engine.execute(sql.find_escaped(self.kind, header)).fetchall()
        return [name for name, flag in zip(sql.text_columns(self.kind, header), flags, strict=True) if flag]

    def _exclude(self, header: Sequence[str]) -> int:
        """Make `excluded` and fill `reasons`; gives the number of duplicates."""
        connection = self.engine.connection
        connection.execute(sql.exclude_flawed(self.kind, header))
        self._exclude_doubtful_json(header)
        flawed = connection.execute("SELECT place, reason FROM excluded ORDER BY place").fetchall()
        self.reasons |= {self._line_numbers[place]: reason for place, reason in flawed}
        return self._count(sql.EXCLUDE_DUPLICATES)

    def _load(self, file: Path | None) -> Sequence[str]:
        """Make `source` of the lines that are rows; gives the header."""
        import duckdb

        self.reasons, self._line_numbers = {}, []
        if file is None:
            header: Sequence[str] = [column.name for column in self.kind.columns]
            self.engine.connection.execute(sql.empty_source(header))
            return header
        header = read_header(self.kind, file, self.raw_file)
        sieve = Sieve(file, len(header))
        if sieve.lines - 1 != self.source.rows:
            raise DamagedFile(
                f"{self.raw_file}: {sieve.lines - 1} rows in {file.stat().st_size} bytes, but {self.source.rows} are "
                "committed; run it again, or restore the file from a backup"
            )
        self._line_numbers, self.reasons = sieve.line_numbers(), dict(sieve.flaws)
        longest = max(_USUAL_LINE_BYTES, sieve.longest_bytes)
        try:
            rows = sql.glob_escaped(sieve.sifted(self.engine.folder))
            loaded = self._count(sql.load_source(header, longest), rows)
        except duckdb.InvalidInputException:
            # Without its cause: the message quotes a row, and Dagster's event log keeps what is raised.
            raise DamagedFile(f"{self.raw_file}: DuckDB reads no rows there; report this with the file") from None
        if loaded != len(self._line_numbers):
            raise Unbalanced(
                f"{self.raw_file}: {len(self._line_numbers)} lines are rows, but DuckDB read {loaded}; "
                "report this with the file"
            )
        return header

    def _exclude_doubtful_json(self, header: Sequence[str]) -> None:
        import orjson

        connection = self.engine.connection
        suspects = connection.execute(sql.find_doubtful_json(self.kind, header))
        refused: dict[int, str] = {}
        while suspect := suspects.fetchone():  # one at a time: a cell may have 16 MiB and more
            place, column, cell = suspect
            try:
                orjson.loads(cell)
            except orjson.JSONDecodeError:
                refused.setdefault(place, f"{column} is not JSON")
        if refused:
            connection.execute(
                "INSERT INTO excluded SELECT * FROM (SELECT unnest($1) AS place, unnest($2)) "
                "WHERE place NOT IN (SELECT place FROM excluded)",
                [list(refused), list(refused.values())],
            )

    def _count(self, statement: str, *parameters: str) -> int:
        """Run a statement that makes rows; gives how many."""
        row = self.engine.execute(statement, *parameters).fetchone()
        return int(row[0]) if row is not None else 0

    def _finish(self, file: Path | None, size: int, sha256: str) -> CuratedDay:
        """Write what belongs beside the Parquet file, which is in place: quarantine, then the manifest."""
        source, kind = self.source, self.kind.name
        # Rejects only grow; those behind the ones counted belong to the next version.
        rejects = self.raw_days.rejects(source.day)[: source.rejects]
        flawed = quarantine.flawed_rows(file, self.raw_file.name, source.day, self.reasons) if file else ()
        quarantine.write_quarantine(self.output.quarantine(kind, source.day), rejects, flawed)
        built = CuratedDay(
            kind=kind,
            day=source.day,
            path=self.output.curated(kind, source.day),
            rows=self.rows,
            bytes=size,
            sha256=sha256,
            source_version=source.version,
            source_rows=source.rows,
            source_rejects=len(rejects),
            source_foreign=source.foreign,
            duplicates=self.duplicates,
            quarantined=len(self.reasons),
            schema_version=SCHEMA_VERSION,
            code_version=code_version(),
            made_at=made_now(),
        )
        write_manifest(built)
        return built
