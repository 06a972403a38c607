"""Turns what is said in conversations with agents into rows of PostgreSQL, and back into conversations in order.

What is said is not training data by itself: it is what an agent needs to go on, so it is in a database, acknowledged
when it is committed. `TDS_STREAM_MESSAGES` also stores each message as an event, so that it can become training data.

Messages of one conversation take one lane, a thread with a connection: they are written in the order of the calls, and
the database numbers them in the order in which they were written, so a history has that order also within one
microsecond. A call whose connection breaks is tried again until `timeout_s` is over; the id of the message keeps a
second try from being a second message.
"""

import asyncio
import logging
import os
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ingest.agents.database import LANES, MESSAGES, open_engine, upgrade
from ingest.coercion import plain_document, whole_text
from ingest.errors import DatabaseUnavailable, InvalidRecord, TdsError, shown
from ingest.records import new_record_id, timestamp_text
from ingest.settings import Settings, read_settings
from ingest.store import BlockingStore, TrainingDataStore

EVENT = "message"  # the type of the event that a streamed message is
MOST_A_PAGE = 10_000
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
_NUL = "\u2400"  # PostgreSQL's text and jsonb take no NUL; this is its picture

# Of two messages with one id the first stays. Made once: SQLAlchemy takes 0.1 ms to make one.
_INSERTS: Mapping[str, sa.Insert] = {
    "postgresql": postgresql.insert(MESSAGES).on_conflict_do_nothing(index_elements=["message_id"]),
    "sqlite": sqlite.insert(MESSAGES).on_conflict_do_nothing(index_elements=["message_id"]),
}

