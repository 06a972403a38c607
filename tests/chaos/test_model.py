"""The spool, the writer and the ledger against a list in memory: any order of events, the same rows.

Hypothesis makes up runs of appends, syncs, deaths, damage and crashes between the writer's steps. The reference knows
only which records were accepted, and what was done to some of them. After every event the committed part of the day
files has to be exactly what the reference says is written. CHAOS_EXAMPLES sets how many runs are made up.
"""

import contextlib
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ingest import Settings
from ingest.pipeline import exactly_once, writer
from ingest.pipeline.accounting import account
from ingest.pipeline.failpoints import Step
from ingest.pipeline.ledger import CommittedFile, Reject, open_ledger
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.spool import Batch, Spool
from ingest.pipeline.writer import KindWriter, SpoolSource, drain
from ingest.records import KINDS, DayNumbers, keyed_record_id, new_record_id

EVENTS = KINDS["events"]
DAYS = ("2026-01-02", "2026-01-03", "2026-01-04")
SEGMENT_BYTES, MAX_RECORD_BYTES = 2048, 3000
MEMORY = Path("/dev/shm")  # no power is cut here, and syncs of a busy disk are most of the time otherwise
EXAMPLES = int(os.environ.get("CHAOS_EXAMPLES", "40"))

# Small ones, and those around what a segment and a record may hold.
SIZES = st.one_of(
    st.integers(0, 400),
    st.integers(SEGMENT_BYTES - 40, SEGMENT_BYTES + 8),
    st.integers(MAX_RECORD_BYTES - 1, MAX_RECORD_BYTES + 1),
)
LIMITS = st.tuples(st.integers(1, 12), st.integers(1, 5000), st.integers(1, 8))
Fate = Literal["row", "bad", "damaged"]


class CrashError(Exception):
    """Stands for the death of the writer's process."""


class Crashes:
    """Takes the place of the failpoint: raises where that one would kill."""

    def __init__(self) -> None:
        self.at: tuple[Step, int] | None = None
        self.reached = Counter[Step]()

    def reach(self, step: Step) -> None:
        self.reached[step] += 1
        if self.at == (step, self.reached[step]):
            raise CrashError(step)


class Accepted(msgspec.Struct):
    """A record in a spool: number n of its producer."""

    name: str
    day: str
    key: str | None
    fate: Fate = "row"


class Producer:
    """A spool and what the reference knows of it."""

    def __init__(self, settings: Settings) -> None:
        self.spool = Spool(settings, "events")
        self.is_open = True
        self.accepted: list[Accepted] = []
        self.dropped = 0


