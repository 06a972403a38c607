"""Turns the protections of the write path off, one at a time, so that the harness can be seen to notice.

A harness that reports nothing lost may only be blind. Each control takes one protection out of the product's code, in
the harness's own child processes, and says under which attacks its absence shows. The product has no such switches.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

if TYPE_CHECKING:
    from ingest.pipeline.spool import Batch


class Control(NamedTuple):
    """One protection."""

    what: str  # it does
    seen: str  # what its absence leads to: a pattern for `lost: ...`, `doubled: ...` or `wrong: ...`
    switch_off: Callable[[], None]
    redis: bool
    attacks: list[str]
    steps: tuple[str, ...] = ()  # failpoints
    small_disks: bool = False
    gap_s: float = 0.25  # between attacks; `tds writer` takes half a second, on a busy machine two, to its first row
    attack_s: float = 2.5


def replace(owner: object, name: str, substitute: object) -> None:
    """Put another function in the place of one of the product's. A name that is gone is an error, not a no-op."""
    getattr(owner, name)
    setattr(owner, name, substitute)


def forget_marks() -> None:
    """The writer takes whatever comes, as if it had never seen it."""
    _let_the_mark_follow(lambda first_seq, mark: first_seq != mark + 1)


def jump_gaps() -> None:
    """The writer takes what lies behind a gap, and its mark says that the gap is written too."""
    _let_the_mark_follow(lambda first_seq, mark: first_seq > mark + 1)


def _let_the_mark_follow(is_moved: Callable[[int, int], bool]) -> None:
    from ingest.pipeline.exactly_once import Pending, Writer

    prepare = Writer.prepare

    def preparing(self: Writer, batches: "Iterable[Batch]", *strays: Any) -> Pending:
        def following() -> "Iterator[Batch]":
            for batch in batches:
                mark = max(self._marks_ahead.get(batch.producer, 0), self.marks.get(batch.producer, 0))
                if is_moved(batch.first_seq, mark):
                    self._marks_ahead[batch.producer] = self.marks[batch.producer] = batch.first_seq - 1
                yield batch

        return prepare(self, following(), *strays)

    replace(Writer, "prepare", preparing)


def trust_the_size_on_disk() -> None:
    """A day file counts as far as it reaches: what a killed writer appended and did not commit stays."""
    from ingest.pipeline.dayfiles import DayFiles
    from ingest.pipeline.ledger import CommittedFile

    settle = DayFiles._settle

    def settling(self: DayFiles, day: str) -> None:
        path = self._paths.training(self._kind.name, day)
        committed = self._committed.get(day)
        if committed is None or path.stat().st_size <= committed.size:
            settle(self, day)
            return
        rows = path.read_bytes().count(b"\n") - 1
        status = path.stat()
        self._committed[day] = CommittedFile(status.st_size, rows, committed.version, status.st_mtime_ns)

    replace(DayFiles, "_settle", settling)


def acknowledge_first() -> None:
    """Marks are published and entries acknowledged when they are read, before their rows are written."""
    from ingest.pipeline.synapse import GROUP, StreamSource, marks_key, stream_key

    read, read_group = StreamSource.read, StreamSource._read_group
    read_now: dict[str, list[bytes]] = {}  # entry ids, by kind: each has a thread of its own

    def reading_group(self: StreamSource, *more: Any) -> Any:
        entries = read_group(self, *more)
        read_now[self.kind] = [entry_id for entry_id, _ in entries]
        return entries

    def reading(self: StreamSource, marks: Mapping[str, int], *more: Any) -> Any:
        batches, strays = read(self, marks, *more)
        ahead = dict(marks)
        for batch in batches:
            if batch.first_seq <= ahead.get(batch.producer, 0) + 1:
                ahead[batch.producer] = max(ahead.get(batch.producer, 0), batch.last_seq)
        if batches:
            published = {batch.producer: ahead.get(batch.producer, 0) for batch in batches}
            self._client.hset(marks_key(self.kind), mapping=cast("Any", published))
            self._client.xack(stream_key(self.kind), GROUP, *read_now[self.kind])
            time.sleep(0.05)  # what a busy disk takes for the rows
        return batches, strays

    replace(StreamSource, "_read_group", reading_group)
    replace(StreamSource, "read", reading)


def write_no_intent() -> None:
    """Nothing is said before rows are appended."""
    from ingest.pipeline.dayfiles import DayFiles

    replace(DayFiles, "_write_intent", lambda self, intent: None)


def leave_segments_sparse() -> None:
    """Segments get a size and no blocks."""
    from ingest.pipeline import spool

    replace(spool, "allocate", os.ftruncate)


