"""Turns `store.put(what, ...)` into the call of the place where such a thing belongs, as `routing` decides it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ingest.agents.routing import CASE_BY_CASE, Route, route
from ingest.errors import InvalidRecord

if TYPE_CHECKING:
    from ingest.agents.messages import Messages
    from ingest.agents.metrics import Metrics
    from ingest.store import TrainingDataStore

_CALLS: Mapping[str, str] = {
    "events": "store_agent_event",
    "tasks": "store_agent_task",
    "tool_executions": "store_tool_execution",
    "workflows": "store_workflow_data",
    "feedback": "store_feedback",
}


class Places:
    """The places that a store's `put` sends things to, each opened when something first goes there."""

    def __init__(self, store: "TrainingDataStore") -> None:
        self._store = store
        self._messages: Messages | None = None
        self._metrics: Metrics | None = None
        self._gauges: dict[tuple[str, tuple[str, ...]], Any] = {}

    async def put(self, what: str, fields: Mapping[str, Any]) -> str | None:
        """Send it there; gives its id, if it has one. Raises InvalidRecord where nothing is to be sent."""
        found = route(what)
        try:
            if found.place in _CALLS:
                call = getattr(self._store, _CALLS[found.place])
                record_id: str | None = await call(**fields)
                return record_id
            if found.place == "conversations":
                return await self._conversations().add_message(**fields)
            if found.place == "metrics":
                self._set(**fields)
                return None
        except TypeError as err:  # an argument that the call does not have, or lacks
            raise InvalidRecord(f"{what!r} goes to {found.where}: {err}; call it as {found.call}") from err
        raise InvalidRecord(_no_place(what, found))

    async def close(self) -> None:
        """Close what was opened."""
        messages, self._messages = self._messages, None
        if messages is not None:
            await messages.close()

    def _conversations(self) -> "Messages":
        if self._messages is None:
            from ingest.agents.messages import Messages  # SQLAlchemy

            self._messages = Messages(self._store.settings, store=self._store)
        return self._messages

    def _set(self, name: str, value: float, documentation: str = "", labels: Mapping[str, str] | None = None) -> None:
        """Set a gauge, with the labels that it had when it was first set."""
        if self._metrics is None:
            from ingest.agents.metrics import Metrics

            self._metrics = Metrics(self._store.settings)
        given = dict(labels or {})
        key = name, tuple(given)
        if key not in self._gauges:
            self._gauges[key] = self._metrics.gauge(name, documentation or f"{name}, set by an agent.", list(given))
        gauge = self._gauges[key]
        (gauge.labels(**given) if given else gauge).set(value)


def _no_place(what: str, found: Route) -> str:
    if found.place == CASE_BY_CASE:
        return f"{what!r}: {found.why}: expected words that tell where it belongs. Ask: {' '.join(found.questions)}"
    return f"{what!r} belongs to {found.where}, for {found.why}: expected nothing to be stored; use {found.call}"
