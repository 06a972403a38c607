"""Turns days' shards into one JSONL file of a range, with its manifest.

The file is the shards one after the other: one pass of copy and SHA-256. Order of
writes: manifest away, file, manifest, then `training/<kind>_training.jsonl` and the copy that was asked for.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import msgspec

from ingest.errors import DamagedFile, InvalidRange, SourceMissing, Unbalanced
from ingest.pipeline.partitions import DataPaths, day_range, manifest_of, parse_day, replacing, sync_folder, today
from ingest.records import SCHEMA_VERSION, kind_named
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
from tds_dagster.export.manifest import RangeExport, Shard, SourceShard
from tds_dagster.export.shard import REDACTION, code_version

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
) -> RangeExport:
    """Bring the days of a range up to date and write them as one JSONL file.

    Days are `YYYY-MM-DD`, both included; default: the first day with data to yesterday (UTC). `output` gets a copy.
    A range without any record gives `rows=0`; the caller says so.

    Raises UnknownKind, InvalidRange, and Unbalanced naming each day that failed and why: then the range file stays
    as it was. With `allow_missing` it is written without those days, and `failed` names them.
    """
    start, end = default_range(paths, kind, start, end)
    shards: list[Shard] = []
    failed: dict[str, str] = {}
    for day, _, shard, error in build_days(paths, kind, day_range(start, end), progress=progress):
        if shard is not None:
            shards.append(shard)
        if error is not None:
            failed[day] = str(error)
    require_complete(kind, failed, allow_missing=allow_missing)
    return write_range(paths, kind, shards, start, end, keep_ranges=keep_ranges, output=output, failed=failed)


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
    shards: Sequence[Shard],
    start: str,
    end: str,
    *,
    keep_ranges: int = KEEP_RANGES,
    output: Path | None = None,
    failed: dict[str, str] | None = None,
) -> RangeExport:
    """Write shards, in order of their days, as the JSONL file of a range, with its manifest.

    `training/<kind>_training.jsonl` becomes the same file, `output` gets a copy, and of a kind's range files the
    `keep_ranges` latest stay. If the same shards were written before, that file is kept. `failed` are days left out.

    Raises SourceMissing if a shard is gone, DamagedFile if one was changed by somebody else.
    """
    day_range(start, end)
    kind_named(kind)
    target = paths.range_export(kind, start, end)
    rebuilt = [shard.day for shard in shards if not shard.reused]
    with locked(paths, f"{kind}_ranges"):
        written = _current_range(target, shards, failed or {})
        if written is None:
            written = _write(paths, target, shards, failed or {}, RangeExport(
                kind=kind, start=start, end=end, path=target, rows=0, bytes=0, sha256="", partitions=[],
                accounting=total_account(kind, []), schema_version=SCHEMA_VERSION, code_version=code_version(),
                redaction=REDACTION, made_at=made_now(),
            ))  # fmt: skip
        os.utime(manifest_of(target))  # the latest asked for is the last to be pruned
        _link(target, paths.latest_export(kind))
        _prune(target.parent, keep_ranges, spare=target)
    if output is not None:
        _copy(target, output)
    return msgspec.structs.replace(written, rebuilt=rebuilt)


def _current_range(target: Path, shards: Sequence[Shard], failed: dict[str, str]) -> RangeExport | None:
    """The range as it was written before, if it was made of the same shards."""
    written = read_manifest(target, RangeExport)
    if written is None or not is_intact(written) or written.failed != failed:
        return None
    if written.partitions != [_source(shard) for shard in shards] or written.code_version != code_version():
        return None
    return msgspec.structs.replace(written, reused=True)


def _write(
    paths: DataPaths, target: Path, shards: Sequence[Shard], failed: dict[str, str], empty: RangeExport
) -> RangeExport:
    digest, size = hashlib.sha256(), 0
    written: list[Shard] = []
    with replacing(target) as out:
        for shard in shards:
            present, source = _open_shard(paths, shard)
            of_shard = hashlib.sha256()
            with source:
                while chunk := source.read(CHUNK_BYTES):
                    out.write(chunk)
                    digest.update(chunk)
                    of_shard.update(chunk)
                    size += len(chunk)
            if of_shard.hexdigest() != present.sha256:
                drop_manifest(present.path)  # so that the next export builds it again
                raise DamagedFile(
                    f"{present.path}: its content is not what its manifest says, somebody changed it; "
                    "the range file was not replaced: run the export again, which builds the day anew"
                )
            written.append(present)
        drop_manifest(target)
    export = msgspec.structs.replace(
        empty,
        rows=sum(shard.rows for shard in written),
        bytes=size,
        sha256=digest.hexdigest(),
        partitions=[_source(shard) for shard in written],
        accounting=total_account(empty.kind, [shard.account for shard in written]),
        failed=failed,
    )
    write_manifest(export)
    return export


def _open_shard(paths: DataPaths, shard: Shard) -> tuple[Shard, BinaryIO]:
    """A shard's file, open, with the manifest that belongs to it: another process may have replaced both since."""
    with locked(paths, f"{shard.kind}_{shard.day}"):
        present = read_manifest(paths.shard(shard.kind, shard.day), Shard)
        if present is None or not is_intact(present):
            raise SourceMissing(
                f"{paths.shard(shard.kind, shard.day)}: expected the shard with its manifest; export {shard.day} again"
            )
        return present, present.path.open("rb")


def _source(shard: Shard) -> SourceShard:
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
    for artifact in folder.glob("*.jsonl"):
        if artifact != spare and not manifest_of(artifact).exists():
            artifact.unlink()
