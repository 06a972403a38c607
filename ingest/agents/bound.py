"""Turns a store and an agent's config into the store's calls of that agent: each record carries its id and versions."""

from collections.abc import Mapping
from functools import partial

from ingest.calls import BlockingCalls, Calls, Recorder, beside_the_loop
from ingest.errors import InvalidRecord, shown
from ingest.records import KINDS, Kind
from ingest.store import TrainingDataStore


class AgentRecorder(Recorder):
    """Fills in what a call leaves out, and puts the versions into its metadata; then the store's own has it."""

    def __init__(self, recorder: Recorder, given: Mapping[str, str | None], versions: Mapping[str, str]) -> None:
        """`given` are columns for calls that leave them out."""
        self._recorder, self._versions = recorder, dict(versions)
        self._fill = {
            name: tuple((kind.fields.index(column), value) for column, value in given.items() if value is not None)
            for name, kind in KINDS.items()
        }

    def store(self, kind: Kind, values: tuple[object, ...], timestamp: object, key: str | None) -> str | None:
        """Store a record, as `Recorder.store`. Raises InvalidRecord for metadata that is no dict."""
        filled = list(values)
        for place, value in self._fill[kind.name]:
            if filled[place] is None:
                filled[place] = value
        place = kind.fields.index("metadata")
        metadata = filled[place]
        if metadata is not None and not isinstance(metadata, dict):
            raise InvalidRecord(
                f"metadata={shown(metadata)} ({type(metadata).__name__}): expected a dict or None, so that the "
                "config's version can go with it; put it in a dict"
            )
        filled[place] = {**(metadata or {}), **self._versions}
        return self._recorder.store(kind, tuple(filled), timestamp, key)


class AgentStore(Calls):
    """The calls of one agent: parameters as the store's own, and `sync` for code without an event loop."""

    def __init__(self, store: TrainingDataStore, given: Mapping[str, str | None], versions: Mapping[str, str]) -> None:
        """What `AgentConfig.bind` gives."""
        source, recorder = store.settings.source, AgentRecorder(store.sync.recorder, given, versions)
        super().__init__(source, recorder)
        self.sync = BlockingCalls(source, recorder)
        if store.settings.spool_sync == "always" or store.settings.on_full == "block":
            for name in [name for name in vars(Calls) if name.startswith("store_")]:  # as the store itself does
                setattr(self, name, partial(beside_the_loop, getattr(self.sync, name)))
