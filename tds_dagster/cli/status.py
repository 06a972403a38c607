"""Turns ledgers, spool and files into one view: where every record is, how late, how large, and whether it adds up."""

import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import typer

from ingest.errors import SynapseUnavailable
from ingest.pipeline.accounting import account, oldest_waiting_s
from ingest.pipeline.ledger import open_ledger
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import DataPaths, folder_bytes, nearest_folder
from ingest.pipeline.subscription import first_unread, group_lock
from ingest.records import KINDS, timestamp_text
from ingest.settings import Settings, read_settings
from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.leftovers import write_leftovers
from tds_dagster.cli.output import Cell, duration_text, print_json, print_table, size_text

EXAMPLE = "tds status"
_LOOKS = 3  # calls go on while we count, so an account that does not add up is counted again


class GroupStatus(msgspec.Struct, frozen=True):
    """A durable group of subscribers."""

    consumers: int
    pending: int  # entries that its consumers have in hand; 0 without Redis
    behind_s: float | None  # age of the oldest record that it has not acknowledged; null if it has them all


class KindStatus(msgspec.Struct, frozen=True):
    """One kind: records by where they are, from all days."""

    offered: int  # calls with a valid record
    accepted: int  # of these, taken into the spool
    dropped: int  # of these, not taken: spool or disk full, record too large
    imported: int  # rows taken over from day files of another store
    waiting: int  # accepted, and not in a CSV file yet
    stored: int  # written by the writer: exported + pending + duplicates + quarantined + erased + expired
    exported: int  # in the JSONL shards
    pending: int  # in the CSV files, and not exported yet
    duplicates: int  # left out: stored before under the same idempotency key, or id
    quarantined: int  # left out: could not be read; see quarantine/<kind>/
    erased: int
    expired: int
    coerced: int  # accepted after a value was changed to fit JSON
    clock: int  # filed under the day of their ingest, for their own time has no partition
    foreign: int  # what other programs appended to our files; kept in quarantine, no part of stored
    days: int  # day files
    first_day: str | None  # YYYY-MM-DD
    last_day: str | None
    last_written: str | None  # when a day file was last appended to, RFC 3339
    lag_s: float | None  # age of the oldest record that waits in this host's spool or in Synapse; null if none does
    groups: dict[str, GroupStatus] | None  # durable groups of subscribers; null if Redis does not answer
    disk_bytes: int  # CSV, Parquet, JSONL and quarantine
    writer_alive: bool  # a process holds the writer's lock
    balanced: bool  # the account adds up
    unbalanced_days: list[str]  # days whose records do not, YYYY-MM-DD


class Status(msgspec.Struct, frozen=True):
    """What `tds status --json` prints."""

    data_dir: str
    synapse: str | None  # Redis's address without its password; null: embedded
    balanced: bool  # every kind's account adds up
    verdict: str  # the same for people, and what to do
    spool_bytes: int  # what the spool takes on disk
    free_bytes: int  # free on the data folder's disk
    kinds: dict[str, KindStatus]


def show_status(*, as_json: JsonOption = False) -> None:
    """Show where every record is, and whether it adds up.

    What dead processes left in the spool is written first (without Redis). The account of each kind:
    offered = accepted + dropped; accepted + imported = stored + waiting;
    stored = exported + pending + duplicates + quarantined. If it does not add up, the exit code is 1.
    """
    settings = read_settings()
    write_leftovers(settings, KINDS)
    status = read_status(settings)
    if as_json:
        print_json(status)
    else:
        _print_status(status)
    if not status.balanced:
        raise SystemExit(1)


def read_status(settings: Settings) -> Status:
    """Count all kinds. Nothing is changed by it."""
    streams = None if settings.redis_url is None else _in_synapse(settings)
    kinds = {kind: _counted_again(lambda kind=kind: _kind_status(settings, kind, streams)) for kind in KINDS}  # type: ignore[misc]
    off = [kind for kind, status in kinds.items() if not status.balanced]
    return Status(
        data_dir=str(settings.data_dir),
        synapse=settings.redis_url_without_password,
        balanced=not off,
        verdict=_verdict(kinds, off),
        spool_bytes=folder_bytes(settings.spool),
        free_bytes=shutil.disk_usage(nearest_folder(settings.data_dir)).free,
        kinds=kinds,
    )


def _counted_again(count: Callable[[], KindStatus]) -> KindStatus:
    status = count()
    for _ in range(_LOOKS - 1):
        if status.balanced:
            break
        time.sleep(0.05)
        status = count()
    return status


class _InSynapse(NamedTuple):
    """What waits in one kind's stream."""

    lag_s: float | None  # age of the oldest entry that the writer has not acknowledged
    groups: dict[str, GroupStatus]


def _in_synapse(settings: Settings) -> dict[str, _InSynapse] | None:
    """Every kind's stream; None if Redis does not answer."""
    from ingest.pipeline.synapse import (
        GROUP,
        StreamGroup,
        connect,
        redis_errors,
        stream_groups,
        waiting_since_ms,
    )

    client, streams = connect(settings, timeout_s=1.0), {}

    def behind_s(kind: str, group: StreamGroup) -> float | None:
        since_ms = waiting_since_ms(client, kind, group)
        return None if since_ms is None else max(0.0, time.time() - since_ms / 1000)

    try:
        with redis_errors(settings):
            for kind in KINDS:
                groups = stream_groups(client, kind)
                writer = groups.pop(GROUP, StreamGroup((0, 0), 0, 0))  # no writer has been here: all of it waits
                streams[kind] = _InSynapse(
                    behind_s(kind, writer),
                    {name: GroupStatus(g.consumers, g.pending, behind_s(kind, g)) for name, g in groups.items()},
                )
    except SynapseUnavailable:
        return None
    finally:
        client.close()
    return streams