logger = logging.getLogger(__name__)
_alive: "weakref.WeakSet[Messages]" = weakref.WeakSet()  # of this process, for fork
T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was said."""

    message_id: str
    instance_id: str  # the conversation: one running agent's
    role: str  # user, assistant, system, tool, or a word of the caller's
    content: str  # empty where there are only tool calls
    agent_id: str | None = None
    tool_calls: object = None  # JSON: what the caller gave
    is_error: bool = False
    metadata: object = None  # JSON
    created_at: datetime  # with its zone, UTC


def checked_message(
    instance_id: object,
    role: object,
    content: object = None,
    *,
    agent_id: object = None,
    tool_calls: object = None,
    is_error: bool = False,
    metadata: object = None,
    message_id: object = None,
    created_at: datetime | str | None = None,
) -> Message:
    """The message of these values, as `add_message` takes them. Raises InvalidRecord for a wrong one."""
    return Message(
        message_id=_id("message_id", new_record_id() if message_id is None else message_id),
        instance_id=_id("instance_id", instance_id),
        role=_id("role", role),
        content=_content(content, tool_calls),
        agent_id=None if agent_id is None else _id("agent_id", agent_id),
        tool_calls=_document(tool_calls),
        is_error=is_error,
        metadata=_document(metadata),
        created_at=_moment(created_at),
    )


def insert_messages(messages: Sequence[Message], connection: sa.Connection) -> None:
    """Insert messages in their order, but those whose id is there already."""
    values = [{name: getattr(each, name) for name in Message.__struct_fields__} for each in messages]
    if values:
        connection.execute(_INSERTS[connection.dialect.name], values if len(values) > 1 else values[0])


def count_known(message_ids: Sequence[str], connection: sa.Connection) -> int:
    """How many of these ids are there: at most 10,000 of them, for each is a parameter."""
    query = sa.select(sa.func.count()).select_from(MESSAGES).where(MESSAGES.c.message_id.in_(message_ids))
    return int(connection.execute(query).scalar_one())


class Messages:
    """The conversations of all agents; `await messages.add_message(...)`. Opens nothing before the first call.

    It may be used from many threads and event loops at once, and after a fork.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        store: TrainingDataStore | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """`settings` are those of the environment if None; `store` is where messages stream, if they do."""
        self._settings = read_settings() if settings is None else settings
        self._timeout_s = timeout_s
        self._store = self._streaming_store(store)
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        _alive.add(self)

    async def add_message(
        self,
        instance_id: str,
        role: str,
        content: str | None = None,
        *,
        agent_id: str | None = None,
        tool_calls: Sequence[object] | None = None,
        is_error: bool = False,
        metadata: Mapping[str, object] | None = None,
        message_id: str | None = None,
        created_at: datetime | str | None = None,
    ) -> str:
        """Write one message and return its id when it is committed.

        `message_id` makes it idempotent: of two calls with one id the first stays. Without one it is a new UUIDv7.
        `created_at` is a datetime or RFC 3339 text (naive: UTC; None: now). A NUL, which PostgreSQL refuses, becomes ␀.

        Raises InvalidRecord for a wrong argument, DatabaseUnavailable when the server did not answer for `timeout_s`.
        """
        message = checked_message(
            instance_id, role, content, agent_id=agent_id, tool_calls=tool_calls, is_error=is_error,
            metadata=metadata, message_id=message_id, created_at=created_at,
        )  # fmt: skip
        await self._run(message.instance_id, partial(insert_messages, [message]))
        if self._store is not None:  # beside the loop: with TDS_ON_FULL=block it may wait
            await asyncio.wrap_future(
                self._open().run(message.instance_id, partial(self._stream, self._store, message))
            )
        return message.message_id

    async def get_history(self, instance_id: str, limit: int = 100, before: str | None = None) -> list[Message]:
        """The last `limit` messages of a conversation, oldest first; with `before`, those ahead of that message.

        An unknown conversation has none. For the page ahead, pass the first message's id as `before`.

        Raises InvalidRecord for a `before` that is no message of the conversation and for a limit out of range,
        DatabaseUnavailable as `add_message`.
        """
        if not 1 <= limit <= MOST_A_PAGE:
            raise InvalidRecord(f"limit={shown(limit)}: expected 1 to {MOST_A_PAGE}; take the history page by page")
        wanted = _id("instance_id", instance_id)
        return await self._run(wanted, partial(_page, wanted, limit, before))

    async def delete_history(self, instance_id: str) -> int:
        """Delete a conversation; returns how many messages it had. Raises DatabaseUnavailable as `add_message`."""
        wanted = _id("instance_id", instance_id)
        return await self._run(wanted, partial(_delete, wanted))

    async def close(self) -> None:
        """Wait for what is under way and close the connections. May be called twice."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            await asyncio.to_thread(opened.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, instance_id: str, action: "Callable[[sa.Connection], T]") -> T:
        return await asyncio.wrap_future(self._open().submit(instance_id, action))

    def _open(self) -> "_Opened":
        with self._lock:
            if self._opened is None:
                self._opened = _Opened(self._settings, self._timeout_s)
            return self._opened

    def begin_anew(self) -> None:
        """In a forked child: leave the parent's connections to the parent, and open others when they are needed."""
        opened, self._opened, self._lock = self._opened, None, threading.Lock()
        if opened is not None:
            opened.leave()

    def _streaming_store(self, store: TrainingDataStore | None) -> BlockingStore | None:
        if not self._settings.stream_messages:
            return None
        return (TrainingDataStore(self._settings) if store is None else store).sync

    @staticmethod
    def _stream(store: BlockingStore, message: Message) -> None:
        """Store the message as an event of the session that its conversation is, once: its id is the key."""
        payload: dict[str, object] = {"role": message.role, "content": message.content}
        payload |= {} if message.tool_calls is None else {"tool_calls": message.tool_calls}
        store.store_agent_event(
            EVENT,
            message.agent_id,
            session_id=message.instance_id,
            instance_id=message.instance_id,
            payload=payload,
            severity="error" if message.is_error else "info",
            timestamp=message.created_at,
            metadata=cast("dict[str, object] | None", message.metadata),
            idempotency_key=f"{EVENT}:{message.message_id}",
        )


