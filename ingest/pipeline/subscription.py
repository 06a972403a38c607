"""Follows a kind's records as they come: from Synapse, or without Redis from what the writer has committed.

A position is a record's id. With Redis the stream is searched from the millisecond in that id on; if it is trimmed
already, all that is left from then on is given. Without, the day files that were written since are read, and what has a
later id is given, in the order of ids, before what follows.

A durable group has a name and a place of its own, which lasts over its consumers. A record is acknowledged when its
consumer asks for the next one; what is not acknowledged is given again, so each record comes at least once.

    with Redis   a consumer group of the stream. Its consumers share the entries, each under a name of its own, and an
                 entry (up to 500 records) is acknowledged whole. What a consumer has in hand shows a sign of life at
                 each record; after TDS_GROUP_IDLE seconds without one another consumer claims it. A consumer that
                 leaves in good order hands over what it has.
    without      a row a day file in the ledger. One consumer holds the group's lock and the others stand by; the place
                 is noted at least once a second and at the end.

An erasure rewrites day files: places in them move back by what was erased before them.
"""

import asyncio
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from ingest.errors import DamagedFile, InvalidRecord, SynapseUnavailable
from ingest.pipeline.ledger import CommittedFile, open_ledger, place_after, put_rewritten_in_place
from ingest.pipeline.locks import FileLock
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
_PIECE_BYTES = 1 << 20  # of a day file, read at a time
_KEEP_S = 1.0  # a consumer in the middle of its work acknowledges what it has done so often
_HANDED_OVER_MS = 10 * 24 * 3600 * 1000  # as idle as anybody may wish: the next consumer claims it at once
_GONE_MS = 24 * 3600 * 1000  # a consumer that shows no sign of life for a day, and has nothing in hand, is forgotten
_GROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_WRITERS_GROUP = "writer"
_Read = TypeVar("_Read")

logger = logging.getLogger(__name__)


def checked_group(name: str) -> str:
    """The name of a durable group. Raises InvalidRecord for one that cannot be used."""
    if _GROUP_NAME.fullmatch(name) is None or name == _WRITERS_GROUP:
        raise InvalidRecord(
            f"group={name!r}: expected up to 64 letters, digits, _ . - and not {_WRITERS_GROUP!r}, which is the group "
            "of the writer; choose a name for what the records are used for, such as trainer"
        )
    return name


async def follow(
    settings: Settings, kind_name: str, after: str | None = None, group: str | None = None
) -> AsyncGenerator[dict[str, object]]:
    """A kind's records from now on, or from behind the record with the id `after`, each as a dict without nulls.

    With a `group`: from where the durable group of that name stands. It is made at its first use; `after`, or now,
    only says where it begins. JSON columns are decoded. Raises UnknownKind, InvalidRecord for a group's name that
    cannot be used; with Redis also SynapseUnavailable.
    """
    kind = kind_named(kind_name)
    if group is not None:
        checked_group(group)
        follow_group = _follow_files_as_group if settings.redis_url is None else _follow_stream_as_group
        source = follow_group(settings, kind, group, after)
    else:
        follow_alone = _follow_files if settings.redis_url is None else _follow_stream
        source = follow_alone(settings, kind, after)
    async with aclosing(source) as records:
        async for record in records:
            yield record


def forget_group(settings: Settings, kind_name: str, group: str) -> bool:
    """Forget a durable group and its place; whether there was one. End its consumers first: they would make it again.

    Raises UnknownKind, InvalidRecord and SynapseUnavailable.
    """
    kind, group = kind_named(kind_name), checked_group(group)
    if settings.redis_url is None:
        paths = DataPaths(settings.data_dir)
        if not paths.ledger(kind.name).exists():
            return False
        with open_ledger(paths, kind.name) as ledger:
            return ledger.forget_group(group)
    from ingest.pipeline.synapse import connect, redis_errors, stream_groups, stream_key

    client = connect(settings)
    try:
        with redis_errors(settings):
            known = stream_groups(client, kind.name)  # XGROUP DESTROY is an error where there is no stream
            return group in known and bool(client.xgroup_destroy(stream_key(kind.name), group))
    finally:
        client.close()


