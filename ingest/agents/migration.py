"""Turns the rows of the old tables in PostgreSQL into records, conversations and files, each row accounted for.

    rows by primary key, a server-side cursor → what is known already left out → store → flush → the ledger has them
    all → the mark moves

The mark of a table, in `state/migration/<source>.json`, moves when what lies before it is in the CSV files and fsynced:
a migration that was killed goes on where it was. What it had stored beyond the mark is known by its idempotency key,
and not stored again. A row that no record can be made of goes to `quarantine/migration/<source>/<table>.jsonl` with
its reason. Tables that are no training data are also kept whole, as JSON lines, in `migration/<source>/<table>.jsonl`.

Rows are read as `row_to_json` gives them: columns that somebody added are there too and go into `metadata`.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
import sqlalchemy as sa

from ingest.agents.config_migration import write_config, write_prompt
from ingest.agents.database import open_engine, upgrade
from ingest.agents.messages import Message, checked_message, count_known, insert_messages
from ingest.agents.old_tables import OLD_TABLES, OldTable
from ingest.errors import DatabaseUnavailable, InvalidConfig, InvalidRecord, InvalidSetting, Unbalanced, shown
from ingest.pipeline.ledger import open_ledger
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import PRIVATE_FILE, DataPaths, make_folder, replacing
from ingest.records import KINDS, keyed_record_id
from ingest.settings import Settings
from ingest.store import TrainingDataStore

BATCH = 5000  # rows between two flushes
DEEPEST = 900  # levels that every reader of JSON goes down
_FLUSH_TIMEOUT_S = 120.0
_OF_MESSAGES = {"interaction_id", "agent_id", "role", "content", "tool_calls", "metadata", "created_at"}
_LATEST = timedelta(days=1)  # how far ahead a record's time may lie
Advance = Callable[[str, int, int], None]
Row = dict[str, Any]


class Progress(msgspec.Struct, kw_only=True):
    """How far a table is, as it stands in the state file."""

    mark: list[str] | None = None  # of the last row that is accounted for
    rows: int = 0  # read and accounted for: stored + known + quarantined
    stored: int = 0
    known: int = 0  # there already, of another run or of agents that used the same id
    quarantined: int = 0
    kept_bytes: int = 0  # of the files with quarantined rows and with whole rows, as of the mark
    quarantine_bytes: int = 0


class TableReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one table."""

    table: str
    rows: int | None  # in the table now; None: there is no such table
    migrated: Progress
    target: str  # where they went, for a person

    @property
    def is_whole(self) -> bool:
        """Whether each row of it is accounted for."""
        return self.rows is None or self.rows == self.migrated.rows


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of all of them."""

    source: str  # the database, without a password
    tables: list[TableReport]
    quarantine: str | None = None  # the folder with rows that could not be taken, if there are any
    dropped: list[str] = []


class Migration:
    """The way of one old database into one store; `with` closes its connections."""

    def __init__(
        self,
        settings: Settings,
        *,
        schema: str = "public",
        configs: Path | str = "configs",
        timezone: str = "UTC",
        tables: Sequence[str] = tuple(OLD_TABLES),
    ) -> None:
        """From the database of TDS_POSTGRES_URL. `timezone` is what its times, which have no zone, are in.

        Raises InvalidSetting without an address, for a table that is none of the old ones and for an unknown zone.
        """
        if settings.postgres_url is None:
            raise InvalidSetting(
                "TDS_POSTGRES_URL is not set: expected the address of the database with the old tables; set it"
            )
        unknown = [name for name in tables if name not in OLD_TABLES]
        if unknown:
            raise InvalidSetting(f"table {unknown[0]!r}: expected one of {', '.join(OLD_TABLES)}; pass one of these")
        try:
            self._zone = ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError) as err:
            raise InvalidSetting(f"timezone {timezone!r}: expected a name such as Europe/Berlin; pass one") from err
        self._settings, self._schema, self._configs, self._tables = settings, schema, Path(configs), tables
        self._paths = DataPaths(settings.data_dir)
        self._engine = open_engine(msgspec.structs.replace(settings, postgres_schema=None))
        url = self._engine.url
        self.source = f"{url.host or url.query.get('host', '')}:{url.port or 5432}/{url.database}/{schema}"
        self._name = hashlib.sha256(self.source.encode()).hexdigest()[:12]
        self._state = self._paths.state / "migration" / f"{self._name}.json"
        self.quarantine = self._paths.root / "quarantine" / "migration" / self._name
        self.kept = self._paths.root / "migration" / self._name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._engine.dispose()

    def count(self) -> Report:
        """How many rows there are, and what is migrated of them. Nothing is changed. Raises DatabaseUnavailable."""
        progress = self._progress()
        with self._connected() as connection:
            return self._report(connection, progress)

    def run(self, advance: Advance | None = None) -> Report:
        """Take over all rows that were not taken over yet. `advance` gets table, rows done and rows in all.

        Raises InvalidSetting for a time before TDS_START_DATE, which is checked first, DatabaseUnavailable,
        FlushTimeout or Unbalanced; what was accounted for stays so.
        """
        self._check_ledgers()
        lock = FileLock(self._state.with_suffix(".lock"))
        make_folder(self._state.parent)
        if not lock.acquire():
            raise InvalidSetting(f"{self.source}: another `tds migrate` is at work on it; wait until it has ended")
        try:
            with self._connected() as connection:
                present = {name: rows for name in self._tables if (rows := self._rows(connection, name)) is not None}
                for name in present:
                    self._check_times(connection, OLD_TABLES[name])
                progress = self._progress()
                for name, rows in present.items():
                    self._migrate(connection, OLD_TABLES[name], progress, rows, advance or _say_nothing)
                return self._report(connection, progress)
        finally:
            lock.release()

    def drop(self) -> Report:
        """Drop the tables whose every row is accounted for, all of them or none; rows that came since keep them all.

        Raises Unbalanced naming the tables that are not wholly migrated, DatabaseUnavailable.
        """
        progress = self._progress()
        with self._connected() as connection, connection.begin():
            connection.execute(sa.text("SET LOCAL lock_timeout = '10s'"))
            present = [name for name in self._tables if self._rows(connection, name) is not None]
            for name in present:
                connection.execute(sa.text(f"LOCK TABLE {self._quoted(name)} IN ACCESS EXCLUSIVE MODE"))
            report = self._report(connection, progress)
            open_tables = [
                f"{each.table} ({each.migrated.rows} of {each.rows})" for each in report.tables if not each.is_whole
            ]
            if open_tables:
                raise Unbalanced(
                    f"not dropped: {', '.join(open_tables)}: expected every row to be migrated; run `tds migrate` again"
                )
            if present:
                connection.execute(sa.text(f"DROP TABLE {', '.join(map(self._quoted, present))}"))
        return msgspec.structs.replace(report, dropped=present)

    # ------------------------------------------------------------------------------------------------- one table

    def _migrate(
        self, connection: sa.Connection, table: OldTable, all_progress: dict[str, Progress], rows: int, advance: Advance
    ) -> None:
        progress = all_progress.setdefault(table.name, Progress())
        if progress.rows + self._left(connection, table, progress.mark) != rows:
            # Some were added behind the mark, or taken away: all are looked at again, and none is stored twice.
            progress = all_progress[table.name] = Progress()
        with ExitStack() as open_files:
            quarantine = open_files.enter_context(
                _Lines(self.quarantine / f"{table.name}.jsonl", progress.quarantine_bytes)
            )
            kept = open_files.enter_context(_Lines(self.kept / f"{table.name}.jsonl", progress.kept_bytes))
            take = open_files.enter_context(self._taker(table))
            for batch in self._batches(connection, table, progress.mark):
                outcome = take([read for read in batch if read.problem is None])
                outcome.refused += [(read, read.problem) for read in batch if read.problem is not None]
                for read, reason in outcome.refused:
                    quarantine.write(msgspec.json.encode({"reason": reason, "row": read.row or read.text}))
                for read in batch if table.target in {"files", "report"} else ():
                    kept.write(read.text.encode())
                progress.mark = batch[-1].mark
                progress.rows += len(batch)
                progress.stored += outcome.stored
                progress.known += outcome.known
                progress.quarantined += len(outcome.refused)
                progress.quarantine_bytes, progress.kept_bytes = quarantine.sync(), kept.sync()
                self._save(all_progress)
                advance(table.name, progress.rows, rows)

    def _left(self, connection: sa.Connection, table: OldTable, mark: list[str] | None) -> int:
        """How many rows lie behind the mark."""
        query = sa.text(f"SELECT count(*) FROM {self._quoted(table.name)} AS t{_behind(table, mark)}")
        return int(connection.execute(query, _bound(mark)).scalar_one())

    def _batches(self, connection: sa.Connection, table: OldTable, mark: list[str] | None) -> Iterator[list["_Read"]]:
        query = sa.text(
            f"SELECT {_place(table)}, row_to_json(t)::text FROM {self._quoted(table.name)} AS t{_behind(table, mark)} "
            f"ORDER BY {_order(table)}"
        )
        streamed = connection.execution_options(stream_results=True, max_row_buffer=BATCH).execute(query, _bound(mark))
        with streamed:
            for part in streamed.partitions(BATCH):
                yield [_read([str(value) for value in place], text) for *place, text in part]

    @contextmanager
    def _taker(self, table: OldTable) -> Iterator["_Take"]:
        """What takes a batch of a table's rows to their place, and gives what became of them."""
        if table.target == "store":
            with _storing(self._settings, self._zone, self.source, table) as take:
                yield take
        elif table.target == "conversations":
            with _saying(self._settings, self._zone) as take:
                yield take
        elif table.target == "files":
            yield partial(_written, table, self._configs)
        else:
            yield lambda batch: _Outcome(stored=len(batch))

    def _check_ledgers(self) -> None:
        """Raise InvalidSetting where the writer's ledgers are on another host: nothing could be proved here."""
        kinds = [kind for name in self._tables if (kind := OLD_TABLES[name].kind) is not None]
        if self._settings.redis_url is not None and not all(self._paths.ledger(kind).exists() for kind in kinds):
            raise InvalidSetting(
                f"{self._paths.root}: no ledgers of the writer: expected the data folder that `tds writer` writes; run "
                "`tds migrate` on its host, once the writer is at work"
            )

    def _check_times(self, connection: sa.Connection, table: OldTable) -> None:
        """Raise InvalidSetting for a row of training data whose time has no partition, before anything is stored."""
        if table.target != "store":
            return
        column = f"min(t.{table.moment}) FILTER (WHERE isfinite(t.{table.moment}))::text"
        found = connection.execute(sa.text(f"SELECT {column} FROM {self._quoted(table.name)} AS t")).scalar()
        if found is None:
            return
        first = _moment(found.replace(" ", "T"), self._zone).date()
        if first < self._settings.start_date:
            raise InvalidSetting(
                f"{table.name} begins on {first}, and TDS_START_DATE is {self._settings.start_date}: expected no "
                f"earlier record; nothing was migrated: set TDS_START_DATE={first}"
            )

    # ------------------------------------------------------------------------------------------------- the database

    @contextmanager
    def _connected(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except sa.exc.DBAPIError as err:
            raise DatabaseUnavailable(
                f"{self.source}: {err.orig}: expected a PostgreSQL that answers and lets the old tables be read; see "
                "to it (TDS_POSTGRES_URL) and run `tds migrate` again, which goes on where it was"
            ) from err

    def _rows(self, connection: sa.Connection, name: str) -> int | None:
        if connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": self._quoted(name)}).scalar() is None:
            return None
        return int(connection.execute(sa.text(f"SELECT count(*) FROM {self._quoted(name)}")).scalar_one())

    def _quoted(self, name: str) -> str:
        quote = self._engine.dialect.identifier_preparer.quote_identifier
        return f"{quote(self._schema)}.{quote(name)}"

    # ------------------------------------------------------------------------------------------------- what is known

    def _progress(self) -> dict[str, Progress]:
        if not self._state.exists():
            return {}
        return msgspec.json.decode(self._state.read_bytes(), type=dict[str, Progress])

    def _save(self, progress: Mapping[str, Progress]) -> None:
        with replacing(self._state) as out:
            out.write(msgspec.json.encode(progress))

    def _report(self, connection: sa.Connection, progress: Mapping[str, Progress]) -> Report:
        tables = [
            TableReport(
                table=name, rows=self._rows(connection, name), migrated=progress.get(name, Progress()),
                target=self._target(OLD_TABLES[name]),
            )
            for name in self._tables
        ]  # fmt: skip
        has_refused = any(each.migrated.quarantined for each in tables)
        return Report(source=self.source, tables=tables, quarantine=str(self.quarantine) if has_refused else None)

    def _target(self, table: OldTable) -> str:
        return {
            "store": f"training/{table.kind}",
            "conversations": "agent_playground_messages",
            "files": str(self._configs / table.place.replace("configs", "agents")),
            "report": f"{self.kept.relative_to(self._paths.root)}/{table.name}.jsonl",
        }[table.target]


class _Read(msgspec.Struct, frozen=True):
    """A row as it was read."""

    mark: list[str]  # its place in the order of reading
    row: Row | None
    text: str
    problem: str | None = None  # why it is no row


class _Outcome(msgspec.Struct):
    """What became of a batch."""

    stored: int = 0
    known: int = 0
    refused: list[tuple[_Read, str]] = []  # with the reason


_Take = Callable[[list[_Read]], _Outcome]


def _read(mark: list[str], text: str) -> _Read:
    try:
        return _Read(mark, msgspec.json.decode(text, type=dict[str, Any]), text)
    except (msgspec.DecodeError, RecursionError) as err:
        return _Read(mark, None, text, f"{err}: expected JSON of at most {DEEPEST} levels; correct the row")


class _Lines:
    """A file of JSON lines that is as long as the state file says, and grows from there. Made at the first line."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._file: Any = None

    def __enter__(self) -> Self:
        if self._path.exists():
            self._open()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, line: bytes) -> None:
        if self._file is None:
            self._open()
        self._file.write(line + b"\n")

    def sync(self) -> int:
        """Bring it to the disk; gives its size."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return int(self._file.tell())

    def _open(self) -> None:
        make_folder(self._path.parent)
        self._path.touch(mode=PRIVATE_FILE)
        self._file = self._path.open("r+b")
        self._file.truncate(self._size)
        self._file.seek(self._size)


@contextmanager
def _storing(settings: Settings, zone: ZoneInfo, source: str, table: OldTable) -> Iterator["_Take"]:
    """Takes rows into the store. A batch has ended when the ledger knows all of it."""
    kind = KINDS[str(table.kind)]
    paths, columns = DataPaths(settings.data_dir), {*kind.fields}
    store = TrainingDataStore(msgspec.structs.replace(settings, on_full="block"))

    def take(batch: list[_Read]) -> _Outcome:
        outcome = _Outcome()
        keys = {keyed_record_id(kind.name, _key(source, table, read)): read for read in batch}
        with open_ledger(paths, kind.name) as ledger:
            known = ledger.known_keys(keys)
        sent = []
        for record_id, read in keys.items():
            if record_id in known:
                continue
            try:
                fields = _fields(read.row or {}, table, columns, zone)
                if store.sync.store_record(kind.name, **fields, idempotency_key=_key(source, table, read)) is None:
                    raise InvalidRecord(f"over TDS_MAX_RECORD_BYTES={settings.max_record_bytes}; raise the limit")
            except InvalidRecord as err:
                outcome.refused.append((read, str(err)))
            else:
                sent.append(record_id)
        store.sync.flush(_FLUSH_TIMEOUT_S)
        with open_ledger(paths, kind.name) as ledger:
            written = len(ledger.known_keys(sent))
        if written < len(sent):
            raise Unbalanced(
                f"{table.name}: {len(sent) - written} of {len(sent)} rows are not in the ledger after they were "
                "written: run `tds doctor`, and `tds migrate` again"
            )
        outcome.stored, outcome.known = len(sent), len(known)
        return outcome

    try:
        store.sync.flush(_FLUSH_TIMEOUT_S)  # what a killed migration left in the spool has to be known
        yield take
    finally:
        store.sync.close()


@contextmanager
def _saying(settings: Settings, zone: ZoneInfo) -> Iterator["_Take"]:
    """Takes rows into the table of conversations, in the order in which they come."""
    engine = open_engine(settings)
    upgrade(engine, settings.postgres_schema)

    def take(batch: list[_Read]) -> _Outcome:
        outcome, messages = _Outcome(), list[Message]()
        for read in batch:
            try:
                messages.append(_message(read.row or {}, zone))
            except InvalidRecord as err:
                outcome.refused.append((read, str(err)))
        with engine.begin() as connection:
            outcome.known = count_known([each.message_id for each in messages], connection)
            insert_messages(messages, connection)
        outcome.stored = len(messages) - outcome.known
        return outcome

    try:
        yield take
    finally:
        engine.dispose()


def _written(table: OldTable, configs: Path, batch: list[_Read]) -> _Outcome:
    """Takes rows into files; one that is there with other content stays."""
    outcome, write = _Outcome(), write_config if table.place == "configs" else write_prompt
    for read in batch:
        try:
            is_new = write(configs, read.row or {})
        except InvalidConfig as err:
            outcome.refused.append((read, str(err)))
        else:
            outcome.stored += is_new
            outcome.known += not is_new
    return outcome


def _key(source: str, table: OldTable, read: _Read) -> str:
    return f"migration:{source}:{table.name}:{read.mark[-1]}"


def _fields(row: Row, table: OldTable, columns: set[str], zone: ZoneInfo) -> dict[str, object]:
    """A row as the fields of a record: times with their zone, and in `metadata` what the kind has no column for."""
    fields: dict[str, object] = {name: value for name, value in row.items() if name in columns}
    more = {name: value for name, value in row.items() if name not in columns and value is not None}
    moment = _time(row.get(table.moment or "") or row.get("created_at"), zone)
    if moment is not None and moment > datetime.now(UTC) + _LATEST:
        raise InvalidRecord(f"{table.moment} {moment}: expected none that is more than a day ahead; correct the row")
    fields["timestamp"] = moment
    more.pop(str(table.moment), None)
    for name in ("started_at", "completed_at"):
        if name in fields:
            fields[name] = _time(fields[name], zone)
    if more:
        own = fields.get("metadata")
        fields["metadata"] = {**(own if isinstance(own, dict) else {} if own is None else {"metadata": own}), **more}
    return fields


def _message(row: Row, zone: ZoneInfo) -> Message:
    own = row.get("metadata")
    more = {name: value for name, value in row.items() if name not in _OF_MESSAGES and value is not None}
    instance_id = row.get("session_id") or row.get("agent_id")
    if instance_id is None:
        raise InvalidRecord("session_id and agent_id are null: expected one of them, for it names the conversation")
    return checked_message(
        instance_id, row.get("role"), row.get("content"), agent_id=row.get("agent_id"),
        tool_calls=row.get("tool_calls"), metadata={**(own if isinstance(own, dict) else {}), **more} or None,
        message_id=row["interaction_id"], created_at=_time(row.get("created_at"), zone),
    )  # fmt: skip


def _time(value: object, zone: ZoneInfo) -> datetime | None:
    """A time of PostgreSQL's JSON. Raises InvalidRecord for one that no calendar has."""
    if value is None:
        return None
    try:
        return _moment(str(value), zone)
    except ValueError as err:
        raise InvalidRecord(f"time {shown(value)}: expected one from year 1 to 9999; correct the row") from err


def _moment(text: str, zone: ZoneInfo) -> datetime:
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo is not None else found.replace(tzinfo=zone)).astimezone(UTC)


def _order(table: OldTable) -> str:
    """What a table's rows are read by. Conversations are read in the order of time, for they are written in it."""
    if table.target == "conversations":
        return f"coalesce(t.{table.moment}, '-infinity'), t.{table.key}"
    return f"t.{table.key}"


def _place(table: OldTable) -> str:
    """What a row's mark is made of: the same, as text."""
    if table.target == "conversations":
        return f"coalesce(t.{table.moment}, '-infinity')::text, t.{table.key}::text"
    return f"t.{table.key}::text"


def _behind(table: OldTable, mark: list[str] | None) -> str:
    if mark is None:
        return ""
    values = "CAST(:mark0 AS timestamp), :mark1" if table.target == "conversations" else ":mark0"
    return f" WHERE ({_order(table)}) > ({values})"


def _bound(mark: list[str] | None) -> dict[str, str]:
    return {f"mark{n}": value for n, value in enumerate(mark or ())}


def _say_nothing(_table: str, _done: int, _total: int) -> None:
    return
