"""Carries spooled records through Synapse (Redis Streams): the shipper puts in, the writer's source takes out.

    stream  tds:{<kind>}            an entry: v version, p producer, o first sequence number, n count, d the records'
                                    JSON, one a line; an empty line is a record that was lost on disk
    hash    tds:{<kind>}:marks      producer → highest sequence number that is written, published by the writer
    hash    tds:{<kind>}:producers  producer → its counters as JSON, published by the shippers
    groups  of the stream           `writer`, and any number of others, durable ones, that hold trimming back for a time

The spool keeps a record until its mark is published here, so Redis may lose everything at any time: the shipper finds
its oldest unacknowledged entry gone and begins again behind the mark. What arrives twice is passed over by the writer.
Lost groups are made again at the beginning of the stream, so that nothing in it is skipped.

A producer that has ended leaves in this order, and killed at any place nothing is counted or written twice:

    counters published → its folder removed → `ended` published → counters and end in the ledger → counters leave Redis
    → folded in the ledger (there: when) → its mark leaves Redis → forgotten

Killed before `ended` is published, its mark stays for good: a row, and no harm. The wire is described for other
clients in docs/synapse.md; every command used exists since Redis 6.2.
"""

import asyncio
import contextlib
import logging
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import NamedTuple, cast

import msgspec
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRedisRetry
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry

from ingest.errors import InvalidSetting, SynapseUnavailable
from ingest.pipeline.failpoints import Failpoint
from ingest.pipeline.ledger import Commit, Ledger, Reject, open_ledger
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import DataPaths, sync_folder, today
from ingest.pipeline.spool import Batch, ProducerCounters, SpooledProducer, SpoolReader
from ingest.records import KINDS, Kind
from ingest.settings import Settings

WIRE_VERSION = b"1"
GROUP = "writer"  # the consumer group without which nothing is trimmed
_CONSUMER = "writer"  # one name: whoever holds the kind's lock inherits what its predecessor had pending
_ENTRIES_AT_ONCE = 16
_MAX_UNACKNOWLEDGED_BYTES = 64 << 20  # of one producer in Redis; the rest waits in the spool
_BLOCK_MS = 100
# Beside a busy agent each system call is a wait of 5 ms for the interpreter: what may wait is done at times.
_LOOK_INTERVAL_S = 0.02
_MARKS_INTERVAL_S = 0.05
_STUCK_S = 1.0  # marks that do not move for so long: is the oldest entry still there?
_COUNTERS_INTERVAL_S = 0.5
_PENDING_INTERVAL_S = 2.0
_TRIM_INTERVAL_S = 10.0
_FOLD_INTERVAL_S = 600.0
_REPUBLISH_S = 30.0  # counters that Redis lost between two changes are there again after so long
_FULL = 0.8  # of maxmemory: what durable groups wait for goes before a Redis that refuses the agents' records
_SOCKET_TIMEOUT_S = 3.0
_READ_BYTES = 1 << 20  # with one system call: entries have up to 256 KiB, and 16 of them come at once

logger = logging.getLogger(__name__)


def stream_key(kind: str) -> str:
    """The stream of a kind. The braces are meant: its hashes then share its slot in a Redis cluster."""
    return f"tds:{{{kind}}}"


def marks_key(kind: str) -> str:
    """The hash of the producers' marks."""
    return f"{stream_key(kind)}:marks"


def producers_key(kind: str) -> str:
    """The hash of the producers' counters."""
    return f"{stream_key(kind)}:producers"


def connect(settings: Settings, timeout_s: float = _SOCKET_TIMEOUT_S) -> redis.Redis:
    """A client for TDS_REDIS_URL; nothing is sent before the first command. One command fails after `timeout_s`.

    Raises InvalidSetting for an address that redis-py cannot parse.
    """
    return cast("redis.Redis", _client(redis.Redis, RedisRetry(NoBackoff(), 0), settings, timeout_s))


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """`connect` for an event loop; commands go inside `answering`."""
    return cast("redis.asyncio.Redis", _client(redis.asyncio.Redis, AsyncRedisRetry(NoBackoff(), 0), settings, None))


