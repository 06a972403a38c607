"""Turns a TOML, YAML or JSON file into plain values, the line of each field, and a version made of the content.

Plain are text, numbers, true and false, lists, tables and nothing; dates become their text, as JSON has none. So the
same content has the same version in all three formats.
"""

import difflib
import hashlib
import json
import math
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from datetime import time as clock_time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ingest.errors import InvalidConfig, MissingExtra, shown

SUFFIXES = (".toml", ".yaml", ".yml", ".json")
MOST_BYTES = 1 << 20  # of a file
_DEEPEST = 32  # levels of lists and tables
_SETTLED_S = 0.02  # who writes a file in place does it in less, so what was left alone for so long is whole
_TRIES = 50
_TOML_LINE = re.compile(r"^\s*(?:(?P<table>\[.*\])\s*(?:#.*)?|(?P<key>[^=#\[]+?)\s*=.*)$")
_TOML_TEXT = re.compile(r"\"\"\".*?\"\"\"|'''.*?'''", re.DOTALL)
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:\n]')

Stamp = tuple[int, int, int]  # inode, size and time of the last change: equal for a file that nobody touched
Lines = dict[str, int]  # line of each field of the outermost table


class ConfigFile(NamedTuple):
    """What a file holds."""

    path: Path
    values: dict[str, Any]
    lines: Lines

    def wrong(self, field: str, complaint: str) -> InvalidConfig:
        """The error of a field: file and line ahead of it."""
        line = self.lines.get(field, 1)
        return InvalidConfig(f"{self.path}:{line}: {complaint}")

    def check_fields(self, known: Sequence[str], advice: str) -> None:
        """Raise InvalidConfig for a field that is none of the known ones."""
        for field in self.values:
            if field not in known:
                near = difflib.get_close_matches(field, known, 1)
                hint = f"write {near[0]}" if near else advice
                raise self.wrong(field, f"{field}: expected one of {', '.join(known)}; {hint}")


def version_of(content: object) -> str:
    """Name content by its hash, 16 hex digits of sha256, whatever the order of its fields."""
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


def stamp_of(path: Path) -> Stamp | None:
    """How a file stands, without reading it; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def is_settled(stamp: Stamp) -> bool:
    """Whether nobody wrote to the file just now."""
    return abs(time.time() - stamp[2] / 1e9) >= _SETTLED_S


def read_file(path: Path) -> tuple[ConfigFile, Stamp]:
    """Read a file as it was at one moment, when nobody was writing to it; waits for that for a second at most.

    Raises InvalidConfig naming file, line and what was expected.
    """
    for _ in range(_TRIES):
        stamp = stamp_of(path)
        if stamp is not None and not is_settled(stamp):
            time.sleep(_SETTLED_S)
        try:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as err:
            raise InvalidConfig(f"{path}:1: {err.strerror}: expected a file that can be read; check it") from err
        if stamp is not None and stamp_of(path) == stamp:
            return parse_file(path, data), stamp
    raise InvalidConfig(f"{path}:1: written to all the time: expected a file at rest; put a new one by a rename")


def parse_file(path: Path, data: bytes) -> ConfigFile:
    """Plain values of a file's bytes, by its suffix. Raises InvalidConfig."""
    if len(data) > MOST_BYTES:
        raise InvalidConfig(f"{path}:1: larger than {MOST_BYTES} bytes: expected a config or a prompt; make it smaller")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = data[: err.start].count(b"\n") + 1
        raise InvalidConfig(f"{path}:{line}: byte {data[err.start]:#x}: expected UTF-8; save it as UTF-8") from err
    try:
        values, lines = _FORMATS[path.suffix](path, text)
    except RecursionError as err:
        raise InvalidConfig(f"{path}:1: nested too deep: expected {_DEEPEST} levels at most; make it flatter") from err
    if not isinstance(values, dict):
        raise InvalidConfig(f"{path}:1: {shown(values)}: expected a table of fields; write `field: value` lines")
    file = ConfigFile(path, {}, lines)
    return file._replace(values={key: _plain(file, key, value, 1) for key, value in values.items()})


def _plain(file: ConfigFile, field: str, value: object, depth: int) -> object:
    """A value as JSON has it. Raises InvalidConfig for what JSON has not."""
    if depth > _DEEPEST:
        raise file.wrong(field, f"{field}: nested too deep: expected {_DEEPEST} levels at most; make it flatter")
    if isinstance(value, dict):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            raise file.wrong(field, f"{field}: key {shown(odd)}: expected text; put it in quotes")
        return {_plain(file, field, key, depth): _plain(file, field, kept, depth + 1) for key, kept in value.items()}
    if isinstance(value, list):
        return [_plain(file, field, kept, depth + 1) for kept in value]
    if isinstance(value, date | datetime | clock_time):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        raise file.wrong(field, f"{field}={value}: expected a finite number; write one, or leave it out")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise file.wrong(field, f"{field}={shown(value)}: expected a number of 64 bits; put it in quotes")
    if isinstance(value, str) and not _is_unicode(value):
        raise file.wrong(field, f"{field}={shown(value)}: expected Unicode text; take the lone surrogate out")
    if not isinstance(value, str | int | float | None):
        kind = type(value).__name__
        raise file.wrong(field, f"{field}={shown(value)} ({kind}): expected text, a number, a list or a table; use one")
    return value


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _read_toml(path: Path, text: str) -> tuple[object, Lines]:
    try:
        return tomllib.loads(text), dict(_toml_lines(text))
    except tomllib.TOMLDecodeError as err:
        said = re.search(r"at line (\d+)", str(err))
        line = int(said[1]) if said else text.count("\n") + 1
        raise InvalidConfig(f"{path}:{line}: {err}: expected TOML; mend it") from err


