"""Turns tool calls that were observed into the tools' definitions, and tells how these drift from day to day.

A definition is what chat models are given, `{"type": "function", "function": {"name", "description", "parameters"}}`,
with JSON Schema for the parameters (https://json-schema.org/draft/2020-12). One that was recorded is taken as it is.
Else it is inferred from all calls of the tool, whatever their order. Its description is empty, and not absent: the chat
template of GPT-OSS reads it from every tool.

| keyword | when |
|---|---|
| type | every type that was seen; `number` stands for `integer` too |
| properties | up to 64 names in one object, 8 levels deep; beyond that only the type is told |
| required | the names that every object in that place had |
| enum | text only: 2 to 8 lower-case words, seen 20 times together and each 3 times or more |
| items | the elements of all arrays in that place, taken together |

An enum is the one keyword that repeats what was in a call, hence its limits: names, ids and amounts never get there.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

_NOT_IN_NAMES, _LONGEST_NAME = re.compile(r"[^a-zA-Z0-9_-]"), 64  # OpenAI's rule for names of functions
_MAX_PROPERTIES, _MAX_DEPTH = 64, 8
_MAX_ENUM, _MIN_SEEN, _MIN_SEEN_EACH = 8, 20, 3
_WORD = re.compile(r"[a-z]+(?:[_-][a-z]+)*")
_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}

JsonObject = dict[str, object]


class Drift(msgspec.Struct, frozen=True):
    """A parameter that is not what it was on earlier days."""

    tool: str
    day: str  # the first day on which it was so
    parameter: str  # its path: `passengers[].dob`
    change: Literal["added", "removed", "type"]
    before: tuple[str, ...]  # types on all earlier days together; none if it was added
    after: tuple[str, ...]  # types on that day; none if it was removed
    source: Literal["calls", "recorded"]  # where it shows: in the calls' arguments, or in recorded definitions

    def __str__(self) -> str:
        """One line for a card: `2024-05-17 book: seat added (string)`."""
        before, after = "|".join(self.before), "|".join(self.after)
        told = {"added": f"added ({after})", "removed": f"removed ({before})", "type": f"{before} → {after}"}
        return f"{self.day} {self.tool}: {self.parameter} {told[self.change]}"


class ToolSchemas:
    """What is known of the tools of a range; grows with the tools' parameters, not with their calls."""

    def __init__(self) -> None:
        self._shapes: dict[str, _Shape] = {}
        self._recorded: dict[str, tuple[str, JsonObject]] = {}  # the day it is from, and the definition
        self._days: dict[tuple[str, Literal["calls", "recorded"]], dict[str, _Day]] = defaultdict(dict)

    def observe(self, name: str, arguments: Mapping[str, object], day: str) -> None:
        """Take in one call of a tool on a day (YYYY-MM-DD)."""
        self._shapes.setdefault(name, _Shape()).add(arguments, 0)
        self._day(name, "calls", day).add(_typed_paths(arguments))

    def record(self, definition: Mapping[str, object], day: str) -> None:
        """Take in a definition as it stood in the records of a day, of the form that `tool_definition` gives."""
        name = definition_name(definition)
        known = self._recorded.get(name)
        if known is None or known[0] < day:
            self._recorded[name] = (day, dict(definition))
        function = definition.get("function")
        parameters = function.get("parameters") if isinstance(function, Mapping) else None
        self._day(name, "recorded", day).add(_declared_paths(parameters))

    def _day(self, name: str, source: Literal["calls", "recorded"], day: str) -> "_Day":
        return self._days[name, source].setdefault(day, _Day())

    @property
    def names(self) -> list[str]:
        """The tools that were called or recorded, sorted."""
        return sorted({*self._shapes, *self._recorded})

    @property
    def inferred(self) -> list[str]:
        """Those of them without a recorded definition, sorted."""
        return sorted(set(self._shapes) - set(self._recorded))

    def definition(self, name: str) -> JsonObject:
        """The tool's definition: the latest that was recorded, else the one that its calls tell."""
        if name in self._recorded:
            return self._recorded[name][1]
        shape = self._shapes.get(name)
        parameters = {"type": "object", "properties": {}} if shape is None else shape.schema()
        return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}

    def drifts(self) -> list[Drift]:
        """Every change from one day to a later one, by day, tool and parameter.

        A parameter that is there on a later day only was added. One that every call of the earlier days had, and no
        call of the later days, was removed; an optional one that is merely not used is no drift.
        """
        found = [
            drift
            for (tool, source), days in self._days.items()
            for drift in _drifts(tool, source, sorted(days.items()))
        ]
        return sorted(found, key=lambda drift: (drift.day, drift.tool, drift.parameter, drift.change, drift.source))


def tool_name(given: str) -> str | None:
    """A tool's name in the letters that chat formats take: `files.read` is `files_read`; None for an empty one."""
    return _NOT_IN_NAMES.sub("_", given.strip())[:_LONGEST_NAME] or None


def tool_definition(given: object) -> JsonObject | None:
    """A tool in any of the usual forms as `{"type": "function", "function": {...}}`; None for what is no tool.

    Known are OpenAI's form, its inner part alone (`name`, `description`, `parameters`), and that of Anthropic and MCP
    (`input_schema` or `inputSchema` in place of `parameters`).
    """
    if not isinstance(given, Mapping):
        return None
    inner = given.get("function", given)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        return None
    name = tool_name(inner["name"])
    if name is None:
        return None
    described = inner.get("description")
    function: JsonObject = {"name": name, "description": described if isinstance(described, str) else ""}
    schemas = (inner.get(key) for key in ("parameters", "input_schema", "inputSchema"))
    parameters = next((schema for schema in schemas if isinstance(schema, Mapping)), None)
    function["parameters"] = {"type": "object", **(parameters or {"properties": {}})}
    if isinstance(inner.get("strict"), bool):
        function["strict"] = inner["strict"]
    return {"type": "function", "function": function}