@asynccontextmanager
async def answering(settings: Settings) -> AsyncGenerator[None]:
    """`redis_errors` around commands in an event loop, which have to be done within 3 seconds.

    redis-py's own timeout uses asyncio.wait_for, which loses a cancellation that comes while a command is sent (Python
    3.11): Ctrl-C would not end a subscription.
    """
    with redis_errors(settings):
        try:
            async with asyncio.timeout(_SOCKET_TIMEOUT_S):
                yield
        except TimeoutError as err:
            raise redis.TimeoutError(f"no answer within {_SOCKET_TIMEOUT_S} s") from err


def _client(
    kind: type[redis.Redis | redis.asyncio.Redis],
    retry: RedisRetry | AsyncRedisRetry,
    settings: Settings,
    timeout_s: float | None,
) -> redis.Redis | redis.asyncio.Redis:
    try:
        client: redis.Redis | redis.asyncio.Redis = kind.from_url(
            settings.redis_url or "",
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=_SOCKET_TIMEOUT_S if timeout_s is None else timeout_s,
            retry=retry,  # none: the callers retry, from a state that they know
            socket_read_size=_READ_BYTES,
        )
        client.connection_pool.make_connection()  # connects to nothing, but takes the address apart to the end
    except (ValueError, TypeError):
        # Without its cause: redis-py's message may hold a part of the password.
        raise InvalidSetting(
            f"TDS_REDIS_URL={settings.redis_url_without_password}: expected redis://[user:password@]host[:port]/db; "
            "write special characters of a password as %XX"
        ) from None
    return client


@contextmanager
def redis_errors(settings: Settings) -> Iterator[None]:
    """Turn redis-py's errors into SynapseUnavailable, which names the address and what to do."""
    try:
        yield
    except redis.RedisError as err:
        advice = (
            "expected a certificate that this host trusts; name its authority by ?ssl_ca_certs=FILE in the address"
            if "CERTIFICATE_VERIFY_FAILED" in str(err)
            else "expected Redis 6.2 or newer that accepts writes; start it, or unset the variable to do without Redis"
        )
        raise SynapseUnavailable(f"TDS_REDIS_URL={settings.redis_url_without_password}: {err}; {advice}") from err


def published_marks(client: redis.Redis, kind: str, producers: list[str]) -> dict[str, int]:
    """The published marks of these producers; one without a mark has 0."""
    if not producers:
        return {}
    values = cast("list[bytes | None]", client.hmget(marks_key(kind), producers))
    # What somebody else put there and is no number counts as no mark: the writer publishes the right one again.
    return {name: int(value) if value and value.isdigit() else 0 for name, value in zip(producers, values, strict=True)}


class PublishedMarks:
    """The published marks, for somebody who waits for them: one connection, however often they are looked at."""

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        """Connect to nothing yet. One look takes `timeout_s` at most."""
        self._client = connect(settings, min(timeout_s, _SOCKET_TIMEOUT_S))

    def look(self, kind: str, producers: list[str]) -> dict[str, int]:
        """`published_marks`. While Redis does not answer nothing is known: {}."""
        try:
            return published_marks(self._client, kind, producers)
        except redis.RedisError:
            return {}  # whoever waits for marks goes on waiting, up to its own deadline

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class PublishedCounters(ProducerCounters, frozen=True):
    """A producer's counters as they stand in Redis."""

    ended: int = 0  # when the producer ended for good, in seconds since 1970 by the clock of Redis; 0: it may send more


def published_counters(client: redis.Redis, kind: str) -> dict[str, PublishedCounters]:
    """What every producer, on any host, last published of its counters."""
    found = cast("dict[bytes, bytes]", client.hgetall(producers_key(kind)))
    counters = {}
    for name, text in found.items():
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # not one of ours
            counters[name.decode()] = msgspec.json.decode(text, type=PublishedCounters)
    return counters


EntryId = tuple[int, int]  # milliseconds since 1970 by the clock of Redis, and a number within them


def parsed_id(text: bytes) -> EntryId:
    """An entry's id in a form that can be compared."""
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)


