"""Turns batches of records into rows of the daily CSV files, each exactly once.

A batch goes through these steps, in this order:

    read → append rows → fdatasync → commit the ledger (file sizes + producers' marks) → publish marks → acknowledge

Killed before the commit: the rows lie beyond the committed size, the next writer cuts them off, and the source still
has the records. Killed after it: the source gives the records again and the marks say that they are written. A mark
advances without gaps only: what lies behind a gap stays with the source until the gap is resent.

A line that cannot be a row (no JSON, a value of the wrong type, a frame lost on disk) goes to quarantine in the same
transaction, and the mark passes it. What fails as a whole (disk full, a day file shorter than committed) is an error
of that attempt: nothing is acknowledged, and the next attempt starts from the ledger.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from ingest.errors import InvalidRecord
from ingest.pipeline.adoption import ImportedRow, read_rows, received_files
from ingest.pipeline.dayfiles import DayFiles
from ingest.pipeline.failpoints import Failpoint
from ingest.pipeline.ledger import CLOCK, DUPLICATES, FOREIGN, QUARANTINED, Commit, Ledger, Reject
from ingest.pipeline.partitions import TIMESTAMP, DataPaths, filing_day, make_folder, sync_folder, today
from ingest.pipeline.spool import Batch, ProducerCounters
from ingest.records import Kind, is_keyed
from ingest.settings import Settings

MAX_RECORDS = 10_000  # of one commit: an fdatasync a day file and one of the ledger are paid for all of them
MAX_BYTES = 16 << 20
_FORGET_INTERVAL_S = 3600.0
_GAP_S, _SAY_AGAIN_S = 10.0, 60.0
logger = logging.getLogger(__name__)
_LOST = "lost: its frame in the spool cannot be read (a power cut or a damaged disk)"


class _Row(NamedTuple):
    """A record on its way into a day file."""

    day: str
    is_overruled: bool  # its clock: it is filed under its ingest day
    record_id: str
    text: str


class Writer:
    """Writes one kind. Make it only while holding the kind's lock."""

    def __init__(self, settings: Settings, kind: Kind) -> None:
        """Open the ledger and settle the day files against it."""
        self._settings, self._kind = settings, kind
        self._paths = DataPaths(settings.data_dir)
        self.failpoint = Failpoint(settings.failpoint)
        self.ledger = Ledger(self._paths.ledger(kind.name))
        try:
            self.files = DayFiles(self._paths, kind, self.ledger, self.failpoint)
        except BaseException:
            self.ledger.close()
            raise
        self.marks = self.ledger.marks()
        self._is_date: dict[str, bool] = {}
        self._gaps: dict[tuple[str, int], tuple[float, float]] = {}  # (producer, mark): seen since, said at
        self._next_forgetting = 0.0

    def write(self, batches: Iterable[Batch], strays: Sequence[Reject] = ()) -> int:
        """Make batches durable, whole or not at all; gives how many records are new among them.

        What the marks cover is passed over, what lies behind a gap is left out. `strays` came from the source too
        but are no batches: they are kept in quarantine.
        """
        change, rows, new = Commit(), list[_Row](), 0
        for stray in strays:
            if not self.ledger.has_reject(stray.origin):
                change.rejects.append(stray)
                change.count(stray.day, FOREIGN)
        for batch in batches:
            mark = change.marks.get(batch.producer, self.marks.get(batch.producer, 0))
            last = batch.first_seq + len(batch.lines) - 1
            if batch.first_seq > mark + 1:
                self._note_gap(batch, mark)
                continue
            if last <= mark:
                continue
            lines = batch.lines[mark + 1 - batch.first_seq :]
            rows += self._rows(batch.producer, mark + 1, lines, change)
            change.marks[batch.producer] = last
            new += len(lines)
        self._commit(rows, change)
        self._forget_keys()
        return new

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
        self.ledger.close()

    def _rows(self, producer: str, first_seq: int, lines: Sequence[bytes | None], change: Commit) -> list[_Row]:
        """Lines as rows. Where a batch does not decode as a whole its lines are taken one by one, bad ones rejected."""
        now = datetime.now(UTC)
        try:
            return self._rows_at_once(lines, now)
        except (TypeError, ValueError, RecursionError):
            pass  # at least one line is bad: which one, and why, comes out below
        rows = []
        for seq, line in enumerate(lines, first_seq):
            try:
                rows.append(self._row_alone(line, now))
            except (ValueError, RecursionError) as err:
                origin = f"producer {producer} seq {seq}"
                change.rejects.append(Reject(now.date().isoformat(), str(err), origin, line or b""))
                change.count(now.date().isoformat(), QUARANTINED)
        return rows

    def _rows_at_once(self, lines: Sequence[bytes | None], now: datetime) -> list[_Row]:
        joined = b"\n".join(lines)  # type: ignore[arg-type]  # a None among them raises TypeError: taken one by one
        records = self._kind.decoder.decode_lines(joined)
        if len(records) != len(lines):
            raise InvalidRecord("empty lines, or more than one record on a line")
        return [self._row(record, b"\\" in line, now) for record, line in zip(records, lines, strict=True)]  # type: ignore[operator]

    def _row_alone(self, line: bytes | None, now: datetime) -> _Row:
        if not line:
            raise InvalidRecord(_LOST)
        return self._row(self._kind.decoder.decode(line), b"\\" in line, now)

    def _row(self, record: msgspec.Struct, escaped: bool, now: datetime) -> _Row:  # noqa: FBT001 - the hottest call here
        record_id: str = record.record_id  # type: ignore[attr-defined]  # every record type has these two
        day, is_overruled = self._filing(record.timestamp, record_id, now)  # type: ignore[attr-defined]
        return _Row(day, is_overruled, record_id, self._kind.csv_row(record, escaped=escaped))

    def _filing(self, timestamp: str, record_id: str, now: datetime) -> tuple[str, bool]:
        """`filing_day`, without making a datetime of an ordinary day's timestamp."""
        day = timestamp[:10]
        is_date = self._is_date.get(day)
        if is_date is None:
            is_date = self._is_date[day] = _is_ordinary(day, self._settings.start_date)
        if is_date and TIMESTAMP.fullmatch(timestamp) is not None and day <= now.date().isoformat():
            return day, False
        return filing_day(timestamp, record_id, self._settings.start_date, now)

    def _commit(self, rows: Iterable[_Row], change: Commit) -> None:
        """Append rows to their day files, then commit them with everything else that `change` holds."""
        by_day: dict[str, list[str]] = defaultdict(list)
        rows = list(rows)
        stored = self.ledger.known_keys(row.record_id for row in rows if is_keyed(row.record_id))
        for row in rows:
            if is_keyed(row.record_id):
                if row.record_id in stored:
                    change.count(row.day, DUPLICATES)
                    continue
                stored.add(row.record_id)
                change.keyed.append(row.record_id)
            if row.is_overruled:
                change.count(row.day, CLOCK)
            by_day[row.day].append(row.text)
        if by_day:
            change.files = self.files.append({day: (len(part), "".join(part).encode()) for day, part in by_day.items()})
        if change.marks or change.files or change.rejects:
            self.ledger.commit(change)
            self.failpoint.reach("commit")
            self.files.adopt(change.files)
            self.marks.update(change.marks)

    def _forget_keys(self) -> None:
        if time.monotonic() >= self._next_forgetting:
            self.ledger.forget_keys(timedelta(days=self._settings.key_days).total_seconds())
            self._next_forgetting = time.monotonic() + _FORGET_INTERVAL_S

    def _import_file(self, producer: str, path: Path) -> int:
        imported, now = 0, datetime.now(UTC)
        source = read_rows(self._kind, path, self.marks.get(producer, 0))
        while part := list(islice(source, MAX_RECORDS)):
            change, rows = Commit(), list[_Row]()
            for row in part:
                self._sort_imported(row, rows, change, now)
            change.marks[producer] = self.marks.get(producer, 0) + len(part)
            self._commit(rows, change)
            imported += len(part)
        return imported

    def _sort_imported(self, row: ImportedRow, rows: list[_Row], change: Commit, now: datetime) -> None:
        if row.text is not None:
            day, is_overruled = filing_day(row.timestamp, row.record_id, self._settings.start_date, now)
            rows.append(_Row(day, is_overruled, row.record_id, row.text))
        else:
            change.rejects.append(Reject(today().isoformat(), row.reason or "", row.origin, row.line))
            change.count(today().isoformat(), QUARANTINED)

    def _reject_file(self, path: Path, reason: str) -> None:
        target = self._paths.quarantine(self._kind.name, "").parent / path.name
        make_folder(target.parent)
        reject = Reject(today().isoformat(), reason, str(path), f"the whole file: {target}".encode())
        self.ledger.commit(Commit(rejects=[reject], counts={(reject.day, FOREIGN): 1}))
        path.replace(target)
        sync_folder(target.parent)


def _is_ordinary(day: str, start_date: date) -> bool:
    """Whether a text is the date of a day that has a partition, if it is not in the future."""
    try:
        moment = date.fromisoformat(day)
        return moment >= start_date and moment.isoformat() == day  # it also reads 2024-W20-3, which is no day's name
    except ValueError:
        return False
