"""The store as agents see it: records in, records and exports out.

A record is accepted when its bytes are in the spool, a memory-mapped file: from then on it survives `kill -9`. A
background thread moves it on (`pipeline.carrier`). One store a process; after a fork the child has producers and a
thread of its own.
"""

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from ingest.calls import BlockingCalls, Calls, Recorder, beside_the_loop
from ingest.errors import FlushTimeout, MissingExtra
from ingest.pipeline.carrier import Carrier
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.spool import Spool, spooled_heads
from ingest.records import KINDS
from ingest.settings import Settings, read_settings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.dataset as pads

    from ingest.agents.putting import Places
    from tds_dagster.training.champion import Champion

_CALLS = [name for name in vars(Calls) if name.startswith("store_")]
_FLUSH_POLL_S = 0.01
_EXIT_FLUSH_S = 5.0  # at interpreter exit; what is not written by then stays in the spool for the next process


logger = logging.getLogger(__name__)
_stores: "weakref.WeakSet[BlockingStore]" = weakref.WeakSet()  # of this process, for exit and fork


_Marks = Callable[[str, list[str]], dict[str, int]]  # of these producers of a kind


class BlockingStore(BlockingCalls):
    """`store.sync`: every call of the store for code without an event loop."""

    def __init__(self, settings: Settings) -> None:
        """Open nothing yet: a process that stores nothing leaves nothing behind. Raises InvalidPolicy."""
        self._settings = settings
        self._new_spool: Callable[[str], Spool] = partial(Spool, settings)
        if settings.redaction_policy is not None:
            from ingest.redaction.spooling import spool_opener  # reads TOML: 5 ms

            self._new_spool = spool_opener(settings)
        # Synapse has JSON only, and so does a redaction. A row may be twice as large as the JSON that the limit is of.
        is_copied = settings.redis_url is None and settings.redaction_policy is None
        self.recorder = Recorder(self._open_spool, settings.max_record_bytes // 2 if is_copied else 0)
        super().__init__(settings.source, self.recorder)
        self._carrier: Carrier | None = None
        self._lock = threading.RLock()  # a signal handler may store or close in the middle of a call
        self._set_aside: list[Spool] = []  # in use by a call that a signal handler interrupted, and then stored itself
        _stores.add(self)

    @property
    def has_stored(self) -> bool:
        """Whether this process put anything into the spool since it was opened, and writes it itself."""
        return bool(self.recorder.spools) and self._settings.redis_url is None

    def _open_spool(self, kind: str) -> Spool:
        with self._lock:
            spool = self.recorder.spools.get(kind)
            if spool is not None and spool.is_in_use_here():
                self._set_aside.append(spool)
                spool = None
            if spool is None:
                spool = self.recorder.spools[kind] = self._new_spool(kind)
        try:
            self._running_carrier()
        except RuntimeError as err:  # no more threads: what is accepted waits in the spool
            logger.warning("%s: %s; records wait in the spool", self._settings.spool, err)
        return spool

    def _sync_spools(self) -> None:
        for spool in self._all_spools():
            spool.sync()

    def _all_spools(self) -> list[Spool]:
        return [*self.recorder.spools.values(), *self._set_aside]

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until all that was accepted before this call, on this host, is fsynced in its CSV file.

        What dead processes left in the spool is written too. With Redis, written means covered by the writer's mark.
        Raises FlushTimeout after `timeout` seconds; nothing is lost then.
        """
        heads = {
            kind: {name: counters.accepted for name, counters in spooled_heads(self._settings.spool, kind).items()}
            for kind in KINDS
        }
        deadline = time.monotonic() + timeout
        with _marks_reader(self._settings, timeout) as written:
            while waiting := _waiting(heads, written):
                if time.monotonic() >= deadline:
                    redis = self._settings.redis_url_without_password
                    expected = (
                        "a writer that keeps up" if redis is None else f"Redis at {redis}, and `tds writer` behind it"
                    )
                    raise FlushTimeout(
                        f"{waiting} are not written after {timeout} s: expected {expected}; "
                        "nothing is lost, see `tds status` and `tds doctor`"
                    )
                self._running_carrier().wake()
                time.sleep(_FLUSH_POLL_S)

    def _running_carrier(self) -> Carrier:
        with self._lock:
            if self._carrier is None or not self._carrier.is_running:
                self._carrier = Carrier(self._settings, self._sync_spools)
            return self._carrier

    def close(self) -> None:
        """Let go of files, locks and the thread. What is not written yet stays in the spool. May be called twice."""
        with self._lock:
            carrier, self._carrier = self._carrier, None
            spools = self._all_spools()
            self.recorder.spools, self._set_aside = {}, []
        for spool in spools:
            spool.close()
        if carrier is not None:
            carrier.stop()

    def begin_anew_after_fork(self) -> None:
        """In a forked child: leave the parent's producers and thread alone, and have others from the next call on."""
        carrier, self._carrier = self._carrier, None
        spools = self._all_spools()
        self.recorder.spools, self._set_aside = {}, []
        self._lock = threading.RLock()
        for spool in spools:
            spool.close(forked=True)
        if carrier is not None:
            carrier.abandon()


class ExportSelection(TypedDict, total=False):
    """What `export_for_training` takes by keyword; see there."""

    where: str | None
    columns: Sequence[str] | str | None
    limit: int | None
    sample: str | int | None
    seed: int
    format: str
    redaction: str | None


def _waiting(heads: dict[str, dict[str, int]], written: _Marks) -> str:
    """What of the given sequence numbers is not written yet, in words; "" if all is. Settled ones are removed."""
    for kind, producers in heads.items():
        marks = written(kind, list(producers)) if producers else {}
        for name in [name for name, head in producers.items() if marks.get(name, 0) >= head]:
            del producers[name]
    return ", ".join(f"{kind} of {len(producers)} processes" for kind, producers in heads.items() if producers)


@contextmanager
def _marks_reader(settings: Settings, timeout_s: float) -> Iterator[_Marks]:
    """What gives the marks of a kind's producers; {} while they cannot be read. With Redis over one connection."""
    if settings.redis_url is None:
        yield partial(_marks_in_ledger, DataPaths(settings.data_dir))
        return
    from ingest.pipeline.synapse import PublishedMarks  # redis-py takes a quarter of a second to import

    published = PublishedMarks(settings, max(0.05, timeout_s))
    try:
        yield published.look
    finally:
        published.close()


def _marks_in_ledger(paths: DataPaths, kind: str, producers: list[str]) -> dict[str, int]:
    if not paths.ledger(kind).exists():
        return {}
    import sqlite3  # 5 ms to import, and only who waits needs it

    from ingest.pipeline.ledger import open_ledger  # as above

    try:
        with open_ledger(paths, kind) as ledger:
            return ledger.marks(producers)
    except (OSError, sqlite3.Error):
        return {}  # whoever waits for marks goes on waiting, up to its own deadline


class TrainingDataStore(Calls):
    """Where agents put what they do. Calls cost microseconds, never block and never break the agent."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Open nothing yet. Without `settings` the TDS_* variables count. Raises InvalidSetting for a bad one."""
        self.settings = read_settings() if settings is None else settings
        self.sync = BlockingStore(self.settings)
        super().__init__(self.settings.source, self.sync.recorder)
        self._places: Places | None = None
        if self.settings.spool_sync == "always" or self.settings.on_full == "block":
            # Under these settings a call may wait for a disk or for room: then it runs beside the event loop.
            for name in _CALLS:
                setattr(self, name, partial(beside_the_loop, getattr(self.sync, name)))

    async def put(self, what: str, /, **fields: object) -> str | None:
        """Send something to where it belongs, as `tds where` says: `await store.put("chat message", role=…, …)`.

        `what` is the name of a kind or an old table, or a description of it; `fields` are the arguments of its call. A
        record or a message has an id then. Raises InvalidRecord where nothing is to be stored (a config, a prompt, an
        instance, a secret) or the description does not tell, saying what to do instead; else as the call.
        """
        if self._places is None:
            from ingest.agents.putting import Places

            self._places = Places(self)
        return await self._places.put(what, fields)

    async def flush(self, timeout: float = 30.0) -> None:
        """Wait until all that was accepted before this call, on this host, is fsynced in its CSV file.

        Raises FlushTimeout after `timeout` seconds; nothing is lost then.
        """
        await beside_the_loop(self.sync.flush, timeout)

    async def close(self) -> None:
        """Let go of files, locks and the thread. What is not written yet stays in the spool. May be called twice."""
        places, self._places = self._places, None
        if places is not None:
            await places.close()
        await beside_the_loop(self.sync.close)

    def export_for_training(
        self,
        data_type: str,
        output_path: Path | str | None = None,
        start_date: date | str | None = None,
        end_date: date | str | None = None,
        **selection: Unpack[ExportSelection],
    ) -> Path:
        """Export a kind's days as JSONL, both dates included, and give the file's path.

        Flushes, curates the days that changed, and exports: the very bytes of `tds export` and of the UI. By default
        from the first day with data to yesterday (UTC), to `training/<kind>_training.jsonl`. Blocks: in an event loop
        use `export_for_training_async`. Needs the `platform` extra.

        By keyword what to select, in a file of its own: `where` (a SQL condition over the columns and
        `feedback.<name>`), `columns`, `limit`, `sample` (a number or `"5%"`) with a `seed`, `format` (records,
        jsonl.zst or parquet), `redaction` (none, secrets or full).

        Raises UnknownKind, InvalidRange, InvalidPredicate, InvalidSelection, FlushTimeout, or Unbalanced naming the
        days that do not add up.
        """
        with _platform_extra():
            from tds_dagster.export import export_range, select  # the one edge upwards: what the asset calls

        selected = select(data_type, **selection)
        self.sync.flush()
        paths = DataPaths(self.settings.data_dir)
        made = export_range(
            paths,
            data_type,
            None if start_date is None else str(start_date),
            None if end_date is None else str(end_date),
            output=None if output_path is None else Path(output_path),
            keep_ranges=self.settings.keep_ranges,
            settings=self.settings,
            selection=selected,
        )
        if output_path is not None:
            return Path(output_path)
        return paths.latest_export(data_type) if made.selection is None else made.path

    async def export_for_training_async(
        self,
        data_type: str,
        output_path: Path | str | None = None,
        start_date: date | str | None = None,
        end_date: date | str | None = None,
        **selection: Unpack[ExportSelection],
    ) -> Path:
        """`export_for_training` beside a running event loop."""
        export = partial(self.export_for_training, **selection)
        return await beside_the_loop(export, data_type, output_path, start_date, end_date)

    def load(
        self, data_type: str, *, start_date: date | str | None = None, end_date: date | str | None = None
    ) -> "pd.DataFrame":
        """A kind's written rows of these days as a pandas DataFrame (ArrowDtype); JSON columns are JSON text.

        Without dates: all days. Raises UnknownKind or InvalidRange. Needs the `platform` extra.
        """
        with _platform_extra():
            import pandas as pd  # a third of a second to import

            from ingest.reading import read_table

        return read_table(self.settings, data_type, start_date, end_date).to_pandas(types_mapper=pd.ArrowDtype)

    def scan(
        self, data_type: str, *, start_date: date | str | None = None, end_date: date | str | None = None
    ) -> "pads.Dataset":
        """A kind's written rows of these days as a pyarrow Dataset, read into memory; else as `load`."""
        with _platform_extra():
            import pyarrow.dataset as pads  # 80 ms to import

            from ingest.reading import read_table

        return pads.dataset(read_table(self.settings, data_type, start_date, end_date))

    def subscribe(
        self, data_type: str, *, after: str | None = None, group: str | None = None
    ) -> AsyncGenerator[dict[str, object]]:
        """Follow a kind's records from now on, or from behind the record with the id `after`; a dict each.

        With Redis they come from Synapse as they are sent, without it from the CSV files as they are written. Ends
        only when it is closed. With the name of a `group` they come from where this group stands, which lasts over
        restarts: each record at least once, acknowledged when the next one is asked for; consumers of one group share
        the records. A group is made at its first use, and `after` counts only there. Raises UnknownKind, and
        InvalidRecord for a group's name that cannot be used.
        """
        from ingest.pipeline.subscription import follow  # with Redis it needs redis-py

        return follow(self.settings, data_type, after, group)

    def load_champion(self, model: str) -> "Champion":
        """Load the model in use, to ask it: `store.load_champion("tool_selection").predict([{"messages": […]}])`.

        `model` is event_prediction, task_completion, tool_selection or workflow_orchestration. The answer to each
        question has `prediction` and `score`; docs/models.md says what a question is. It stays the version that it
        was, also when another is promoted: load it again. Needs the extra `platform`. Raises ModelMissing if none was
        promoted yet, MissingExtra.
        """
        with _platform_extra():
            from tds_dagster.training.champion import load_champion
        return load_champion(self.settings, model)


_process_store: TrainingDataStore | None = None


@contextmanager
def _platform_extra() -> Iterator[None]:
    """Around imports of packages that agents do without. Raises MissingExtra."""
    try:
        yield
    except ModuleNotFoundError as err:
        raise MissingExtra(err.name) from err


def get_training_data_store() -> TrainingDataStore:
    """The process's one store, made at the first call from the TDS_* variables. Raises InvalidSetting for a bad one."""
    global _process_store  # noqa: PLW0603 - one a process is the contract
    if _process_store is None:
        _process_store = TrainingDataStore()
    return _process_store


def _close_stores() -> None:
    """At exit: give the writer a moment, then let go. What is left is in the spool, and nothing is lost."""
    for store in list(_stores):
        try:
            if store.has_stored:
                store.flush(_EXIT_FLUSH_S)
        except FlushTimeout:
            pass  # the next process that uses this spool writes it
        store.close()


def _begin_anew_after_fork() -> None:
    for store in list(_stores):
        store.begin_anew_after_fork()


atexit.register(_close_stores)
os.register_at_fork(after_in_child=_begin_anew_after_fork)
