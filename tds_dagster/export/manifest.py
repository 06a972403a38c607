"""The figures that stand beside each export: of a day's shard, of a range, and a day's account."""

from pathlib import Path

import msgspec

from tds_dagster.export.selection import Selection


class DayAccount(msgspec.Struct, frozen=True, kw_only=True):
    """Where a day's stored records are; all figures are records. A sum over days has `day=""`."""

    kind: str
    day: str
    stored: int
    exported: int
    pending: int
    duplicates: int
    quarantined: int
    erased: int = 0
    expired: int = 0  # nothing expires yet

    @property
    def balanced(self) -> bool:
        """Whether every stored record is somewhere, once."""
        return self.stored == self.accounted

    @property
    def accounted(self) -> int:
        """The records that were found."""
        return self.exported + self.pending + self.duplicates + self.quarantined + self.erased + self.expired

    def __str__(self) -> str:
        """The account as a sentence."""
        return (
            f"{self.stored} stored, and {self.exported} exported + {self.pending} pending "
            f"+ {self.duplicates} duplicates + {self.quarantined} quarantined "
            f"+ {self.erased} erased + {self.expired} expired = {self.accounted}"
        )


class Shard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One day's JSONL export: what its manifest says."""

    kind: str
    day: str
    path: Path  # the JSONL file
    rows: int  # lines in it
    bytes: int  # its size
    sha256: str  # hex digest of its bytes
    source_sha256: str  # of the curated Parquet file that it was made from
    source_version: str  # the raw day's version behind that
    source_rows: int  # rows of that version
    source_rejects: int  # the ledger's rejects of that version
    source_foreign: int  # of these, lines that other programs appended
    duplicates: int  # rows that curation left out
    schema_version: int
    code_version: str
    redaction: str  # level: none, secrets or full
    redaction_version: str  # of level, policy, key and detectors; "none" at level none
    redacted: dict[str, int] = {}  # values that were replaced, by detector
    account: DayAccount  # as the day stood when the shard was put in place
    made_at: str  # RFC 3339; the one field in which two builds of the same data differ
    reused: bool = False  # nothing had changed since it was built; not in the manifest


class SourceShard(msgspec.Struct, frozen=True, kw_only=True):
    """A day within a range's manifest."""

    day: str
    rows: int
    bytes: int
    sha256: str
    account: DayAccount


class RangeExport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A range's JSONL export: what its manifest says, and how the call that made it went."""

    kind: str
    start: str
    end: str
    path: Path  # the JSONL file
    rows: int  # lines in it; 0: no record in the whole range
    bytes: int  # its size
    sha256: str  # hex digest of its bytes
    partitions: list[SourceShard]  # the days in it, in order
    accounting: DayAccount  # the sum of theirs
    schema_version: int
    code_version: str
    redaction: str  # level: none, secrets or full
    redaction_version: str  # of level, policy, key and detectors; "none" at level none
    redacted: dict[str, int] = {}  # values that were replaced, by detector
    made_at: str  # RFC 3339; the one field in which two builds of the same data differ
    failed: dict[str, str] = {}  # days left out, each with the reason (`allow_missing`)
    selection: Selection | None = None  # what of the range is in the file; None: all of it
    sources: dict[str, str] = {}  # what else decided which rows: feedback and tasks, each a hash of its days
    # Not in the manifest: what this call did.
    rebuilt: list[str] = []  # days whose shard was made anew
    reused: bool = False  # the range file was there already, of the same shards

    @property
    def manifest_path(self) -> Path:
        """Its manifest, beside it."""
        return self.path.with_suffix(".manifest.json")
