"""Reads artifacts as other people's programs do: the packages `datasets` and `mlcroissant`, without a network."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tds_dagster.export.features import Feature, ListOf


def load_with_datasets(source: str | Path, cache: Path, **more: Any) -> Any:
    """What `datasets.load_dataset` gives; its caches lie in `cache`."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=str(cache), HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    import datasets

    return datasets.load_dataset(str(source), cache_dir=str(cache), **more)


def rows_of(dataset: Any) -> list[dict[str, Any]]:
    """The rows that a loaded split holds, times as they stand in JSONL."""
    return [plain(row) for row in dataset]


def croissant_warnings(described: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `mlcroissant validate --jsonld` says that is not "Done."; raises SystemExit where that command fails."""
    from mlcroissant.scripts import validate

    monkeypatch.setattr(sys, "argv", ["mlcroissant", "--jsonld", str(described)])
    validate.FLAGS(sys.argv)
    with caplog.at_level(logging.INFO), _rdflib_may_deprecate():
        validate.main(sys.argv)
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def croissant_rows(described: Path, record_set: str) -> list[dict[str, Any]]:
    """The rows that `mlcroissant` reads, keyed by column."""
    import mlcroissant

    with _rdflib_may_deprecate():
        records = mlcroissant.Dataset(str(described)).records(record_set)
        return [_unprefixed(row, f"{record_set}/") for row in records]


@contextmanager
def _rdflib_may_deprecate() -> Iterator[None]:
    """Let rdflib, under mlcroissant, use a class that it deprecates itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ConjunctiveGraph is deprecated", DeprecationWarning)
        yield


def _unprefixed(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return {name.removeprefix(prefix): _unprefixed(inner, f"{name}/") for name, inner in value.items()}
    if isinstance(value, list):
        return [_unprefixed(inner, prefix) for inner in value]
    return plain(value)


def plain(value: Any) -> Any:
    """A value as `json.loads` would give it."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
    return value.item() if hasattr(value, "item") else value


def loaded_feature(feature: Feature) -> Any:
    """A feature as `datasets` has it."""
    from datasets import Json, List, Value

    if isinstance(feature, ListOf):
        return List(loaded_feature(feature.item))
    if isinstance(feature, Mapping):
        return {name: loaded_feature(part) for name, part in feature.items()}
    return Json() if feature == "json" else Value("timestamp[us, tz=UTC]" if feature == "timestamp" else feature)
