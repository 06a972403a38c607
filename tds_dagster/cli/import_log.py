"""Turns `tds import` into store calls, one for each record of a log, and counts what was new."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from tds_dagster.cli.arguments import JsonOption, checked_day
from tds_dagster.cli.output import print_json, print_table, print_warning, progress

if TYPE_CHECKING:
    from ingest.chat_logs import StoreCall
    from ingest.settings import Settings

EXAMPLE = "tds import runs.jsonl.gz --format openai-chat --start 2024-05-15 --days 7"
_CHUNK = 500  # records between two looks at the ledger
_FLUSH_TIMEOUT_S = 60.0


class LogFormat(Enum):
    """The formats that `--format` takes."""

    OPENAI_CHAT = "openai-chat"


class ImportedKind(msgspec.Struct, frozen=True):
    in_log: int  # records that the log gives
    stored: int | None  # of these, stored by this import; null where the ledger is on another host
    already_there: int | None  # of these, stored by an earlier one; null as well


class Imported(msgspec.Struct, frozen=True):
    """What `tds import --json` prints."""

    file: str
    format: str
    runs: int  # lines of the log
    first: str | None  # earliest event time, RFC 3339; null for an empty log
    last: str | None  # latest event time
    kinds: dict[str, ImportedKind]


def import_file(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The log: JSONL, also compressed as .gz or .zst.", dir_okay=False)
    ],
    *,
    log_format: Annotated[LogFormat, typer.Option("--format", help="How the log is written.")],
    start: Annotated[
        str | None,
        typer.Option(metavar="DAY", help="Day of the first run (UTC, YYYY-MM-DD), for a log that has no times."),
    ] = None,
    days: Annotated[int, typer.Option(metavar="N", help="Spread runs without a time evenly over N days.", min=1)] = 1,
    rate: Annotated[int | None, typer.Option(metavar="N", help="Store at most N records a second.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Store the agent runs of an existing log.

    The log is JSONL: a run a line, its chat messages in `messages` or `traj`. A run becomes a session: an event a
    message, a tool execution a tool call, one task, and its reward or score as feedback on the task. The whole log is
    checked before anything is stored. Importing it again adds nothing, so an import that was interrupted is simply
    run again.
    """
    first_day = checked_day("--start", start)
    from ingest.chat_logs import check_log
    from ingest.settings import read_settings

    settings = read_settings()
    log = check_log(file, start=first_day, days=days, start_date=settings.start_date, now=datetime.now(UTC))
    if first_day is not None and log.runs and not log.untimed_runs:
        print_warning(f"{file}: all of its runs have their own times, so --start and --days are not used")
    total = sum(log.records.values())
    from ingest.chat_logs import store_calls

    known = _store_all(settings, store_calls(log), total, rate)
    imported = Imported(
        file=str(file), format=log_format.value, runs=log.runs,
        first=_text(log.first), last=_text(log.last),
        kinds={kind: _imported(n, known.get(kind)) for kind, n in log.records.items()},
    )  # fmt: skip
    if as_json:
        print_json(imported)
        return
    print_table(
        ["kind", "in the log", "stored", "already there"],
        [[kind, n.in_log, n.stored, n.already_there] for kind, n in imported.kinds.items()],
    )
    if not total:
        print_warning(f"{file} holds no runs")


def _store_all(settings: "Settings", calls: Iterator["StoreCall"], total: int, rate: int | None) -> dict[str, int]:
    """Store the records and wait until they are in their CSV files; gives how many of each kind were there before.

    Raises NotAccepted at the first record that the spool cannot take.
    """
    from ingest import TrainingDataStore

    known: Counter[str] = Counter()
    store = TrainingDataStore(msgspec.structs.replace(settings, on_full="raise"))
    try:
        store.sync.flush(_FLUSH_TIMEOUT_S)  # what an interrupted import left has to be known as stored
        with progress() as advance:
            began, done = time.monotonic(), 0
            while chunk := list(islice(calls, _CHUNK)):
                known.update(_known(settings, chunk))
                for kind, fields in chunk:
                    if rate is not None:
                        time.sleep(max(0.0, began + done / rate - time.monotonic()))
                    store.sync.store_record(kind, **fields)
                    done += 1
                    if done % 50 == 0 or done == total:
                        advance("storing", done, total)
        store.sync.flush(_FLUSH_TIMEOUT_S)
    finally:
        store.sync.close()
    return known


def _known(settings: "Settings", calls: Iterable["StoreCall"]) -> dict[str, int]:
    """How many of the records the ledger knows already, by their idempotency keys; kinds without a ledger left out."""
    from ingest.pipeline.ledger import open_ledger
    from ingest.pipeline.partitions import DataPaths
    from ingest.records import keyed_record_id

    paths = DataPaths(settings.data_dir)
    ids: dict[str, list[str]] = {}
    for kind, fields in calls:
        ids.setdefault(kind, []).append(keyed_record_id(kind, str(fields["idempotency_key"])))
    known = {}
    for kind, record_ids in ids.items():
        if settings.redis_url is not None and not paths.ledger(kind).exists():
            continue  # the writer is on another host
        with open_ledger(paths, kind) as ledger:
            known[kind] = len(ledger.known_keys(record_ids))
    return known


def _imported(in_log: int, known: int | None) -> ImportedKind:
    return ImportedKind(in_log, None if known is None else in_log - known, known)


def _text(moment: datetime | None) -> str | None:
    from ingest.records import timestamp_text

    return None if moment is None else timestamp_text("time", moment)
