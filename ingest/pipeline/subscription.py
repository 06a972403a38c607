"""Follows a kind's records as they come: from Synapse, or without Redis from what the writer has committed.

A position is a record's id. With Redis the stream is searched from the millisecond in that id on; if it is trimmed
already, all that is left from then on is given. Without, the day files that were written since are read, and what has a
later id is given, in the order of ids, before what follows.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

import msgspec

from ingest.pipeline.ledger import CommittedFile, open_ledger
from ingest.pipeline.partitions import DataPaths
from ingest.records import Kind, ingest_time, kind_named
from ingest.settings import Settings

if TYPE_CHECKING:
    from redis.asyncio import Redis

_POLL_S = 0.1
_BLOCK_MS = 1000
_ENTRIES = 16
_MTIME_SLACK_NS = 1_000_000_000  # file times are coarser than the clock that ids are made from: 4 ms seen
_CLOCK_SLACK_MS = 60_000  # between the host that made an id and the one whose Redis numbered the entry


async def follow(settings: Settings, kind_name: str, after: str | None = None) -> AsyncGenerator[dict[str, object]]:
    """A kind's records from now on, or from behind the record with the id `after`, each as a dict without nulls.

    JSON columns are decoded. Raises UnknownKind; with Redis also SynapseUnavailable.
    """
    kind = kind_named(kind_name)
    source = (
        _follow_files(settings, kind, after) if settings.redis_url is None else _follow_stream(settings, kind, after)
    )
    async with aclosing(source) as records:
        async for record in records:
            yield record


async def _follow_stream(settings: Settings, kind: Kind, after: str | None) -> AsyncGenerator[dict[str, object]]:
    from redis.asyncio import Redis  # a quarter of a second to import, and needed with Redis only

    from ingest.pipeline.synapse import redis_errors, stream_key

    with redis_errors(settings):
        client = Redis.from_url(settings.redis_url or "", protocol=2)
        key = stream_key(kind.name)
        position: str | bytes = "$"
        found: list[dict[str, object]] = []
        if after is not None:
            position, found = await _search(client, key, after)
    try:
        for record in found:
            yield record
        while True:
            with redis_errors(settings):
                reply = await client.xread({key: position}, count=_ENTRIES, block=_BLOCK_MS)
            streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply or [])
            for entry_id, fields in (entry for _, entries in streams for entry in entries):
                position = entry_id
                for record in _records(fields):
                    yield record
    finally:
        await client.aclose()


async def _search(client: "Redis", key: str, after: str) -> tuple[str | bytes, list[dict[str, object]]]:
    """The entry that holds the record `after`, and the records behind it in that entry.

    Where it is trimmed already: the place before the oldest entry that is left.
    """
    made = ingest_time(after)
    start = 0 if made is None else max(0, int(made.timestamp() * 1000) - _CLOCK_SLACK_MS)
    position: str | bytes = str(start)
    while True:
        behind = b"(" + position if isinstance(position, bytes) else position
        reply = await client.xrange(key, min=behind, count=64)
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", reply)
        if not entries:
            return str(start), []
        for entry_id, fields in entries:
            position = entry_id
            records = list(_records(fields))
            for place, record in enumerate(records):
                if record.get("record_id") == after:
                    return entry_id, records[place + 1 :]


def _records(fields: dict[bytes, bytes]) -> Iterator[dict[str, object]]:
    for line in fields.get(b"d", b"").split(b"\n"):
        try:
            record = msgspec.json.decode(line) if line else None
        except (msgspec.DecodeError, RecursionError):
            continue  # the writer puts it into quarantine; who follows along sees what can be read
        if isinstance(record, dict):
            yield record


async def _follow_files(settings: Settings, kind: Kind, after: str | None) -> AsyncGenerator[dict[str, object]]:
    paths = DataPaths(settings.data_dir)
    seen = await asyncio.to_thread(_committed, paths, kind)
    if after is not None:
        made = ingest_time(after)
        since_ns = 0 if made is None else int(made.timestamp() * 1e9) - _MTIME_SLACK_NS
        days = [day for day, file in seen.items() if file.mtime_ns >= since_ns]
        for record in await asyncio.to_thread(_backlog, paths, kind, {day: seen[day].size for day in days}, after):
            yield record
    while True:
        now = await asyncio.to_thread(_committed, paths, kind)
        for day, file in now.items():
            start = seen[day].size if day in seen else 0
            if file.size > start:
                for record in await asyncio.to_thread(list, _new_rows(paths, kind, day, start, file.size)):
                    yield record
        seen = now
        await asyncio.sleep(_POLL_S)


def _backlog(paths: DataPaths, kind: Kind, sizes: Mapping[str, int], after: str) -> list[dict[str, object]]:
    rows = (row for day, size in sizes.items() for row in _new_rows(paths, kind, day, 0, size))
    return sorted((row for row in rows if str(row["record_id"]) > after), key=lambda row: str(row["record_id"]))


def _committed(paths: DataPaths, kind: Kind) -> dict[str, CommittedFile]:
    if not paths.ledger(kind.name).exists():
        return {}
    with open_ledger(paths, kind.name) as ledger:
        return ledger.files()


def _new_rows(paths: DataPaths, kind: Kind, day: str, start: int, end: int) -> Iterator[dict[str, object]]:
    """The rows between two committed sizes; from 0 the header is passed over."""
    with paths.training(kind.name, day).open("rb") as source:
        source.seek(start)
        data = source.read(end - start)
    for line in data.decode(errors="replace").split("\n")[0 if start else 1 : -1]:
        try:
            yield kind.read_row(line)
        except ValueError:
            continue  # edited by hand: curation puts it into quarantine
