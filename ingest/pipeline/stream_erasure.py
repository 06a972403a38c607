"""Turns a kind's stream in Redis into one without certain records, and has Redis write its files anew.

A deleted entry stays in the memory of its stream, and in the dumps made of it, as long as a neighbour in the same node
lives: XDEL is not enough. So the stream is copied, entry by entry under the same ids, erased records as empty lines
(tombstones, as the wire knows them), with its groups, their places and what their consumers have in hand. One script
puts the copy in place, with what came since. Killed before that, the copy is litter for the next run; subscribers see
nothing of it all. Used here is what Redis 6.2 has.
"""

import time
from collections.abc import Callable
from typing import cast

import redis

from ingest.errors import SynapseUnavailable
from ingest.pipeline.synapse import (
    GROUP,
    EntryId,
    connect,
    parsed_id,
    redis_errors,
    stream_groups,
    stream_key,
    waiting_since_ms,
)
from ingest.settings import Settings

_ENTRIES = 64
_PATIENCE_S = 300.0  # for Redis to write its files; 10 GB take about a minute
_POLL_S = 0.05

Entries = list[tuple[bytes, dict[bytes, bytes]]]

# KEYS: the stream, its copy. ARGV: the last entry in the copy.
_PUT_IN_PLACE = """
local stream, copy, last = KEYS[1], KEYS[2], ARGV[1]
while true do
    local entries = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 64)
    if #entries == 0 then break end
    for _, entry in ipairs(entries) do
        last = entry[1]
        redis.call('XADD', copy, last, unpack(entry[2]))
    end
end
local function pairs_of(flat)
    local found = {}
    for place = 1, #flat, 2 do found[flat[place]] = flat[place + 1] end
    return found
end
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local group = pairs_of(flat)
    redis.call('XGROUP', 'CREATE', copy, group['name'], group['last-delivered-id'], 'MKSTREAM')
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group['name'])) do
        redis.call('XGROUP', 'CREATECONSUMER', copy, group['name'], pairs_of(consumer)['name'])
    end
    local from = '-'
    while true do
        local pending = redis.call('XPENDING', stream, group['name'], from, '+', 1000)
        if #pending == 0 then break end
        for _, one in ipairs(pending) do
            redis.call('XCLAIM', copy, group['name'], one[2], 0, one[1],
                       'IDLE', one[3], 'RETRYCOUNT', one[4], 'FORCE', 'JUSTID')
            from = '(' .. one[1]
        end
    end
end
if redis.call('EXISTS', copy) == 0 then return redis.call('DEL', stream) end
redis.call('XSETID', copy, pairs_of(redis.call('XINFO', 'STREAM', stream))['last-generated-id'])
redis.call('RENAME', copy, stream)
return 1
"""


def stream_head(settings: Settings, kind: str) -> EntryId | None:
    """The last entry that came into a kind's stream; None where there is no stream. Raises SynapseUnavailable."""
    client = connect(settings)
    try:
        with redis_errors(settings):
            if not client.exists(stream_key(kind)):
                return None
            return parsed_id(cast("dict[str, bytes]", client.xinfo_stream(stream_key(kind)))["last-generated-id"])
    finally:
        client.close()


def is_read(settings: Settings, kind: str, head: EntryId) -> bool:
    """Whether the writer has acknowledged all entries up to one. Raises SynapseUnavailable."""
    client = connect(settings)
    try:
        with redis_errors(settings):
            group = stream_groups(client, kind).get(GROUP)
            if group is None:
                return False
            if group.pending:
                return group.position > head
            return group.position >= head or waiting_since_ms(client, kind, group) is None  # deleted unread
    finally:
        client.close()


def erase_from_stream(settings: Settings, kind: str, is_doomed: Callable[[bytes], bool]) -> int:
    """Erase the records of a kind's stream whose JSON line is doomed; gives how many there were.

    Everything in the stream has to be written. Raises SynapseUnavailable.
    """
    client, copy = connect(settings), f"{stream_key(kind)}:erasing"
    try:
        with redis_errors(settings):
            client.delete(copy)
            if not client.exists(stream_key(kind)) or not _doomed_lines(client, kind, is_doomed):
                return 0
            last, erased = _copy(client, kind, copy, is_doomed)
            client.eval(_PUT_IN_PLACE, 2, stream_key(kind), copy, last)
            return erased
    finally:
        client.close()


