"""Adds up the ingest side of the accounting identity of one kind: what was offered, and where it is now.

    offered = accepted + dropped            accepted + imported = stored + waiting

Accepted and dropped come from the producers' own counters, stored from what the writer counted when it committed,
waiting from the distance between each producer's last sequence number and its mark: no side is made from another.
"""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ingest.pipeline.adoption import IMPORT_PREFIX
from ingest.pipeline.ledger import CLOCK, DUPLICATES, ERASED, FOREIGN, QUARANTINED, open_ledger, total
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.spool import ProducerCounters, SpooledProducer, spooled_heads
from ingest.records import ingest_time
from ingest.settings import Settings


class IngestAccount(msgspec.Struct, frozen=True):
    """One kind's records, counted from the calls to the CSV files."""

    kind: str
    offered: int  # calls with a valid record
    accepted: int  # of these, taken into a spool
    dropped: int  # of these, not taken: spool or disk full, record too large
    coerced: int  # accepted after a value was changed to fit JSON
    imported: int  # rows read from day files that the store did not write
    waiting: int  # accepted, and not in a CSV file yet
    stored: int  # written by the writer: rows, what it kept out of them, and what was erased since
    rows: int  # in the CSV files
    duplicates: int  # of an idempotency key, left out by the writer
    quarantined: int  # lines that the writer could not turn into rows
    erased: int  # rows and quarantined lines that were there and were erased
    clock: int  # rows filed under their ingest day, for their own time lies outside of the partitions
    foreign: int  # what other programs put into our files or into Synapse, kept in quarantine; no part of stored
    writer_alive: bool  # somebody holds the writer's lock

    @property
    def balanced(self) -> bool:
        """Whether both equations hold."""
        is_offered = self.offered == self.accepted + self.dropped
        return is_offered and self.accepted + self.imported == self.stored + self.waiting


def account(settings: Settings, kind: str) -> IngestAccount:
    """Count one kind. Producers on other hosts are known as far as their counters came through Synapse."""
    paths = DataPaths(settings.data_dir)
    heads = spooled_heads(settings.spool, kind)  # before the marks: what is written meanwhile is then not waiting
    if not paths.ledger(kind).exists():
        files, marks, counts, known = {}, {}, {}, {}
    else:
        # One snapshot of the ledger: a commit between two of these reads would leave the sides apart.
        with open_ledger(paths, kind) as ledger, ledger.snapshot():
            files, marks, counts, known = ledger.files(), ledger.marks(), ledger.counts(), ledger.producers()
    producers = {name: counters for name, counters in known.items() if not name.startswith(IMPORT_PREFIX)}
    for name, head in heads.items():
        if name not in producers or head.offered >= producers[name].offered:
            producers[name] = head
    for name, mark in marks.items():
        if not name.startswith(IMPORT_PREFIX):
            producers[name] = _at_least(producers.get(name, ProducerCounters()), mark)
    rows = sum(file.rows for file in files.values())
    duplicates, quarantined, erased = (total(counts, name) for name in (DUPLICATES, QUARANTINED, ERASED))
    return IngestAccount(
        kind=kind,
        offered=sum(counters.offered for counters in producers.values()),
        accepted=sum(counters.accepted for counters in producers.values()),
        dropped=sum(counters.dropped for counters in producers.values()),
        coerced=sum(counters.coerced for counters in producers.values()),
        imported=sum(mark for name, mark in marks.items() if name.startswith(IMPORT_PREFIX)),
        waiting=sum(counters.accepted - marks.get(name, 0) for name, counters in producers.items()),
        stored=rows + duplicates + quarantined + erased,
        rows=rows,
        duplicates=duplicates,
        quarantined=quarantined,
        erased=erased,
        clock=total(counts, CLOCK),
        foreign=total(counts, FOREIGN),
        writer_alive=FileLock.is_taken(paths.lock(kind)),
    )


def _at_least(counters: ProducerCounters, accepted: int) -> ProducerCounters:
    """Counters of which at least so many were accepted: what is written was accepted, whatever was counted last."""
    if counters.accepted >= accepted:
        return counters
    return msgspec.structs.replace(
        counters, accepted=accepted, offered=max(counters.offered, accepted + counters.dropped)
    )


def oldest_waiting_s(settings: Settings, kind: str) -> float | None:
    """Age in seconds of the oldest record that waits in this host's spool, by the ingest time in its id; None: none."""
    marks = {}
    paths = DataPaths(settings.data_dir)
    if paths.ledger(kind).exists():
        with open_ledger(paths, kind) as ledger:
            marks = ledger.marks()
    oldest: datetime | None = None
    for name, head in spooled_heads(settings.spool, kind).items():
        mark = marks.get(name, 0)
        if head.accepted <= mark:
            continue
        try:
            since = _accepted_at(settings.spool / kind / name, mark)
        except FileNotFoundError:
            continue  # written and deleted while we looked
        oldest = since if oldest is None or since < oldest else oldest
    return None if oldest is None else max(0.0, (datetime.now(UTC) - oldest).total_seconds())


def _accepted_at(folder: Path, mark: int) -> datetime:
    """When the first record behind `mark` was accepted; no later than now, no earlier than its producer's start."""
    producer = SpooledProducer(folder, mark)
    try:
        batch = producer.read(1, 1)
    finally:
        producer.close()
    line = batch.lines[0] if batch is not None else None
    record_id = msgspec.json.decode(line, type=_Named).record_id if line else ""
    started = datetime.fromtimestamp(int(folder.name[:12], 16) / 1000, UTC)  # a producer's name is a UUIDv7
    return ingest_time(record_id) or started


class _Named(msgspec.Struct):
    record_id: str
