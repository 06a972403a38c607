"""Turns the TOML file of TDS_TRAINING_POLICY into when each model is trained, with what, and what gets promoted.

    [default]                      # for every model; what is not said keeps its default
    new_rows = 500

    [tool_selection]               # for this one, on top of [default]
    max_age_days = 7

    [tool_selection.recipe]        # what its dataset is made of, as in a recipe file of `tds dataset`
    where = "status = 'completed'"

It is read at every look, so a change needs no restart, and a file that is wrong stops nothing but the training.
"""

import math
import tomllib
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path

import msgspec

from ingest.errors import InvalidPredicate, InvalidRange, InvalidRecipe, InvalidTrainingPolicy, shown
from ingest.settings import Settings
from tds_dagster.datasets.recipe import MODELS, Recipe, read_recipe

_DEFAULT, _RECIPE = "default", "recipe"


class ModelPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a model is trained again, and by how much the new one has to be better. A condition of 0 is off."""

    new_rows: int = 1000  # rows of the predicted kind that were added, changed or removed since its dataset
    new_days: int = 0  # days of it that the dataset does not hold, or holds otherwise
    drift: float = 0.2  # total variation distance, 0 to 1, between the classes it learned from and those since
    max_age_days: float = 30  # age of the model, if there is anything new to learn from at all
    quality_drop: float = 0.05  # accuracy lost, 0 to 1, on days since its dataset against its own test split
    margin: float = 0.01  # accuracy, 0 to 1, by which it has to beat the champion on the same test split
    recipe: dict[str, object] = {}  # fields of a recipe, plain values; without `end`: up to the last day before today


_WHOLE = "a whole number of 0 or more (0: off)"
_SHARE = "a number from 0 to 1 (0: off)"
_EXPECTED: Mapping[str, str] = {
    "new_rows": _WHOLE,
    "new_days": _WHOLE,
    "drift": _SHARE,
    "max_age_days": "a number of days, 0 or more (0: off)",
    "quality_drop": _SHARE,
    "margin": "a number from 0 to 1 (0: as good as the champion suffices)",
}


def policy_of(settings: Settings, model: str) -> ModelPolicy:
    """One model's policy. Raises as `read_policy` does, also for what the file says of other models."""
    return read_policy(settings)[model]


def read_policy(settings: Settings) -> dict[str, ModelPolicy]:
    """The policy of every model; the defaults where TDS_TRAINING_POLICY is not set.

    Raises InvalidTrainingPolicy naming the file, the field, its value and what was expected.
    """
    path = settings.training_policy
    if path is None:
        return {model: ModelPolicy() for model in MODELS}
    tables = _read_tables(path)
    shared = tables.get(_DEFAULT, {})
    return {model: _model_policy(path, model, shared, tables.get(model, {})) for model in MODELS}


def _read_tables(path: Path) -> dict[str, Mapping[str, object]]:
    """The file's tables, each of a known name."""
    try:
        tables = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise InvalidTrainingPolicy(f"{path}: {err}: expected TOML; mend it") from err
    except OSError as err:
        raise InvalidTrainingPolicy(
            f"{path}: {err.strerror}: expected a policy, TOML; check TDS_TRAINING_POLICY, or unset it for the defaults"
        ) from err
    for name, table in tables.items():
        if name not in (_DEFAULT, *MODELS):
            raise InvalidTrainingPolicy(
                f"{path}: [{name}]: expected one of {', '.join((_DEFAULT, *MODELS))}; correct its name"
            )
        if not isinstance(table, dict):
            raise InvalidTrainingPolicy(f"{path}: {name}={shown(table)}: expected a table; write [{name}] above it")
    return tables


def _model_policy(path: Path, model: str, shared: Mapping[str, object], own: Mapping[str, object]) -> ModelPolicy:
    conditions = _conditions(path, _DEFAULT, shared) | _conditions(path, model, own)
    recipe = _recipe(path, _DEFAULT, shared) | _recipe(path, model, own)
    try:
        read_recipe(model, recipe)
    except (InvalidRecipe, InvalidPredicate, InvalidRange) as err:
        raise InvalidTrainingPolicy(f"{path}: [{model}.{_RECIPE}] {err}") from err
    return msgspec.convert({**conditions, _RECIPE: recipe}, ModelPolicy)


def _conditions(path: Path, name: str, table: Mapping[str, object]) -> dict[str, object]:
    """The fields of a table but for its recipe, each checked."""
    conditions = {field: value for field, value in table.items() if field != _RECIPE}
    for field, value in conditions.items():
        if field not in _EXPECTED:
            known = ", ".join([*_EXPECTED, _RECIPE])
            raise InvalidTrainingPolicy(f"{path}: [{name}] {field}: expected one of {known}; correct its name")
        if not _fits(field, value):
            raise InvalidTrainingPolicy(
                f"{path}: [{name}] {field}={shown(value)}: expected {_EXPECTED[field]}; correct it"
            )
    return conditions


def _fits(field: str, value: object) -> bool:
    """Whether a value is a number such as the field takes; True is none, though Python counts with it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return False
    if _EXPECTED[field] == _WHOLE:
        return isinstance(value, int)
    return field == "max_age_days" or value <= 1


def _recipe(path: Path, name: str, table: Mapping[str, object]) -> dict[str, object]:
    """The recipe's fields as plain values; `read_recipe` checks them."""
    fields, where = table.get(_RECIPE, {}), f"{path}: [{name}.{_RECIPE}]"
    if not isinstance(fields, dict):
        raise InvalidTrainingPolicy(
            f"{path}: [{name}] {_RECIPE}={shown(fields)}: expected a table; write [{name}.{_RECIPE}]"
        )
    known = [field for field in Recipe.__struct_fields__ if field != "model"]
    for field in fields:
        if field not in known:
            raise InvalidTrainingPolicy(f"{where} {field}: expected one of {', '.join(known)}; correct its name")
    if fields.get("include") == []:
        raise InvalidTrainingPolicy(f"{where} include=[]: expected an id or more, for none would be all; leave it out")
    return {field: _plain(value) for field, value in fields.items()}


def _plain(value: object) -> object:
    """TOML has dates; a recipe has their text."""
    return value.isoformat() if isinstance(value, date) and not isinstance(value, datetime) else value
