"""Turns the files of a dataset into what is left in them of what its level of redaction promises to be gone."""

from typing import cast

from ingest.errors import InvalidPolicy
from ingest.redaction.redactor import open_redactor
from ingest.settings import RedactionLevel, Settings
from tds_dagster.datasets.manifest import Dataset
from tds_dagster.export.written_days import first_leak


def first_leak_of(settings: Settings, dataset: Dataset) -> str | None:
    """The first thing that is left in a JSONL file of a version, by its detector's name and place; None without any."""
    try:
        redactor = open_redactor(settings, cast("RedactionLevel", dataset.redaction))
    except InvalidPolicy as err:
        return f"not judged: {err}"
    found = (first_leak(redactor, path) for path in sorted(dataset.folder.rglob("*.jsonl")))
    return next((leak for leak in found if leak is not None), None)