def _groups_of_files(paths: DataPaths, kind: str) -> dict[str, GroupStatus]:
    """The durable groups without Redis."""
    if not paths.ledger(kind).exists():
        return {}
    with open_ledger(paths, kind) as ledger:
        groups = ledger.groups()
    found = {}
    for name, places in groups.items():
        since = first_unread(paths, kind, places)
        behind_s = None if since is None else max(0.0, (datetime.now(UTC) - since).total_seconds())
        found[name] = GroupStatus(int(FileLock.is_taken(group_lock(paths, kind, name))), 0, behind_s)
    return found


def _kind_status(settings: Settings, kind: str, streams: dict[str, _InSynapse] | None) -> KindStatus:
    from tds_dagster.export import day_accounts, total_account

    paths = DataPaths(settings.data_dir)
    at_ingest = account(settings, kind)
    # Looking at a folder that holds nothing yet leaves nothing in it.
    of_days = day_accounts(paths, kind) if paths.state.is_dir() else []
    by_day, bad_days = total_account(kind, of_days), [of_day.day for of_day in of_days if not of_day.balanced]
    files = {}
    if paths.ledger(kind).exists():
        with open_ledger(paths, kind) as ledger:
            files = ledger.files()
    days = list(files)
    lags = [oldest_waiting_s(settings, kind) if at_ingest.waiting else None, streams[kind].lag_s if streams else None]
    groups = streams[kind].groups if streams else None
    if settings.redis_url is None:
        groups = _groups_of_files(paths, kind)
    last_ns = max((file.mtime_ns for file in files.values()), default=None)
    return KindStatus(
        offered=at_ingest.offered,
        accepted=at_ingest.accepted,
        dropped=at_ingest.dropped,
        imported=at_ingest.imported,
        waiting=at_ingest.waiting,
        stored=by_day.stored,
        exported=by_day.exported,
        pending=by_day.pending,
        duplicates=by_day.duplicates,
        quarantined=by_day.quarantined,
        erased=by_day.erased,
        expired=by_day.expired,
        coerced=at_ingest.coerced,
        clock=at_ingest.clock,
        foreign=at_ingest.foreign,
        days=len(days),
        first_day=days[0] if days else None,
        last_day=days[-1] if days else None,
        last_written=None if last_ns is None else _time_text(last_ns),
        lag_s=max((lag for lag in lags if lag is not None), default=None),
        groups=groups,
        disk_bytes=sum(folder_bytes(folder) for folder in _kind_folders(paths, kind)),
        writer_alive=at_ingest.writer_alive,
        balanced=at_ingest.balanced and by_day.balanced and not bad_days,
        unbalanced_days=bad_days,
    )


def _verdict(kinds: dict[str, KindStatus], off: list[str]) -> str:
    if not off:
        waiting = sum(status.waiting for status in kinds.values())
        return "every record is accounted for" + (f", {waiting:,} are still on their way" if waiting else "")
    parts = []
    for kind in off:
        days = kinds[kind].unbalanced_days
        shown = ", ".join(days[:5]) + (f" and {len(days) - 5} more" if len(days) > 5 else "")
        parts.append(f"{kind} ({shown})" if days else kind)
    return f"does not add up: {'; '.join(parts)}; run `tds doctor`, and `tds export` for the reason of a day"


def _print_status(status: Status) -> None:
    headers = ["kind", "offered", "dropped", "accepted", "imported", "waiting", "stored", "exported", "pending"]
    headers += ["duplicates", "quarantined", "days", "lag", "disk"]
    rows: list[list[Cell]] = [
        [
            kind, s.offered, s.dropped, s.accepted, s.imported, s.waiting, s.stored, s.exported, s.pending,
            s.duplicates, s.quarantined, s.days, _lag_text(s), size_text(s.disk_bytes),
        ]
        for kind, s in status.kinds.items()
    ]  # fmt: skip
    print_table(headers, rows)
    for kind, s in status.kinds.items():
        for n, what in (
            (s.coerced, "values were changed to fit JSON"),
            (s.clock, "are filed under their ingest day, for their own time has no partition"),
            (s.foreign, "lines of other programs were found in our files and put into quarantine"),
            (s.erased, "were erased"),
        ):
            if n:
                typer.echo(f"{kind}: {n:,} {what}")
        for name, group in (s.groups or {}).items():
            behind = "has read everything" if group.behind_s is None else f"is {duration_text(group.behind_s)} behind"
            in_hand = f", {group.pending:,} entries in hand" if group.pending else ""
            typer.echo(f"{kind}: group {name} {behind}; {group.consumers:,} consumers{in_hand}")
    if any(s.groups is None for s in status.kinds.values()):
        typer.echo(f"{status.synapse} does not answer: what waits there is not shown, `tds doctor` says more")
    where = status.synapse or "embedded, no Redis"
    typer.echo(
        f"{status.data_dir} ({where}): spool {size_text(status.spool_bytes)}, {size_text(status.free_bytes)} free"
    )
    typer.echo(status.verdict)


def _lag_text(status: KindStatus) -> str:
    if status.lag_s is not None:
        return duration_text(status.lag_s)
    return "unknown" if status.waiting else "none"


def _kind_folders(paths: DataPaths, kind: str) -> list[Path]:
    files = (paths.training(kind, ""), paths.curated(kind, ""), paths.quarantine(kind, ""), paths.shard(kind, ""))
    return [*(file.parent for file in files), paths.range_export(kind, "", "").parent]


def _time_text(time_ns: int) -> str:
    return timestamp_text("time", datetime.fromtimestamp(time_ns / 1e9, UTC))
