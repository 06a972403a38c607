"""Turns the description of a folder of JSONL files into a dataset card: `README.md` as Hugging Face reads it.

The YAML between the two `---` has the types of every column, so that `datasets.load_dataset(folder)` guesses none.
Keys: https://huggingface.co/docs/datasets/repository_structure and `DatasetInfo`. A JSON column of any shape is
`dtype: json` there (datasets 4.7 and newer). A split without rows is left out: `load_dataset` fails on an empty file.
Where no file has rows a config without files stands there: without any it would take each JSON file for data.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from tds_dagster.export.features import Feature, Features, ListOf, type_text

_DTYPES = {"timestamp": "timestamp[us, tz=UTC]"}
_NAME_OF_ALL = "default"


class CardFile(msgspec.Struct, frozen=True):
    """One file of a described folder."""

    config: str  # files of one config have the same features; "default" where there is but one
    split: str
    path: str  # relative to the folder
    rows: int
    bytes: int
    sha256: str  # hex digest of its bytes


def card_text(
    *,
    title: str,
    description: str,
    files: Sequence[CardFile],
    features: Mapping[str, Features],
    facts: Mapping[str, str],
    plots: Sequence[str] = (),
    license: str | None = None,  # noqa: A002 - the card's word
) -> str:
    """The card of a folder: `features` are those of a row, by config; `plots` are pieces of Markdown.

    Equal arguments give equal text. Raises KeyError for a file whose config has no features.
    """
    front = dict[str, object]()
    if license is not None:
        front["license"] = license
    front["pretty_name"] = title
    configs = list(dict.fromkeys(file.config for file in files if file.rows))
    if configs:
        front["configs"] = [_config(config, files) for config in configs]
        front["dataset_info"] = [_info(config, files, features[config]) for config in configs]
    else:
        front["configs"] = [{"config_name": _NAME_OF_ALL, "data_files": []}]
    return front_matter(front) + "\n" + "\n".join(_body(title, description, files, features, facts, plots))


def front_matter(front: Mapping[str, object]) -> str:
    """What stands at a card's head, as YAML: mappings, lists of them or of texts, and scalars."""
    return f"---\n{''.join(_yaml_lines(front))}---\n"


def _config(config: str, files: Sequence[CardFile]) -> dict[str, object]:
    data_files = [{"split": file.split, "path": file.path} for file in files if file.config == config and file.rows]
    return {"config_name": config, "data_files": data_files}


def _info(config: str, files: Sequence[CardFile], features: Features) -> dict[str, object]:
    own = [file for file in files if file.config == config and file.rows]
    return {
        "config_name": config,
        "features": [{"name": name, **_feature(feature)} for name, feature in features.items()],
        "splits": [{"name": file.split, "num_bytes": file.bytes, "num_examples": file.rows} for file in own],
        "download_size": sum(file.bytes for file in own),
        "dataset_size": sum(file.bytes for file in own),
    }


def _feature(feature: Feature) -> dict[str, object]:
    """A feature as `dataset_info` writes it."""
    if isinstance(feature, ListOf):
        item = _feature(feature.item)
        # The short forms: a list of scalars names the type, a list of structs gives their keys.
        return {"list": item.get("dtype") or item.get("struct") or item}
    if isinstance(feature, Mapping):
        return {"struct": [{"name": name, **_feature(part)} for name, part in feature.items()]}
    return {"dtype": _DTYPES.get(feature, feature)}


def _yaml_lines(value: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """Mappings, lists of mappings and scalars as YAML blocks; texts are in JSON's quotes, which YAML reads alike."""
    for key, content in value.items():
        if isinstance(content, Mapping):
            yield f"{indent}{key}:\n"
            yield from _yaml_lines(content, indent + "  ")
        elif content == []:
            yield f"{indent}{key}: []\n"
        elif isinstance(content, list):
            yield f"{indent}{key}:\n"
            for item in content:
                if not isinstance(item, Mapping):
                    yield f"{indent}- {json.dumps(item, ensure_ascii=False)}\n"
                    continue
                first, *rest = "".join(_yaml_lines(item, indent + "  ")).splitlines(keepends=True)
                yield f"{indent}- {first.removeprefix(indent + '  ')}"
                yield from rest
        else:
            yield f"{indent}{key}: {json.dumps(content, ensure_ascii=False)}\n"


def _body(
    title: str,
    description: str,
    files: Sequence[CardFile],
    features: Mapping[str, Features],
    facts: Mapping[str, str],
    plots: Sequence[str],
) -> Iterator[str]:
    yield f"# {title}\n\n{description}\n"
    yield "| file | split | rows | bytes | SHA-256 |\n|---|---|--:|--:|---|"
    for file in files:
        yield f"| `{file.path}` | {_split(file)} | {file.rows:,} | {file.bytes:,} | `{file.sha256}` |"
    empty = [file.path for file in files if not file.rows]
    if empty:
        yield f"\nWithout rows, and so not among the splits that `load_dataset` offers: {', '.join(empty)}."
    yield from (f"\n{plot}" for plot in plots)
    if facts:
        yield "\n## Where it comes from\n\n| | |\n|---|---|"
        yield from (f"| {table_cell(name)} | {table_cell(value)} |" for name, value in facts.items())
    for config in dict.fromkeys(file.config for file in files):
        yield f"\n## Columns{'' if config == _NAME_OF_ALL else f' of {config}'}\n\n| column | type |\n|---|---|"
        yield from (f"| `{name}` | {type_text(feature)} |" for name, feature in features[config].items())
    yield ""


def _split(file: CardFile) -> str:
    return file.split if file.config == _NAME_OF_ALL else f"{file.config}, {file.split}"


def table_cell(text: str) -> str:
    """A text as it may stand in a table of Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")
