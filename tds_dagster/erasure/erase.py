"""Erases what a selector means, everywhere that it went, and leaves a receipt without the data.

    curate all days → writers let go, what waits is written → find → journal → day files and ledgers → spool → Redis
    → writers go on → artifacts removed → built again → models marked → Redis looked at again, its files
    written anew → receipt
    → journal removed

Killed before the journal is there, nothing has happened. Killed after it, the next erasure, whatever it is asked for,
first finishes what the journal says: each step finds what it has done already (`ingest.pipeline.erasure` says how for
the day files). In between, nothing is wrong but unfinished: raw days are whole under their new version, and an artifact
made of the old one is not current for whoever builds. Files of Redis come late, because they must not hold the dropped
entries of a stream that is still to be replaced.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ingest.errors import WriterBusy
from ingest.pipeline.erasure import (
    Failpoint,
    FileLock,
    erase_from_synapse,
    erase_leftovers,
    erase_rows,
    holding_writers,
    rewrite_synapse_files,
    write_waiting,
)
from ingest.pipeline.ledger import DayErasure, open_ledger
from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS
from ingest.settings import Settings
from tds_dagster.curate.artifacts import made_now
from tds_dagster.erasure.derived import Observe, purge, rebuild, taint_models
from tds_dagster.erasure.journal import Journal, Receipt, SynapseDone, begin_journal, open_journal
from tds_dagster.erasure.selection import Found, Progress, Selector, curate_all, find_doomed, parsed_predicates


def erase(
    settings: Settings, selector: Selector, *, observe: Observe, progress: Progress
) -> tuple[list[Receipt], Found]:
    """Erase what the selector means; a receipt for it, if there was anything, behind that of one that was cut off.

    `observe` is told of the datasets and models that are concerned, before the receipt is written. Running writers let
    go for as long as raw files and Redis are rewritten. A day that is damaged by then keeps nothing else from being
    erased: the receipt names it, and it is left as it is.

    Raises InvalidPredicate, WriterBusy naming a writer that does not let go or another erasure at work, FlushTimeout
    when records stay on their way, SynapseUnavailable, and the error of a day that cannot be curated.
    """
    paths, receipts = DataPaths(settings.data_dir), list[Receipt]()
    failpoint = Failpoint(settings.failpoint)
    parsed_predicates(selector)
    with _alone(paths):
        left = open_journal(paths)
        if left is not None:
            with holding_writers(settings, KINDS) as locks:
                _write_waiting(settings, locks)
                damaged = _erase_sources(settings, left, failpoint)
            receipts.append(_erase_derived(settings, left, damaged, observe, progress, failpoint))
        curate_all(paths, progress)  # most of the work of finding, while the writers still write
        with holding_writers(settings, KINDS) as locks:
            _write_waiting(settings, locks)
            found = find_doomed(paths, selector, progress)
            if not found.doomed:
                return receipts, found
            journal = begin_journal(paths, selector, found)
            failpoint.reach("plan")
            damaged = _erase_sources(settings, journal, failpoint)
        receipts.append(_erase_derived(settings, journal, damaged, observe, progress, failpoint))
    return receipts, found


@contextmanager
def _alone(paths: DataPaths) -> Iterator[None]:
    lock = FileLock(paths.lock("erasure"))
    if not lock.acquire():
        raise WriterBusy("another erasure is at work in this data folder; expected one at a time, wait for its end")
    try:
        yield
    finally:
        lock.release()


def _write_waiting(settings: Settings, locks: dict[str, FileLock]) -> None:
    for kind, lock in locks.items():
        write_waiting(settings, kind, lock)


def _erase_sources(settings: Settings, journal: Journal, failpoint: Failpoint) -> dict[str, dict[str, str]]:
    """Erase from day files, ledgers, Redis and the spool; the writers' locks have to be held.

    Gives the damaged days that were left as they are, by kind, each with the reason.
    """
    damaged = {}
    for kind, doomed in journal.intent.doomed.items():
        damaged[kind] = erase_rows(settings, kind, journal.intent.id, doomed, journal.note_file, failpoint)
        erase_leftovers(settings, kind, doomed, journal.note_file)
        failpoint.reach("leftovers")
        if settings.redis_url is not None:  # behind the spool, from which a Redis that loses its marks is filled again
            journal.note(SynapseDone(kind, erase_from_synapse(settings, kind, doomed)))
            failpoint.reach("stream")
    return damaged


def _erase_derived(
    settings: Settings,
    journal: Journal,
    damaged: dict[str, dict[str, str]],
    observe: Observe,
    progress: Progress,
    failpoint: Failpoint,
) -> Receipt:
    """Erase from everything that was made of the day files, and finish."""
    paths = DataPaths(settings.data_dir)
    purge(settings, journal, damaged)
    failpoint.reach("derived")
    datasets, not_built = rebuild(settings, journal, damaged, progress)
    failpoint.reach("rebuild")
    models = taint_models(paths, journal.intent.id, datasets)
    synapse_files = "no Redis" if settings.redis_url is None else _write_synapse_anew(settings, journal)
    observe(journal.intent.id, datasets, models)
    taken = {kind: _taken(paths, kind, journal.intent.id) for kind in journal.intent.doomed}
    receipt = Receipt(
        id=journal.intent.id,
        begun_at=journal.intent.begun_at,
        finished_at=made_now(),
        selector=journal.intent.selector,
        records=_by_day(taken, lambda day: day.rows),
        rejects=_by_day(taken, lambda day: day.rejects),
        synapse_records=sum(entry.records for entry in journal.entries if isinstance(entry, SynapseDone)),
        synapse_files=synapse_files,
        files=journal.file_changes(),
        datasets=datasets,
        models=models,
        not_built=not_built,
        not_erased={
            str(paths.training(kind, day).relative_to(paths.root)): reason
            for kind, days in damaged.items()
            for day, reason in days.items()
        },
    )
    failpoint.reach("receipt")
    journal.finish(receipt)
    return receipt


def _write_synapse_anew(settings: Settings, journal: Journal) -> str:
    """Have Redis write its files anew, and look at its streams first: one that was restarted may have gone back."""
    for kind, doomed in journal.intent.doomed.items():
        erase_from_synapse(settings, kind, doomed)
    return rewrite_synapse_files(settings)


def _taken(paths: DataPaths, kind: str, erasure_id: str) -> list[DayErasure]:
    with open_ledger(paths, kind) as ledger:
        return ledger.erasures(erasure_id)


def _by_day(taken: dict[str, list[DayErasure]], count: Callable[[DayErasure], int]) -> dict[str, dict[str, int]]:
    found = {kind: {day.day: count(day) for day in days if count(day)} for kind, days in taken.items()}
    return {kind: days for kind, days in found.items() if days}
