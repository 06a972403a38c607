"""Turns a kind's latest range export into the card and the Croissant file that stand in its folder.

`exports/<kind>/README.md` and `croissant.json` are made from the range's manifest alone and hold no time of their own.
"""

from collections.abc import Mapping

import msgspec

from ingest import records
from ingest.pipeline.partitions import DataPaths, replacing
from ingest.records import kind_named
from tds_dagster.curate.artifacts import code_version_of
from tds_dagster.export import card, croissant, features, plot
from tds_dagster.export.features import kind_features
from tds_dagster.export.manifest import RangeExport

CARD, CROISSANT = "README.md", "croissant.json"


def describe_export(paths: DataPaths, export: RangeExport) -> None:
    """Write the card and the Croissant file of a range; what is there already, with the same text, stays."""
    folder = paths.exports(export.kind)
    for name, text in export_description(paths, export).items():
        target = folder / name
        if not target.exists() or target.read_bytes() != text:
            with replacing(target) as out:
                out.write(text)


def export_description(paths: DataPaths, export: RangeExport) -> dict[str, bytes]:
    """The text of the card and of the Croissant file, by file name. Equal data give equal text."""
    kind = kind_named(export.kind)
    path = export.path.relative_to(paths.exports(kind.name)).as_posix()
    title = f"{kind.name} from {export.start} to {export.end}"
    description = f"Records of a training data store: {kind.description}. A record a line, in order of time."
    files = [card.CardFile("default", "train", path, export.rows, export.bytes, export.sha256)]
    columns, facts = {"default": kind_features(kind)}, export_facts(export)
    plots = [plot.rows_plot({part.day: part.rows for part in export.partitions})] if export.rows else []
    text = card.card_text(title=title, description=description, files=files, features=columns, facts=facts, plots=plots)
    described = croissant.croissant(
        title=title, description=description, files=files, features=columns, facts=facts,
        name=f"{kind.name}_{export.start}_{export.end}", version=export.sha256[:12], date=export.end,
    )  # fmt: skip
    return {CARD: text.encode(), CROISSANT: msgspec.json.format(msgspec.json.encode(described), indent=2) + b"\n"}


def description_code() -> str:
    """The version of the code that decides the text of a description; it stands in it."""
    return code_version_of([__file__, *(str(module.__file__) for module in (card, croissant, features, plot, records))])


def export_facts(export: RangeExport) -> Mapping[str, str]:
    """Where an export comes from, in words, from its manifest."""
    facts = {
        "kind": export.kind,
        "first and last day": f"{export.start} to {export.end}, UTC",
        "source partitions": f"{len(export.partitions)} days, each with its rows and SHA-256 in the manifest",
        "accounting": str(export.accounting),
        "schema": str(export.schema_version),
        "code": export.code_version,
        "redaction": f"{export.redaction}, {sum(export.redacted.values())} values replaced",
        "described by": description_code(),
    }
    if export.failed:
        facts["days left out"] = ", ".join(export.failed)
    return facts