def _doomed_lines(client: redis.Redis, kind: str, is_doomed: Callable[[bytes], bool]) -> bool:
    last = b"0"
    while entries := _behind(client, kind, last):
        last = entries[-1][0]
        if any(is_doomed(line) for _, fields in entries for line in fields.get(b"d", b"").split(b"\n") if line):
            return True
    return False


def _copy(client: redis.Redis, kind: str, copy: str, is_doomed: Callable[[bytes], bool]) -> tuple[bytes, int]:
    last, erased = b"0", 0
    while entries := _behind(client, kind, last):
        last = entries[-1][0]
        pipeline = client.pipeline(transaction=False)
        for entry_id, fields in entries:
            lines = fields.get(b"d", b"").split(b"\n")
            kept = [b"" if line and is_doomed(line) else line for line in lines]
            erased += sum(1 for line, left in zip(lines, kept, strict=True) if line is not left)
            changed = {**fields, b"d": b"\n".join(kept)} if b"d" in fields else fields
            pipeline.xadd(copy, changed, id=entry_id)  # type: ignore[arg-type]  # its dict type is invariant
        pipeline.execute()
    return last, erased


def _behind(client: redis.Redis, kind: str, last: bytes) -> Entries:
    return cast("Entries", client.xrange(stream_key(kind), min=b"(" + last, count=_ENTRIES))


def rewrite_files(settings: Settings) -> str:
    """Have Redis write its append-only file and its dump anew, where it keeps them; says what was done, in words.

    Raises SynapseUnavailable where it does not answer, or fails to write them.
    """
    client = connect(settings)
    try:
        with redis_errors(settings):
            state = cast("dict[str, object]", client.info("persistence"))
            done = []
            if state["aof_enabled"]:
                done.append(_have_done(client, "BGREWRITEAOF", "aof_rewrite_in_progress", "aof_last_bgrewrite_status"))
            if _keeps_dumps(client, state):
                done.append(_have_done(client, "BGSAVE", "rdb_bgsave_in_progress", "rdb_last_bgsave_status"))
            replicas = cast("dict[str, int]", client.info("replication"))["connected_slaves"]
            if replicas:
                done.append(f"{replicas} replicas have files of their own: have them written anew there")
            return "; ".join(done) or "Redis keeps no files"
    finally:
        client.close()


def _keeps_dumps(client: redis.Redis, state: dict[str, object]) -> bool:
    uptime_s = cast("dict[str, int]", client.info("server"))["uptime_in_seconds"]
    has_saved = time.time() - cast("int", state["rdb_last_save_time"]) < uptime_s - 1
    try:
        return has_saved or bool(cast("dict[str, str]", client.config_get("save")).get("save"))
    except redis.ResponseError:
        return True  # it does not say; a dump too many is written then, or refused


def _have_done(client: redis.Redis, command: str, under_way: str, outcome: str) -> str:
    """Start a rewriting of one of the files and wait for its end."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            client.execute_command(command)  # type: ignore[no-untyped-call]  # redis-py has no types for it
            break
        except redis.ResponseError as err:
            if "progress" not in str(err):
                return f"{command} was refused ({err}): have it done on that server"
            _require(deadline, command)
    while True:
        state = cast("dict[str, object]", client.info("persistence"))
        if not state[under_way] and not state.get("aof_rewrite_scheduled"):
            break
        _require(deadline, command)
    if state[outcome] != "ok":
        raise SynapseUnavailable(
            f"{command}: Redis says {state[outcome]!r}: expected ok; see its log, and run it again"
        )
    return f"{command} done"


def _require(deadline: float, command: str) -> None:
    if time.monotonic() > deadline:
        raise SynapseUnavailable(
            f"{command}: not done after {_PATIENCE_S:.0f} s: expected Redis to write its file; run this again"
        )
    time.sleep(_POLL_S)