def id_text(entry: EntryId) -> str:
    """An entry's id as Redis writes it."""
    return f"{entry[0]}-{entry[1]}"


class StreamGroup(NamedTuple):
    """A consumer group of a stream."""

    position: EntryId  # its oldest entry not acknowledged, or else the last one that was given out
    pending: int  # entries given out and not acknowledged
    consumers: int


def stream_groups(client: redis.Redis, kind: str) -> dict[str, StreamGroup]:
    """All groups of a kind's stream, the writer's too; none where there is no stream."""
    key, groups = stream_key(kind), {}
    if not client.exists(key):
        return {}
    for found in client.xinfo_groups(key):
        pending = client.xpending(key, found["name"])
        position = parsed_id(pending["min"] or found["last-delivered-id"])
        name = found["name"].decode(errors="backslashreplace")
        groups[name] = StreamGroup(position, pending["pending"], found["consumers"])
    return groups


def waiting_since_ms(client: redis.Redis, kind: str, group: StreamGroup) -> int | None:
    """When the oldest entry that a group has not acknowledged came into the stream; None if there is none."""
    if group.pending:
        return group.position[0]
    behind = f"({id_text(group.position)}"
    entries = cast("list[tuple[bytes, object]]", client.xrange(stream_key(kind), min=behind, count=1))
    return parsed_id(entries[0][0])[0] if entries else None


class _Sent(NamedTuple):
    """An entry that is in Redis and not acknowledged by a mark yet."""

    entry_id: bytes
    last_seq: int
    size_bytes: int