async def _follow_stream(settings: Settings, kind: Kind, after: str | None) -> AsyncGenerator[dict[str, object]]:
    from ingest.pipeline.synapse import answering, connect_async, stream_key  # with Redis only: 0.25 s to import

    client, key = connect_async(settings), stream_key(kind.name)
    found: list[dict[str, object]] = []
    try:
        if after is not None:
            position, found = await _search(settings, client, key, after)
        else:
            position = await _last_entry(settings, client, key)
        for record in found:
            yield record
        while True:
            async with answering(settings):
                reply = await client.xread({key: position}, count=_ENTRIES, block=_BLOCK_MS)
            streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply or [])
            for entry_id, fields in (entry for _, entries in streams for entry in entries):
                position = entry_id
                for record in _records(fields):
                    yield record
    finally:
        await client.aclose()


async def _last_entry(settings: Settings, client: "Redis", key: str) -> str | bytes:
    """Where the stream ends now. With "$" in its place, what comes between two XREADs would be passed over."""
    from ingest.pipeline.synapse import answering  # as above

    async with answering(settings):
        entries = cast("list[tuple[bytes, object]]", await client.xrevrange(key, count=1))
    return entries[0][0] if entries else "0"


async def _search(
    settings: Settings, client: "Redis", key: str, after: str
) -> tuple[str | bytes, list[dict[str, object]]]:
    """The entry that holds the record `after`, and the records behind it in that entry.

    Where it is trimmed already: the place before the oldest entry that is left.
    """
    from ingest.pipeline.synapse import answering  # as above

    made = ingest_time(after)
    start = 0 if made is None else max(0, int(made.timestamp() * 1000) - _CLOCK_SLACK_MS)
    position: str | bytes = str(start)
    while True:
        behind = b"(" + position if isinstance(position, bytes) else position
        async with answering(settings):
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


async def _follow_stream_as_group(
    settings: Settings, kind: Kind, group: str, after: str | None
) -> AsyncGenerator[dict[str, object]]:
    from ingest.pipeline.synapse import answering, connect_async, stream_key  # as above

    client = connect_async(settings)
    consumer = _Consumer(client, stream_key(kind.name), group, settings.group_idle)
    try:
        await consumer.join(settings, after)
        while True:
            async with answering(settings):
                entries = await consumer.read()
            for entry_id, fields in entries:
                for record in _behind(list(_records(fields)), after):
                    yield record
                    if consumer.has_to_show_itself():
                        async with answering(settings):
                            await consumer.show_itself()
                consumer.has_done(entry_id)
    finally:
        with suppress(SynapseUnavailable):  # whatever it had in hand is claimed when it has been idle for long
            async with answering(settings):
                await consumer.leave()
        await client.aclose()


def _behind(records: list[dict[str, object]], after: str | None) -> list[dict[str, object]]:
    """The records of an entry behind that with the id `after`; all of them where it is not among them."""
    places = [place for place, record in enumerate(records) if record.get("record_id") == after]
    return records[places[0] + 1 :] if after is not None and places else records