class WritePath(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.settings = Settings(
            data_dir=self.folder, spool_segment_bytes=SEGMENT_BYTES, max_record_bytes=MAX_RECORD_BYTES
        )
        self.crashes = Crashes()
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(patch.object(exactly_once, "Failpoint", lambda _: self.crashes))
        self.producers: list[Producer] = []
        self.written: list[Batch] = []
        self.foreign = 0  # lines that were written behind a day file's committed size
        self.open_writer()
        self.add_producer()

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        self.crashes.at = None
        try:
            for producer in self.producers:
                producer.spool.close()
            self.writer.close()
            drain(self.settings, ["events"])
            self.what_is_committed_is_what_the_reference_says()
            counted = account(self.settings, "events")
            assert counted.waiting == 0
            left = [path.name for path in (self.settings.spool / "events").glob("*")]
            assert left == [], "the spool of ended producers is cleared away"
        finally:
            self.patches.close()
            shutil.rmtree(self.folder)

    def open_writer(self) -> None:
        self.writer = KindWriter(self.settings, "events")
        assert self.writer.lock.acquire()

    def alive(self, choice: int) -> Producer:
        alive = [producer for producer in self.producers if producer.is_open]
        return alive[choice % len(alive)]

    def has_alive(self) -> bool:
        return any(producer.is_open for producer in self.producers)

    # ----------------------------------------------------------------------------------------- the agents' side ---

    @rule(
        choice=st.integers(0, 9),
        sizes=st.lists(SIZES, min_size=1, max_size=6),
        day=st.sampled_from(DAYS),
        key=st.sampled_from([None, None, None, "k1", "k2"]),
        form=st.sampled_from(["rows", "JSON", "both"]),
    )
    @precondition(has_alive)
    def append(self, choice: int, sizes: list[int], day: str, key: str | None, form: str) -> None:
        producer = self.alive(choice)
        for size in sizes:
            record = Accepted(f"{self.producers.index(producer)}-{len(producer.accepted) + 1}", day, key)
            line, number = line_of(record, size), 0
            if key is None and (form == "rows" or (form == "both" and size % 2)):
                line, number = row_of(line), DayNumbers()[day]
            is_accepted = producer.spool.append(line, day=number)
            assert is_accepted == (len(line) <= MAX_RECORD_BYTES)
            if is_accepted:
                producer.accepted.append(record)
            else:
                producer.dropped += 1

    @rule(choice=st.integers(0, 9), line=st.sampled_from([b"not json", b"{}", b"[]", b'{"record_id":1}', b"x" * 500]))
    @precondition(has_alive)
    def append_what_is_no_record(self, choice: int, line: bytes) -> None:
        producer = self.alive(choice)
        assert producer.spool.append(line)
        producer.accepted.append(Accepted("", DAYS[0], None, "bad"))

    @rule(choice=st.integers(0, 9))
    @precondition(has_alive)
    def sync(self, choice: int) -> None:
        self.alive(choice).spool.sync()

    @rule()
    @precondition(lambda self: len(self.producers) < 4)
    def add_producer(self) -> None:
        self.producers.append(Producer(self.settings))

    @rule(choice=st.integers(0, 9), in_peace=st.booleans())
    @precondition(has_alive)
    def end_a_producer(self, choice: int, in_peace: bool) -> None:
        producer = self.alive(choice)
        producer.spool.close(forked=not in_peace)  # without a sync, as at a kill
        producer.is_open = False

    @rule(choice=st.integers(0, 9), record=st.integers(0, 99))
    def damage_a_record_that_is_not_written(self, choice: int, record: int) -> None:
        producer = self.producers[choice % len(self.producers)]
        with open_ledger(DataPaths(self.settings.data_dir), "events") as ledger:
            unwritten = producer.accepted[ledger.marks().get(producer.spool.producer, 0) :]
        whole = [accepted for accepted in unwritten if accepted.fate == "row"]
        if not whole:
            return
        damaged = whole[record % len(whole)]
        sought = f'"{damaged.name}"'.encode()
        (segment,) = [path for path in producer.spool.folder.glob("*.seg") if sought in path.read_bytes()]
        with segment.open("r+b") as file:
            file.seek(segment.read_bytes().index(sought) + 1)
            file.write(b"9")  # still JSON, or a row, and still a record
        damaged.fate = "damaged"

    # ----------------------------------------------------------------------------------------- the writer's side ---

    def write(self, limits: tuple[int, int, int], mix: Callable[[list[Batch]], list[Batch]] = list) -> None:
        """Two steps of the writer: up to so many records and bytes a commit, in a thread from so many records on.

        What the spool gives to write goes through `mix`.
        """
        read, given = SpoolSource.read, list[Batch]()

        def read_and_mix(source: SpoolSource, *arguments: Any) -> tuple[list[Batch], list[Reject]]:
            batches, strays = read(source, *arguments)
            given.extend(batches)
            return mix(batches), strays

        with (
            patch.object(writer, "MAX_RECORDS", limits[0]),
            patch.object(writer, "MAX_BYTES", limits[1]),
            patch.object(writer, "_LARGE", limits[2]),
            patch.object(SpoolSource, "read", read_and_mix),
        ):
            self.writer.step()
            self.writer.step()
            self.writer.finish()
        self.written += given

    @rule(limits=LIMITS)
    def step(self, limits: tuple[int, int, int]) -> None:
        self.write(limits)

    @rule(limits=LIMITS, choices=st.lists(st.integers(0, 99), max_size=4), is_merged=st.booleans())
    def step_where_much_comes_again(self, limits: tuple[int, int, int], choices: list[int], is_merged: bool) -> None:
        """As Synapse may give it: entries a second time, entries of old and new records, entries ahead of a gap."""

        def mix(batches: list[Batch]) -> list[Batch]:
            again = [self.written[choice % len(self.written)] for choice in choices if self.written]
            former = {(batch.producer, batch.last_seq): batch for batch in self.written}
            wider = [joined(former.get((batch.producer, batch.first_seq - 1)), batch) for batch in batches]
            if is_merged:
                return [*wider, *again, *batches]
            return [*reversed(batches), *again, *batches]

        self.write(limits, mix)

    @rule(at=st.sampled_from(["intent", "append", "sync", "commit"]), times=st.integers(1, 2), limits=LIMITS)
    def crash_at_a_step(self, at: Step, times: int, limits: tuple[int, int, int]) -> None:
        self.crashes.at = at, self.crashes.reached[at] + times
        with contextlib.suppress(CrashError):
            self.write(limits)
        self.crashes.at = None

    @rule(limits=LIMITS)
    def crash_while_a_commit_is_under_way(self, limits: tuple[int, int, int]) -> None:
        reads = 0

        def mix(batches: list[Batch]) -> list[Batch]:
            nonlocal reads
            reads += 1
            if reads == 2:
                raise CrashError("the second read")
            return batches

        with contextlib.suppress(CrashError):
            self.write(limits, mix)

    @rule(limits=LIMITS)
    def crash_between_the_commit_and_what_it_frees(self, limits: tuple[int, int, int]) -> None:
        crash = patch.object(SpoolSource, "acknowledge", side_effect=CrashError("acknowledge"))
        with contextlib.suppress(CrashError), crash:
            self.write(limits)

    @rule()
    def reopen_the_writer(self) -> None:
        self.writer.close()
        self.open_writer()

    @rule()
    def drain_by_another_process(self) -> None:
        self.writer.close()
        drain(self.settings, ["events"])
        self.open_writer()

    @rule(day=st.sampled_from(DAYS), lines=st.lists(st.sampled_from([b"", b"a,b", b'"torn']), min_size=1, max_size=3))
    def write_garbage_behind_a_day_file(self, day: str, lines: list[bytes]) -> None:
        if day in self.committed()[0]:
            with DataPaths(self.settings.data_dir).training("events", day).open("ab") as file:
                file.writelines(line + b"\n" for line in lines)
            self.foreign += len(lines)

    # ------------------------------------------------------------------------------------------------- the promise ---

    def committed(self) -> tuple[dict[str, CommittedFile], dict[str, int]]:
        with open_ledger(DataPaths(self.settings.data_dir), "events") as ledger, ledger.snapshot():
            return ledger.files(), ledger.marks()

    @invariant()
    def what_is_committed_is_what_the_reference_says(self) -> None:
        if not hasattr(self, "folder"):
            return
        files, marks = self.committed()
        found: dict[str, list[str]] = {}
        for day, file in files.items():
            content = DataPaths(self.settings.data_dir).training("events", day).read_bytes()
            assert len(content) >= file.size, "committed size <= file size"
            header, *lines = content[: file.size].decode().splitlines(keepends=True)
            assert header.encode() == EVENTS.header
            assert len(lines) == file.rows
            found[day] = [str(EVENTS.read_row(line.removesuffix("\n"))["event_type"]) for line in lines]
        written = [
            (producer, producer.accepted[: marks.get(producer.spool.producer, 0)]) for producer in self.producers
        ]
        by_key = defaultdict[str, set[str]](set)  # names of written records that have one key
        for index, (_, records) in enumerate(written):
            for day in DAYS:
                expected = [r.name for r in records if r.day == day and r.fate == "row" and r.key is None]
                keyed = {r.name for r in records if r.key is not None}
                names = [name for name in found.get(day, []) if name.partition("-")[0] == str(index)]
                assert [name for name in names if name not in keyed] == expected
            for record in records:
                if record.key is not None and record.fate == "row":
                    by_key[record.key].add(record.name)
        rows = Counter(name for names in found.values() for name in names)
        assert max(rows.values(), default=1) == 1, "none twice"
        for equals in by_key.values():
            assert len(equals & rows.keys()) == 1, "a key stores one record"
        self.counters_add_up(written, rows, by_key)

    def counters_add_up(
        self,
        written: list[tuple[Producer, list[Accepted]]],
        rows: Counter[str],
        by_key: dict[str, set[str]],
    ) -> None:
        counted = account(self.settings, "events")
        accepted = sum(len(producer.accepted) for producer in self.producers)
        assert counted.balanced
        assert counted.accepted == accepted
        assert counted.dropped == sum(producer.dropped for producer in self.producers if producer.accepted)
        assert counted.waiting == accepted - sum(len(records) for _, records in written)
        assert counted.rows == rows.total()
        assert counted.duplicates == sum(len(names) - 1 for names in by_key.values())
        assert counted.quarantined == sum(r.fate != "row" for _, records in written for r in records)
        # Garbage that follows a crash may lie where the writer meant to write: then it is cut off with its own rows.
        assert counted.foreign <= self.foreign


def joined(former: Batch | None, batch: Batch) -> Batch:
    """One batch of two that follow each other."""
    if former is None:
        return batch
    days = [day for part in (former, batch) for day in part.days or [0] * part.count]
    count, data = former.count + batch.count, former.data + b"\n" + batch.data
    return Batch(former.producer, former.first_seq, count, data, days, former.header or batch.header)


def line_of(record: Accepted, size: int) -> bytes:
    """The record's line, of `size` bytes if that is enough for it."""
    fields = {
        "record_id": new_record_id() if record.key is None else keyed_record_id("events", record.key),
        "timestamp": f"{record.day}T03:04:05.000000Z",
        "event_type": record.name,
    }
    short = msgspec.json.encode(fields | {"payload": ""})
    return msgspec.json.encode(fields | {"payload": "x" * max(0, size - len(short))})


def row_of(line: bytes) -> bytes:
    """The same record as a row."""
    events = KINDS["events"]
    return events.csv_rows([events.decoder.decode(line)], escaped=True)[0].removesuffix("\n").encode()


TestTheWritePathAgainstAList = WritePath.TestCase
TestTheWritePathAgainstAList.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    derandomize="CHAOS_EXAMPLES" not in os.environ,
    database=None,
    # To make a failing run shorter takes minutes: that is for whoever looks into it.
    phases=[Phase.generate] if "CHAOS_EXAMPLES" not in os.environ else [Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
