"""Turns a range export, and the files that show the latest one, into what is wrong with them.

A plain range is its days' shards, one after the other. A selection is made again in a scratch folder, if the curated
days, the code and the policy are those that it was made with.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec

from ingest.errors import TdsError
from ingest.pipeline.partitions import DataPaths, make_folder, manifest_of
from ingest.records import SCHEMA_VERSION
from ingest.redaction.redactor import open_redactor
from ingest.settings import RedactionLevel, Settings
from tds_dagster.curate.artifacts import is_intact, read_manifest
from tds_dagster.export.accounting import total_account
from tds_dagster.export.checker import Checker, artifact_of
from tds_dagster.export.comparison import measure, pieces
from tds_dagster.export.describe import description_code, export_description
from tds_dagster.export.manifest import RangeExport, Shard
from tds_dagster.export.selected import selected_code_version, write_selected
from tds_dagster.export.shard import code_version

_AGAIN = "export the range again to have it anew"


class RangeCheck:
    """The ranges of one kind; the caller holds their lock."""

    def __init__(self, checker: Checker, settings: Settings, scratch: Path, kind: str) -> None:
        """Nothing is read yet; `scratch` is a folder for files of the moment."""
        self.checker, self.settings, self.kind = checker, settings, kind
        self.paths = DataPaths(settings.data_dir.absolute())
        self.scratch = scratch / "selected"

    def check_range(self, path: Path) -> None:
        """Check one range file and its manifest."""
        built = self.checker.manifest(path, RangeExport)
        if built is None:
            return
        shards = self._shards(built)
        code = code_version() if built.selection is None else selected_code_version()
        stale = None
        if len(shards) != len(built.partitions):
            gone = len(built.partitions) - len(shards)
            stale = f"{gone} of its {len(built.partitions)} days were exported anew since, or are gone; {_AGAIN}"
        elif built.code_version != code:
            stale = f"was written by another version of this program; {_AGAIN}"
        accounts = [part.account for part in built.partitions]
        expected = {"kind": self.kind, "path": path, "schema_version": SCHEMA_VERSION}
        expected["accounting"] = total_account(self.kind, accounts)
        if built.selection is None:
            comparison = self.checker.compare(path, (piece for shard in shards for piece in pieces(shard.path)))
            self.checker.judge(built, comparison.found, comparison, source="its days' shards", stale=stale)
            expected |= {name: sum(getattr(part, name) for part in built.partitions) for name in ("rows", "bytes")}
        else:
            expected |= self._check_selection(built, shards, stale)
        self.checker.check_fields(manifest_of(path), built, expected)

    def _shards(self, built: RangeExport) -> list[Shard]:
        """Those of its days' shards that are still the ones that it was made of."""
        found = [read_manifest(self.paths.shard(self.kind, part.day), Shard) for part in built.partitions]
        return [
            shard
            for shard, part in zip(found, built.partitions, strict=True)
            if shard is not None and shard.sha256 == part.sha256 and shard.path.exists()
        ]

    def _check_selection(self, built: RangeExport, shards: Sequence[Shard], stale: str | None) -> dict[str, object]:
        """Check what was selected of a range; gives the fields that a build of the same fills."""
        again = None if stale is not None else self._select_again(built, shards)
        if again is None:
            self.checker.judge(built, self.checker.measure(built.path), None, source="", stale=stale)
            return {}
        try:
            comparison = self.checker.compare(built.path, pieces(again.path))
            if comparison.difference is not None and built.sources and again.sha256 != built.sha256:
                # What it was depends on feedback, which may have come since.
                stale = f"feedback has changed since, or the file has; {_AGAIN}"
            source = "its curated days"
            self.checker.judge(built, comparison.found, comparison, source=source, stale=stale)
            return {} if stale else {"rows": again.rows, "redacted": again.redacted}
        finally:
            shutil.rmtree(self.scratch)

    def _select_again(self, built: RangeExport, shards: Sequence[Shard]) -> RangeExport | None:
        """The same selection, in the scratch folder; None where it cannot be had."""
        selection = built.selection
        if built.redaction not in get_args(RedactionLevel) or selection is None or not selection.is_of(built.path):
            return None
        redactor = open_redactor(self.settings, msgspec.convert(built.redaction, RedactionLevel))
        if redactor.version != built.redaction_version or not all(map(self._has_source, shards)):
            return None
        make_folder(self.scratch)
        try:
            wanted = msgspec.structs.replace(built, path=self.scratch / built.path.name)
            return write_selected(self.paths, shards, wanted, selection, redactor)
        except TdsError:  # the days and their shards say themselves what is wrong with them
            return None

    def _has_source(self, shard: Shard) -> bool:
        path = self.paths.curated(self.kind, shard.day)
        return path.exists() and measure(path).sha256 == shard.source_sha256

    def check_shown(self, path: Path) -> None:
        """Check a file that shows a range: it is that range, or is made from its manifest."""
        ranges = self._ranges()
        if not ranges:
            self.checker.find(path, "stale", f"shows a range, and there is none left to hold it against; {_AGAIN}")
        elif path == self.paths.latest_export(self.kind):
            found = self.checker.measure(path)
            if not any((found.bytes, found.sha256) == (built.bytes, built.sha256) for built in ranges):
                comparison = self.checker.compare(path, pieces(ranges[0].path))
                reason = f"is none of the ranges, expected {ranges[0].path.name}; export the range again"
                self.checker.find(path, "damaged", reason, comparison.difference)
        else:
            self._check_description(path, ranges)

    def _ranges(self) -> list[RangeExport]:
        """The plain ranges that are there, the latest first."""
        folder = self.paths.range_export(self.kind, "", "").parent
        manifests = sorted(folder.glob("*.manifest.json"), key=lambda each: each.stat().st_mtime_ns, reverse=True)
        found = [read_manifest(artifact_of(manifest), RangeExport) for manifest in manifests]
        return [built for built in found if built is not None and built.selection is None and is_intact(built)]

    def _check_description(self, path: Path, ranges: Sequence[RangeExport]) -> None:
        text = path.read_bytes()
        expected = [export_description(self.paths, built)[path.name] for built in ranges]
        comparison = self.checker.compare(path, [expected[0]])
        if text in expected:
            return
        if description_code().encode() not in text:
            self.checker.find(path, "stale", f"was written by another version of this program; {_AGAIN}")
        else:
            reason = f"is not how {ranges[0].path.name} is described; export the range again"
            self.checker.find(path, "damaged", reason, comparison.difference)
