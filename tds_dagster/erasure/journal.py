"""Keeps what an erasure is about to do until it is done, and what it did for good.

state/erasures/<id>.journal   while it is under way: the intent, then a line before each file that changes, and
                              what has to be built again. It names record ids and texts, and goes at the end
state/erasures/<id>.json      the receipt: counts, files and hashes, none of the data
state/erasures/key            with which the selector in the receipt is hashed
"""

import os
from pathlib import Path

import msgspec
import uuid_utils

from ingest.errors import DamagedFile
from ingest.pipeline.erasure import Doomed
from ingest.pipeline.ledger import keyed_hash, secret_key
from ingest.pipeline.partitions import DataPaths, replacing, sync_folder
from ingest.settings import RedactionLevel
from tds_dagster.curate.artifacts import made_now
from tds_dagster.datasets.recipe import Recipe
from tds_dagster.erasure.selection import Found, Selector
from tds_dagster.export.selection import Selection


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a journal."""

    id: str
    begun_at: str
    selector: str  # keyed hash
    doomed: dict[str, Doomed]  # by kind
    ids: list[str]  # agents, sessions and records that were asked for by name, for lines that are no records
    texts: list[str]  # texts that were asked for


class FileChange(msgspec.Struct, frozen=True, tag="file"):
    """A file that changes, with hex SHA-256 before and after."""

    path: str  # below the data folder
    old_sha256: str  # "": it was not there
    new_sha256: str | None  # None: it is removed


class RangeToBuild(msgspec.Struct, frozen=True, tag="range"):
    """A range, or what was selected of one, that was removed."""

    kind: str
    start: str
    end: str
    redaction: RedactionLevel
    selection: Selection | None = None  # None: all of the range
    allow_missing: bool = False  # there were days that could not be exported
    names_the_subject: bool = False  # the selection does: it is not built again


class DayToBuild(msgspec.Struct, frozen=True, tag="day"):
    """A day whose shard was removed."""

    kind: str
    day: str
    redaction: str  # level


class DatasetToBuild(msgspec.Struct, frozen=True, tag="dataset"):
    """A dataset that was removed; without a recipe it is not built again."""

    model: str
    version: str
    recipe: Recipe | None


class LatestDataset(msgspec.Struct, frozen=True, tag="latest"):
    """The version that a model's `latest.json` named before the erasure."""

    model: str
    version: str


class SynapseDone(msgspec.Struct, frozen=True, tag="synapse"):
    """What became of a kind's stream in Redis."""

    kind: str
    records: int


Entry = FileChange | RangeToBuild | DayToBuild | DatasetToBuild | LatestDataset | SynapseDone


class ErasedDataset(msgspec.Struct, frozen=True):
    """A version of a dataset that is no more."""

    model: str
    version: str
    built_again_as: str | None  # the version without the records; the same one: nothing of them was in it


