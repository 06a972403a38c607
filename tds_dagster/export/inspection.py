"""Turns the path of anything below the data folder, or of a copy elsewhere, into what it is and what is in it.

| path | is read as |
|---|---|
| raw day, `.csv` | text of the kind's columns, unescaped; lines that are no rows are left out and named |
| curated day, `.parquet` | its own types |
| shard, range, quarantine, split: `.jsonl`, also `.gz` and `.zst` | the kind's types, else those that its values have |
| folder of days, or of other files of one format | all of them as one |
| dataset's folder, or that of its model | all splits as one; of a model, those of its latest version |
| model's folder, or the one above | its answers to the test split, its figures from the manifest |
| manifest | what it says, and whether its artifact has the size that it gives |

What a manifest says is held against what was read; `tds verify` goes further and reads every byte.
"""

import gzip
import io
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import msgspec

from ingest.errors import DamagedFile, EngineFailed, UnknownArtifact
from ingest.pipeline.partitions import TIMESTAMP, DataPaths, manifest_of
from ingest.records import DUCKDB_CSV_OPTIONS, KINDS, Kind, unescape_text
from tds_dagster.curate.artifacts import CHUNK_BYTES
from tds_dagster.curate.engine import open_engine
from tds_dagster.curate.raw import still_prefix
from tds_dagster.curate.sieve import Sieve
from tds_dagster.curate.sql import glob_escaped, literal
from tds_dagster.export.profile import (
    Advance,
    ColumnProfile,
    Profile,
    ProfileType,
    ValueCount,
    profile_relation,
    run_query,
)

if TYPE_CHECKING:
    import duckdb

Format = Literal["csv", "parquet", "jsonl"]

