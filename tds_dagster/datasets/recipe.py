"""Turns what somebody asks of a dataset into one checked value, which is hashed into the dataset's version."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import msgspec

from ingest.errors import InvalidRecipe, shown
from ingest.pipeline.partitions import day_range, parse_day
from ingest.settings import RedactionLevel

Model = Literal["event_prediction", "task_completion", "tool_selection", "workflow_orchestration"]
Balance = Literal["none", "downsample"]
SplitBy = Literal["entity", "time"]
Entity = Literal["session", "agent", "task", "workflow"]
Split = Literal["train", "validation", "test"]

MODELS: tuple[Model, ...] = get_args(Model)
SPLITS: tuple[Split, ...] = get_args(Split)
# The kind whose records are predicted; `where` reads its columns.
PRIMARY: Mapping[str, str] = {
    "event_prediction": "events",
    "task_completion": "tasks",
    "tool_selection": "tool_executions",
    "workflow_orchestration": "workflows",
}
_MOST_WINDOW = 10_000
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "balance": get_args(Balance),
    "split_by": get_args(SplitBy),
    "entity": get_args(Entity),
    "redaction": get_args(RedactionLevel),
}


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a dataset is made of and how it is split. `read_recipe` and `checked_recipe` check one."""

    model: Model
    start: str | None = None  # first day, YYYY-MM-DD, UTC; None: the first with data
    end: str | None = None  # last day, included; None: the last with data, but not today
    where: str | None = None  # a predicate over the predicted kind's columns and `feedback.<name>`
    include: tuple[str, ...] = ()  # ids of records, tasks, sessions, agents, …: if any, only theirs are predicted
    exclude: tuple[str, ...] = ()  # ids whose records are not predicted
    window: int = 20  # the most that an example's history holds, in items
    minimum_history: int = 0  # an example with less history is left out; a model may need some in any case
    balance: Balance = "none"  # downsample: every class of train gets as many rows as its smallest
    split_by: SplitBy = "entity"
    entity: Entity | None = None  # what is never in two splits, and beyond which no history reaches; None: the model's
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)  # of train, validation and test
    seed: int = 0  # another one gives another split
    redaction: RedactionLevel | None = None  # None: TDS_DATASET_REDACTION
    allow_empty_splits: bool = False  # else a split that was asked for and has no row is an error


def read_recipe(model: str, values: Mapping[str, object]) -> Recipe:
    """A recipe of plain values, as an asset's settings, a file or a command line have them; None is the default.

    Raises InvalidRecipe naming the field, its value and what was expected.
    """
    if model not in MODELS:
        raise InvalidRecipe(f"model={model!r}: expected one of {', '.join(MODELS)}; pass one of these names")
    given = {name: value for name, value in values.items() if value is not None and name != "model"}
    unknown = sorted(set(given) - set(Recipe.__struct_fields__))
    if unknown:
        raise InvalidRecipe(
            f"recipe field {unknown[0]!r}: expected one of {', '.join(Recipe.__struct_fields__)}; correct its name"
        )
    try:
        recipe = msgspec.convert({**given, "model": model}, Recipe, strict=True)
    except msgspec.ValidationError as err:
        name = str(err).rpartition("$.")[2].partition("`")[0].partition("[")[0]
        expected = f"one of {', '.join(_CHOICES[name])}" if name in _CHOICES else f"another type ({err})"
        raise InvalidRecipe(f"{name}={shown(given.get(name))}: expected {expected}; correct it") from err
    return checked_recipe(recipe)


def read_recipe_file(path: Path, model: str | None = None) -> dict[str, object]:
    """The fields in a recipe file, TOML or JSON by its name; `model` must not contradict the file's.

    Raises InvalidRecipe for a file that is neither, or that holds no table.
    """
    try:
        content = path.read_bytes()
        fields = tomllib.loads(content.decode()) if path.suffix == ".toml" else msgspec.json.decode(content)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as err:
        raise InvalidRecipe(f"{path}: {err}: expected TOML in a .toml file, or JSON in any other; mend it") from err
    except OSError as err:
        raise InvalidRecipe(f"{path}: {err.strerror}: expected a recipe, TOML or JSON; check the path") from err
    if not isinstance(fields, dict):
        raise InvalidRecipe(f"{path}: {shown(fields)}: expected one object with a recipe's fields")
    if model is not None and fields.get("model", model) != model:
        raise InvalidRecipe(f"{path}: model={fields['model']!r}: expected {model!r}, as asked for; pass the other file")
    if fields.get("include") == []:
        raise InvalidRecipe(f"{path}: include=[]: expected an id or more, for none would be all; leave the field out")
    return fields


def checked_recipe(recipe: Recipe) -> Recipe:
    """The recipe, if its values fit together. Raises InvalidRecipe naming the field that does not, InvalidPredicate."""
    for name in ("start", "end"):
        if (day := getattr(recipe, name)) is not None:
            parse_day(name, day)
    if recipe.start is not None and recipe.end is not None:
        day_range(recipe.start, recipe.end)
    if not 1 <= recipe.window <= _MOST_WINDOW:
        raise _invalid("window", recipe.window, f"1 to {_MOST_WINDOW} items")
    if not 0 <= recipe.minimum_history <= recipe.window:
        raise _invalid("minimum_history", recipe.minimum_history, f"0 to the window, which is {recipe.window}")
    # Not `> 1e-9`: a sum with nan in it is neither.
    if min(recipe.fractions) < 0 or not abs(sum(recipe.fractions) - 1) <= 1e-9 or not recipe.fractions[0]:
        raise _invalid(
            "fractions", recipe.fractions, "shares of train, validation and test, none below 0, train above, sum 1"
        )
    where = (recipe.where or "").strip() or None
    if where is not None:
        from tds_dagster.export.predicate import parse_predicate

        parse_predicate(PRIMARY[recipe.model], where)
    both = sorted(set(recipe.include) & set(recipe.exclude))
    if both:
        raise _invalid("include", both[0], "an id that is not excluded as well")
    return msgspec.structs.replace(
        recipe,
        include=tuple(sorted(set(recipe.include))),  # the order of a list of ids is no other recipe
        exclude=tuple(sorted(set(recipe.exclude))),
        where=where,
    )


def _invalid(name: str, value: object, expected: str) -> InvalidRecipe:
    return InvalidRecipe(f"{name}={shown(value)}: expected {expected}; change it in the recipe")
