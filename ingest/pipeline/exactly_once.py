"""Turns batches of records into rows of the daily CSV files, each exactly once.

A batch goes through these steps, in this order:

    read → append rows → fdatasync → commit the ledger (file sizes + producers' marks) → publish marks → acknowledge

Most records come out of the spool as rows, which are copied. Those that come as JSON, all of Synapse's among them, are
made into rows a few hundred together, a column at a time (`Kind.csv_rows`). While one batch is on its way to the disk
the next one may be prepared.

Killed before the commit: the rows lie beyond the committed size, the next writer cuts them off, and the source still
has the records. Killed after it: the source gives the records again and the marks say that they are written. A mark
advances without gaps only: what lies behind a gap stays with the source until the gap is resent.

A line that cannot be a row (no JSON, a value of the wrong type, a record lost on disk) goes to quarantine in the same
transaction, and the mark passes it. What fails as a whole (disk full, a day file shorter than committed) is an error
of that attempt: nothing is acknowledged, and the next attempt starts from the ledger.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import groupby, islice
from pathlib import Path

import msgspec

from ingest.errors import InvalidRecord
from ingest.pipeline.adoption import ImportedRow, read_rows, received_files
from ingest.pipeline.dayfiles import DayFiles
from ingest.pipeline.failpoints import Failpoint
from ingest.pipeline.ledger import CLOCK, DUPLICATES, FOREIGN, QUARANTINED, Commit, Ledger, Reject
from ingest.pipeline.partitions import TIMESTAMP, DataPaths, filing_day, make_folder, sync_folder, today
from ingest.pipeline.spool import Batch, ProducerCounters
from ingest.records import Kind, day_text, has_keyed, is_keyed
from ingest.settings import Settings

MAX_RECORDS = 10_000  # of one commit: an fdatasync a day file and one of the ledger are paid for all of them
MAX_BYTES = 4 << 20
_MANY_DAYS, _MANY_DAYS_FACTOR = 16, 8  # syncing 365 files takes 60 ms: then more records share it
_FORGET_INTERVAL_S = 3600.0
_GAP_S, _SAY_AGAIN_S = 10.0, 60.0
_LOST = "lost: its bytes in the spool cannot be read (a power cut or a damaged disk)"
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_SHAPE = b"0000-00-00T00:00:00.000000Z"
logger = logging.getLogger(__name__)


class Pending:
    """Rows by day, in the order they came, and what else is committed with them."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.change = Commit()
        self.counts: dict[str, int] = defaultdict(int)  # rows of each day
        self.parts: dict[str, list[bytes]] = defaultdict(list)  # their text, in pieces
        self.new = 0  # records among them that were not known before, bad ones included

    def add(self, day: str, rows: Sequence[str]) -> None:
        """Add rows of one day."""
        self.add_text(day, "".join(rows).encode(), len(rows))

    def add_text(self, day: str, text: bytes, rows: int) -> None:
        """Add the text of so many rows of one day."""
        self.counts[day] += rows
        self.parts[day].append(text)