_FORMATS: Mapping[str, Format] = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_PACKED = (".gz", ".zst")
_SAMPLED_LINES = 1000  # of a file whose columns no kind names
_LONGEST_LINE_BYTES = 64 << 20
_COUNTED_BYTES = 32 << 20  # up to here distinct values are counted, beyond they are estimated
_MOST_FLAWS = 3
_DAY_GLOB = "*_[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_DUCKDB_TYPES: Mapping[str, ProfileType] = {
    "BIGINT": "integer", "INTEGER": "integer", "HUGEINT": "integer", "DOUBLE": "number", "FLOAT": "number",
    "BOOLEAN": "flag", "TIMESTAMP WITH TIME ZONE": "timestamp", "TIMESTAMP": "timestamp", "VARCHAR": "text",
}  # fmt: skip


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; `tds inspect --json` prints it."""

    path: str
    what: str  # such as "curated day of events"
    kind: str | None  # of record; None for anything else
    files: int  # how many were read
    bytes: int  # their size
    rows: int
    parts: dict[str, int]  # rows by day, or by split, where there are several
    columns: list[ColumnProfile]
    estimated: bool  # whether the columns' distinct values are estimates; medians and 95 % always are
    manifest: dict[str, Any]  # what the manifest says; empty where there is none
    warnings: list[str]  # what is not as it should be
    first: list[dict[str, Any]]  # the first rows, JSON columns decoded


class _Source(msgspec.Struct, frozen=True):
    """What there is to read."""

    what: str
    kind: Kind | None
    form: Format
    files: list[Path]
    manifest_path: Path | None


def inspect_path(path: Path, *, rows: int = 3, advance: Advance | None = None) -> Inspection:
    """Look at an artifact; `rows` is how many of its first rows are given.

    Raises OSError for what is not there or may not be read, UnknownArtifact for what is none of ours, DamagedFile
    naming file and place for one that cannot be read to its end, EngineFailed if DuckDB lacks disk or memory.
    """
    path.stat()  # raises for what is not there
    if path.is_file() and path.name.endswith("manifest.json"):
        return _inspect_manifest(path)
    source = _recognized(path)
    manifest = {} if source.manifest_path is None else _read_manifest(source.manifest_path)
    with tempfile.TemporaryDirectory() as scratch, open_engine(DataPaths(Path(scratch))) as engine:
        types = _types(source, engine.connection)
        size, files = _size(source), source.files
        source, warnings = _sifted(source, len(types), engine.folder)
        with _told_as_damage(source, path):
            misfits = _misfits(engine.connection, source, types, advance)
            if source.kind is None:  # the sample promised too much: shown as they are
                types |= {name: "text" if types[name] == "timestamp" else "json" for name in misfits}
            relation = _relation(source, types)
            exact = size <= _COUNTED_BYTES
            profile = profile_relation(engine.connection, relation, types, exact=exact, advance=advance)
            first = _first_rows(engine.connection, relation, types, rows)
    source = msgspec.structs.replace(source, files=files)
    if source.kind is not None:
        warnings += [f"{name}: {rows} values are no {types[name]}" for name, rows in misfits.items()]
    if source.form == "csv" and source.kind is not None:
        profile, first = _unescaped(profile, types), [_unescaped_row(row, types) for row in first]
    return _inspection(path, source, profile, manifest, warnings, first)


def _size(source: _Source) -> int:
    return sum(file.stat().st_size for file in source.files)


def _inspection(
    path: Path,
    source: _Source,
    profile: Profile,
    manifest: dict[str, Any],
    warnings: Sequence[str],
    first: Sequence[dict[str, Any]],
) -> Inspection:
    size = _size(source)
    if source.manifest_path is not None and "rows" in manifest:
        said = (manifest.get("rows"), manifest.get("bytes"))
        if said != (profile.rows, size):
            warnings = [*warnings, f"the manifest says {said[0]} rows in {said[1]} bytes: run `tds verify {path}`"]
    return Inspection(
        path=str(path),
        what=source.what,
        kind=None if source.kind is None else source.kind.name,
        files=len(source.files),
        bytes=size,
        rows=profile.rows,
        parts={_part(file): profile.parts.get(_part(file), 0) for file in source.files} if path.is_dir() else {},
        columns=profile.columns,
        estimated=size > _COUNTED_BYTES,
        manifest=manifest,
        warnings=list(warnings),
        first=list(first),
    )


# ------------------------------------------------------------------------------------------------- what it is


def _recognized(path: Path) -> _Source:
    """What stands at a path, by its name and place, and by the columns in it."""
    if path.is_dir():
        return _recognized_folder(path)
    form = _format(path) if path.is_file() else None  # a pipe would be waited for
    if form is None:
        raise UnknownArtifact(
            f"{path}: expected a file that ends in {', '.join(_FORMATS)} (also with .gz or .zst), a manifest, or the "
            "folder of a dataset or of days; name one of these"
        )
    manifest = next((beside for beside in _manifests_of(path) if beside.exists()), None)
    kind = _kind(path, form, {} if manifest is None else _read_manifest(manifest))
    return _Source(_what(path, kind, form), kind, form, [path], manifest)


def _manifests_of(path: Path) -> list[Path]:
    """Where the manifest of a file may stand: beside it, also where the file was packed by hand afterwards."""
    return [manifest_of(path), *([manifest_of(path.with_suffix(""))] if path.suffix in _PACKED else [])]


def _recognized_model(path: Path, said: Mapping[str, Any], manifest: Path) -> _Source:
    """A model's folder: its answers to the test split."""
    answers = path / "predictions.jsonl"
    if not answers.exists():
        raise DamagedFile(f"{path}: {answers.name} is not there; train the model again")
    return _Source(
        f"model {said.get('model', path.parent.name)}, its answers on test", None, "jsonl", [answers], manifest
    )


