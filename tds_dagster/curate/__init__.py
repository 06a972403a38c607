"""The stage from raw to curated: typed Parquet days, deduplicated and sorted, and what was rejected."""

from tds_dagster.curate.day import CuratedDay, code_version, curate_day, read_curated

__all__ = ["CuratedDay", "code_version", "curate_day", "read_curated"]