class _Consumer:
    """One consumer of a durable group in Synapse."""

    def __init__(self, client: "Redis", key: str, group: str, idle_s: int) -> None:
        self._client, self._key, self._group, self._idle_ms = client, key, group, idle_s * 1000
        self._show_every_s = min(_KEEP_S, idle_s / 4)
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._in_hand: list[bytes] = []  # given and not acknowledged, in this order
        self._done: list[bytes] = []  # the first ones of these, when the consumer has asked for more
        self._next_claim = self._shown_at = 0.0

    async def join(self, settings: Settings, after: str | None) -> None:
        """Make the group if it is not there, and forget consumers that are gone for long."""
        from ingest.pipeline.synapse import GROUP, answering

        async with answering(settings):
            groups = await self._client.xinfo_groups(self._key) if await self._client.exists(self._key) else []
        names = [group["name"].decode(errors="replace") for group in groups]
        if self._group not in names:
            # Where no writer has been, or Redis lost it: everything that is there, so that nothing is passed over.
            start = "$" if GROUP in names else "0"
            if after is not None:
                start = await _place_before(settings, self._client, self._key, after)
            async with answering(settings):
                await self._make_group(start)
        async with answering(settings):
            for other in await self._client.xinfo_consumers(self._key, self._group):
                if other["pending"] == 0 and other["idle"] > _GONE_MS:
                    await self._client.xgroup_delconsumer(self._key, self._group, other["name"])

    async def _make_group(self, position: str) -> None:
        from redis import ResponseError

        try:
            await self._client.xgroup_create(self._key, self._group, id=position, mkstream=True)
        except ResponseError as err:
            if "BUSYGROUP" not in str(err):
                raise

    async def read(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """What consumers that are gone had in hand, else what is new; waits up to a second for it."""
        reply: object = None
        async with self._made_again():
            await self._acknowledge()
            claimed = await self._claim()
            position = "0" if claimed else ">"
            reply = await self._client.xreadgroup(
                self._group, self._name, {self._key: position}, count=_ENTRIES, block=None if claimed else _BLOCK_MS
            )
        streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply or [])
        entries = [entry for _, found in streams for entry in found]
        self._in_hand = [entry_id for entry_id, _ in entries]
        lost = sum(1 for _, fields in entries if not fields)
        if lost:
            logger.warning(
                "%s: %d entries that the group %s had not acknowledged are trimmed; what was in them is in the day "
                "files only; see TDS_GROUP_RETENTION", self._key, lost, self._group,
            )  # fmt: skip
        return entries

    @asynccontextmanager
    async def _made_again(self) -> AsyncGenerator[None]:
        """Around commands: a group that Redis lost is made again, at the beginning of the stream."""
        from redis import ResponseError

        try:
            yield
        except ResponseError as err:
            if "NOGROUP" not in str(err):
                raise
            logger.warning(
                "%s: Redis lost the group %s and its place: it goes on with all that is in the stream; what was "
                "written and not read yet may be in the day files only", self._key, self._group,
            )  # fmt: skip
            await self._make_group("0")

    async def _claim(self) -> bool:
        """Take over what others had in hand and show no sign of life for; True if that is something.

        By XPENDING and XCLAIM: XAUTOCLAIM of Redis 6.2 does not name the entries that are deleted, nor lets go of them.
        """
        if time.monotonic() < self._next_claim:
            return False
        idle = await self._client.xpending_range(
            self._key, self._group, min="-", max="+", count=_ENTRIES, idle=self._idle_ms
        )
        claimed = await self._take([entry["message_id"] for entry in idle], self._idle_ms)
        if not claimed:
            self._next_claim = time.monotonic() + self._idle_ms / 4000
        return claimed

    async def _take(self, ids: Iterable[bytes | str | int], min_idle_ms: int = 0, idle_ms: int = 0) -> bool:
        """Make entries this consumer's own, and let them look idle for so long; True if it got any of them."""
        wanted = [*ids]
        return bool(wanted) and bool(
            await self._client.xclaim(
                self._key, self._group, self._name, min_idle_ms, [*wanted], idle=idle_ms, justid=True
            )
        )

    def has_done(self, entry_id: bytes) -> None:
        """Note that the consumer has asked for what comes behind this entry."""
        self._done.append(entry_id)

    def has_to_show_itself(self) -> bool:
        """Whether others might soon take this consumer for dead."""
        return time.monotonic() - self._shown_at > self._show_every_s

    async def show_itself(self) -> None:
        """Acknowledge what is done, and show a sign of life for what is in hand."""
        self._shown_at = time.monotonic()
        async with self._made_again():
            await self._acknowledge()
            await self._take(self._in_hand)

    async def _acknowledge(self) -> None:
        if self._done:
            await self._client.xack(self._key, self._group, *self._done)
            self._in_hand = self._in_hand[len(self._done) :]
            self._done = []

    async def leave(self) -> None:
        """Acknowledge what is done and hand over the rest, also what was given but did not arrive here."""
        await self._acknowledge()
        mine = await self._client.xpending_range(
            self._key, self._group, min="-", max="+", count=1000, consumername=self._name
        )
        await self._take((entry["message_id"] for entry in mine), idle_ms=_HANDED_OVER_MS)


async def _place_before(settings: Settings, client: "Redis", key: str, after: str) -> str:
    """The place before the entry that holds the record `after`, or before the oldest one left from its time on."""
    position, _ = await _search(settings, client, key, after)
    if isinstance(position, str):
        return f"{position}-0"
    milliseconds, _, number = position.decode().partition("-")
    return f"{milliseconds}-{int(number) - 1}" if int(number) else f"{int(milliseconds) - 1}-{(1 << 64) - 1}"


async def _follow_files(settings: Settings, kind: Kind, after: str | None) -> AsyncGenerator[dict[str, object]]:
    paths = DataPaths(settings.data_dir)
    places, erasures, backlog = await asyncio.to_thread(_begin, paths, kind, after)
    for record in backlog:
        yield record
    while True:
        files, erasures = await asyncio.to_thread(_look, paths, kind, places, erasures)
        for day, file in files.items():
            places[day] = min(places.get(day, 0), file.size)
            while places[day] < file.size:
                part = await asyncio.to_thread(_still_rows, paths, kind, day, places[day], file, erasures)
                if part is None:
                    break
                places[day], rows = part
                for _, record in rows:
                    yield record
        await asyncio.sleep(_POLL_S)