def _recognized_folder(path: Path) -> _Source:
    """A dataset's or model's folder, that of its latest version, or any folder of files of one format, read as one."""
    latest, manifest = path / "latest.json", path / "manifest.json"
    if latest.exists():
        return _recognized_folder(path / str(_read_manifest(latest).get("version", "")))
    if manifest.exists():
        said = _read_manifest(manifest)
        if "metrics" in said:
            return _recognized_model(path, said, manifest)
        splits = [path / f"{name}.jsonl" for name in said.get("splits", {})]
        missing = [split.name for split in splits if not split.exists()]
        if missing or not splits:
            raise DamagedFile(
                f"{path}: the manifest names {', '.join(missing) or 'no split'}, which is not there; build it again"
            )
        return _Source(f"dataset {said.get('model', path.parent.name)}", None, "jsonl", splits, manifest)
    for suffix, form in _FORMATS.items():
        files = sorted(path.glob(f"{_DAY_GLOB}{suffix}")) or sorted(path.glob(f"*{suffix}"))
        if files:
            kind = _kind(files[0], form, {})
            return _Source(f"folder, each file a {_what(files[0], kind, form)}", kind, form, files, None)
    raise UnknownArtifact(
        f"{path}: expected a dataset's folder, or one that holds CSV, Parquet or JSONL files, such as curated/events; "
        "name one, or a file"
    )


def _format(path: Path) -> Format | None:
    suffix = path.with_suffix("").suffix if path.suffix in _PACKED else path.suffix
    return _FORMATS.get(suffix.lower())


def _kind(path: Path, form: Format, manifest: Mapping[str, Any]) -> Kind | None:
    """The kind whose columns a file has: all that matter, or some of those of the kind that its manifest names."""
    names = set(_column_names(path, form))
    named = KINDS.get(str(manifest.get("kind")))
    if named is not None and names <= set(named.types):
        return named
    return next(
        (kind for kind in KINDS.values() if {"record_id", "timestamp", *kind.required} <= names <= set(kind.types)),
        None,
    )


def _column_names(path: Path, form: Format) -> list[str]:
    """The names in a CSV header, in a first JSON line, or in a Parquet footer; none where there is no such thing."""
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except (pa.ArrowInvalid, OSError) as err:
            raise DamagedFile(f"{path}: not a whole Parquet file ({err}); build it again") from err
    with _lines(path) as lines:
        first = next(iter(lines), b"")
    if form == "csv":
        return first.decode(errors="replace").strip().replace('"', "").split(",")
    return list(_object(first) or {})


def _what(path: Path, kind: Kind | None, form: Format) -> str:
    """A name for people, without the day: `raw day of events`."""
    folders = [folder.name for folder in path.absolute().parents]
    stages = {"training": "raw day", "curated": "curated day", "days": "shard", "ranges": "range export"}
    stage = next((stages[name] for name in folders[:2] if name in stages), None)
    if "quarantine" in folders[:2]:
        return f"quarantined lines of {folders[0]}"
    if kind is None or stage is None:
        return f"{form.upper() if form != 'parquet' else 'Parquet'} file" + (f" of {kind.name}" if kind else "")
    if path.name == f"{kind.name}_training.jsonl":
        stage = "range export"
    return f"{stage} of {kind.name}"


# ------------------------------------------------------------------------------------------- how it is read


def _types(source: _Source, connection: "duckdb.DuckDBPyConnection") -> dict[str, ProfileType]:
    """The columns and their types: those of the kind as far as they are there, else what the values look like."""
    if source.form == "parquet":
        described = connection.execute(
            "SELECT name, logical FROM (DESCRIBE FROM read_parquet($1, hive_partitioning = false)) "
            "AS d(name, logical, a, b, c, e)",
            [glob_escaped(source.files[0])],
        ).fetchall()
        found: dict[str, ProfileType] = {name: _DUCKDB_TYPES.get(logical, "json") for name, logical in described}
    elif source.form == "csv":
        found = dict.fromkeys(_column_names(source.files[0], "csv"), "text")
        if "" in found:
            raise DamagedFile(f"{source.files[0]}: expected a header in its first line; write the file again")
    else:
        found = _sampled_types(source.files)
    if source.kind is not None:
        return {name: source.kind.types[name] for name in found}
    return found or {"(empty)": "text"}