class _Opened:
    """An engine, its lanes, and whether the table was looked at. Of one process: a child opens its own."""

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        self._settings, self._timeout_s = settings, timeout_s
        self._engine = open_engine(settings)
        self._lanes = [_Lane(self._engine) for _ in range(LANES)]
        self._upgrading = threading.Lock()
        self._is_upgraded = False

    def submit(self, instance_id: str, action: "Callable[[sa.Connection], T]") -> "Future[T]":
        """Do something with the database on the lane of a conversation."""
        lane = self._lane_of(instance_id)
        return lane.thread.submit(self._try_until_it_answers, lane, action)

    def run(self, instance_id: str, action: "Callable[[], T]") -> "Future[T]":
        """Do something else there, behind what was asked for before."""
        return self._lane_of(instance_id).thread.submit(action)

    def _lane_of(self, instance_id: str) -> "_Lane":
        return self._lanes[zlib.crc32(instance_id.encode()) % LANES]

    def close(self) -> None:
        """Wait for the lanes, then close the connections."""
        for lane in self._lanes:
            lane.thread.submit(lane.drop)
            lane.thread.shutdown()
        self._engine.dispose()

    def leave(self) -> None:
        """Forget the connections without a word to the server: they are another process's."""
        self._engine.dispose(close=False)

    def _try_until_it_answers(self, lane: "_Lane", action: "Callable[[sa.Connection], T]") -> T:
        deadline, wait_s = time.monotonic() + self._timeout_s, _FIRST_WAIT_S
        while True:
            try:
                self._upgrade_once()
                return action(lane.connected())
            except sa.exc.DBAPIError as err:
                lane.drop()
                if not _may_pass(err) or time.monotonic() + wait_s > deadline:
                    raise self._unavailable(err) from err
                logger.debug("conversations: %s; trying again", type(err.orig).__name__)
            time.sleep(wait_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    def _upgrade_once(self) -> None:
        if self._is_upgraded:
            return
        with self._upgrading:
            if not self._is_upgraded:
                upgrade(self._engine, self._settings.postgres_schema)
                self._is_upgraded = True

    def _unavailable(self, err: sa.exc.DBAPIError) -> TdsError:
        where = "state/messages.sqlite" if self._settings.postgres_url is None else self._engine.url.render_as_string()
        return DatabaseUnavailable(
            f"{where}: {err.orig}: expected a database that answers and takes conversations; what was acknowledged is "
            "there: see to the server (TDS_POSTGRES_URL, TDS_POSTGRES_SCHEMA) and call again with the same message_id"
        )


class _Lane:
    """A thread and the connection that it keeps: one statement is one transaction, and one round trip."""

    def __init__(self, engine: sa.Engine) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="conversations")
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: sa.Connection | None = None

    def connected(self) -> sa.Connection:
        """The connection, opened if there is none."""
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def drop(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _after_fork_in_child() -> None:
    for messages in list(_alive):
        messages.begin_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _may_pass(err: sa.exc.DBAPIError) -> bool:
    """Whether it is the connection or a lock, and not the statement or a right that is missing."""
    return err.connection_invalidated or isinstance(err, sa.exc.OperationalError | sa.exc.InterfaceError)


def _page(instance_id: str, limit: int, before: str | None, connection: sa.Connection) -> list[Message]:
    columns = [column for column in MESSAGES.c if column.name != "position"]
    query = sa.select(*columns).where(MESSAGES.c.instance_id == instance_id)
    if before is not None:
        query = query.where(MESSAGES.c.position < _position_of(instance_id, before, connection))
    rows = connection.execute(query.order_by(MESSAGES.c.position.desc()).limit(limit)).mappings().all()
    return [Message(**row) for row in reversed(rows)]


def _position_of(instance_id: str, message_id: str, connection: sa.Connection) -> int:
    query = sa.select(MESSAGES.c.position).where(
        MESSAGES.c.message_id == message_id, MESSAGES.c.instance_id == instance_id
    )
    position: int | None = connection.scalar(query)
    if position is None:
        raise InvalidRecord(
            f"before={shown(message_id)}: expected the id of a message of {shown(instance_id)}; "
            "pass the message_id of the first message of the page that you have"
        )
    return position


def _delete(instance_id: str, connection: sa.Connection) -> int:
    return connection.execute(sa.delete(MESSAGES).where(MESSAGES.c.instance_id == instance_id)).rowcount


def _id(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRecord(
            f"{name}={shown(value)} ({type(value).__name__}): expected text that is not empty; pass one"
        )
    return _storable(value)


def _content(content: object, tool_calls: object) -> str:
    if content is None and tool_calls:
        return ""
    if not isinstance(content, str):
        raise InvalidRecord(
            f"content={shown(content)} ({type(content).__name__}): expected str, or None beside tool_calls; "
            "pass the text, and anything else in metadata"
        )
    return _storable(content)


def _storable(text: str) -> str:
    return whole_text(text).replace("\0", _NUL)


def _document(value: object) -> object:
    """A JSON value without NUL, as both databases take it."""
    return _without_nul(msgspec.to_builtins(plain_document(value)))


def _without_nul(value: object) -> object:
    if isinstance(value, str):
        return value.replace("\0", _NUL)
    if isinstance(value, dict):
        return {key.replace("\0", _NUL): _without_nul(inner) for key, inner in value.items()}
    return [_without_nul(inner) for inner in value] if isinstance(value, list) else value


def _moment(value: datetime | str | None) -> datetime:
    if value is None:
        return datetime.now(UTC)
    return datetime.fromisoformat(timestamp_text("created_at", value))