class Writer:
    """Writes one kind. Make it only while holding the kind's lock."""

    def __init__(self, settings: Settings, kind: Kind) -> None:
        """Open the ledger and settle the day files against it."""
        self._settings, self._kind = settings, kind
        self._paths = DataPaths(settings.data_dir)
        self.failpoint = Failpoint(settings.failpoint)
        self.ledger = Ledger(self._paths.ledger(kind.name))
        # What `prepare` asks: the other one may be in the middle of a transaction, in another thread.
        self._known = Ledger(self._paths.ledger(kind.name))
        try:
            self.files = DayFiles(self._paths, kind, self.ledger, self.failpoint)
        except BaseException:
            self._known.close()
            self.ledger.close()
            raise
        self.marks = self.ledger.marks()
        self._marks_ahead: dict[str, int] = {}  # of what is prepared, if not committed yet
        self._keys_ahead = set[str]()  # the same of idempotency keys
        self._is_ordinary: dict[str, bool] = {}
        self._day_texts: dict[int, str] = {}
        self.factor = 1  # how many times `MAX_RECORDS` and `MAX_BYTES` the next commit should have
        self._gaps: dict[tuple[str, int], tuple[float, float]] = {}  # (producer, mark): seen since, said at
        self._next_forgetting = 0.0

    def write(self, batches: Iterable[Batch], strays: Sequence[Reject] = ()) -> int:
        """Make batches durable, whole or not at all; gives how many records are new among them.

        What the marks cover is passed over, what lies behind a gap is left out. `strays` came from the source too
        but are no batches: they are kept in quarantine.
        """
        pending = self.prepare(batches, strays)
        self.commit(pending)
        return pending.new

    def prepare(self, batches: Iterable[Batch], strays: Sequence[Reject] = ()) -> Pending:
        """Turn batches into rows that `commit` makes durable. It may run while the prepared ones before are committed.

        If one commit fails, all that was prepared is void, and this writer with it: another one starts from the ledger.
        """
        pending = Pending()
        change = pending.change
        for stray in strays:
            if not self._known.has_reject(stray.origin):
                change.rejects.append(stray)
                change.count(stray.day, FOREIGN)
        for batch in batches:
            mark = max(self._marks_ahead.get(batch.producer, 0), self.marks.get(batch.producer, 0))
            if batch.first_seq > mark + 1:
                self._note_gap(batch, mark)
                continue
            if batch.last_seq <= mark:
                continue
            self._add(_behind(batch, mark), pending)
            change.marks[batch.producer] = self._marks_ahead[batch.producer] = batch.last_seq
            pending.new += batch.last_seq - mark
        return pending

    def _note_gap(self, batch: Batch, mark: int) -> None:
        """Say so, once a minute, when a producer's records wait for others that do not come."""
        since, said_at = self._gaps.get((batch.producer, mark), (time.monotonic(), 0.0))
        if time.monotonic() - since > _GAP_S and time.monotonic() - said_at > _SAY_AGAIN_S:
            said_at = time.monotonic()
            logger.warning(
                "%s: records from %d on of producer %s wait for %d and the next ones; if its spool is gone, or the "
                "ledger is a new one, they will not come: see docs/synapse.md",
                self._kind.name, batch.first_seq, batch.producer, mark + 1,
            )  # fmt: skip
        self._gaps = {key: value for key, value in self._gaps.items() if key[0] != batch.producer}
        self._gaps[batch.producer, mark] = since, said_at

    def import_day_files(self) -> int:
        """Import what lies in `training/imported/` and is not read to its end yet; gives how many rows are new."""
        done, imported = self.ledger.producers(), 0
        for producer, path in received_files(self._paths, self._kind.name):
            if producer in done:
                continue
            try:
                imported += self._import_file(producer, path)
            except InvalidRecord as err:
                self._reject_file(path, str(err))
                continue
            count = self.marks.get(producer, 0)
            self.ledger.commit(Commit(producers={producer: ProducerCounters(count, count, 0, 0)}))
        self.files.has_received = False
        return imported

    def close(self) -> None:
        """Close files and ledger. May be called twice."""
        self.files.close()
        self._known.close()
        self.ledger.close()

    def _add(self, batch: Batch, pending: Pending) -> None:
        """Add a batch of rows, of JSON, or of both."""
        days = batch.days
        if not any(days):
            self._add_json(batch, pending)
            return
        day = self._ordinary_day(days[0], today().isoformat())
        if day and days.count(days[0]) == batch.count and batch.header == self._kind.header:
            pending.add_text(day, batch.data + b"\n", batch.count)
        else:
            seq = batch.first_seq
            for is_row, run in groupby(zip(batch.lines, days, strict=True), key=lambda pair: pair[1] > 0):
                lines, days_of_run = zip(*run, strict=True)
                part = Batch(batch.producer, seq, len(lines), b"\n".join(lines), days_of_run, batch.header)
                if is_row:
                    self._add_rows(part, pending)
                else:
                    self._add_json(part, pending)
                seq += len(lines)

    def _add_rows(self, batch: Batch, pending: Pending) -> None:
        """Add rows that may be of many days, or of another version's columns."""
        lines = batch.lines
        if batch.header != self._kind.header:
            names = batch.header.decode().rstrip("\n").split(",")
            try:
                lines = [self._kind.widen_row(names, line).rstrip(b"\n") for line in lines]
            except InvalidRecord as err:
                for seq, line in enumerate(lines, batch.first_seq):
                    _reject(batch.producer, seq, line, err, pending)
                return
        by_day: dict[int, list[bytes]] = defaultdict(list)
        for number, line in zip(batch.days, lines, strict=True):
            by_day[number].append(line)
        now = today().isoformat()
        for number, part in by_day.items():
            day = self._ordinary_day(number, now)
            if day:
                pending.add_text(day, b"\n".join(part) + b"\n", len(part))
            else:
                seqs = (seq for seq, other in enumerate(batch.days, batch.first_seq) if other == number)
                self._add_rows_of_no_ordinary_day(batch.producer, zip(seqs, part, strict=True), pending)

    def _add_rows_of_no_ordinary_day(self, producer: str, lines: Iterable[tuple[int, bytes]], pending: Pending) -> None:
        """Add rows, given with their sequence numbers, whose timestamps need a closer look."""
        good = list[tuple[str, str, str]]()
        for seq, line in lines:
            try:
                good.append((line.decode() + "\n", *self._kind.read_stamp(line.decode())))
            except ValueError as err:
                _reject(producer, seq, line, err, pending)
        if good:
            rows, timestamps, record_ids = zip(*good, strict=True)
            self._add_one_by_one(rows, timestamps, record_ids, pending)

    def _ordinary_day(self, number: int, now: str) -> str:
        """The day with that number if its rows may be filed under it; "" before the start date and after `now`."""
        if not number:
            return ""
        day = self._day_texts.get(number)
        if day is None:
            day = self._day_texts[number] = day_text(number)
        return day if day <= now and self._is_ordinary_day(day) else ""

    def _add_json(self, batch: Batch, pending: Pending) -> None:
        """Add records as rows. Where they do not decode as a whole lines are taken one by one, bad ones rejected."""
        try:
            records = self._kind.decoder.decode_lines(batch.data)
            if len(records) != batch.count:
                raise InvalidRecord("empty lines, or more than one record on a line")
            self._add_records(records, pending, escaped=b"\\" in batch.data)
        except (ValueError, RecursionError):
            pass  # at least one line is bad: which one, and why, comes out below
        else:
            return
        for seq, line in enumerate(batch.lines, batch.first_seq):
            try:
                if not line:
                    raise InvalidRecord(_LOST)
                self._add_records([self._kind.decoder.decode(line)], pending, escaped=b"\\" in line)
            except (ValueError, RecursionError) as err:
                _reject(batch.producer, seq, line, err, pending)

    def _add_records(self, records: Sequence[msgspec.Struct], pending: Pending, *, escaped: bool) -> None:
        """Add decoded records' rows, all of them or, raising ValueError, none."""
        rows = self._kind.csv_rows(records, escaped=escaped)
        timestamps: list[str] = [record.timestamp for record in records]  # type: ignore[attr-defined]  # all have one
        record_ids: list[str] = [record.record_id for record in records]  # type: ignore[attr-defined]  # and one of these
        days = [timestamp[:10] for timestamp in timestamps]
        if not self._are_ordinary(days, timestamps) or has_keyed(record_ids):
            self._add_one_by_one(rows, timestamps, record_ids, pending)
        elif days.count(days[0]) == len(days):
            pending.add(days[0], rows)
        else:
            by_day: dict[str, list[str]] = defaultdict(list)
            for day, row in zip(days, rows, strict=True):
                by_day[day].append(row)
            for day, part in by_day.items():
                pending.add(day, part)

    def _are_ordinary(self, days: Sequence[str], timestamps: Sequence[str]) -> bool:
        """Whether all timestamps are well formed and of days that they may be filed under, none of them in the future.

        What `filing_day` would say of each, said of hundreds at once.
        """
        digits_as_0 = "".join(timestamps).encode().translate(_DIGITS)
        if digits_as_0 != _SHAPE * len(timestamps):
            return False
        now = today().isoformat()
        if not all(day <= now and self._is_ordinary_day(day) for day in set(days)):
            return False
        clocks = {timestamp[10:19] for timestamp in timestamps}
        return all(TIMESTAMP.fullmatch(f"2000-01-01{clock}.000000Z") for clock in clocks)

    def _is_ordinary_day(self, day: str) -> bool:
        is_ordinary = self._is_ordinary.get(day)
        if is_ordinary is None:
            is_ordinary = self._is_ordinary[day] = _is_ordinary(day, self._settings.start_date)
        return is_ordinary

    def _add_one_by_one(
        self, rows: Sequence[str], timestamps: Sequence[str], record_ids: Sequence[str], pending: Pending
    ) -> None:
        """Add rows of which some have a key, or a timestamp that needs a closer look."""
        now = datetime.now(UTC)
        start_date = self._settings.start_date
        filed = [filing_day(*pair, start_date, now) for pair in zip(timestamps, record_ids, strict=True)]
        stored = set(self._keys_ahead)  # before the ledger is asked: what leaves this set is in the ledger
        stored |= self._known.known_keys(record_id for record_id in record_ids if is_keyed(record_id))
        for row, record_id, (day, is_overruled) in zip(rows, record_ids, filed, strict=True):
            if is_keyed(record_id):
                if record_id in stored:
                    pending.change.count(day, DUPLICATES)
                    continue
                stored.add(record_id)
                self._keys_ahead.add(record_id)
                pending.change.keyed.append(record_id)
            if is_overruled:
                pending.change.count(day, CLOCK)
            pending.add(day, [row])

    def commit(self, pending: Pending) -> None:
        """Append rows to their day files, then commit them with everything else that is pending."""
        change = pending.change
        self.factor = _MANY_DAYS_FACTOR if len(pending.parts) > _MANY_DAYS else 1
        if pending.parts:
            change.files = self.files.append(pending.parts, pending.counts)
        if change.marks or change.files or change.rejects:
            self.ledger.commit(change)
            self.failpoint.reach("commit")
            self.files.adopt(change.files)
            self.marks.update(change.marks)
            self._keys_ahead.difference_update(change.keyed)
        self._forget_keys()

    def _forget_keys(self) -> None:
        if time.monotonic() >= self._next_forgetting:
            self.ledger.forget_keys(timedelta(days=self._settings.key_days).total_seconds())
            self._next_forgetting = time.monotonic() + _FORGET_INTERVAL_S

    def _import_file(self, producer: str, path: Path) -> int:
        imported = 0
        source = read_rows(self._kind, path, self.marks.get(producer, 0))
        while part := list(islice(source, MAX_RECORDS)):
            pending = Pending()
            self._sort_imported(part, pending)
            pending.change.marks[producer] = self.marks.get(producer, 0) + len(part)
            self.commit(pending)
            imported += len(part)
        return imported

    def _sort_imported(self, part: Iterable[ImportedRow], pending: Pending) -> None:
        good = list[tuple[str, str, str]]()
        for row in part:
            if row.text is not None:
                good.append((row.text, row.timestamp, row.record_id))
                continue
            pending.change.rejects.append(Reject(today().isoformat(), row.reason or "", row.origin, row.line))
            pending.change.count(today().isoformat(), QUARANTINED)
        if good:
            rows, timestamps, record_ids = zip(*good, strict=True)
            self._add_one_by_one(rows, timestamps, record_ids, pending)

    def _reject_file(self, path: Path, reason: str) -> None:
        target = self._paths.quarantine(self._kind.name, "").parent / path.name
        make_folder(target.parent)
        reject = Reject(today().isoformat(), reason, str(path), f"the whole file: {target}".encode())
        self.ledger.commit(Commit(rejects=[reject], counts={(reject.day, FOREIGN): 1}))
        path.replace(target)
        sync_folder(target.parent)


def _reject(producer: str, seq: int, line: bytes, err: Exception, pending: Pending) -> None:
    """Put a producer's line into quarantine."""
    day = today().isoformat()
    pending.change.rejects.append(Reject(day, str(err), f"producer {producer} seq {seq}", line))
    pending.change.count(day, QUARANTINED)


def _behind(batch: Batch, mark: int) -> Batch:
    """The part of a batch that the mark does not cover."""
    covered = mark + 1 - batch.first_seq
    if covered <= 0:
        return batch
    data = batch.data.split(b"\n", covered)[covered]
    return Batch(batch.producer, mark + 1, batch.count - covered, data, batch.days[covered:], batch.header)


def _is_ordinary(day: str, start_date: date) -> bool:
    """Whether a text is the date of a day that has a partition, if it is not in the future."""
    try:
        moment = date.fromisoformat(day)
        return moment >= start_date and moment.isoformat() == day  # it also reads 2024-W20-3, which is no day's name
    except ValueError:
        return False
