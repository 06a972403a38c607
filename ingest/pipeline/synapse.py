"""Carries spooled records through Synapse (Redis Streams): the shipper puts in, the writer's source takes out.

    stream  tds:{<kind>}            an entry: v version, p producer, o first sequence number, n count, d the records'
                                    JSON, one a line; an empty line is a record that was lost on disk
    hash    tds:{<kind>}:marks      producer → highest sequence number that is written, published by the writer
    hash    tds:{<kind>}:producers  producer → its counters as JSON, published by the shippers

The spool keeps a record until its mark is published here, so Redis may lose everything at any time: the shipper finds
its oldest unacknowledged entry gone and begins again behind the mark. What arrives twice is passed over by the writer.
Every command used exists since Redis 6.2. The wire is described for other clients in docs/synapse.md.
"""

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, cast

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry

from ingest.errors import InvalidSetting, SynapseUnavailable
from ingest.pipeline.failpoints import Failpoint
from ingest.pipeline.ledger import Commit, Ledger, Reject
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import today
from ingest.pipeline.spool import Batch, ProducerCounters, SpooledProducer, SpoolReader
from ingest.settings import Settings

WIRE_VERSION = b"1"
GROUP = "writer"  # the consumer group that trimming waits for
_CONSUMER = "writer"  # one name: whoever holds the kind's lock inherits what its predecessor had pending
_ENTRY_RECORDS, _ENTRY_BYTES = 500, 256 << 10
_ENTRIES_AT_ONCE = 16
_MAX_UNACKNOWLEDGED_BYTES = 64 << 20  # of one producer in Redis; the rest waits in the spool
_BLOCK_MS = 100
_MARKS_INTERVAL_S = 0.02
_STUCK_S = 1.0  # marks that do not move for so long: is the oldest entry still there?
_COUNTERS_INTERVAL_S = 0.5
_PENDING_INTERVAL_S = 2.0
_TRIM_INTERVAL_S = 10.0
_SOCKET_TIMEOUT_S = 3.0


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
    try:
        client = redis.Redis.from_url(
            settings.redis_url or "",
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=RedisRetry(NoBackoff(), 0),  # the callers retry, from a state that they know
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
        raise SynapseUnavailable(
            f"TDS_REDIS_URL={settings.redis_url_without_password}: {err}; expected Redis 6.2 or newer that accepts "
            "writes; start it, or unset the variable to write without Redis"
        ) from err


def published_marks(client: redis.Redis, kind: str, producers: list[str]) -> dict[str, int]:
    """The published marks of these producers; one without a mark has 0."""
    if not producers:
        return {}
    values = cast("list[bytes | None]", client.hmget(marks_key(kind), producers))
    # What somebody else put there and is no number counts as no mark: the writer publishes the right one again.
    return {name: int(value) if value and value.isdigit() else 0 for name, value in zip(producers, values, strict=True)}


def marks_of(settings: Settings, kind: str, producers: list[str], *, timeout_s: float) -> dict[str, int]:
    """`published_marks` over a connection of its own. While Redis does not answer nothing is known: {}."""
    client = connect(settings, min(timeout_s, _SOCKET_TIMEOUT_S))
    try:
        return published_marks(client, kind, producers)
    except redis.RedisError:
        return {}  # whoever waits for marks goes on waiting, up to its own deadline
    finally:
        client.close()


def published_counters(client: redis.Redis, kind: str) -> dict[str, ProducerCounters]:
    """What every producer, on any host, last published of its counters."""
    found = cast("dict[bytes, bytes]", client.hgetall(producers_key(kind)))
    counters = {}
    for name, text in found.items():
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # not one of ours
            counters[name.decode()] = msgspec.json.decode(text, type=ProducerCounters)
    return counters


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
        self._start_anew()

    def _start_anew(self) -> None:
        self._reader = SpoolReader(self._settings.spool, self.kind)
        self._sent: dict[str, deque[_Sent]] = defaultdict(deque)
        self._marks: dict[str, int] = {}
        self._moved_at: dict[str, float] = {}  # when each producer's mark, or its oldest entry, was a new one
        self._next_marks = self._next_counters = 0.0
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
                    self._client = connect(self._settings)
                return self._ship(self._client)
        except BaseException:
            self.reset()
            raise

    def _ship(self, client: redis.Redis) -> int:
        unseen = self._reader.unseen()
        self._reader.refresh(published_marks(client, self.kind, unseen), unseen)
        self._take_marks(client)
        batches: list[Batch] = []
        for producer in list(self._reader.producers.values()):
            batches += self._read(producer)
        if batches:
            self._send(client, batches)
        self._publish_counters(client)
        return sum(len(batch.lines) for batch in batches)

    def _read(self, producer: SpooledProducer) -> list[Batch]:
        room = _MAX_UNACKNOWLEDGED_BYTES - sum(sent.size_bytes for sent in self._sent[producer.producer])
        batches: list[Batch] = []
        while room > 0 and len(batches) < _ENTRIES_AT_ONCE:
            batch = producer.read(_ENTRY_RECORDS, _ENTRY_BYTES)
            if batch is None:
                break
            batches.append(batch)
            room -= sum(len(line or b"") for line in batch.lines)
        return batches

    def _send(self, client: redis.Redis, batches: list[Batch]) -> None:
        pipeline = client.pipeline(transaction=False)
        sizes = []
        for batch in batches:
            data = b"\n".join(line or b"" for line in batch.lines)
            sizes.append(len(data))
            fields = {
                "v": WIRE_VERSION,
                "p": batch.producer,
                "o": batch.first_seq,
                "n": len(batch.lines),
                "d": data,
            }
            pipeline.xadd(stream_key(self.kind), fields)  # type: ignore[arg-type]  # its dict type is invariant
        for batch in batches:
            if not self._sent[batch.producer]:
                self._moved_at[batch.producer] = time.monotonic()
        for batch, size, entry_id in zip(batches, sizes, pipeline.execute(), strict=True):
            last_seq = batch.first_seq + len(batch.lines) - 1
            self._sent[batch.producer].append(_Sent(entry_id, last_seq, size))

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
            self._publish(client, {name: producer.final_counters(mark)})
            self._reader.forget(name)
            self._sent.pop(name, None)
            self._moved_at.pop(name, None)
            producer.remove()

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

    def close(self) -> None:
        """Close files and connection and let the lock go."""
        self.reset()
        self.lock.release()


class _Entry(NamedTuple):
    """An entry that was delivered and not acknowledged yet. Producer "" is no producer: a stray."""

    entry_id: bytes
    producer: str
    last_seq: int


class StreamSource:
    """One kind's stream as its writer's source. An entry is acknowledged once the producer's mark covers it."""

    def __init__(self, settings: Settings, kind: str) -> None:
        """Connect to nothing yet."""
        self.kind = kind
        self._settings = settings
        self._client = connect(settings)
        self._failpoint = Failpoint(settings.failpoint)
        self._delivered: list[_Entry] = []
        self._pending_from: bytes | None = (
            None  # reading this consumer's pending entries behind that id; None: new ones
        )
        self._published: dict[str, int] = {}
        self._is_open = False
        self._next_pending = self._next_counters = self._next_trim = 0.0

    def read(self, marks: Mapping[str, int]) -> tuple[list[Batch], list[Reject]]:
        """The next entries' batches; waits up to 0.1 s for new ones. Raises SynapseUnavailable."""
        with redis_errors(self._settings):
            if not self._is_open:
                self._open(marks)
            entries = self._read_group()
        batches, strays = [], []
        for entry_id, fields in entries:
            if fields is None:  # somebody deleted it while it was pending
                self._delivered.append(_Entry(entry_id, "", 0))
                continue
            batch = _batch(fields)
            if isinstance(batch, Batch):
                batches.append(batch)
                self._delivered.append(_Entry(entry_id, batch.producer, batch.first_seq + len(batch.lines) - 1))
            else:
                strays.append(
                    Reject(
                        today().isoformat(),
                        batch,
                        f"synapse entry {entry_id.decode()}",
                        repr(fields).encode(),
                    )
                )
                self._delivered.append(_Entry(entry_id, "", 0))
        return batches, strays

    def _open(self, marks: Mapping[str, int]) -> None:
        try:
            self._client.xgroup_create(stream_key(self.kind), GROUP, id="0", mkstream=True)
        except redis.ResponseError as err:
            if "BUSYGROUP" not in str(err):
                raise
        self._publish(marks)
        self._pending_from = b"0"
        self._is_open = True

    def _read_group(self) -> list[tuple[bytes, dict[bytes, bytes] | None]]:
        """Entries that were delivered to a former writer first, then new ones; pending ones again at times."""
        if self._pending_from is None and time.monotonic() >= self._next_pending:
            self._pending_from = b"0"  # entries behind a gap stay pending; when it was filled they are acknowledged
        position = self._pending_from
        try:
            reply = self._client.xreadgroup(
                GROUP,
                _CONSUMER,
                {stream_key(self.kind): ">" if position is None else position},
                count=_ENTRIES_AT_ONCE,
                block=_BLOCK_MS if position is None else None,
            )
        except redis.ResponseError as err:
            if "NOGROUP" in str(err):
                self._is_open = False  # Redis was flushed, or restarted without its data
                return []
            raise
        streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes] | None]]]]", reply or [])
        entries = [entry for _, found in streams for entry in found]
        if position is not None:
            self._pending_from = entries[-1][0] if entries else None
            if not entries:
                self._next_pending = time.monotonic() + _PENDING_INTERVAL_S
        return entries

    def acknowledge(self, ledger: Ledger, marks: Mapping[str, int]) -> None:
        """Publish the marks, then acknowledge the entries that they cover. Raises SynapseUnavailable."""
        delivered, self._delivered = self._delivered, []
        with redis_errors(self._settings):
            touched = {entry.producer for entry in delivered if entry.producer}
            self._publish({name: marks.get(name, 0) for name in touched})
            self._failpoint.reach("publish")
            covered = [e.entry_id for e in delivered if not e.producer or e.last_seq <= marks.get(e.producer, 0)]
            if covered:
                self._client.xack(stream_key(self.kind), GROUP, *covered)
                self._failpoint.reach("acknowledge")
            self._keep_house(ledger, marks)

    def _publish(self, marks: Mapping[str, int]) -> None:
        changed = {name: mark for name, mark in marks.items() if mark and self._published.get(name) != mark}
        if changed:
            self._client.hset(marks_key(self.kind), mapping=changed)  # type: ignore[arg-type]  # invariant dict type
            self._published.update(changed)

    def _keep_house(self, ledger: Ledger, marks: Mapping[str, int]) -> None:
        """Republish marks that Redis lost, keep the producers' counters, trim what nobody waits for."""
        now = time.monotonic()
        if now >= self._next_counters:
            self._next_counters = now + _COUNTERS_INTERVAL_S
            if self._client.hlen(marks_key(self.kind)) < len(marks):
                self._published.clear()
                self._publish(marks)
            known, found = ledger.producers(), published_counters(self._client, self.kind)
            changed = {name: counters for name, counters in found.items() if known.get(name) != counters}
            if changed:
                ledger.commit(Commit(producers=changed))
        if now >= self._next_trim:
            self._next_trim = now + _TRIM_INTERVAL_S
            self._trim()

    def _trim(self) -> None:
        """Trim to the group's oldest pending entry, or all it has read, but nothing younger than the retention."""
        key = stream_key(self.kind)
        oldest_kept = int((time.time() - self._settings.synapse_retention) * 1000)
        pending = cast("dict[str, bytes | None]", self._client.xpending(key, GROUP))
        groups = cast("list[dict[str, bytes]]", self._client.xinfo_groups(key))
        read_up_to = next(group["last-delivered-id"] for group in groups if group["name"] == GROUP.encode())
        limit = min(_parts(pending["min"] or read_up_to), (oldest_kept, 0))
        if limit > (0, 0):
            self._client.xtrim(key, minid=f"{limit[0]}-{limit[1]}", approximate=True)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _parts(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)


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
    lines = [line or None for line in fields[b"d"].split(b"\n")]
    if len(lines) != count or first_seq < 1 or not producer:
        return f"p={producer!r}, o={first_seq}, n={count} with {len(lines)} lines in d: expected n lines and o from 1"
    return Batch(producer, first_seq, lines)