def _begin(paths: DataPaths, kind: Kind, after: str | None) -> tuple[dict[str, int], int, list[dict[str, object]]]:
    """Up to where the files reach, by day, how many erasures there were by then, and what in them is later."""

    def find_later(files: Mapping[str, CommittedFile]) -> list[dict[str, object]]:
        if after is None:
            return []
        return _backlog(paths, kind, {day: files[day] for day in _written_since(files, after)}, after)

    later, files, erasures = _read_undisturbed(paths, kind, find_later)
    return {day: file.size for day, file in files.items()}, erasures, later


def _read_undisturbed(
    paths: DataPaths, kind: Kind, read: Callable[[Mapping[str, CommittedFile]], _Read]
) -> tuple[_Read, dict[str, CommittedFile], int]:
    """What `read` makes of the committed files, these, and how many erasures there were; again if one came between."""
    while True:
        files, erasures = _look(paths, kind, {}, 0)
        try:
            found = read(files)
        except DamagedFile:
            if _look(paths, kind, {}, 0)[1] == erasures:
                raise
        else:
            if _look(paths, kind, {}, 0)[1] == erasures:
                return found, files, erasures


def _written_since(files: Mapping[str, CommittedFile], record_id: str) -> list[str]:
    """The days whose files were written to since a record was made; all of them where its id does not tell."""
    made = ingest_time(record_id)
    since_ns = 0 if made is None else int(made.timestamp() * 1e9) - _MTIME_SLACK_NS
    return [day for day, file in files.items() if file.mtime_ns >= since_ns]


async def _follow_files_as_group(
    settings: Settings, kind: Kind, group: str, after: str | None
) -> AsyncGenerator[dict[str, object]]:
    paths = DataPaths(settings.data_dir)
    lock = FileLock(group_lock(paths, kind.name, group))
    while not lock.acquire():  # noqa: ASYNC110 - another process holds it, and tells no event that it ended
        await asyncio.sleep(_POLL_S)
    noted: dict[str, int] = {}
    places, erasures = noted, 0
    try:
        places, erasures = await asyncio.to_thread(_join_files, paths, kind, group, after)
        noted, noted_at = dict(places), time.monotonic()
        while True:
            before = erasures
            files, erasures = await asyncio.to_thread(_look, paths, kind, places, erasures)
            if erasures != before:
                noted.clear()
            for day, file in files.items():
                if places.setdefault(day, 0) > file.size:
                    places[day] = 0  # it was written anew: given again rather than left out
                while places[day] < file.size:
                    part = await asyncio.to_thread(_still_rows, paths, kind, day, places[day], file, erasures)
                    if part is None:
                        break
                    end, rows = part
                    for behind, record in rows:
                        yield record
                        places[day] = behind
                        if time.monotonic() - noted_at > _KEEP_S:
                            await asyncio.to_thread(_note_places, paths, kind, group, places, noted, erasures)
                            noted_at = time.monotonic()
                    places[day] = end
            await asyncio.to_thread(_note_places, paths, kind, group, places, noted, erasures)
            await asyncio.sleep(_POLL_S)
    finally:
        _note_places(paths, kind, group, places, noted, erasures)
        lock.release()


def group_lock(paths: DataPaths, kind: str, group: str) -> Path:
    """The lock of the one consumer that a group without Redis has at a time."""
    return paths.lock(f"{kind}.group-{group}")


def _join_files(paths: DataPaths, kind: Kind, group: str, after: str | None) -> tuple[dict[str, int], int]:
    """Up to where a group is served, by day, and how many erasures there were by then.

    A new group begins now, or with the rows that are later than `after`.
    """
    with open_ledger(paths, kind.name) as ledger:
        while True:
            with ledger.snapshot():
                known, files, erasures = ledger.groups().get(group), ledger.files(), ledger.count_erasures()
            if known is not None:
                return known, erasures
            places = {day: file.size for day, file in files.items()}
            try:
                for day in _written_since(files, after) if after is not None else ():
                    places[day] = _first_later(paths, kind, day, files[day], after or "")
            except DamagedFile:
                if ledger.count_erasures() == erasures:
                    raise
                continue
            if ledger.place_group(group, places, erasures):
                return places, erasures