def _toml_lines(text: str) -> Iterator[tuple[str, int]]:
    """Outermost field and line of each key that stands outside of any table, and of each table."""
    found: set[str] = set()
    in_table = False
    flat = _TOML_TEXT.sub(lambda match: '""' + "\n" * match[0].count("\n"), text)
    for number, line in enumerate(flat.split("\n"), 1):
        match = _TOML_LINE.match(line)
        if match is None or (in_table and match["table"] is None):
            continue
        try:
            named = tomllib.loads(match["table"] or f"{match['key']} = 0")
        except tomllib.TOMLDecodeError:
            continue  # a line within a list
        in_table = in_table or match["table"] is not None
        field = next(iter(named), None)
        if field is not None and field not in found:
            found.add(field)
            yield field, number


def _read_json(path: Path, text: str) -> tuple[object, Lines]:
    lines = _json_lines(text)

    def table(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise InvalidConfig(f"{path}:{lines.get(twice, 1)}: {twice}: expected it once; take one of them out")
        return dict(pairs)

    def refuse(word: str) -> object:
        raise InvalidConfig(f"{path}:1: {word}: expected JSON, which has no such number; leave it out")

    try:
        return json.loads(text, object_pairs_hook=table, parse_constant=refuse), lines
    except json.JSONDecodeError as err:
        raise InvalidConfig(f"{path}:{err.lineno}: {err.msg}: expected JSON; mend it") from err


def _json_lines(text: str) -> Lines:
    """Line of each key of the outermost table of what is most likely JSON."""
    lines: Lines = {}
    line, depth, last = 1, 0, ('""', 1)
    for match in _JSON_TOKEN.finditer(text):
        sign = match[0]
        if sign == "\n":
            line += 1
        elif sign in "{[":
            depth += 1
        elif sign in "}]":
            depth -= 1
        elif sign == ":" and depth == 1:
            try:
                lines.setdefault(json.loads(last[0]), last[1])
            except json.JSONDecodeError:
                continue  # the reader says what is wrong with it
        elif sign != ":":
            last = (sign, line)
    return lines


def _read_yaml(path: Path, text: str) -> tuple[object, Lines]:
    try:
        import yaml  # 20 ms to import, and only who keeps YAML needs it
    except ModuleNotFoundError as err:
        raise MissingExtra(err.name) from err

    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # nine lines of them make a billion values
                line = event.start_mark.line + 1
                raise InvalidConfig(f"{path}:{line}: *{event.anchor}: expected a value, no alias; write it out")
        node = yaml.compose(text, yaml.SafeLoader)
        lines = _yaml_lines(path, node)
        return yaml.safe_load(text), lines
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        problem = getattr(err, "problem", None) or str(err)
        raise InvalidConfig(f"{path}:{mark.line + 1 if mark else 1}: {problem}: expected YAML; mend it") from err
    except ValueError as err:  # such as the date 2024-13-45
        raise InvalidConfig(f"{path}:1: {err}: expected YAML; put what is no date or number in quotes") from err


def _yaml_lines(path: Path, node: Any) -> Lines:  # noqa: ANN401 - PyYAML ships no types
    """Line of each key of the outermost table. Raises InvalidConfig for a key that stands twice, anywhere."""
    lines: Lines = {}
    waiting = [(node, True)]
    while waiting:
        one, is_outermost = waiting.pop()
        names: set[str] = set()
        for child in one.value if one is not None and not isinstance(one.value, str) else ():
            if not isinstance(child, tuple):
                waiting.append((child, False))
                continue
            key, value = child
            line = key.start_mark.line + 1
            if isinstance(key.value, str):
                if key.value in names:
                    raise InvalidConfig(f"{path}:{line}: {key.value}: expected it once; take one of them out")
                if not key.tag.endswith(":str"):
                    raise InvalidConfig(f"{path}:{line}: key {key.value}: expected text; put it in quotes")
                names.add(key.value)
                if is_outermost:
                    lines[key.value] = line
            waiting.append((value, False))
    return lines


_FORMATS: Mapping[str, Callable[[Path, str], tuple[object, Lines]]] = {
    ".toml": _read_toml,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": _read_json,
}