class TaintedModel(msgspec.Struct, frozen=True):
    """A version of a model that was trained on an erased version of a dataset."""

    model: str
    version: str
    dataset: str  # "": its manifest does not say


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure did; nothing of what it erased."""

    id: str
    begun_at: str  # RFC 3339
    finished_at: str
    selector: str  # HMAC-SHA256, hex: the same request gives the same one in this data folder
    records: dict[str, dict[str, int]]  # by kind and day: rows of the day files
    rejects: dict[str, dict[str, int]]  # by kind and day: lines that the writer had put into quarantine
    synapse_records: int  # records in Redis
    synapse_files: str  # what became of the files of Redis
    files: list[FileChange]  # all that changed, in order of their path
    datasets: list[ErasedDataset]
    models: list[TaintedModel]
    not_built: dict[str, str]  # what could not be built again, and why
    not_erased: dict[str, str] = {}  # damaged day files that were left as they are, and what is wrong with them

    @property
    def total(self) -> int:
        """Rows and lines of all kinds."""
        return sum(n for days in (*self.records.values(), *self.rejects.values()) for n in days.values())


_ENTRY = msgspec.json.Decoder(Entry)


class Journal:
    """One erasure's journal, open for more entries."""

    def __init__(self, paths: DataPaths, path: Path) -> None:
        """Read it. Raises DamagedFile where its first line is none."""
        self._paths, self.path = paths, path
        first, *lines = path.read_bytes().split(b"\n")
        try:
            self.intent = msgspec.json.decode(first, type=Intent)
        except msgspec.DecodeError as err:
            raise DamagedFile(
                f"{path}: byte 0: {err}: expected what an erasure meant to do; run the erasure again after this file "
                "is moved away"
            ) from err
        whole = lines[:-1]  # behind the last line feed: empty, or cut short by a kill
        self.entries: list[Entry] = [_ENTRY.decode(line) for line in whole]
        self._known = set(self.entries)
        self._cut_torn_line(len(lines[-1]) if lines else 0)

    def _cut_torn_line(self, length: int) -> None:
        if length:
            os.truncate(self.path, self.path.stat().st_size - length)

    def note(self, *entries: Entry) -> None:
        """Add entries that are not there yet, and bring them to the disk."""
        new = [entry for entry in entries if entry not in self._known]
        if new:
            self.entries += new
            self._known.update(new)
            with self.path.open("ab") as out:
                out.writelines(msgspec.json.encode(entry) + b"\n" for entry in new)
                out.flush()
                os.fsync(out.fileno())

    def note_file(self, path: Path, old_sha256: str, new_sha256: str | None) -> None:
        """Add the change of a file."""
        self.note(self.change_of(path, old_sha256, new_sha256))

    def change_of(self, path: Path, old_sha256: str, new_sha256: str | None) -> FileChange:
        """The change of a file, named below the data folder."""
        return FileChange(str(path.relative_to(self._paths.root)), old_sha256, new_sha256)

    def file_changes(self) -> list[FileChange]:
        """One change a file: from what it was at first to what it is at last."""
        merged: dict[str, FileChange] = {}
        for entry in self.entries:
            if isinstance(entry, FileChange):
                before = merged.get(entry.path, entry)
                merged[entry.path] = FileChange(entry.path, before.old_sha256, entry.new_sha256)
        return [merged[path] for path in sorted(merged) if merged[path].old_sha256 != merged[path].new_sha256]

    def finish(self, receipt: Receipt) -> None:
        """Write the receipt, then remove the journal."""
        with replacing(receipt_file(self._paths, receipt.id)) as out:
            out.write(msgspec.json.format(msgspec.json.encode(receipt), indent=2) + b"\n")
        self.path.unlink()
        sync_folder(self.path.parent)


def begin_journal(paths: DataPaths, selector: Selector, found: Found) -> Journal:
    """Write down what is about to be erased; from here on it is finished whatever happens."""
    intent = Intent(
        id=str(uuid_utils.uuid7()),
        begun_at=made_now(),
        selector=keyed_hash(secret_key(paths.state), msgspec.json.encode(selector, order="sorted").decode()),
        doomed=found.doomed,
        ids=[*selector.agent_ids, *selector.session_ids, *selector.record_ids],
        texts=list(selector.texts),
    )
    path = _folder(paths) / f"{intent.id}.journal"
    with replacing(path) as out:
        out.write(msgspec.json.encode(intent) + b"\n")
    return Journal(paths, path)


def open_journal(paths: DataPaths) -> Journal | None:
    """The journal of an erasure that was cut off; None if there is none."""
    left = sorted(_folder(paths).glob("*.journal"))
    return Journal(paths, left[0]) if left else None


def receipt_file(paths: DataPaths, erasure_id: str) -> Path:
    """Where the receipt of an erasure lies."""
    return _folder(paths) / f"{erasure_id}.json"


def _folder(paths: DataPaths) -> Path:
    return paths.state / "erasures"
