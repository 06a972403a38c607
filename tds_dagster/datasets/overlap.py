"""Turns a dataset's `rows.jsonl` into what two of its splits have in common: nothing, or the version is wrong.

The build refuses before a file is written (`splits.check_splits`), over the rows as they are placed. This reads what
was written, with DuckDB and no code of the build, so that the two can differ.
"""

import duckdb
import msgspec

from ingest.pipeline.partitions import DataPaths
from tds_dagster.curate.engine import engine_errors, open_engine
from tds_dagster.curate.sql import literal
from tds_dagster.datasets.manifest import ROWS, Dataset

_ENTITY = {"session": "session_id", "agent": "agent_id", "task": "task_id", "workflow": "workflow_id"}


class Overlap(msgspec.Struct, frozen=True):
    """How many of each are in more than one split."""

    entities: int
    records: int
    rows: int  # equal ones, by their hash

    @property
    def is_none(self) -> bool:
        """Whether the splits share nothing."""
        return self == Overlap(0, 0, 0)


def find_overlap(paths: DataPaths, dataset: Dataset) -> Overlap:
    """What more than one split has. Raises EngineFailed if DuckDB cannot read the file."""
    with open_engine(paths) as engine, engine_errors(f"dataset {dataset.model}/{dataset.version}"):
        entity = _ENTITY[dataset.recipe.entity or "session"]
        columns = dict.fromkeys(("split", "record_id", "row", entity), "VARCHAR")
        engine.connection.execute(
            "CREATE TEMP VIEW placed AS SELECT * FROM "
            f"read_json({literal(dataset.folder / ROWS)}, format = 'newline_delimited', columns = {columns})"
        )
        return Overlap(*(_shared(engine.connection, column) for column in (entity, "record_id", "row")))


def _shared(connection: duckdb.DuckDBPyConnection, column: str) -> int:
    found = connection.execute(
        f'SELECT count(*) FROM (SELECT "{column}" FROM placed WHERE "{column}" IS NOT NULL GROUP BY 1 '
        "HAVING count(DISTINCT split) > 1)"
    ).fetchone()
    return int(found[0]) if found is not None else 0