def _first_later(paths: DataPaths, kind: Kind, day: str, file: CommittedFile, after: str) -> int:
    """Where the first row with a later id begins in a day file."""
    place = 0
    while place < file.size:
        end, rows = _rows(paths, kind, day, place, file)
        for behind, row in rows:
            if str(row["record_id"]) > after:
                return place
            place = behind
        place = end
    return file.size


def _note_places(
    paths: DataPaths, kind: Kind, group: str, places: Mapping[str, int], noted: dict[str, int], erasures: int
) -> None:
    """Bring what changed in the places into the ledger, unless they are places in files that were rewritten since."""
    changed = {day: size for day, size in places.items() if noted.get(day) != size}
    if changed:
        with open_ledger(paths, kind.name) as ledger:
            if ledger.place_group(group, changed, erasures):
                noted.update(changed)


def first_unread(paths: DataPaths, kind_name: str, places: Mapping[str, int]) -> datetime | None:
    """When the oldest of the first rows that a group without Redis has not read was made; None if it has read all."""
    kind = kind_named(kind_name)

    def find_first(files: Mapping[str, CommittedFile]) -> list[datetime]:
        found = []
        for day, file in files.items():
            place = places.get(day, 0)
            rows = _rows(paths, kind, day, place, file)[1] if place < file.size else []
            made = ingest_time(str(rows[0][1]["record_id"])) if rows else None
            if made is not None:
                found.append(made)
        return found

    return min(_read_undisturbed(paths, kind, find_first)[0], default=None)


def _backlog(paths: DataPaths, kind: Kind, files: Mapping[str, CommittedFile], after: str) -> list[dict[str, object]]:
    later = []
    for day, file in files.items():
        place = 0
        while place < file.size:
            place, rows = _rows(paths, kind, day, place, file)
            later += [row for _, row in rows if str(row["record_id"]) > after]
    return sorted(later, key=lambda row: str(row["record_id"]))


def _look(paths: DataPaths, kind: Kind, places: dict[str, int], erasures: int) -> tuple[dict[str, CommittedFile], int]:
    """The committed files, and how many erasures there are now; places move back by what newer ones took."""
    if not paths.ledger(kind.name).exists():
        return {}, 0
    with open_ledger(paths, kind.name) as ledger, ledger.snapshot():
        files, present = ledger.files(), ledger.count_erasures()
        newer = ledger.erasures()[erasures:] if present != erasures else []
    for erased in newer:
        if erased.day in places:
            places[erased.day] = place_after(places[erased.day], erased.ranges)
    return files, present


def _still_rows(
    paths: DataPaths, kind: Kind, day: str, start: int, file: CommittedFile, erasures: int
) -> tuple[int, list[tuple[int, dict[str, object]]]] | None:
    """`_rows`; None if the file was rewritten meanwhile, so that these are no places in it any more."""
    try:
        part = _rows(paths, kind, day, start, file)
    except DamagedFile:
        part = None
    with open_ledger(paths, kind.name) as ledger:
        if ledger.count_erasures() != erasures:
            return None
    return part or _rows(paths, kind, day, start, file)


def _rows(
    paths: DataPaths, kind: Kind, day: str, start: int, file: CommittedFile
) -> tuple[int, list[tuple[int, dict[str, object]]]]:
    """About a MiB of a day file's rows from a place on, each with the place behind it, and the place behind all.

    Read is the version that is committed: an erasure may have been killed before it put that one in its place.
    The header is passed over. A place that is no beginning of a line is none of ours any more, because the file was
    written anew: then it is read from its beginning.
    """
    rows: list[tuple[int, dict[str, object]]] = []
    path = paths.training(kind.name, day)
    put_rewritten_in_place(path, file)
    with path.open("rb") as source:
        if start:
            source.seek(start - 1)
            if source.read(1) != b"\n":
                start = 0
                source.seek(0)
        place = start or len(source.readline())
        stop = min(file.size, place + _PIECE_BYTES)
        while place < stop:
            line = source.readline()
            if not line.endswith(b"\n"):
                raise DamagedFile(f"{path}: ends at byte {place + len(line)}, but {file.size} bytes are committed")
            place += len(line)
            try:
                rows.append((place, kind.read_row(line[:-1].decode(errors="replace"))))
            except ValueError:
                continue  # edited by hand: curation puts it into quarantine
    return place, rows
