"""A clock to turn, and a store that only remembers which events it was given."""

from typing import Any, cast

from ingest import TrainingDataStore


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class SilentStore:
    """What `Instances` needs of a store."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.sync = self

    @staticmethod
    def made() -> TrainingDataStore:
        return cast("TrainingDataStore", SilentStore())

    @staticmethod
    def told(store: TrainingDataStore) -> list[str]:
        return cast("Any", store).events  # type: ignore[no-any-return]  # made above

    def store_agent_event(self, event_type: str, **_: object) -> None:
        self.events.append(event_type)
