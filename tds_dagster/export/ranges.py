"""Turns days' shards into one JSONL file of a range, with its manifest.

The file is the shards one after the other: one pass of copy and SHA-256. Order of
writes: manifest away, file, manifest, then `training/<kind>_training.jsonl` and the copy that was asked for.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import msgspec

from ingest.errors import DamagedFile, InvalidRange, SourceMissing, Unbalanced
from ingest.pipeline.partitions import DataPaths, day_range, manifest_of, parse_day, replacing, sync_folder, today
from ingest.records import SCHEMA_VERSION, kind_named
from ingest.redaction.redactor import Redactor, open_redactor
from ingest.settings import Settings
from tds_dagster.curate.artifacts import (
    CHUNK_BYTES,
    drop_manifest,
    is_intact,
    locked,
    made_now,
    read_manifest,
    write_manifest,
)
from tds_dagster.curate.raw import open_raw
from tds_dagster.export.accounting import total_account
from tds_dagster.export.days import Progress, build_days
from tds_dagster.export.describe import describe_export
from tds_dagster.export.lines import counting_anew, default_redactor
from tds_dagster.export.manifest import RangeExport, Shard, SourceShard
from tds_dagster.export.selected import selected_code_version, selection_sources, write_selected
from tds_dagster.export.selection import SUFFIXES, Selection
from tds_dagster.export.shard import code_version

KEEP_RANGES = 10


def export_range(
    paths: DataPaths,
    kind: str,
    start: str | None = None,
    end: str | None = None,
    *,
    output: Path | None = None,
    allow_missing: bool = False,
    keep_ranges: int = KEEP_RANGES,
    progress: Progress | None = None,
    settings: Settings | None = None,
    selection: Selection | None = None,
) -> RangeExport:
    """Bring the days of a range up to date and write them as one JSONL file.

    Days are `YYYY-MM-DD`, both included; default: the first day with data to yesterday (UTC). `output` gets a copy.
    A range without any record gives `rows=0`; the caller says so. `settings` say how it is redacted (None: as where
    nothing is set). With a `selection` what it leaves is written, to a file of its own, and
    `training/<kind>_training.jsonl` stays as it was.

    Raises UnknownKind, InvalidRange, and Unbalanced naming each day that failed and why: then the range file stays
    as it was. With `allow_missing` it is written without those days, and `failed` names them. With a selection also
    InvalidPredicate.
    """
    start, end = default_range(paths, kind, start, end)
    settings = settings or Settings(data_dir=paths.root)
    redactor = open_redactor(settings, settings.redaction)
    selection = selection or Selection()
    if selection.redaction == redactor.level:
        selection = msgspec.structs.replace(selection, redaction=None)
    predicate = selection.predicate(kind)  # before any day is built
    failed: dict[str, str] = {}

    def built() -> Generator[Shard]:
        with closing(build_days(paths, kind, day_range(start, end), redactor=redactor, progress=progress)) as days:
            for day, _, shard, error in days:
                if shard is not None:
                    yield shard
                if error is not None:
                    failed[day] = str(error)
        require_complete(kind, failed, allow_missing=allow_missing)

    if selection.is_whole:
        with closing(built()) as given:  # what stops the copy stops the days under way
            return write_range(
                paths, kind, given, start, end,
                keep_ranges=keep_ranges, output=output, failed=failed, redactor=redactor,
            )  # fmt: skip
    shards = list(built())
    chosen_for = redactor if selection.redaction is None else open_redactor(settings, selection.redaction)
    wanted = msgspec.structs.replace(
        _nothing_of(kind, start, end, chosen_for),
        path=paths.selected_export(kind, start, end, selection.digest, SUFFIXES[selection.format]),
        partitions=[source_shard(shard) for shard in shards],
        selection=selection.redacted(counting_anew(chosen_for), kind),
        sources=selection_sources(paths, predicate),
        code_version=selected_code_version(),
        failed=failed,
    )
    return _write_selection(paths, shards, wanted, selection, chosen_for, keep_ranges, output, progress)


def default_range(paths: DataPaths, kind: str, start: str | None, end: str | None) -> tuple[str, str]:
    """The range that is meant: what is not given is the first day with data, and yesterday (UTC).

    Where data begins today, today is meant: who has just stored the first records wants to see them. Raises
    UnknownKind, and InvalidRange if a given day is none, if the two are swapped, or if the end lies in the future.
    """
    kind_named(kind)
    for name, day in (("start", start), ("end", end)):
        if day is not None:
            parse_day(name, day)
    if end is not None and end > (today() + timedelta(days=1)).isoformat():
        raise InvalidRange(
            f"end={end}: expected tomorrow (UTC) at the latest, no record is filed later; correct the date"
        )
    first = None
    if start is None:
        with open_raw(paths, kind) as raw_days:
            first = raw_days.first_day_with_rows()
    yesterday = (today() - timedelta(days=1)).isoformat()
    last = end if end is not None else max(yesterday, start or first or "")
    start = start if start is not None else min(first or last, last)
    day_range(start, last)
    return start, last


def require_complete(kind: str, failed: dict[str, str], *, allow_missing: bool) -> None:
    """Raise Unbalanced naming the days that failed, unless they may be missing."""
    if failed and not allow_missing:
        reasons = "\n".join(f"  {day}: {reason}" for day, reason in failed.items())
        raise Unbalanced(
            f"{kind}: {len(failed)} of the days could not be exported and the range file was not replaced; "
            f"mend them, or pass allow_missing (`--allow-missing`) to go without\n{reasons}"
        )


def write_range(
    paths: DataPaths,
    kind: str,
    shards: Iterable[Shard],
    start: str,
    end: str,
    *,
    keep_ranges: int = KEEP_RANGES,
    output: Path | None = None,
    failed: dict[str, str] | None = None,
    redactor: Redactor | None = None,
) -> RangeExport:
    """Write shards, in order of their days, as the JSONL file of a range, with its manifest.

    `training/<kind>_training.jsonl` becomes the same file, `output` gets a copy, and of a kind's range files the
    `keep_ranges` latest stay. If the same shards were written before, that file is kept. Shards that are built while
    they are asked for are copied while the next are built; if that raises, the range file stays as it was. `failed`
    are days left out, once the last shard was given. `redactor` is the one of the shards (None: as where nothing is
    set).

    Raises SourceMissing if a shard is gone, DamagedFile if one was changed by somebody else.
    """
    day_range(start, end)
    kind_named(kind)
    redactor = redactor or default_redactor(paths)
    target = paths.range_export(kind, start, end)
    nothing = msgspec.structs.replace(_nothing_of(kind, start, end, redactor), path=target)
    failed = {} if failed is None else failed
    with locked(paths, f"{kind}_ranges"):
        rebuilt, written = _write_unless_current(paths, iter(shards), nothing, failed)
        os.utime(manifest_of(target))  # the latest asked for is the last to be pruned
        _link(target, paths.latest_export(kind))
        describe_export(paths, written)
        _prune(target.parent, keep_ranges, spare=target)
    if output is not None:
        _copy(target, output)
    return msgspec.structs.replace(written, rebuilt=rebuilt)


def _write_unless_current(
    paths: DataPaths, shards: Iterator[Shard], nothing: RangeExport, failed: dict[str, str]
) -> tuple[list[str], RangeExport]:
    """The days that were built anew, and the range: as it was written before, or as it is written now."""
    given: list[Shard] = []

    def noted() -> Iterator[Shard]:
        for shard in shards:
            given.append(shard)
            yield shard

    source = noted()
    is_changed = any(not shard.reused for shard in source)  # up to the first one: those behind it are not built yet
    written = None if is_changed else current_range(msgspec.structs.replace(nothing, failed=failed), given)
    if written is None:
        written = _write(paths, chain([*given], source), nothing, failed)
    return [shard.day for shard in given if not shard.reused], written


def _nothing_of(kind: str, start: str, end: str, redactor: Redactor) -> RangeExport:
    """A range export without rows and without a file."""
    return RangeExport(
        kind=kind, start=start, end=end, path=Path(), rows=0, bytes=0, sha256="", partitions=[],
        accounting=total_account(kind, []), schema_version=SCHEMA_VERSION, code_version=code_version(),
        redaction=redactor.level, redaction_version=redactor.version, made_at=made_now(),
    )  # fmt: skip


def _write_selection(
    paths: DataPaths,
    shards: Sequence[Shard],
    wanted: RangeExport,
    selection: Selection,
    redactor: Redactor,
    keep_ranges: int,
    output: Path | None,
    progress: Progress | None,
) -> RangeExport:
    """Write what was selected of a range, unless it is there already."""
    with locked(paths, f"{wanted.kind}_ranges"):
        written = current_range(wanted, shards)
        if written is None:
            written = write_selected(paths, shards, wanted, selection, redactor, progress=progress)
        os.utime(manifest_of(written.path))
        _prune(written.path.parent, keep_ranges, spare=written.path)
    if output is not None:
        _copy(written.path, output)
    return msgspec.structs.replace(written, rebuilt=[shard.day for shard in shards if not shard.reused])


def current_range(wanted: RangeExport, shards: Sequence[Shard]) -> RangeExport | None:
    """The range as it was written before, if it is the one that is wanted and was made of the same shards."""
    written = read_manifest(wanted.path, RangeExport)
    if written is None or not is_intact(written):
        return None
    of_result = {"rows", "bytes", "sha256", "redacted", "accounting", "made_at", "rebuilt", "reused"}
    expected = msgspec.structs.replace(wanted, partitions=[source_shard(shard) for shard in shards])
    names = [name for name in RangeExport.__struct_fields__ if name not in of_result]
    if any(getattr(written, name) != getattr(expected, name) for name in names):
        return None
    return msgspec.structs.replace(written, reused=True)


def _write(paths: DataPaths, shards: Iterable[Shard], nothing: RangeExport, failed: dict[str, str]) -> RangeExport:
    digest, size, redacted = hashlib.sha256(), 0, Counter[str]()
    written: list[Shard] = []
    with replacing(nothing.path) as out, ThreadPoolExecutor(1, thread_name_prefix="hash-range") as beside:
        hashed: Future[None] | None = None
        for shard in shards:
            present, source = _open_shard(paths, shard)
            of_shard = hashlib.sha256()
            with source:
                while chunk := source.read(CHUNK_BYTES):
                    if hashed is not None:
                        hashed.result()
                    hashed = beside.submit(digest.update, chunk)  # as long as the copy: 1.7 GB/s
                    out.write(chunk)
                    of_shard.update(chunk)  # also of a file that nobody touched: disks lose bits
                    size += len(chunk)
            if of_shard.hexdigest() != present.sha256:
                drop_manifest(present.path)  # so that the next export builds it again
                raise DamagedFile(
                    f"{present.path}: its content is not what its manifest says, somebody changed it; "
                    "the range file was not replaced: run the export again, which builds the day anew"
                )
            written.append(present)
            redacted.update(present.redacted)
        if hashed is not None:
            hashed.result()
        drop_manifest(nothing.path)
    export = msgspec.structs.replace(
        nothing,
        rows=sum(shard.rows for shard in written),
        bytes=size,
        sha256=digest.hexdigest(),
        partitions=[source_shard(shard) for shard in written],
        accounting=total_account(nothing.kind, [shard.account for shard in written]),
        redacted=dict(sorted(redacted.items())),
        failed=failed,
    )
    write_manifest(export)
    return export


def _open_shard(paths: DataPaths, shard: Shard) -> tuple[Shard, BinaryIO]:
    """A shard's file, open, with the manifest that belongs to it: another process may have replaced both since."""
    with locked(paths, f"{shard.kind}_{shard.day}"):
        present = read_manifest(paths.shard(shard.kind, shard.day), Shard)
        is_there = present is not None and is_intact(present)
        if present is None or not is_there or present.redaction_version != shard.redaction_version:
            raise SourceMissing(
                f"{paths.shard(shard.kind, shard.day)}: expected the shard with its manifest, at redaction level "
                f"{shard.redaction}; export {shard.day} again"
            )
        return present, present.path.open("rb")


def source_shard(shard: Shard) -> SourceShard:
    """A shard as a range's manifest names it."""
    return SourceShard(day=shard.day, rows=shard.rows, bytes=shard.bytes, sha256=shard.sha256, account=shard.account)


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, at once; a copy on disks without hard links."""
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(f".{target.name}.link")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        _copy(source, target)
        return
    temporary.replace(target)
    sync_folder(target.parent)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content, replacing(target) as out:
        shutil.copyfileobj(content, out, CHUNK_BYTES)


def _prune(folder: Path, keep: int, spare: Path) -> None:
    """Remove all but the latest range files. A manifest goes first: without it a file counts as not built."""
    manifests = sorted(folder.glob("*.manifest.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for manifest in manifests[max(keep, 1) :]:
        manifest.unlink()
    for suffix in SUFFIXES.values():
        for artifact in folder.glob(f"*.{suffix}"):
            if artifact != spare and not manifest_of(artifact).exists():
                artifact.unlink()