def _sampled_types(files: Sequence[Path]) -> dict[str, ProfileType]:
    """The columns of JSON lines and the type that all values of the first thousand lines have."""
    types: dict[str, ProfileType | None] = {}
    for path in files:
        with _lines(path) as lines:
            for _, line in zip(range(_SAMPLED_LINES), lines, strict=False):
                for name, value in (_object(line) or {}).items():
                    known, here = types.get(name), _value_type(value)
                    types[name] = (
                        here if known is None or here == known else (known if here is None else _wider(known, here))
                    )
    return {name: column_type or "json" for name, column_type in types.items()}


def _value_type(value: object) -> ProfileType | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "timestamp" if TIMESTAMP.fullmatch(value) else "text"
    return "json"


def _wider(one: ProfileType, other: ProfileType) -> ProfileType:
    """The type that has room for the values of two."""
    if {one, other} == {"integer", "number"}:
        return "number"
    return "text" if {one, other} == {"timestamp", "text"} else "json"


def _relation(source: _Source, types: Mapping[str, ProfileType]) -> str:
    """A relation over the files: the typed columns, and as `part` what `_part` gives for the file."""
    columns = [_typed(name, column_type, source.form) for name, column_type in types.items()]
    day = r"nullif(regexp_extract(filename, '_([0-9]{4}-[0-9]{2}-[0-9]{2})\.[^/]*$', 1), '')"
    part = rf"coalesce({day}, regexp_extract(filename, '([^/]*?)\.[^/]*$', 1))"
    return f"(SELECT {part} AS part, {', '.join(columns)} FROM {_reader(source, types)})"


def _part(file: Path) -> str:
    """The day in a file's name, else the name without its endings."""
    stem = file.name.partition(".")[0]
    return stem.rpartition("_")[2] if fnmatch(stem, _DAY_GLOB) else stem


def _reader(source: _Source, types: Mapping[str, ProfileType]) -> str:
    """What reads the files as they are: Parquet by its own types, CSV as text, JSON lines as text and documents."""
    files = "[" + ", ".join(literal(glob_escaped(file)) for file in source.files) + "]"
    if source.form == "parquet":
        return f"read_parquet({files}, hive_partitioning = false, filename = true, union_by_name = true)"
    return _csv_reader(files, types) if source.form == "csv" else _jsonl_reader(files, types)


def _misfits(
    connection: "duckdb.DuckDBPyConnection",
    source: _Source,
    types: Mapping[str, ProfileType],
    advance: Advance | None,
) -> dict[str, int]:
    """Columns in which values do not have the column's type, and how many."""
    judged = {name: kind for name, kind in types.items() if kind in _CASTS and kind != "json"}
    if source.form == "parquet" or not judged:
        return {}
    counts = ", ".join(f"count({_quoted(name)}) FILTER (WHERE NOT {_fits(name, judged[name])})" for name in judged)
    query = f"SELECT {counts} FROM {_reader(source, types)}"
    found = run_query(connection, query, what="judging types", advance=advance)[0]
    return {name: rows for name, rows in zip(judged, found, strict=True) if rows}


def _fits(name: str, column_type: ProfileType) -> str:
    """Whether a value's text is of the type: DuckDB would also take the text "1" for a number, and 1.5 for 2."""
    text = f"{_quoted(name)}::VARCHAR"
    pattern = {"integer": "-?[0-9]+", "flag": "true|false"}.get(column_type, '[^"].*')
    cast = _CASTS[column_type].format(text)
    return f"(CASE WHEN regexp_full_match({text}, {literal(pattern)}) THEN {cast} IS NOT NULL ELSE {text} IS NULL END)"


