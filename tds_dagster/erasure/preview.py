"""Turns what an erasure would take into the ranges, selections and datasets that would be removed and built again."""

from collections.abc import Mapping

import msgspec

from ingest.errors import SourceMissing
from ingest.pipeline.erasure import Doomed
from ingest.pipeline.partitions import DataPaths
from tds_dagster.datasets.manifest import read_dataset
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.erasure.derived import AnyExport, artifacts_of


def affected_exports(paths: DataPaths, doomed: Mapping[str, Doomed]) -> list[str]:
    """Files of ranges and selections, below the data folder, that have a day which would lose something."""
    found = []
    for kind, days in _affected_days(doomed).items():
        folder = paths.range_export(kind, "", "").parent
        for manifest in sorted(folder.glob("*.manifest.json")):
            try:
                export = msgspec.json.decode(manifest.read_bytes(), type=AnyExport)
            except msgspec.DecodeError:
                is_affected = True  # nobody can tell what is in it
            else:
                is_affected = any(part.day in days for part in export.partitions)
            if is_affected:
                found += sorted(path.relative_to(paths.root).as_posix() for path in artifacts_of(folder, manifest))
    return found


def affected_datasets(paths: DataPaths, doomed: Mapping[str, Doomed]) -> list[str]:
    """Datasets, as <model>/<version>, that were made of a day which would lose something."""
    affected, found = _affected_days(doomed), []
    for model in MODELS if affected else ():
        for folder in sorted(paths.datasets(model).glob("[!.]*/")):
            try:
                sources = read_dataset(folder).sources
            except SourceMissing:
                is_affected = True  # nobody can tell what is in it
            else:
                is_affected = any(source.day in affected.get(source.kind, ()) for source in sources)
            if is_affected:
                found.append(f"{model}/{folder.name}")
    return found


def _affected_days(doomed: Mapping[str, Doomed]) -> dict[str, set[str]]:
    return {kind: {*each.records, *each.lines} for kind, each in doomed.items()}