def release_when_sent() -> None:
    """The spool lets go of what was sent, without waiting for the mark."""
    from ingest.pipeline.synapse import Shipper

    send = Shipper._send

    def sending(self: Shipper, client: Any, batches: Any) -> None:
        send(self, client, batches)
        for batch in batches:
            producer = self._reader.producers[batch.producer]
            producer.release(producer.read_up_to)

    replace(Shipper, "_send", sending)


def never_resend() -> None:
    """What was sent once is not sent again, whatever became of it."""
    from ingest.pipeline.synapse import Shipper

    replace(Shipper, "_resend_if_lost", lambda self, client, name, mark: None)


def read_no_pending() -> None:
    """Entries that were delivered to a writer before it died are not asked for again."""
    from ingest.pipeline.synapse import StreamSource

    read_group = StreamSource._read_group

    def reading(self: StreamSource, *more: Any) -> Any:
        self._pending_from, self._next_pending = None, float("inf")
        return read_group(self, *more)

    replace(StreamSource, "_read_group", reading)


def lock_nothing() -> None:
    """Everybody may write a kind at the same time."""
    import fcntl

    def locking(descriptor: int, operation: int) -> None:
        """Say yes."""

    from ingest.pipeline import locks

    class Unlocked:
        """fcntl without flock."""

        LOCK_EX, LOCK_NB, LOCK_UN, LOCK_SH = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN, fcntl.LOCK_SH
        flock = staticmethod(locking)

    replace(locks, "fcntl", Unlocked)


def share_after_fork() -> None:
    """A forked child goes on with the producers of its parent."""
    from ingest.store import BlockingStore

    replace(BlockingStore, "begin_anew_after_fork", lambda self: None)


def skip_the_unreadable() -> None:
    """A record that the spool cannot give back is left out, without a word: no tombstone, no quarantine."""
    from ingest.pipeline.ledger import Commit, Ledger

    commit = Ledger.commit

    def committing(self: Ledger, change: Commit) -> None:
        counts = {key: n for key, n in change.counts.items() if key[1] != "quarantined"}
        commit(self, msgspec.structs.replace(change, rejects=[], counts=counts))

    replace(Ledger, "commit", committing)


CONTROLS: dict[str, Control] = {
    "marks": Control(
        "the writer passes over what its mark covers", r"^doubled", forget_marks,
        redis=True, attacks=["kill-writer"], steps=("commit", "publish"), gap_s=2.0, attack_s=5.0,
    ),
    "gaps": Control(
        "the mark advances without gaps only", r"^lost", jump_gaps,
        redis=True, attacks=["pause-writer", "flush-redis"], gap_s=0.4,
    ),
    "committed-size": Control(
        "what lies behind the committed size of a day file does not count", r"^doubled", trust_the_size_on_disk,
        redis=False, attacks=["kill-holder"], steps=("append", "sync"),
    ),
    "commit-first": Control(
        "marks are published and entries acknowledged after the commit", r"^lost", acknowledge_first,
        redis=True, attacks=["kill-writer"], steps=("intent", "append", "sync"), gap_s=2.0, attack_s=5.0,
    ),
    "intent": Control(
        "own torn rows are told from strange ones by the intent", r"strange lines|nobody stored that", write_no_intent,
        redis=False, attacks=["kill-holder"], steps=("append", "sync"),
    ),
    "preallocation": Control(
        "segments have their blocks before they are written", r"Bus error", leave_segments_sparse,
        redis=False, attacks=["fill-disk"], small_disks=True,
    ),
    "release": Control(
        "the spool keeps what no mark covers", r"^lost", release_when_sent,
        redis=True, attacks=["pause-writer", "flush-redis"], gap_s=0.4,
    ),
    "resend": Control(
        "what Redis lost is sent again from the mark", r"^lost|stuck", never_resend,
        redis=True, attacks=["pause-writer", "flush-redis"], gap_s=0.4,
    ),
    "pending": Control(
        "entries of a dead writer are read again", r"^lost|stuck", read_no_pending,
        redis=True, attacks=["kill-writer"], steps=("intent", "append", "sync"), gap_s=2.0, attack_s=5.0,
    ),
    "lock": Control(
        "one process at a time writes a kind", r"^doubled|^lost", lock_nothing,
        redis=False, attacks=["add-writer", "kill-worker"],
    ),
    "fork": Control(
        "a forked child has producers of its own", r"^doubled|^lost|nobody stored that", share_after_fork,
        redis=False, attacks=["kill-worker"],
    ),
    "tombstones": Control(
        "records that the spool cannot give back are counted", r"is off by", skip_the_unreadable,
        redis=False, attacks=["pull-the-plug"],
    ),
}  # fmt: skip
