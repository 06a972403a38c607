"""Turns a fitted estimator into a file with the same bytes each time, and such a file into the estimator again.

The file is one of skops: a zip of arrays and of a schema that names types. To load it runs no code of the file's. Of
the types that skops knows, only the estimators of our trainer are taken, and their numbers are looked at first.
"""

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from ingest.errors import TrainingFailed
from tds_dagster.training.features import COLUMNS

_TRUSTED = ["sklearn.tree._tree.Tree"]  # beside what skops takes for harmless; `_can_be_walked` looks at each
# What zipfile, zlib, NumPy and skops say to bytes that are none of theirs.
_NOT_SKOPS = (
    zipfile.BadZipFile, zlib.error, EOFError, LookupError, ValueError, TypeError, AttributeError, NotImplementedError,
    OverflowError, RecursionError, MemoryError,
)  # fmt: skip
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say


def written_estimator(estimator: Any, columns: Any) -> bytes:  # noqa: ANN401 - scikit-learn has no types
    """The file's content: the estimator, and the columns of `features.matrix` that it looks at."""
    from skops.io import dumps

    return _deterministic(dumps({"estimator": estimator, "columns": columns}))


def read_estimator(path: Path) -> tuple[Any, Any]:
    """The estimator in a file, and the columns that it looks at.

    Raises TrainingFailed if the file is missing, is no skops file (a pickle, say), or holds anything but what we write.
    """
    from skops.io import load as load_skops
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        found = load_skops(path, trusted=_TRUSTED)
    except FileNotFoundError as err:
        raise TrainingFailed(f"{path}: no such file, expected the model that our trainer writes; train again") from err
    except UntrustedTypesFoundException as err:
        raise TrainingFailed(
            f"{path}: it holds types that we do not write ({err}); expected a model as our trainer made it; nothing of "
            "it was run: train again, and see who wrote the file"
        ) from err
    except _NOT_SKOPS as err:
        raise TrainingFailed(
            f"{path}: no skops file ({err}), expected the model that our trainer writes; nothing of it was run: train "
            "again"
        ) from err
    if not _is_ours(found):
        raise TrainingFailed(
            f"{path}: not a model as our trainer makes them, expected an estimator and its columns that fit together; "
            "nothing of it was run: train again, and see who wrote the file"
        )
    return found["estimator"], found["columns"]


def _deterministic(content: bytes) -> bytes:
    """A skops file without what differs from run to run: times, and addresses in memory as names of its parts."""
    with zipfile.ZipFile(io.BytesIO(content)) as given:
        parts = {name: given.read(name) for name in given.namelist()}
    schema = json.loads(parts.pop("schema.json"))
    numbers: dict[int, int] = {}
    names: dict[str, str] = {}
    _renumber(schema, numbers, names)
    named = {names.get(name, name): part for name, part in parts.items()}
    named["schema.json"] = json.dumps(schema, indent=2, sort_keys=True).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as written:
        for name in sorted(named):
            entry = zipfile.ZipInfo(name, date_time=_ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            written.writestr(entry, named[name])
    return out.getvalue()


def _renumber(node: object, numbers: dict[int, int], names: dict[str, str]) -> None:
    """Give ids and files of the schema the numbers of their order in it."""
    if isinstance(node, list):
        for each in node:
            _renumber(each, numbers, names)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("__id__"), int):
        node["__id__"] = numbers.setdefault(node["__id__"], len(numbers) + 1)
    if isinstance(node.get("file"), str):
        suffix = Path(node["file"]).suffix
        node["file"] = names.setdefault(node["file"], f"part{len(names) + 1}{suffix}")
    for key in sorted(node):
        _renumber(node[key], numbers, names)


def _is_ours(found: object) -> bool:
    """Whether it is one of the candidates' estimators, with columns that there are and trees that can be walked."""
    import numpy as np
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.tree import ExtraTreeClassifier

    if not isinstance(found, dict) or set(found) != {"estimator", "columns"}:
        return False
    estimator, columns = found["estimator"], found["columns"]
    if not isinstance(columns, np.ndarray) or columns.dtype != np.int32 or columns.ndim != 1:
        return False
    if len(columns) and not 0 <= columns.min() <= columns.max() < COLUMNS:
        return False
    if not hasattr(estimator, "classes_"):
        return False
    if type(estimator) is ExtraTreesClassifier:
        trees = getattr(estimator, "estimators_", [])
        return bool(trees) and all(
            type(each) is ExtraTreeClassifier and _can_be_walked(each.tree_, len(columns)) for each in trees
        )
    return type(estimator) in (DummyClassifier, LogisticRegression)


def _can_be_walked(tree: Any, columns: int) -> bool:  # noqa: ANN401 - scikit-learn has no types
    """Whether every step leads to a later node, and every question is about a column that there is.

    scikit-learn walks a tree without looking: a file with other numbers would have it read beyond the tree. That is
    why skops does not trust trees by itself.
    """
    import numpy as np

    count = tree.node_count
    left, right, places = tree.children_left, tree.children_right, np.arange(count)
    is_leaf = left == -1
    inner = places[~is_leaf]
    steps = np.concatenate([left[inner] - inner, right[inner] - inner, count - left[inner], count - right[inner]])
    features = tree.feature[inner]
    return bool(
        count and (right[is_leaf] == -1).all() and (steps > 0).all() and ((features >= 0) & (features < columns)).all()
    )