def _csv_reader(files: str, types: Mapping[str, ProfileType]) -> str:
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in types)
    options = {**DUCKDB_CSV_OPTIONS, "strict_mode": True, "hive_partitioning": False, "filename": True}
    options["max_line_size"] = _LONGEST_LINE_BYTES
    settings = ", ".join(f"{name} = {literal(value)}" for name, value in options.items())
    return f"read_csv({files}, columns = {{{columns}}}, {settings})"


def _jsonl_reader(files: str, types: Mapping[str, ProfileType]) -> str:
    texts = ("id", "text", "timestamp")
    columns = ", ".join(
        f"{literal(name)}: {literal('VARCHAR' if kind in texts else 'JSON')}" for name, kind in types.items()
    )
    return (
        f"read_json({files}, format = 'newline_delimited', records = true, columns = {{{columns}}}, filename = true, "
        f"hive_partitioning = false, maximum_object_size = {_LONGEST_LINE_BYTES})"
    )


_CASTS: Mapping[ProfileType, str] = {
    "integer": "TRY_CAST({} AS BIGINT)",
    "number": "TRY_CAST({} AS DOUBLE)",
    "flag": "TRY_CAST({} AS BOOLEAN)",
    "timestamp": "TRY_CAST({} AS TIMESTAMPTZ)",
    "json": "{}::VARCHAR",
}


def _typed(name: str, column_type: ProfileType, form: Format) -> str:
    """A column by its type. Parquet has types, and documents that are lists or structs there become text.

    A text of CSV is cast within a CASE: DuckDB moves a plain cast into its reader, which then refuses the whole file
    for one value (2.0.0, TRY_CAST included).
    """
    cast = "{}" if form == "parquet" and column_type != "json" else _CASTS.get(column_type, "{}")
    value = cast.format(_quoted(name))
    if form == "csv":
        value = f"CASE WHEN {_quoted(name)} IS NOT NULL THEN {value} END"
    return f"{value} AS {_quoted(name)}"


def _sifted(source: _Source, columns: int, scratch: Path) -> tuple[_Source, list[str]]:
    """A kind's day files without the lines that are no rows, which curation would put into quarantine, and which.

    Other CSV files may have line breaks within a field: they are read as they are.
    """
    if source.form != "csv" or source.kind is None:
        return source, []
    files, told = list[Path](), list[str]()
    for file in source.files:
        whole = _whole_lines_bytes(file)
        if whole < file.stat().st_size:
            told.append(f"no row: {file.name}, byte {whole}: a line without an end")
        sieve = Sieve(still_prefix(file, whole, scratch), columns)
        told += [f"no row: {file.name}, line {number}: {reason}" for number, reason in sieve.flaws.items()]
        files.append(sieve.sifted(scratch))
    more = len(told) - _MOST_FLAWS
    if more > 0:
        told[_MOST_FLAWS:] = [f"{more} more lines are no rows"]
    return msgspec.structs.replace(source, files=files), told


def _whole_lines_bytes(path: Path) -> int:
    """Where a file's last line feed ends: a writer at work, or a copy cut short, may have left a piece behind it."""
    end = path.stat().st_size
    with path.open("rb") as file:
        while end:
            start = max(0, end - CHUNK_BYTES)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
            end = start
    raise DamagedFile(f"{path}: not one whole line: expected at least the header; restore the file from a backup")


def _unescaped(profile: Profile, types: Mapping[str, ProfileType]) -> Profile:
    """The profile of a day file with its texts as they were stored, not as they are escaped there."""
    columns = [
        msgspec.structs.replace(
            column,
            least=None if column.least is None else unescape_text(column.least),
            greatest=None if column.greatest is None else unescape_text(column.greatest),
            top=[ValueCount(unescape_text(value.value), value.rows) for value in column.top],
        )
        if types[column.name] in {"id", "text"}
        else column
        for column in profile.columns
    ]
    return msgspec.structs.replace(profile, columns=columns)


