"""Writes dagster.yaml for processes that `tds up` does not start: `python -m tds_dagster.cli.home`."""

from ingest.settings import read_settings
from tds_dagster.cli.up import prepare_home

if __name__ == "__main__":
    print(prepare_home(read_settings()) / "dagster.yaml")  # noqa: T201 - what it made
