"""Makes Dagster's home and storage for processes that `tds up` does not start: `python -m tds_dagster.cli.home`.

The tables of a new database have to be there before two processes look for them: each would make them.
"""

from dagster import DagsterInstance

from ingest.settings import read_settings
from tds_dagster.cli.up import prepare_home

if __name__ == "__main__":
    home = prepare_home(read_settings())
    with DagsterInstance.from_config(str(home)) as instance:
        print(f"{home / 'dagster.yaml'}: {instance.get_runs_count()} runs")  # noqa: T201 - what it found