def _unescaped_row(row: dict[str, Any], types: Mapping[str, ProfileType]) -> dict[str, Any]:
    return {
        name: unescape_text(value) if isinstance(value, str) and types[name] in {"id", "text"} else value
        for name, value in row.items()
    }


def _first_rows(
    connection: "duckdb.DuckDBPyConnection", relation: str, types: Mapping[str, ProfileType], rows: int
) -> list[dict[str, Any]]:
    columns = ", ".join(
        f"strftime({_quoted(name)} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"
        if kind == "timestamp"
        else _quoted(name)
        for name, kind in types.items()
    )
    found = connection.execute(f"SELECT {columns} FROM {relation} LIMIT {rows}").fetchall()
    return [
        {
            name: _decoded(value) if kind == "json" else value
            for (name, kind), value in zip(types.items(), row, strict=True)
        }
        for row in found
    ]


def _decoded(value: str | None) -> object:
    try:
        return None if value is None else msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value


# --------------------------------------------------------------------------------------------------- manifests


def _inspect_manifest(path: Path) -> Inspection:
    said = _read_manifest(path)
    warnings = []
    artifact = path.parent / str(said["path"]) if isinstance(said.get("path"), str) else None
    if artifact is not None and not artifact.exists():
        warnings.append(f"its artifact {artifact.name} is not there: build it again")
    elif artifact is not None and artifact.stat().st_size != said.get("bytes"):
        size = artifact.stat().st_size
        warnings.append(f"{artifact.name} has {size} bytes, not {said.get('bytes')}: run `tds verify {artifact}`")
    return Inspection(
        path=str(path), what="manifest", kind=said.get("kind"), files=1, bytes=path.stat().st_size,
        rows=said.get("rows", 0), parts={}, columns=[], estimated=False, manifest=said, warnings=warnings, first=[],
    )  # fmt: skip


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as err:
        raise DamagedFile(f"{path}: no JSON ({err}); build its artifact again, which writes it anew") from err
    if not isinstance(found, dict):
        raise DamagedFile(f"{path}: expected a JSON object; build its artifact again, which writes it anew")
    return found


# ------------------------------------------------------------------------------------------------ damaged files


@contextmanager
def _told_as_damage(source: _Source, path: Path) -> Iterator[None]:
    """Turn what DuckDB says of a broken file into DamagedFile, which names the place."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as err:
        raise EngineFailed(f"{path}: DuckDB gave up: {err}; look again with more free memory or disk") from err
    except duckdb.Error as err:
        if source.form == "jsonl":
            for file in source.files:
                _find_bad_line(file)
        raise DamagedFile(f"{path}: cannot be read to its end ({_first_line(err)}); build it again") from err


def _first_line(err: Exception) -> str:
    return str(err).partition("\n")[0]


def _find_bad_line(path: Path) -> None:
    """Raise DamagedFile naming the first line that is no JSON object, or is longer than this program reads."""
    position = 0
    with _lines(path) as lines:
        for number, line in enumerate(lines, 1):
            place = f"{path}, line {number}, byte {position}"
            if len(line) > _LONGEST_LINE_BYTES:
                raise DamagedFile(f"{place}: {len(line)} bytes: expected at most {_LONGEST_LINE_BYTES}; split the line")
            if _object(line) is None:
                raise DamagedFile(f"{place}: no JSON object: expected one record a line; build the file again")
            position += len(line)


def _object(line: bytes) -> dict[str, Any] | None:
    """A line's JSON object; None if it is none."""
    import orjson

    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def _lines(path: Path) -> Iterator[BinaryIO]:
    """A file's lines, decompressed as its name says. Raises DamagedFile where the compressed data break."""
    import zstandard

    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                yield cast("BinaryIO", gzip.GzipFile(fileobj=file))
            elif path.suffix == ".zst":
                reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
                yield cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", reader)))
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as err:
        raise DamagedFile(f"{path}: the compressed data break off ({err}); build it again, or copy it again") from err


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