class Shipper:
    """Ships one kind's spool on this host: all producers', dead ones' too. One process a host does it at a time."""

    def __init__(self, settings: Settings, kind: str) -> None:
        """Name the kind; nothing is opened before the first step."""
        self.kind = kind
        self.lock = FileLock(settings.spool / f".{kind}.shipper.lock")
        self._settings = settings
        self._client: redis.Redis | None = None
        self._ended: dict[str, PublishedCounters] = {}  # to be published; nobody else knows of them any more
        self._start_anew()

    def _start_anew(self) -> None:
        self._reader = SpoolReader(self._settings.spool, self.kind)
        self._sent: dict[str, deque[_Sent]] = defaultdict(deque)
        self._marks: dict[str, int] = {}
        self._moved_at: dict[str, float] = {}  # when each producer's mark, or its oldest entry, was a new one
        self._next_look = self._next_marks = self._next_counters = self._next_republishing = 0.0
        self._published: dict[str, ProducerCounters] = {}

    def step(self) -> int:
        """Ship what the spool has now; gives how many records were sent. Without the lock nothing is done.

        Raises SynapseUnavailable when Redis does not answer; the next step starts behind the published marks.
        """
        if not self.lock.acquire():
            return 0
        try:
            with redis_errors(self._settings):
                if self._client is None:
                    self._client = connect(self._settings).client()  # type: ignore[no-untyped-call]  # of one connection
                return self._ship(self._client)
        except BaseException:
            self.reset()
            raise

    def _ship(self, client: redis.Redis) -> int:
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_INTERVAL_S
            unseen = self._reader.unseen()
            self._reader.refresh(published_marks(client, self.kind, unseen), unseen)
        self._publish_ended(client)
        self._take_marks(client)
        batches: list[Batch] = []
        for producer in list(self._reader.producers.values()):
            batches += self._read(producer)
        if batches:
            self._send(client, batches)
        self._publish_counters(client)
        return sum(batch.count for batch in batches)

    def _read(self, producer: SpooledProducer) -> list[Batch]:
        room = _MAX_UNACKNOWLEDGED_BYTES - sum(sent.size_bytes for sent in self._sent[producer.producer])
        batches: list[Batch] = []
        while room > 0 and len(batches) < _ENTRIES_AT_ONCE:
            batch = producer.read()
            if batch is None:
                break
            batches.append(_as_json(batch, KINDS[self.kind]))
            room -= len(batch.data)
        return batches

    def _send(self, client: redis.Redis, batches: list[Batch]) -> None:
        key = stream_key(self.kind)
        for batch in batches:
            if not self._sent[batch.producer]:
                self._moved_at[batch.producer] = time.monotonic()
        commands = [
            ("XADD", key, "*", "v", WIRE_VERSION, "p", b.producer, "o", b.first_seq, "n", b.count, "d", b.data)
            for b in batches
        ]
        for batch, entry_id in zip(batches, _at_once(client, commands), strict=True):
            self._sent[batch.producer].append(_Sent(entry_id, batch.last_seq, len(batch.data)))

    def _take_marks(self, client: redis.Redis) -> None:
        """Let go of what is written, and begin again behind the mark where Redis lost entries."""
        if time.monotonic() < self._next_marks:
            return
        self._next_marks = time.monotonic() + _MARKS_INTERVAL_S
        producers = list(self._reader.producers)
        marks = published_marks(client, self.kind, producers)
        for name in producers:
            if marks[name] != self._marks.get(name):
                self._moved_at[name] = time.monotonic()
            if marks[name] > self._reader.producers[name].read_up_to:
                self._reader.rewind(name, marks[name])  # a lost mark is published again: go on from there
            sent = self._sent[name]
            while sent and sent[0].last_seq <= marks[name]:
                sent.popleft()
            if sent and time.monotonic() - self._moved_at[name] > _STUCK_S:
                self._resend_if_lost(client, name, marks[name])
            self._release(client, name, marks[name])
        self._marks = marks

    def _release(self, client: redis.Redis, name: str, mark: int) -> None:
        producer = self._reader.producers[name]
        if producer.release(mark):
            final, now_s = producer.final_counters(mark), client.time()[0]
            self._publish(client, {name: final})
            self._reader.forget(name)
            self._sent.pop(name, None)
            self._moved_at.pop(name, None)
            producer.remove()
            sync_folder(producer.folder.parent)  # a folder that a power cut brings back would be sent again
            self._ended[name] = PublishedCounters(final.offered, final.accepted, final.dropped, final.coerced, now_s)
            self._publish_ended(client)

    def _publish_ended(self, client: redis.Redis) -> None:
        if self._ended:
            self._publish(client, self._ended)
            for name in self._ended:
                self._published.pop(name, None)
            self._ended.clear()

    def _resend_if_lost(self, client: redis.Redis, name: str, mark: int) -> None:
        oldest = self._sent[name][0].entry_id
        if not client.xrange(stream_key(self.kind), oldest, oldest):
            self._sent[name].clear()
            self._reader.rewind(name, mark)
        self._moved_at[name] = time.monotonic()

    def _publish_counters(self, client: redis.Redis) -> None:
        if time.monotonic() < self._next_counters:
            return
        self._next_counters = time.monotonic() + _COUNTERS_INTERVAL_S
        if time.monotonic() >= self._next_republishing:
            self._next_republishing = time.monotonic() + _REPUBLISH_S
            self._published.clear()
        self._publish(client, {name: producer.counters() for name, producer in self._reader.producers.items()})

    def _publish(self, client: redis.Redis, counters: Mapping[str, ProducerCounters]) -> None:
        changed = {name: count for name, count in counters.items() if self._published.get(name) != count}
        if changed:
            client.hset(producers_key(self.kind), mapping={n: msgspec.json.encode(c) for n, c in changed.items()})
            self._published.update(changed)

    def reset(self) -> None:
        """Forget everything but the lock: the next step begins behind the published marks."""
        client, self._client = self._client, None
        self._reader.close()
        self._start_anew()
        if client is not None:
            client.close()
            client.connection_pool.disconnect()

    def close(self) -> None:
        """Close files and connection and let the lock go."""
        self.reset()
        self.lock.release()


