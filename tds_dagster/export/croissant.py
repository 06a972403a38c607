"""Turns the description of a folder of JSONL files into Croissant 1.1, JSON-LD for dataset search and loaders.

Terms and context: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html. Each file is a `FileObject` with
its SHA-256 and a `RecordSet` of its own, named after its split. Croissant has no type for JSON of any shape, and its
reference reader fails on such a column; those are annotations of the record set, which it keeps but does not read. A
file of nothing else has no record set.
"""

import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tds_dagster.export.features import Feature, Features, ListOf, Scalar

if TYPE_CHECKING:
    from tds_dagster.export.card import CardFile

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"

_CONTEXT: Mapping[str, object] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "annotation": "cr:annotation",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_DATA_TYPES: Mapping[Scalar, str] = {
    "string": "sc:Text",
    "int64": "cr:Int64",
    "float64": "cr:Float64",
    "bool": "sc:Boolean",
    "timestamp": "sc:DateTime",
    "json": "sc:Text",
}
_FORMATS = {".jsonl": "application/jsonlines", ".parquet": "application/x-parquet", ".zst": "application/zstd"}


def croissant(
    *,
    title: str,
    description: str,
    files: Sequence["CardFile"],
    features: Mapping[str, Features],
    facts: Mapping[str, str],
    name: str,
    version: str,
    date: str,
    license: str | None = None,  # noqa: A002 - the vocabulary's word
) -> dict[str, object]:
    """Describe a folder as Croissant: `files` lie in it, `features` are those of a row, by config.

    `version` is a hash, `date` (`YYYY-MM-DD`) the day that the data are of, so that the same data give the same text.
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": name,
        "description": description,
        "license": license or {"@type": "sc:CreativeWork", "name": "not stated by the owner of the data"},
        "url": "README.md",
        "creator": {"@type": "sc:Organization", "name": "the owner of this training data store"},
        "citeAs": f"{title}, version {version}",
        "datePublished": date,
        "version": f"1.0.0+{version}",  # semantic versioning has hashes behind a plus
        "additionalProperty": [
            {"@type": "sc:PropertyValue", "name": fact, "value": value} for fact, value in facts.items()
        ],
        "distribution": [_file_object(file) for file in files],
        "recordSet": [
            _record_set(file, features[file.config]) for file in files if _is_readable(file, features[file.config])
        ],
    }


def record_set_id(file: "CardFile") -> str:
    """The record set of a file: its split, behind its config unless that is the default one."""
    return file.split if file.config == "default" else f"{file.config}_{file.split}"


def _file_object(file: "CardFile") -> dict[str, object]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "contentUrl": file.path,
        "contentSize": f"{file.bytes} B",
        "encodingFormat": _encoding_format(file.path),
        "sha256": file.sha256,
    }


def _encoding_format(path: str) -> str:
    suffix = path[path.rfind(".") :]
    return _FORMATS.get(suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"


def _is_readable(file: "CardFile", features: Features) -> bool:
    """Whether Croissant's readers make records of it: they need a row, a known encoding, a column that is no JSON."""
    return bool(file.rows) and not file.path.endswith(".zst") and any(map(_without_json, features.values()))


def _record_set(file: "CardFile", features: Features) -> dict[str, object]:
    home = record_set_id(file)
    typed = {name: rest for name, feature in features.items() if (rest := _without_json(feature)) is not None}
    documents = [path for name, feature in features.items() for path in _json_paths(name, feature)]
    record_set: dict[str, object] = {
        "@type": "cr:RecordSet",
        "@id": home,
        "name": home,
        "description": f"{file.rows} records, a line each",
        "field": [_field(f"{home}/{name}", name, feature, file, name, "") for name, feature in typed.items()],
    }
    if documents:
        record_set["annotation"] = [
            {
                "@type": "cr:Field",
                "@id": f"{home}/{'/'.join(path)}",
                "name": path[-1],
                "description": "JSON, of another shape in each record",
                "dataType": "sc:Text",
                "source": _source(file, path[0], ".".join(path[1:])),
            }
            for path in documents
        ]
    return record_set


def _without_json(feature: Feature) -> Feature | None:
    """A feature without the parts that hold JSON of any shape; None if nothing is left."""
    if isinstance(feature, ListOf):
        item = _without_json(feature.item)
        return None if item is None else ListOf(item)
    if isinstance(feature, Mapping):
        parts = {name: rest for name, part in feature.items() if (rest := _without_json(part)) is not None}
        return parts or None
    return None if feature == "json" else feature


def _json_paths(name: str, feature: Feature) -> Iterator[tuple[str, ...]]:
    """Where in a column JSON of any shape is."""
    if isinstance(feature, ListOf):
        yield from _json_paths(name, feature.item)
    elif isinstance(feature, Mapping):
        yield from ((name, *path) for part, inner in feature.items() for path in _json_paths(part, inner))
    elif feature == "json":
        yield (name,)


def _field(
    identity: str, name: str, feature: Feature, file: "CardFile", column: str, json_path: str
) -> dict[str, object]:
    """A field, and what is inside it; `json_path` leads to it from the value of the column."""
    field: dict[str, object] = {"@type": "cr:Field", "@id": identity, "name": name}
    if isinstance(feature, ListOf):
        field["isArray"] = True
        field["arrayShape"] = "-1"
        feature = feature.item
        while isinstance(feature, ListOf):
            field["arrayShape"] = f"{field['arrayShape']},-1"
            feature = feature.item
    if isinstance(feature, Mapping):
        field["subField"] = [
            _field(f"{identity}/{part}", part, inner, file, column, f"{json_path}.{part}".removeprefix("."))
            for part, inner in feature.items()
        ]
        return field
    field["dataType"] = _DATA_TYPES[feature]
    field["source"] = _source(file, column, json_path)
    return field


def _source(file: "CardFile", column: str, json_path: str) -> dict[str, object]:
    source: dict[str, object] = {"fileObject": {"@id": file.path}, "extract": {"column": column}}
    if json_path:
        source["transform"] = {"jsonPath": json_path}
    return source
