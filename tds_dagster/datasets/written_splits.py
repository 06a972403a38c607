"""Turns the files of a dataset's splits into the verdict of the rule that placed their rows: they share nothing.

The build asks `splits.check_splits` over rows as they are placed, before a file is written. This asks the same of what
was written.
"""

from collections.abc import Iterator

import msgspec

from ingest.errors import SourceMissing
from ingest.pipeline.partitions import DataPaths
from tds_dagster.curate.engine import engine_errors, open_engine
from tds_dagster.curate.sql import literal
from tds_dagster.datasets.examples import Example
from tds_dagster.datasets.manifest import ROWS, Dataset
from tds_dagster.datasets.recipe import SPLITS
from tds_dagster.datasets.splits import check_splits, write_examples


def check_written_splits(paths: DataPaths, dataset: Dataset) -> None:
    """Read a dataset's rows again, and raise SplitLeak if its splits share an entity, a record or an example.

    Raises SourceMissing if `rows.jsonl` and the splits do not have the same rows, EngineFailed if DuckDB lacks disk.
    """
    with open_engine(paths) as engine, engine_errors(f"dataset {dataset.model}/{dataset.version}"):
        for split in SPLITS:
            index = engine.folder / f"{split}.parquet"
            write_examples(_written(dataset, split), engine.folder / "rows", index, dataset.recipe.seed)
            created = "INSERT INTO placed" if split != SPLITS[0] else "CREATE TABLE placed AS"
            engine.connection.execute(
                f"{created} SELECT *, {literal(split)} AS split FROM read_parquet({literal(index)})"
            )
        check_splits(engine.connection, dataset.recipe)


def _written(dataset: Dataset, split: str) -> Iterator[Example]:
    """The rows of a split as the build had them, from the split's file and the list of rows beside it."""
    rows, listed, entity = dataset.folder / f"{split}.jsonl", dataset.folder / ROWS, f"{dataset.recipe.entity}_id"
    try:
        with rows.open("rb") as lines, listed.open("rb") as entries:
            own = (entry for entry in map(msgspec.json.decode, entries) if entry["split"] == split)
            for line, entry in zip(lines, own, strict=True):
                row = line.removesuffix(b"\n")
                yield Example(entry["record_id"], entry[entity], entry["timestamp"], entry["label"], row)
    except (FileNotFoundError, KeyError, ValueError, msgspec.DecodeError) as err:
        raise SourceMissing(
            f"{rows}: expected the rows that {listed.name} beside it lists ({err}); build the dataset again"
        ) from err
