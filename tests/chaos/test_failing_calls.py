"""Each file call of the write path fails in turn, or is the last thing its process does: nothing is lost or doubled.

A fixed piece of work is done once to learn which calls it makes. Then it is done again for each call and each way to
go wrong. As tests a sample is run that has every call on every sort of file in it; CHAOS_EVERY_CALL=1 runs all of
them (6,500 cases in half an hour), and so can any program that takes `every_case` and `run_cases` from here.

    agent    a process stores 160 records of two kinds and two days through the embedded writer, flushes half way and
             at the end, and closes; its spool rotates through some segments. Its calls fail.
    drain    a process that writes what a dead one left in the spool. Its calls fail.

What has to hold afterwards, when another process has written what was left: see `_problems`.
"""

import errno
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Literal
from unittest.mock import patch

import msgspec
import pytest

from ingest import Settings, TrainingDataStore
from ingest.pipeline import spool
from ingest.pipeline.accounting import account
from ingest.pipeline.ledger import Ledger, open_ledger
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.spool import Spool
from ingest.pipeline.writer import drain
from ingest.store import BlockingStore
from tests.chaos.fault_library import (
    Call,
    Fault,
    arm,
    begin_shadow,
    compile_library,
    cut_power,
    fault_variables,
    preloaded,
    read_calls,
    sort_of,
)
from tests.parts import PROJECT, csv_rows

KINDS = ("events", "tool_executions")
DAYS = ("2026-01-02", "2026-01-03")
RECORDS, FLUSHED = 160, 80  # the first flush comes after so many
SEGMENT_BYTES = 16 << 10
KILLS = ("before", "after", "torn")
_DEADLINE_S = 30.0
_CUTS: tuple[Literal["data", "names"], ...] = ("data", "names")
_SYNCS: tuple[tuple[Literal["interval", "always"], int], ...] = (("interval", 560), ("always", 880))  # and calls made
_KILLED = -signal.SIGKILL


class Case(msgspec.Struct, frozen=True):
    """One run of the work, and what goes wrong in it."""

    work: Literal["agent", "drain"]
    fault: Fault | None = None
    power_cut: Literal["", "data", "names"] = ""  # when the process has ended, however it did; see `cut_power`
    unsynced: str = ""  # a control: these syncs do nothing
    without_marks: bool = False  # a control: whoever writes the rest does not know what is written
    spool_sync: Literal["interval", "always"] = "interval"


class Outcome(msgspec.Struct, frozen=True):
    """What came of a case."""

    case: Case
    problems: list[str]
    calls: list[Call]  # that the process made
    accepted: int
    was_hit: bool  # whether the call that was to go wrong was made


# ------------------------------------------------------------------------------------------------- in a process ---


def serve_cases(folder: str) -> None:
    """Run the cases that come in as lines of JSON; a line of JSON goes out for each. The library is preloaded."""
    parent = os.getppid()
    for number, line in enumerate(sys.stdin):
        if os.getppid() != parent:
            return  # nobody waits any more
        outcome = _run_case(msgspec.json.decode(line, type=Case), Path(folder, str(number)))
        print(msgspec.json.encode(outcome).decode(), flush=True)


def _run_case(case: Case, folder: Path) -> Outcome:
    folder.mkdir(parents=True)
    settings = Settings(
        data_dir=folder / "data",
        spool_segment_bytes=SEGMENT_BYTES,
        max_record_bytes=SEGMENT_BYTES,
        spool_sync=case.spool_sync,
    )
    settings.data_dir.mkdir()
    notes, shadow = folder / "notes", folder / "shadow"
    if case.work == "drain":
        locks = [FileLock(DataPaths(settings.data_dir).lock(kind)) for kind in KINDS]
        assert all(lock.acquire() for lock in locks), "held, so that the process writes nothing of its spool itself"
        assert _in_a_child(_leave, settings, notes) == 0
        for lock in locks:
            lock.release()
    begin_shadow(settings.data_dir, shadow)
    log = folder / "calls"
    arm(
        fault_variables(
            settings.data_dir,
            case.fault,
            log=log,
            shadow=shadow if case.power_cut else None,
            unsynced=case.unsynced,
        )
    )
    status = _in_a_child(_store if case.work == "agent" else _drain, settings, notes)
    arm({"FAULTS_FOLDER": ""})
    if case.power_cut:
        cut_power(settings.data_dir, shadow, with_names=case.power_cut == "names")
    calls, noted = read_calls(log), _read_notes(notes)
    problems = _problems(case, settings, status, noted)
    if not problems:
        shutil.rmtree(folder)
    fault = case.fault
    was_hit = status == _KILLED or (fault is not None and _count(calls, fault) >= fault.nth)
    return Outcome(case, problems, calls, sum(noted.values()), was_hit)


