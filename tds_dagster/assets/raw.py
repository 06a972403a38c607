"""Turns each kind of record into the external asset that stands for its daily CSV files.

The writer makes these files, not Dagster: the sensor in `automation.sensors` reports which days changed.
"""

from collections.abc import Mapping, Sequence

import dagster as dg

from ingest.records import KINDS, Kind
from tds_dagster.partitions import DAILY

OWNERS = ["team:training-data"]


def column_schema(kind: Kind) -> dg.TableSchema:
    """The kind's columns as the UI shows them: name, type (as in `ingest.records`), description, what may be null."""
    never_null = {"record_id", "timestamp", *kind.required}
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                type=column.type,
                description=column.description,
                constraints=dg.TableColumnConstraints(nullable=column.name not in never_null),
            )
            for column in kind.columns
        ]
    )


def column_lineage(group: str, columns_from: Mapping[str, Sequence[str]]) -> dg.TableColumnLineage:
    """Which columns of the stage before, as `<kind>.<column>`, each column is made of."""
    return dg.TableColumnLineage(
        {
            name: [dg.TableColumnDep(dg.AssetKey([group, kind]), column) for kind, column in map(_parted, sources)]
            for name, sources in columns_from.items()
        }
    )


def _parted(source: str) -> tuple[str, str]:
    kind, _, column = source.partition(".")
    return kind, column


def raw_specs() -> Sequence[dg.AssetSpec]:
    """`raw/<kind>` for every kind: external, a partition a day."""
    return [
        dg.AssetSpec(
            ["raw", kind.name],
            group_name="raw",
            description=f"Daily CSV files of {kind.name}: {kind.description}. Appended by the writer alone. "
            "See docs/files.md.",
            metadata={
                "dagster/column_schema": column_schema(kind),
                "files": f"training/{kind.name}/{kind.name}_YYYY-MM-DD.csv",
            },
            owners=OWNERS,
            kinds={"csv"},
            tags={"kind": kind.name},
            partitions_def=DAILY,
        )
        for kind in KINDS.values()
    ]
