"""Turns signs of life into the agents at work in this process, in memory only, and their starts and ends into events.

    started ──heartbeat, status──► running ──stop──► gone     agent_instance_stopped
                                      └──silent for `expires_after_s`──► gone     agent_instance_expired

Nothing of it is kept: it is over when the process is, and a forked child begins with none. Calls take microseconds
and may come from threads and coroutines. Silent ones are found at the next call.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec
from uuid_utils import uuid7

from ingest.agents.configs import AgentConfig
from ingest.errors import InvalidRecord, NotAccepted, shown
from ingest.store import TrainingDataStore, get_training_data_store

logger = logging.getLogger(__name__)


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """An agent at work, as it stood at the last call."""

    instance_id: str
    agent_id: str
    started_at: datetime
    status: str = "running"
    task_id: str | None = None  # what it works on
    session_id: str | None = None
    versions: dict[str, str] = {}  # of its config and prompt


class Instances:
    """The running agents of this process, up to `most` of them."""

    def __init__(
        self,
        store: TrainingDataStore | None = None,
        *,
        expires_after_s: float = 60.0,
        most: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`store` gets the events; the process's one where none is given. With `most` running, the most silent goes."""
        self._store, self._expires_after_s, self._most, self._clock = store, expires_after_s, most, clock
        self._begin()
        _alive.add(self)

    def _begin(self) -> None:
        self._lock = threading.RLock()  # a signal handler may call in the middle of a call
        self._running: dict[str, tuple[Instance, float]] = {}  # the longest silent first

    def start(
        self, agent: AgentConfig | str, *, instance_id: str | None = None, session_id: str | None = None
    ) -> Instance:
        """Register an agent at work; given its config, its events carry the versions.

        An id that is running already starts anew, and its former run counts as stopped. Raises InvalidRecord for an
        id that is no text.
        """
        agent_id, versions = (agent.agent_id, agent.versions) if isinstance(agent, AgentConfig) else (agent, {})
        chosen = str(uuid7()) if instance_id is None else instance_id
        for name, value in (("agent_id", agent_id), ("instance_id", chosen)):
            if not isinstance(value, str):
                raise InvalidRecord(f"{name}={shown(value)}: expected str; pass str({name})")
        instance = Instance(
            instance_id=chosen,
            agent_id=agent_id,
            started_at=datetime.now(UTC),
            session_id=session_id,
            versions=versions,
        )
        with self._lock:
            gone = self._take_silent()
            former = self._running.pop(chosen, None)
            while len(self._running) >= self._most:
                gone.append(self._take_first())
            self._running[chosen] = (instance, self._clock())
        self._tell_expired(gone)
        if former is not None:
            self._tell("stopped", former[0], {"reason": "started again"})
        self._tell("started", instance, {})
        return instance

    def heartbeat(self, instance_id: str) -> Instance | None:
        """Say that it is alive. None if it is not registered (any more): then start it again."""
        with self._lock:
            gone = self._take_silent()
            found = self._running.pop(instance_id, None)
            if found is not None:
                self._running[instance_id] = (found[0], self._clock())
        self._tell_expired(gone)
        return None if found is None else found[0]

    def set_status(self, instance_id: str, status: str, *, task_id: str | None = None) -> Instance | None:
        """Say what it does, and on which task; counts as a heartbeat. An event only where that is new."""
        with self._lock:
            gone = self._take_silent()
            found = self._running.pop(instance_id, None)
            changed = None
            if found is not None:
                changed = msgspec.structs.replace(found[0], status=status, task_id=task_id)
                self._running[instance_id] = (changed, self._clock())
        self._tell_expired(gone)
        if found is None or changed is None:
            return None
        if changed != found[0]:
            self._tell("status", changed, {"from": found[0].status})
        return changed

    def stop(self, instance_id: str, *, error: str | None = None) -> Instance | None:
        """Take it out; `error` names what ended it. None if it is not registered (any more)."""
        with self._lock:
            gone = self._take_silent()
            found = self._running.pop(instance_id, None)
        self._tell_expired(gone)
        if found is None:
            return None
        self._tell("stopped", found[0], {} if error is None else {"error": error})
        return found[0]

    def get(self, instance_id: str) -> Instance | None:
        """The instance of that id, if it is running."""
        with self._lock:
            gone = self._take_silent()
            found = self._running.get(instance_id)
        self._tell_expired(gone)
        return None if found is None else found[0]

    def all(self) -> list[Instance]:
        """Those running, the longest silent first."""
        with self._lock:
            gone = self._take_silent()
            found = [instance for instance, _ in self._running.values()]
        self._tell_expired(gone)
        return found

    @contextmanager
    def running(
        self, agent: AgentConfig | str, *, instance_id: str | None = None, session_id: str | None = None
    ) -> Iterator[Instance]:
        """Around an agent's work: started before it and stopped after it, with the class of an error that ends it."""
        instance = self.start(agent, instance_id=instance_id, session_id=session_id)
        try:
            yield instance
        except BaseException as err:
            self.stop(instance.instance_id, error=type(err).__name__)
            raise
        self.stop(instance.instance_id)

    def begin_anew_after_fork(self) -> None:
        """In a forked child: nobody is running. The parent's go on in the parent."""
        self._begin()

    def _take_silent(self) -> list[tuple[Instance, float]]:
        """Take out those silent for too long: they stand first."""
        oldest, gone = self._clock() - self._expires_after_s, []
        while self._running and next(iter(self._running.values()))[1] < oldest:
            gone.append(self._take_first())
        return gone

    def _take_first(self) -> tuple[Instance, float]:
        return self._running.pop(next(iter(self._running)))

    def _tell_expired(self, gone: list[tuple[Instance, float]]) -> None:
        for instance, seen in gone:
            self._tell("expired", instance, {"silent_s": round(self._clock() - seen, 3)}, "warning")

    def _tell(self, what: str, instance: Instance, more: dict[str, object], severity: str = "info") -> None:
        """Store an event; outside of the lock, for under TDS_ON_FULL=block it may wait."""
        store = get_training_data_store() if self._store is None else self._store
        try:
            store.sync.store_agent_event(
                f"agent_instance_{what}",
                agent_id=instance.agent_id,
                instance_id=instance.instance_id,
                session_id=instance.session_id,
                payload={"status": instance.status, "task_id": instance.task_id, **more},
                metadata=instance.versions or None,
                severity="error" if "error" in more else severity,
            )
        except NotAccepted as err:  # the agent goes on, also under TDS_ON_FULL=raise: it did not call the store
            logger.warning("agent_instance_%s of %s: %s", what, instance.instance_id, err)


_alive: "weakref.WeakSet[Instances]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for instances in list(_alive):
        instances.begin_anew_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
