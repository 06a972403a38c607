"""Turns one day's artifacts into what is wrong with them, by building them again in a scratch folder."""

from pathlib import Path
from typing import cast, get_args

import msgspec

from ingest.errors import DamagedFile, EngineFailed, RedactionLeak, Unbalanced
from ingest.pipeline.ledger import CommittedFile
from ingest.pipeline.partitions import DataPaths, manifest_of
from ingest.records import SCHEMA_VERSION, kind_named
from ingest.redaction.redactor import Redactor, open_redactor
from ingest.settings import RedactionLevel, Settings
from tds_dagster.curate.artifacts import read_manifest
from tds_dagster.curate.day import CuratedDay, rebuild_day
from tds_dagster.curate.day import code_version as curated_code
from tds_dagster.curate.engine import Engine, engine_errors
from tds_dagster.curate.raw import RawDay, RawDays
from tds_dagster.curate.sql import glob_escaped
from tds_dagster.export.checker import Checker
from tds_dagster.export.comparison import pieces
from tds_dagster.export.lines import counting_anew, json_lines
from tds_dagster.export.manifest import Shard
from tds_dagster.export.shard import code_version as shard_code

_AGAIN = "the next export makes it anew"


class DayCheck:
    """One day of one kind; the caller holds its lock."""

    def __init__(self, checker: Checker, settings: Settings, raw_days: RawDays, engine: Engine, day: str) -> None:
        """Nothing is read yet."""
        self.checker, self.settings, self.raw_days, self.engine, self.day = checker, settings, raw_days, engine, day
        self.paths, self.kind = raw_days.paths, kind_named(raw_days.kind)
        self.raw = raw_days.day(day)
        self.raw_file = self.paths.training(self.kind.name, day)
        self.scratch = DataPaths(engine.folder / "rebuilt")
        self._rebuilt: dict[str, CuratedDay | None] = {}  # by the raw day's version

    def run(self, parts: set[str]) -> None:
        """Check the parts that are asked for: curated (with its quarantine file), quarantine, shard."""
        if "curated" in parts:
            self._check_curated()
        if parts & {"curated", "quarantine"}:
            self._check_quarantine(alone="curated" not in parts)
        if "shard" in parts:
            self._check_shard()

    def _check_curated(self) -> None:
        path = self.paths.curated(self.kind.name, self.day)
        built = self.checker.manifest(path, CuratedDay)
        if built is None:
            return
        rebuilt = self._rebuild(built)
        if rebuilt is None:
            self.checker.judge(built, self.checker.measure(path), None, source="", stale=self._stale(built))
            return
        comparison = self.checker.compare(path, pieces(rebuilt.path))
        is_as_built = (comparison.found.bytes, comparison.found.sha256) == (built.bytes, built.sha256)
        stale = self._stale(built)
        apart = {"path", "made_at", "reused", "code_version"}
        if is_as_built and comparison.difference and stale is None and self._has_same_rows(path, rebuilt.path):
            comparison, apart = msgspec.structs.replace(comparison, difference=None), apart | {"bytes", "sha256"}
        is_sound = self.checker.judge(built, comparison.found, comparison, source=self.raw_file.name, stale=stale)
        if is_sound and stale is None:
            expected = {name: getattr(rebuilt, name) for name in rebuilt.__struct_fields__ if name not in apart}
            self.checker.check_fields(manifest_of(built.path), built, {**expected, "path": path})

    def _stale(self, built: CuratedDay | Shard) -> str | None:
        """Why the raw day gives something else now than when this was built; None if it does not."""
        if built.source_version != self.raw.version:
            return f"{self.raw_file.name} has changed since, or the rejects of the day have; {_AGAIN}"
        if self.raw.file is not None and self.raw_file.exists():
            status = self.raw_file.stat()
            if status.st_size == self.raw.file.size and status.st_mtime_ns != self.raw.file.mtime_ns:
                return f"{self.raw_file.name} was changed, or copied, by somebody else since; {_AGAIN}"
        if isinstance(built, CuratedDay) and built.code_version != curated_code():
            return f"was built by another version of this program; {_AGAIN}"
        return None

    def _rebuild(self, built: CuratedDay | Shard) -> CuratedDay | None:
        """The curated day as the raw rows give it that it was built from; None if they are not there any more."""
        version = built.source_version
        if version not in self._rebuilt:
            self._rebuilt[version] = None
            source = self.raw if version == self.raw.version else self._raw_as_of(built)
            try:
                if source is not None:
                    self._rebuilt[version] = rebuild_day(self.raw_days, source, self.engine, self.scratch)
            except (DamagedFile, Unbalanced, EngineFailed, FileNotFoundError) as err:
                self.checker.find(self.raw_file, "damaged", f"the day cannot be built from it again: {err}")
        return self._rebuilt[version]

    def _raw_as_of(self, built: CuratedDay | Shard) -> RawDay | None:
        """The raw day that was there then: rows and rejects are only ever added, so it is the beginning of today's."""
        if self.raw.file is None or self.raw.rows < built.source_rows or self.raw.rejects < built.source_rejects:
            return None
        size = _size_of_lines(self.raw_file, built.source_rows + 1) if self.raw_file.exists() else 0
        if not size or size > self.raw.file.size:
            return None
        return RawDay(
            day=self.day,
            file=CommittedFile(size, built.source_rows, built.source_version.rpartition("+")[0], 0),
            duplicates=0,
            quarantined=built.source_rejects - built.source_foreign,
            foreign=built.source_foreign,
        )

    def _has_same_rows(self, one: Path, other: Path) -> bool:
        """Whether two Parquet files differ in how they are written only, as by another version of DuckDB."""
        files = [f"read_parquet($path_{n}, hive_partitioning = false)" for n in range(2)]
        query = f"SELECT count(*) FROM {files[0]} AS a POSITIONAL JOIN {files[1]} AS b WHERE a IS DISTINCT FROM b"
        names = {f"path_{n}": glob_escaped(path) for n, path in enumerate((one, other))}
        with engine_errors(f"{self.kind.name} {self.day}"):
            row = self.engine.connection.execute(query, names).fetchone()
        return row == (0,)

    def _check_quarantine(self, *, alone: bool) -> None:
        path = self.paths.quarantine(self.kind.name, self.day)
        built = read_manifest(self.paths.curated(self.kind.name, self.day), CuratedDay)
        if built is None:
            if alone and path.exists():
                self.checker.find(path, "stale", f"its day is not curated, or not to the end; {_AGAIN}")
            return
        rebuilt = self._rebuild(built)
        if rebuilt is None or rebuilt.sha256 != built.sha256:
            return  # what it was is not to be had again; the curated day says why
        expected = self.scratch.quarantine(self.kind.name, self.day)
        if path.exists() != expected.exists():
            what = "is gone" if expected.exists() else "holds rows, and none was rejected"
            self.checker.find(path, "damaged", f"{what}; remove the curated day, and build it again")
        elif path.exists():
            comparison = self.checker.compare(path, pieces(expected))
            if comparison.difference is not None:
                reason = "is not what was rejected; remove it, and build the day again"
                self.checker.find(path, "damaged", reason, comparison.difference)

    def _check_shard(self) -> None:
        path = self.paths.shard(self.kind.name, self.day)
        built = self.checker.manifest(path, Shard)
        if built is None:
            return
        parquet, redactor = self._source_of(built), self._redactor_of(built)
        stale = self._stale(built) or self._stale_shard(built, redactor)
        if parquet is None or redactor is None:
            why = stale or f"its curated day was built anew since, or is damaged; {_AGAIN}"
            self.checker.judge(built, self.checker.measure(path), None, source="", stale=why)
            return
        try:
            with engine_errors(f"{self.kind.name} {self.day}"):
                lines = json_lines(self.engine, self.kind, parquet, redactor)
                comparison = self.checker.compare(path, lines)
        except RedactionLeak as err:
            self.checker.find(path, "damaged", str(err))
            return
        if self.checker.judge(built, comparison.found, comparison, source="its curated day", stale=stale):
            self._check_shard_fields(built, comparison.found.lines, dict(sorted(redactor.counts.items())))

    def _stale_shard(self, built: Shard, redactor: Redactor | None) -> str | None:
        """Why the same curated day is written otherwise now; None if it is not."""
        if built.code_version != shard_code():
            return f"was written by another version of this program; {_AGAIN}"
        if built.redaction != self.settings.redaction:
            return f"is redacted at level {built.redaction}, and exports are at {self.settings.redaction} now; {_AGAIN}"
        if redactor is None:
            return f"was redacted by another policy, or with another key; {_AGAIN}"
        return None

    def _redactor_of(self, built: Shard) -> Redactor | None:
        """The redactor that wrote the shard, with figures of its own; None if its policy or key is another one now."""
        if built.redaction not in get_args(RedactionLevel):
            return None
        redactor = open_redactor(self.settings, cast("RedactionLevel", built.redaction))
        return counting_anew(redactor) if redactor.version == built.redaction_version else None

    def _check_shard_fields(self, built: Shard, rows: int, redacted: dict[str, int]) -> None:
        curated = read_manifest(self.paths.curated(self.kind.name, self.day), CuratedDay)
        expected: dict[str, object] = {
            "kind": self.kind.name, "day": self.day, "path": self.paths.shard(self.kind.name, self.day), "rows": rows,
            "schema_version": SCHEMA_VERSION, "redacted": redacted,
        }  # fmt: skip
        if curated is not None and curated.sha256 == built.source_sha256:
            same = ("source_version", "source_rows", "source_rejects", "source_foreign", "duplicates")
            expected |= {name: getattr(curated, name) for name in same}
        self.checker.check_fields(manifest_of(built.path), built, expected)

    def _source_of(self, built: Shard) -> Path | None:
        """A Parquet file with the bytes that the shard was made from: the curated day, or the same built again."""
        path = self.paths.curated(self.kind.name, self.day)
        if path.exists() and self.checker.measure(path).sha256 == built.source_sha256:
            return path
        rebuilt = self._rebuild(built)
        return rebuilt.path if rebuilt is not None and rebuilt.sha256 == built.source_sha256 else None


def _size_of_lines(path: Path, lines: int) -> int:
    """The bytes of a file's first lines; 0 if it has fewer."""
    size = 0
    with path.open("rb") as file:
        for _ in range(lines):
            line = file.readline()
            if not line.endswith(b"\n"):
                return 0
            size += len(line)
    return size
