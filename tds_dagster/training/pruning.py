"""Removes old versions of datasets and models, and never one that something else stands on.

Of each, the `TDS_KEEP_VERSIONS` latest stay. Beside them: the champion and the three before it, for a rollback; the
one built or trained last; and every dataset that a model which stays was trained on, so that it can be followed to its
days.
"""

from ingest.errors import ModelMissing
from ingest.pipeline.partitions import DataPaths
from tds_dagster.curate.artifacts import is_locked, locked
from tds_dagster.curate.folders import remove_finished
from tds_dagster.datasets.manifest import MANIFEST, latest_version
from tds_dagster.training.champion import decisions
from tds_dagster.training.manifest import champion_version, latest_trained_version, read_model, trained_versions

_FORMER_CHAMPIONS = 3


def prune_models(paths: DataPaths, model: str, keep: int) -> list[str]:
    """Remove old versions of a model; gives those that went. The caller holds the model's lock."""
    versions = trained_versions(paths, model)
    stay = {*versions[-keep:], *_in_use(paths, model)}
    gone = [version for version in versions if version not in stay]
    for version in gone:
        remove_finished(paths.model(model, version))
    return gone


def prune_datasets(paths: DataPaths, model: str, keep: int) -> list[str]:
    """Remove old versions of a dataset; gives those that went. None does while a model is trained, on any of them."""
    with locked(paths, f"dataset_{model}"):
        if is_locked(paths, f"model_{model}"):
            return []
        versions = _built_versions(paths, model)
        trained_on = _trained_on(paths, model)
        if trained_on is None:
            return []
        stay = {*versions[-keep:], latest_version(paths, model), *trained_on}
        gone = [version for version in versions if version not in stay]
        for version in gone:
            remove_finished(paths.dataset(model, version))
    return gone


def _in_use(paths: DataPaths, model: str) -> set[str | None]:
    promoted = [each.challenger for each in decisions(paths, model) if each.promoted]
    former = list(dict.fromkeys(reversed(promoted)))[: 1 + _FORMER_CHAMPIONS]
    return {champion_version(paths, model), latest_trained_version(paths, model), *former}


def _built_versions(paths: DataPaths, model: str) -> list[str]:
    """The versions in place, the one built last at the end."""
    home = paths.datasets(model)
    manifests = [path for path in home.glob(f"*/{MANIFEST}") if not path.parent.name.startswith(".")]
    return [path.parent.name for path in sorted(manifests, key=lambda path: (path.stat().st_mtime_ns, path))]


def _trained_on(paths: DataPaths, model: str) -> set[str] | None:
    """The datasets of all models in place; None if one does not say, for then any dataset may be its."""
    try:
        return {read_model(paths.model(model, version)).dataset for version in trained_versions(paths, model)}
    except ModelMissing:
        return None