def _at_once(client: redis.Redis, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[bytes]:
    """Send commands with one system call, and give the replies. Raises redis.RedisError.

    A pipeline of redis-py makes a call for each large command, and at each of them this thread waits 5 ms for the
    interpreter, if the agent beside it is busy: 80 ms for 16 entries.
    """
    connection = cast("redis.Connection", client.connection)  # `client()` of redis-py makes one that has its own
    try:
        packed = connection.pack_commands(commands)  # type: ignore[no-untyped-call]
        connection.send_packed_command([b"".join(packed)])  # type: ignore[no-untyped-call]
        return [cast("bytes", connection.read_response()) for _ in commands]
    except BaseException:
        connection.disconnect()  # type: ignore[no-untyped-call]  # replies may be on their way
        raise


def _as_json(batch: Batch, kind: Kind) -> Batch:
    """A batch with JSON for its rows: what a process without TDS_REDIS_URL left in this spool."""
    if not any(batch.days):
        return batch
    names = batch.header.decode().rstrip("\n").split(",")
    lines = [_json_line(kind, names, line) if day else line for line, day in zip(batch.lines, batch.days, strict=True)]
    return Batch(batch.producer, batch.first_seq, batch.count, b"\n".join(lines))


def _json_line(kind: Kind, names: Sequence[str], row: bytes) -> bytes:
    """The JSON of a row; of one that cannot be read the row itself, for the writer to put into quarantine."""
    try:
        return kind.json_line(kind.widen_row(names, row).rstrip(b"\n"))
    except (ValueError, RecursionError):
        return row


class _Entry(NamedTuple):
    """An entry that was delivered and not acknowledged yet."""

    producer: str  # "": an entry that was deleted, and holds nothing to wait for
    last_seq: int = 0
    origin: str = ""  # of a stray, under which the ledger knows it once it is in quarantine


class StreamSource:
    """One kind's stream as its writer's source. An entry is acknowledged once the producer's mark covers it."""

    def __init__(self, settings: Settings, kind: str) -> None:
        """Connect to nothing yet."""
        self.kind = kind
        self._settings = settings
        self._client = connect(settings)
        self._failpoint = Failpoint(settings.failpoint)
        self._delivered: dict[bytes, _Entry] = {}
        self._pending_from: bytes | None = (
            None  # reading this consumer's pending entries behind that id; None: new ones
        )
        self._published: dict[str, int] = {}
        self._counted: dict[str, PublishedCounters] = {}  # what was in Redis at the last look, and is in the ledger
        self._passed_over: set[str] = set()  # groups that trimming went past, and it was said
        self._is_open = False
        self._next_pending = self._next_counters = self._next_trim = 0.0
        self._next_fold = time.monotonic() + _TRIM_INTERVAL_S

    def read(self, _marks: Mapping[str, int], factor: int = 1) -> tuple[list[Batch], list[Reject]]:
        """The next entries' batches; waits up to 0.1 s for new ones. Raises SynapseUnavailable."""
        with redis_errors(self._settings):
            if not self._is_open:
                self._open()
            entries = self._read_group(factor)
        batches, strays = [], []
        for entry_id, fields in entries:
            if not fields:  # somebody deleted it while it was pending
                self._delivered[entry_id] = _Entry("")
                continue
            batch = _batch(fields)
            if isinstance(batch, Batch):
                batches.append(batch)
                self._delivered[entry_id] = _Entry(batch.producer, batch.last_seq)
            else:
                origin = f"synapse entry {entry_id.decode()}"
                strays.append(Reject(today().isoformat(), batch, origin, repr(fields).encode()))
                self._delivered[entry_id] = _Entry("", origin=origin)
        return batches, strays

    def _open(self) -> None:
        with open_ledger(DataPaths(self._settings.data_dir), self.kind) as ledger:
            if GROUP not in stream_groups(self._client, self.kind):
                self._make_lost_groups(ledger)
                create_group(self._client, self.kind, GROUP)  # the last: until it is there, all this is done again
            self._published.clear()
            self._publish(ledger.marks())
        self._delivered.clear()
        self._pending_from = b"0"
        self._is_open = True

    def _make_lost_groups(self, ledger: Ledger) -> None:
        """In a Redis that is new, was flushed or came back without its data: the groups that were there before."""
        for name, position in ledger.stream_groups().items():
            create_group(self._client, self.kind, name)
            logger.warning(
                "%s: Redis lost its data, and with it the group %s, which stood at entry %s: it goes on with what is "
                "sent again; what was written since that entry is in the day files only", self.kind, name, position,
            )  # fmt: skip

    def _read_group(self, factor: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Entries that were delivered to a former writer first, then new ones; pending ones again at times."""
        if self._pending_from is None and time.monotonic() >= self._next_pending:
            self._pending_from = b"0"  # entries behind a gap stay pending; when it was filled they are acknowledged
        position = self._pending_from
        try:
            reply = self._client.xreadgroup(
                GROUP,
                _CONSUMER,
                {stream_key(self.kind): ">" if position is None else position},
                count=factor * _ENTRIES_AT_ONCE,
                block=_BLOCK_MS if position is None else None,
            )
        except redis.ResponseError as err:
            if "NOGROUP" in str(err):
                self._is_open = False  # Redis was flushed, or restarted without its data
                return []
            raise
        streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply or [])
        entries = [entry for _, found in streams for entry in found]
        if position is not None:
            self._pending_from = entries[-1][0] if entries else None
            if not entries:
                self._next_pending = time.monotonic() + _PENDING_INTERVAL_S
        return entries

    def acknowledge(self, ledger: Ledger, marks: Mapping[str, int], *, last: bool = False) -> None:  # noqa: ARG002 - what is acknowledged once is done
        """Publish the marks, then acknowledge the entries that they cover. Raises SynapseUnavailable.

        What was read meanwhile and is not committed yet stays, and so does what waits behind a gap.
        """
        with redis_errors(self._settings):
            touched = {entry.producer for entry in self._delivered.values() if entry.producer}
            self._publish({name: marks.get(name, 0) for name in touched})
            self._failpoint.reach("publish")
            covered = [
                entry_id
                for entry_id, entry in self._delivered.items()
                if entry.last_seq <= marks.get(entry.producer, 0)
                and (not entry.origin or ledger.has_reject(entry.origin))
            ]
            if covered:
                self._client.xack(stream_key(self.kind), GROUP, *covered)
                self._failpoint.reach("acknowledge")
            for entry_id in covered:
                del self._delivered[entry_id]
            self._keep_house(ledger)

    def _publish(self, marks: Mapping[str, int]) -> None:
        changed = {name: mark for name, mark in marks.items() if name and mark and self._published.get(name) != mark}
        if changed:
            self._client.hset(marks_key(self.kind), mapping=changed)  # type: ignore[arg-type]  # invariant dict type
            self._published.update(changed)

    def _keep_house(self, ledger: Ledger) -> None:
        """Republish marks that Redis lost, keep the producers' counters, trim and fold what nobody waits for."""
        now = time.monotonic()
        if now >= self._next_counters:
            self._next_counters = now + _COUNTERS_INTERVAL_S
            if self._client.hlen(marks_key(self.kind)) < len(self._published):
                self._published.clear()
                self._publish(ledger.marks())
            self._keep_counters(ledger)
        if now >= self._next_trim:
            self._next_trim = now + _TRIM_INTERVAL_S
            self._trim(ledger)
        if now >= self._next_fold:
            self._next_fold = now + _FOLD_INTERVAL_S
            self._fold(ledger)

    def _keep_counters(self, ledger: Ledger) -> None:
        """Bring the producers' counters into the ledger; those of ended ones leave Redis then."""
        found = published_counters(self._client, self.kind)
        found.pop("", None)  # the ledger's name for the sum of folded ones
        ended = {name: counters for name, counters in found.items() if counters.ended > 0}
        marks = ledger.marks(ended)
        written = {name: c.ended for name, c in ended.items() if marks.get(name, 0) >= c.accepted}
        # Folded long ago, and brought back by an older state of Redis: its records are in the sums already.
        unknown = [name for name in ended if name not in written and name not in marks]
        folded_before = self._folded_before() if unknown else 0
        folded = [name for name in unknown if ended[name].ended < folded_before]
        changed = {name: c for name, c in found.items() if name not in folded and self._counted.get(name) != c}
        if changed or written:
            ledger.commit(Commit(producers=dict(changed), ended=written))
        if written or folded:
            self._client.hdel(producers_key(self.kind), *written, *folded)
        self._counted = found

    def _trim(self, ledger: Ledger) -> None:
        """Trim what the writer and the durable groups have done with, but nothing younger than the retention.

        A group holds back what is not older than TDS_GROUP_RETENTION, and nothing more while Redis is nearly full.
        """
        groups = stream_groups(self._client, self.kind)
        writer = groups.pop(GROUP, None)
        if writer is None:
            self._is_open = False  # Redis lost it, and the other groups with it
            return
        positions = {name: id_text(group.position) for name, group in groups.items()}
        if positions != ledger.stream_groups():
            ledger.note_stream_groups(positions)
        now_ms = int(time.time() * 1000)
        held_from, limit = (now_ms, 0), min(writer.position, (now_ms - self._settings.synapse_retention * 1000, 0))
        if groups and not self._is_nearly_full():
            held_from = now_ms - self._settings.group_retention * 1000, 0
        for group in groups.values():
            limit = min(limit, max(group.position, held_from))
        if limit > (0, 0):
            self._tell_passed_over(groups, limit)
            self._client.xtrim(stream_key(self.kind), minid=id_text(limit), approximate=True)

    def _is_nearly_full(self) -> bool:
        memory = cast("dict[str, int]", self._client.info("memory"))
        return 0 < memory["maxmemory"] * _FULL < memory["used_memory"]

    def _tell_passed_over(self, groups: Mapping[str, StreamGroup], limit: EntryId) -> None:
        """Name the groups that lose unread entries by trimming up to `limit`, once until they have caught up."""
        passed = set()
        for name, group in groups.items():
            if group.position < limit:  # a group that has read everything stands before the limit too
                since = waiting_since_ms(self._client, self.kind, group)
                if since is not None and since < limit[0]:
                    passed.add(name)
        for name in sorted(passed - self._passed_over):
            logger.warning(
                "%s: the group %s has not read what it was held for: entries before %s are trimmed, and what was in "
                "them is in the day files only; see TDS_GROUP_RETENTION", self.kind, name, id_text(limit),
            )  # fmt: skip
        self._passed_over = passed

    def _folded_before(self) -> int:
        """Producers that ended before this moment have nothing in the stream (pipeline/ledger.py says more)."""
        oldest = cast("list[tuple[bytes, object]]", self._client.xrange(stream_key(self.kind), count=1))
        oldest_s = parsed_id(oldest[0][0])[0] / 1000 if oldest else self._client.time()[0]
        return int(oldest_s - timedelta(days=max(1, self._settings.key_days)).total_seconds())

    def _fold(self, ledger: Ledger) -> None:
        folded = ledger.fold(self._folded_before())
        if folded:
            self._client.hdel(marks_key(self.kind), *folded)
            for name in folded:
                self._published.pop(name, None)
            ledger.forget_folded(folded)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def create_group(client: redis.Redis, kind: str, group: str, position: str = "0") -> None:
    """Make a group that is given everything behind `position`; one that is there already stays as it is."""
    try:
        client.xgroup_create(stream_key(kind), group, id=position, mkstream=True)
    except redis.ResponseError as err:
        if "BUSYGROUP" not in str(err):
            raise


def _batch(fields: dict[bytes, bytes]) -> Batch | str:
    """An entry's fields as a batch, or else the reason why they are none."""
    missing = [name for name in ("v", "p", "o", "n", "d") if name.encode() not in fields]
    if missing:
        return f"fields {', '.join(missing)} are missing: expected v, p, o, n, d (docs/synapse.md)"
    if fields[b"v"] != WIRE_VERSION:
        return f"v={fields[b'v']!r}: expected {WIRE_VERSION!r}; this writer knows no other version"
    try:
        producer, first_seq, count = fields[b"p"].decode(), int(fields[b"o"]), int(fields[b"n"])
    except ValueError as err:
        return f"{err}: expected p as UTF-8, o and n as whole numbers"
    lines = fields[b"d"].count(b"\n") + 1
    if lines != count or first_seq < 1 or not producer:
        return f"p={producer!r}, o={first_seq}, n={count} with {lines} lines in d: expected n lines and o from 1"
    return Batch(producer, first_seq, count, fields[b"d"])
