"""Turns one artifact and its manifest, read again, into what is wrong with them: the findings of `tds verify`.

`damaged`: bytes differ from what was built, or are missing. `stale`: as it was built, but its source has changed since,
or the code has; the next build makes it anew. `newer`: written by a newer version of this program, so not checked.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec

from ingest.errors import shown
from ingest.pipeline.partitions import manifest_of
from ingest.records import SCHEMA_VERSION
from tds_dagster.curate.seal import find_flaw
from tds_dagster.export.comparison import Comparison, Difference, Measure, compare, measure

State = Literal["damaged", "stale", "newer"]
MANIFEST_ENDING = ".manifest.json"

_REMEDY = "remove it, and build it again"


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file that is not what it should be."""

    path: Path
    state: State
    reason: str  # what is wrong, and what to do
    offset: int | None = None  # the first byte that differs, from 0; None where what it was cannot be built again
    line: int | None = None  # that it stands in, from 1; of JSONL
    field: str | None = None  # of a manifest


class Built(Protocol):
    """What a manifest says of its artifact."""

    @property
    def path(self) -> Path:
        """The artifact."""

    @property
    def bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """Hex digest of its bytes."""


ShapeT = TypeVar("ShapeT")


class Checker:
    """Reads artifacts, and collects what is wrong with them."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self.files = self.bytes = 0
        self.findings: list[Finding] = []

    def find(
        self, path: Path, state: State, reason: str, at: Difference | None = None, *, field: str | None = None
    ) -> None:
        """Note that a file is not what it should be, once for each thing that is wrong."""
        if any((each.path, each.state, each.field) == (path, state, field) for each in self.findings):
            return
        line = at.line if at is not None and path.suffix == ".jsonl" else None
        offset = None if at is None else at.offset
        self.findings.append(Finding(path=path, state=state, reason=reason, offset=offset, line=line, field=field))

    def measure(self, path: Path) -> Measure:
        """Read a file to its end."""
        return self._counted(measure(path))

    def compare(self, path: Path, expected: Iterable[bytes]) -> Comparison:
        """Read a file to its end, beside what it is expected to be."""
        comparison = compare(path, expected)
        self._counted(comparison.found)
        return comparison

    def _counted(self, found: Measure) -> Measure:
        self.files += 1
        self.bytes += found.bytes
        return found

    def manifest(self, artifact: Path, shape: type[ShapeT]) -> ShapeT | None:
        """The manifest of an artifact that is there, if it can be relied on; else what is wrong was noted."""
        path = manifest_of(artifact)
        if not path.exists():
            reason = "has no manifest beside it, so it was not written to its end, or the manifest was removed"
            self.find(artifact, "damaged", f"{reason}; {_REMEDY}")
            return None
        built = self.sealed(path, shape, artifact)
        if built is not None and not artifact.exists():
            self.find(artifact, "damaged", "is gone, and its manifest is there; build it again")
            return None
        return built

    def sealed(self, path: Path, shape: type[ShapeT], artifact: Path | None = None) -> ShapeT | None:
        """A manifest's content, if it can be relied on; else what is wrong was noted."""
        text = path.read_bytes()
        self.files += 1
        self.bytes += len(text)
        fields = _fields(text)
        flaw = find_flaw(text)
        if flaw is not None and fields and fields.keys() <= set(getattr(shape, "__struct_fields__", ())):
            self.find(path, "stale", f"was written by an older version of this program, without checksums; {_REMEDY}")
        elif flaw is not None:
            what = f"the field {flaw.field} is" if flaw.field else "what lies between the fields is"
            at = Difference(flaw.offset, text.count(b"\n", 0, flaw.offset) + 1)
            self.find(
                path, "damaged", f"{what} not as it was written; {_REMEDY} with its artifact", at, field=flaw.field
            )
        elif isinstance(version := fields.get("schema_version"), int) and version > SCHEMA_VERSION:
            reason = f"schema_version is {version}, and this program knows {SCHEMA_VERSION}: it was not checked"
            self.find(path, "newer", f"{reason}; update the program", field="schema_version")
        else:
            return self._converted(path, fields, shape, artifact)
        return None

    def _converted(
        self, path: Path, fields: Mapping[str, object], shape: type[ShapeT], artifact: Path | None
    ) -> ShapeT | None:
        beside = artifact or path
        try:
            return msgspec.convert(fields, shape, dec_hook=lambda _, name: beside.with_name(name))
        except msgspec.ValidationError as err:
            self.find(path, "stale", f"was written by another version of this program ({err}); {_REMEDY}")
            return None

    def judge(
        self, built: Built, found: Measure, rebuilt: Comparison | None, *, source: str, stale: str | None
    ) -> bool:
        """Note what is wrong with an artifact; gives whether it is as its manifest says, and nothing contradicts that.

        `source` is what it was made from, in words; `stale` says why that gives something else by now.
        """
        if (found.bytes, found.sha256) == (built.bytes, built.sha256):
            if stale is not None:
                self.find(built.path, "stale", stale)
            elif rebuilt is not None and rebuilt.difference is not None:
                reason = f"is what its manifest says, but {source} gives something else: one of the two was changed"
                self.find(built.path, "damaged", f"{reason}; {_REMEDY}", rebuilt.difference)
                return False
            return True
        at = rebuilt.difference if rebuilt is not None and rebuilt.expected.sha256 == built.sha256 else None
        if at is None and found.bytes < built.bytes:
            at = Difference(found.bytes, found.lines + 1)
        what = "is not what was built"
        if found.bytes != built.bytes:
            what = f"has {found.bytes} bytes, and {built.bytes} were written"
        self.find(built.path, "damaged", f"{what}; {_REMEDY}", at)
        return False

    def check_fields(self, manifest: Path, built: object, expected: Mapping[str, object]) -> None:
        """Note each field of a manifest that its artifact and its sources contradict."""
        for name, value in expected.items():
            if (said := getattr(built, name)) != value:
                reason = f"{name} is {shown(said)}, expected {shown(value)}; {_REMEDY} with its artifact"
                self.find(manifest, "damaged", reason, field=name)


def _fields(text: bytes) -> dict[str, object]:
    """The fields of a manifest; none where it is no JSON object."""
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def artifact_of(file: Path) -> Path:
    """The artifact that a manifest stands beside, as it names it; an artifact is its own."""
    if not file.name.endswith(MANIFEST_ENDING):
        return file
    others = (other for other in sorted(file.parent.iterdir()) if other != file and manifest_of(other) == file)
    return next(others, file.with_name(f"{file.name.removesuffix(MANIFEST_ENDING)}.jsonl"))