def definition_name(definition: Mapping[str, object]) -> str:
    """The name in a tool's definition, as `tool_definition` gives it."""
    function = definition["function"]
    return str(function["name"]) if isinstance(function, Mapping) else ""


# ------------------------------------------------------------------------------------------------ inference


class _Shape:
    """What was seen in one place of the arguments; equal values give an equal shape in whatever order they come."""

    def __init__(self) -> None:
        self.seen = 0
        self.types: set[str] = set()
        self.objects = 0
        self.words: Counter[str] | None = Counter()  # None: not an enum
        self.properties: dict[str, _Shape] | None = {}  # None: too many to be parameters
        self.items: _Shape | None = None

    def add(self, value: object, depth: int) -> None:
        self.seen += 1
        self.types.add(_json_type(value))
        if isinstance(value, str):
            self._add_word(value)
        elif isinstance(value, Mapping):
            self.objects += 1
            self._add_properties(value, depth)
        elif isinstance(value, list) and depth < _MAX_DEPTH:
            self.items = self.items or _Shape()
            for item in value:
                self.items.add(item, depth + 1)

    def _add_word(self, text: str) -> None:
        if self.words is None:
            return
        self.words[text[:64]] += 1
        if len(self.words) > _MAX_ENUM or not _WORD.fullmatch(text):
            self.words = None

    def _add_properties(self, value: Mapping[str, object], depth: int) -> None:
        if self.properties is None:
            return
        if depth >= _MAX_DEPTH:
            self.properties = None
            return
        for name, item in value.items():
            self.properties.setdefault(name, _Shape()).add(item, depth + 1)
        if len(self.properties) > _MAX_PROPERTIES:
            self.properties = None

    def schema(self) -> JsonObject:
        types = sorted(self.types - {"integer"} if "number" in self.types else self.types)
        schema: JsonObject = {"type": types[0] if len(types) == 1 else types} if types else {}
        if types == ["string"] and self._is_enum():
            schema["enum"] = sorted(self.words or ())
        if "object" in types and self.properties is not None:
            schema["properties"] = {name: shape.schema() for name, shape in sorted(self.properties.items())}
            required = sorted(name for name, shape in self.properties.items() if shape.seen == self.objects)
            if required:
                schema["required"] = required
        if "array" in types:
            schema["items"] = {} if self.items is None else self.items.schema()
        return schema

    def _is_enum(self) -> bool:
        return (
            self.words is not None
            and len(self.words) > 1
            and self.seen >= _MIN_SEEN
            and min(self.words.values()) >= _MIN_SEEN_EACH
        )


def _json_type(value: object) -> str:
    return next((name for kind, name in _JSON_TYPES.items() if isinstance(value, kind)), "null")


# ---------------------------------------------------------------------------------------------------- drift


class _Day:
    """The parameters of a tool on one day."""

    def __init__(self) -> None:
        self.calls = 0
        self.types: dict[str, set[str]] = {}
        self.calls_with: Counter[str] = Counter()

    def add(self, typed_paths: Iterable[tuple[str, str]]) -> None:
        self.calls += 1
        paths = set()
        for path, kind in typed_paths:
            if len(self.types) < _MAX_PROPERTIES or path in self.types:
                self.types.setdefault(path, set()).add(kind)
                paths.add(path)
        self.calls_with.update(paths)


def _typed_paths(value: object, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Every place in a call's arguments and the type of what stands there."""
    if path:
        yield path, _json_type(value)
    if depth >= _MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for name, item in sorted(value.items()):
            yield from _typed_paths(item, f"{path}.{name}" if path else name, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _typed_paths(item, f"{path}[]", depth + 1)


def _declared_paths(schema: object, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Every place that a JSON Schema names and the types that it allows there."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return
    if path:
        given = schema.get("type", "any")
        for kind in given if isinstance(given, list) else [given]:
            yield path, str(kind)
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        for name, inner in sorted(properties.items()):
            yield from _declared_paths(inner, f"{path}.{name}" if path else str(name), depth + 1)
    if path and "items" in schema:
        yield from _declared_paths(schema["items"], f"{path}[]", depth + 1)


def _drifts(tool: str, source: Literal["calls", "recorded"], days: Sequence[tuple[str, _Day]]) -> Iterator[Drift]:
    known: dict[str, set[str]] = {}
    for place, (day, seen) in enumerate(days):
        for path, types in seen.types.items():
            before = known.setdefault(path, set())
            if place and not types <= (before | {"integer"} if "number" in before else before):
                change: Literal["added", "type"] = "type" if before else "added"
                yield Drift(tool, day, path, change, tuple(sorted(before)), tuple(sorted(types)), source)
            before |= types
    for path, types in known.items():
        last = max(place for place, (_, seen) in enumerate(days) if path in seen.types)
        was_always_there = all(seen.calls_with[path] == seen.calls for _, seen in days[: last + 1])
        if last + 1 < len(days) and was_always_there:
            yield Drift(tool, days[last + 1][0], path, "removed", tuple(sorted(types)), (), source)