def _in_a_child(work: Callable[[Settings, Path], int], settings: Settings, notes: Path) -> int:
    """Do the work in a forked child; gives its exit status, or -signal."""
    process = os.fork()
    if process == 0:
        status = 99
        try:
            status = work(settings, notes)
        except BaseException as err:  # noqa: BLE001 - the child's report
            print(f"{type(err).__name__}: {err}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    handle = os.pidfd_open(process)
    try:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        if not ended.poll(_DEADLINE_S * 1000):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return 98
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _store(settings: Settings, notes: Path) -> int:
    """An agent at work."""
    store = TrainingDataStore(settings).sync
    for part in (range(FLUSHED), range(FLUSHED, RECORDS)):
        _store_records(store, notes, part)
        store.flush(_DEADLINE_S / 3)
        with notes.open("a") as report:
            report.write("flushed 1\n")
    store.close()
    return 0


def _leave(settings: Settings, notes: Path) -> int:
    """An agent that dies with all of its records in the spool: others hold the writers' locks."""
    _store_records(TrainingDataStore(settings).sync, notes, range(RECORDS))
    return 0


def _store_records(store: BlockingStore, notes: Path, records: range) -> None:
    """Store records and note each call that came back."""
    with notes.open("ab", buffering=0) as report:
        for n in records:
            moment = f"{DAYS[n // 2 % 2]}T00:00:{n % 60:02d}.000000Z"
            if n % 2:
                record = store.store_tool_execution(str(n), output_result="x" * (n * 7 % 900), timestamp=moment)
            else:
                record = store.store_agent_event(str(n), payload="x" * (n * 7 % 900), timestamp=moment)
            report.write(b"%d %d\n" % (n, record is not None))


def _drain(settings: Settings, _notes: Path) -> int:
    """What is wrong is raised to the caller, who may try again: 3 stands for that."""
    try:
        drain(settings, KINDS)
    except Exception as err:  # noqa: BLE001 - OSError, sqlite3's errors and our own are all fine here
        print(f"drain: {type(err).__name__}: {err}", file=sys.stderr, flush=True)
        return 3
    return 0


class _Notes(dict[int, bool]):
    """The records whose calls came back, and whether they were accepted."""

    flushed: int = 0  # the first so many were confirmed by a flush


def _read_notes(notes: Path) -> _Notes:
    read = _Notes()
    for line in notes.read_text().splitlines() if notes.exists() else ():
        name, _, accepted = line.partition(" ")
        if name == "flushed":
            read.flushed = len(read)
        else:
            read[int(name)] = accepted == "1"
    return read


def _count(calls: Iterable[Call], fault: Fault) -> int:
    return sum(fault.call in {"*", call.name} and fault.path in {"", sort_of(call.path)} for call in calls)


def _problems(case: Case, settings: Settings, status: int, notes: _Notes) -> list[str]:
    """What is not as it has to be, once what was left is written.

    The process ends in peace, or by the kill that was asked for. Every accepted record is in the day files once
    (after a power cut: every one that a flush had confirmed), in its kind's order on each day, and no other record,
    but for one whose call was under way when the process died. No file is shorter than its committed size or longer.
    The account adds up and agrees with what the calls gave. Nothing is left in the spool.
    """
    problems = []
    allowed = {0, 3} if case.work == "drain" else {0}
    if case.fault is not None and case.fault.action in KILLS:
        allowed.add(_KILLED)
    if status not in allowed:
        problems.append(f"the process ended with {status}, expected one of {sorted(allowed)}")
    try:
        with patch.object(Ledger, "marks", lambda *_: {}) if case.without_marks else nullcontext():
            drain(settings, KINDS)
    except Exception as err:  # noqa: BLE001 - whatever it is: it is the finding
        return [*problems, f"writing the rest: {type(err).__name__}: {err}"]
    for place, kind in enumerate(KINDS):
        problems += [f"{kind}: {text}" for text in _wrong_sizes(settings, kind)]
        try:
            rows = csv_rows(settings, kind)
        except (AssertionError, ValueError) as err:
            problems.append(f"{kind}: a day file cannot be read: {type(err).__name__}: {err}")
            continue
        names = [int(str(row["event_type" if kind == "events" else "execution_id"])) for row in rows]
        called = {n: accepted for n, accepted in notes.items() if n % 2 == place}
        problems += [f"{kind}: {text}" for text in _wrong_rows(case, names, called, notes)]
        problems += [f"{kind}: {text}" for text in _wrong_account(case, settings, kind, len(names), called, status)]
    return problems


def _wrong_rows(case: Case, names: list[int], called: dict[int, bool], notes: _Notes) -> Iterator[str]:
    is_safe = case.spool_sync == "always" or not case.power_cut
    wanted = {n for n, accepted in called.items() if accepted and (is_safe or n < notes.flushed)}
    possible = {n for n, accepted in called.items() if accepted} | {len(notes)}
    doubled = [n for n, times in Counter(names).items() if times > 1]
    for what, found in (
        ("lost", sorted(wanted - set(names))),
        ("doubled", sorted(doubled)),
        ("never accepted", sorted(set(names) - possible)),
    ):
        if found:
            yield f"{what}: {found[:5]} ({len(found)} in all)"
    by_day = [[n for n in names if n // 2 % 2 == day] for day in range(len(DAYS))]
    if not doubled and any(day != sorted(day) for day in by_day):
        yield f"out of order: {by_day}"


def _wrong_sizes(settings: Settings, kind: str) -> Iterator[str]:
    paths = DataPaths(settings.data_dir)
    with open_ledger(paths, kind) as ledger:
        files = ledger.files()
    for day, file in files.items():
        path = paths.training(kind, day)
        size = path.stat().st_size if path.exists() else None
        if size != file.size:
            yield f"{day}: {size} bytes, but {file.size} are committed"


def _wrong_account(
    case: Case, settings: Settings, kind: str, rows: int, called: dict[int, bool], status: int
) -> Iterator[str]:
    counted = account(settings, kind)
    # What a power cut took from the spool is stored as lost, in quarantine.
    kept = counted.stored if not case.power_cut else counted.rows
    if not counted.balanced or counted.waiting or counted.rows != rows or kept != rows:
        yield f"{rows} rows, and the account is {counted}"
    if status in {0, 3} and not case.power_cut:
        accepted = sum(called.values())
        if (counted.offered, counted.accepted) != (len(called), accepted):
            yield f"{accepted} of {len(called)} calls were accepted, and the account is {counted}"
    # A name with a dot is a producer that died while its folder was made: nothing was accepted there.
    left = [str(path) for path in (settings.spool / kind).glob("[!.]*")] if settings.spool.exists() else []
    if left:
        yield f"left in the spool: {left}"


# ---------------------------------------------------------------------------------------------- from the outside ---


def run_cases(library: Path, folder: Path, cases: Sequence[Case], processes: int = 2) -> list[Outcome]:
    """Run cases in a few processes that carry the library; the outcomes come in the order of the cases."""
    code = "import sys; from tests.chaos.test_failing_calls import serve_cases; serve_cases(sys.argv[1])"

    def serve(number: int) -> list[Outcome]:
        part = cases[number::processes]
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder / f"worker-{number}")],
            input=b"".join(msgspec.json.encode(case) + b"\n" for case in part),
            stdout=subprocess.PIPE,
            env={**os.environ, **preloaded(library)},
            cwd=PROJECT,
            check=True,
        )
        return [msgspec.json.decode(line, type=Outcome) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(serve, range(processes)))
    return [parts[n % processes][n // processes] for n in range(len(cases))]


def learn_calls(library: Path, folder: Path) -> dict[tuple[str, str, str], int]:
    """How many calls the work makes where nothing goes wrong, by (work, call, sort of file)."""
    works: tuple[Literal["agent", "drain"], ...] = ("agent", "drain")
    found = Counter[tuple[str, str, str]]()
    for outcome in run_cases(library, folder, [Case(work) for work in works]):
        assert not outcome.problems, outcome
        found.update((outcome.case.work, call.name, sort_of(call.path)) for call in outcome.calls)
    return dict(sorted(found.items()))


def ways_to_go_wrong(call: str, path: str, nth: int) -> list[Fault]:
    """What can happen to one call: the errors that it may give, and deaths around it."""
    errors = ["EIO"] if call in {"fsync", "fdatasync", "msync", "unlink", "rmdir"} else ["EIO", "ENOSPC", "EDQUOT"]
    faults = [Fault(call, path, nth, action="error", error=error) for error in errors]
    faults += [Fault(call, path, nth, times=4, action="error", error=errors[-1])]
    faults += [Fault(call, path, nth, action="before"), Fault(call, path, nth, action="after")]
    if call in {"write", "pwrite", "writev"}:
        faults += [Fault(call, path, nth, action="short"), Fault(call, path, nth, action="torn")]
    return faults


def every_case(calls: Mapping[tuple[str, str, str], int]) -> list[Case]:
    """Each call, and each thing that can happen to it."""
    return [
        Case(work, fault)  # type: ignore[arg-type]  # the keys come from `learn_calls`
        for (work, call, path), count in calls.items()
        for nth in range(1, count + 1)
        for fault in ways_to_go_wrong(call, path, nth)
    ]


def sampled_cases(calls: Mapping[tuple[str, str, str], int]) -> list[Case]:
    """Every call on every sort of file fails once and kills its agent once; that of a drain does one of the two."""
    random, cases = Random(4), list[Case]()
    for number, ((work, call, path), count) in enumerate(calls.items()):
        faults = ways_to_go_wrong(call, path, random.randint(1, count))
        errors = [fault for fault in faults if fault.action in {"error", "short"} and fault.times == 1]
        deaths = [fault for fault in faults if fault.action in KILLS]
        for kind in (errors, deaths) if work == "agent" else ((errors, deaths)[number % 2],):
            cases.append(Case(work, random.choice(kind)))  # type: ignore[arg-type]  # the keys come from `learn_calls`
    return cases


def cuts_of_power(moments: int) -> list[Case]:
    """Power cuts at so many moments, spread over all calls, of each sort and under each setting that confirms."""
    return [
        Case("agent", Fault("*", nth=1 + number * calls // moments, action="before"), power_cut=cut, spool_sync=sync)
        for number in range(moments)
        for cut in _CUTS
        for sync, calls in _SYNCS
    ]


HALF_DONE = Fault("unlink", "spool/*/*/*.seg", action="after")  # the first one that is gone, and no spare
UNWRITTEN = Fault("pwrite", "training/*/*_*.csv", action="before")
IS_LONG = bool(os.environ.get("CHAOS_EVERY_CALL"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def calls(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], int]:
    return learn_calls(library, tmp_path_factory.mktemp("learn"))


def wrong(outcomes: Iterable[Outcome]) -> list[tuple[Case, list[str]]]:
    return [(outcome.case, outcome.problems) for outcome in outcomes if outcome.problems]


@pytest.mark.timeout(7200 if IS_LONG else 180)
def test_whichever_call_fails_or_is_the_last_one_nothing_accepted_is_lost_or_doubled(
    library: Path, calls: dict[tuple[str, str, str], int], tmp_path: Path
) -> None:
    outcomes = run_cases(library, tmp_path, every_case(calls) if IS_LONG else sampled_cases(calls))
    assert wrong(outcomes) == []
    hits = Counter(outcome.was_hit for outcome in outcomes)
    assert hits[True] > 0.8 * hits.total(), "threads shift what is called how often, but not by much"


@pytest.mark.timeout(3600 if IS_LONG else 180)
def test_a_power_cut_at_any_moment_takes_nothing_that_a_flush_or_a_sync_had_confirmed(
    library: Path, tmp_path: Path
) -> None:
    assert wrong(run_cases(library, tmp_path, cuts_of_power(340 if IS_LONG else 6))) == []


@pytest.mark.parametrize("failing", ["sync_folder", "sync_data"])
def test_a_sync_that_failed_is_made_up_for_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    sync, errors, synced = getattr(spool, failing), [OSError(errno.EIO, "the disk")], list[object]()

    def sync_or_fail(what: object) -> None:
        if errors:
            raise errors.pop()
        sync(what)
        synced.append(what)

    monkeypatch.setattr(spool, failing, sync_or_fail)
    producer = Spool(Settings(data_dir=tmp_path, spool_sync="always"), "events")
    assert producer.append(b"first"), "in the spool, and the log says that a power cut may take it"
    assert synced == []
    assert producer.append(b"second")
    assert producer.folder in synced or failing == "sync_data"
    assert synced
    producer.close()


@pytest.mark.parametrize(
    ("case", "seen"),
    [
        (Case("agent", power_cut="data", unsynced="fdatasync:training/*/*.csv"), "0 bytes, but"),
        (Case("agent", power_cut="names", unsynced="fsync:training/*"), "lost"),
        (Case("agent", HALF_DONE, "data", "fdatasync:state/*.sqlite-wal", spool_sync="always"), "lost|doubled"),
        (Case("agent", UNWRITTEN, "names", "fsync:spool/*/*", spool_sync="always"), "lost"),
        (Case("agent", UNWRITTEN, "data", "fdatasync:spool/*/*/*.seg", spool_sync="always"), "lost"),
        (Case("drain", Fault("pwrite", "training/*/*_*.csv", action="lie")), "cannot be read|lost"),
        (Case("drain", Fault("fdatasync", "state/*.sqlite-wal", nth=2, action="after"), without_marks=True), "doubled"),
    ],
    ids=[
        "day files are not synced",
        "their folder is not synced",
        "the ledger is not synced",
        "the spool's folder is not synced",
        "the spool is not synced",
        "a failed write is taken for a good one",
        "the marks are not read",
    ],
)
def test_where_a_protection_is_switched_off_the_loss_is_seen(
    library: Path, tmp_path: Path, case: Case, seen: str
) -> None:
    (outcome,) = run_cases(library, tmp_path, [case], processes=1)
    assert re.search(seen, str(outcome.problems)), outcome.problems
