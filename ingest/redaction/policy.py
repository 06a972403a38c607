"""Turns a policy file, TOML, into the rules of redaction, each of them checked before the first record is read.

A rule says what it looks for (a detector, patterns in RE2's syntax, or paths of JSON keys), from which level on, what
stands in a value's place, and where it is applied.
"""

import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

import msgspec
import phonenumbers
import re2

from ingest.errors import InvalidPolicy, shown
from ingest.records import KINDS
from ingest.redaction.detectors import compiled, detector_names

RuleLevel = Literal["secrets", "full", "never"]
Replacement = Literal["token", "label"]
Place = Literal["client", "export"]

_LABEL = re.compile(r"[A-Z][A-Z0-9_]{0,30}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_ASSERTIONS = frozenset("AzbB")
_WIDE = frozenset("WSDPpC")  # after a backslash: classes that hold more than ASCII, or may
_WIDE_IN_CLASS = re.compile(r"\\[WSDPpC]|\\x\{|\[:\^")
# Columns that hold no text, so that no token can stand in them.
MEASURES = frozenset(
    column.name
    for kind in KINDS.values()
    for column in kind.columns
    if column.type in {"timestamp", "integer", "number"}
)
COLUMNS = sorted({column.name for kind in KINDS.values() for column in kind.columns})


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule as the file has it; the name is its key there."""

    label: str  # what stands in a value's place: <LABEL:token> or <LABEL>
    level: RuleLevel  # the level from which on it is applied; "never" switches it off
    detector: str | None = None  # one of `detectors`
    patterns: tuple[str, ...] = ()  # RE2; a group named value is what is replaced, else the whole match
    paths: tuple[str, ...] = ()  # keys from the column on: payload.user.name, **.first_name, metadata.customer.**
    bounded: bool = False  # a match of a pattern must not touch a letter or a digit
    spread: bool = False  # a value found by its path goes from the rest of its line, or session, as well
    replace: Replacement = "token"
    places: tuple[Place, ...] = ("export",)
    regions: tuple[str, ...] = ()  # of the detector `phone`: whose national numbers count (ISO 3166)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    rules: dict[str, dict[str, object]] = {}
    extends: Literal["default"] | None = None


class Policy(msgspec.Struct, frozen=True):
    """The rules by name, in the order in which they are tried."""

    rules: Mapping[str, Rule]

    @property
    def labels(self) -> list[str]:
        """The labels of all rules, whether they are applied or not."""
        return sorted({rule.label for rule in self.rules.values()})

    def applied(self, level: str, place: Place) -> dict[str, Rule]:
        """The rules of a level at one place; the level `full` has those of `secrets` as well."""
        levels = {"none": (), "secrets": ("secrets",), "full": ("secrets", "full")}[level]
        return {name: rule for name, rule in self.rules.items() if rule.level in levels and place in rule.places}


def read_policy(path: Path | None) -> Policy:
    """Read a policy file; None: the one that comes with the package.

    With `extends = "default"` its rules come on top of that one's, and take the place of those with their name.
    Raises InvalidPolicy naming file, rule, field, value and what was expected.
    """
    if path is None:
        return Policy(_parsed_rules("the default policy", _default_text()))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidPolicy(f"{path}: {err}; expected a TOML file in UTF-8; correct TDS_REDACTION_POLICY") from err
    return Policy(_parsed_rules(str(path), text))


def _default_text() -> str:
    return files("ingest.redaction").joinpath("default_policy.toml").read_text(encoding="utf-8")


def _parsed_rules(source: str, text: str) -> dict[str, Rule]:
    try:
        file = msgspec.convert(tomllib.loads(text), type=_File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as err:
        raise InvalidPolicy(
            f'{source}: {err}; expected TOML with tables [rules.NAME] and, if wanted, extends = "default"; correct it'
        ) from err
    rules = _parsed_rules("the default policy", _default_text()) if file.extends else {}
    own = {name: _parsed_rule(source, name, fields) for name, fields in file.rules.items()}
    # A rule that takes another one's place keeps its turn; new ones come first, as what is ours may be looser.
    return {**{name: rule for name, rule in own.items() if name not in rules}, **rules, **own}


def _parsed_rule(source: str, name: str, fields: Mapping[str, object]) -> Rule:
    where = f"{source}: rules.{name}"
    if _NAME.fullmatch(name) is None:
        raise InvalidPolicy(f"{where}: expected a name of small letters, digits and _; rename it")
    for field in fields:
        if field not in Rule.__struct_fields__:
            raise _invalid(where, field, fields[field], f"one of the fields {', '.join(Rule.__struct_fields__)}")
    for field in ("label", "level"):
        if field not in fields:
            raise InvalidPolicy(f"{where}.{field}: expected a value; every rule has a label and a level, add it")
    for field, value in fields.items():
        _check_type(where, field, value)
    rule = msgspec.convert(fields, type=Rule)
    if [rule.detector is not None, bool(rule.patterns), bool(rule.paths)].count(True) != 1:
        raise InvalidPolicy(f"{where}: expected one of detector, patterns and paths; split it into a rule each")
    if rule.spread and not rule.paths:
        raise _invalid(where, "spread", True, "false: only what is found by its path is looked for elsewhere")
    return rule


def _check_type(where: str, field: str, value: object) -> None:
    """Check one field by itself. Raises InvalidPolicy."""
    if field in {"label", "level", "detector", "replace"}:
        _check_text(where, field, value)
    elif field in {"bounded", "spread"}:
        if not isinstance(value, bool):
            raise _invalid(where, field, value, "true or false")
    elif not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise _invalid(where, field, value, "a list of one text or more")
    else:
        check = {"patterns": check_pattern, "paths": _check_path, "places": _check_place, "regions": _check_region}
        for item in value:
            check[field](f"{where}.{field}", item)


def _check_text(where: str, field: str, value: object) -> None:
    choices = {"level": get_args(RuleLevel), "replace": get_args(Replacement), "detector": detector_names()}.get(field)
    if choices is not None and value not in choices:
        raise _invalid(where, field, value, f"one of {', '.join(choices)}")
    if field == "label" and not (isinstance(value, str) and _LABEL.fullmatch(value)):
        raise _invalid(where, field, value, "capital letters, digits and _, such as EMAIL")


def _check_place(where: str, value: str) -> None:
    if value not in get_args(Place):
        raise InvalidPolicy(f"{where}={shown(value)}: expected client or export; correct it")


def _check_region(where: str, value: str) -> None:
    if value not in phonenumbers.SUPPORTED_REGIONS:
        raise InvalidPolicy(
            f"{where}={shown(value)}: expected two capital letters (ISO 3166) such as US or GB; correct it"
        )


def _check_path(where: str, value: str) -> None:
    """A path begins with a column or `**` and has a key by which lines can be told apart."""
    parts = value.split(".")
    if any(not part or ("**" in part and part != "**") for part in parts):
        raise InvalidPolicy(f"{where}={shown(value)}: expected keys joined by dots, ** standing alone; correct it")
    if parts[0] != "**" and parts[0] not in COLUMNS:
        raise InvalidPolicy(
            f"{where}={shown(value)}: expected ** or a column first, one of {', '.join(COLUMNS)}; "
            f"for any column write **.{value}"
        )
    if value in MEASURES:
        raise InvalidPolicy(
            f"{where}={shown(value)}: expected a column of text, JSON or ids; a number or time has to stay"
        )
    if all(set(part) <= {"*"} for part in parts):
        raise InvalidPolicy(f"{where}={shown(value)}: expected a key or a column by name in it; add one")


def check_pattern(where: str, pattern: str) -> None:
    """Raise InvalidPolicy for a pattern that RE2 does not take, or that matches the empty text."""
    try:
        compiled(f"(?P<whole_match>{pattern})")  # as it is used: \Q without \E would take in what is around it
        loose = compiled(without_assertions(pattern))
    except re2.error as err:
        reason = err.args[0].decode(errors="replace") if isinstance(err.args[0], bytes) else err.args[0]
        raise InvalidPolicy(
            f"{where}={shown(pattern)}: RE2 says {reason}; expected RE2's syntax, which has no backreferences and no "
            "look-around, so that its time is linear; rewrite it"
        ) from err
    if _has_empty_value(pattern):
        raise InvalidPolicy(
            f"{where}={shown(pattern)}: its group value is empty, so nothing would be replaced; expected what has to "
            "go; put into the group what is to be replaced"
        )
    if loose.fullmatch(b"") is not None:
        raise InvalidPolicy(
            f"{where}={shown(pattern)}: matches the empty text, so it is found everywhere; expected a pattern that "
            "needs a character; write + for * or name what has to be there"
        )


def _has_empty_value(pattern: str) -> bool:
    """Whether a pattern's group `value` closes before it has a character in it."""
    is_open = False
    for piece, is_class in _pieces(pattern):
        if is_open and piece == ")":
            return True
        is_open = piece in {"(?P<value>", "(?<value>"} or (is_open and _is_assertion(piece, is_class=is_class))
    return False


def without_assertions(pattern: str) -> str:
    r"""The pattern without `^`, `$`, `\b` and their like, and without names of groups: it matches where that one does.

    So it can stand in one pattern with all others, over a whole line.
    """
    pieces: list[str] = []
    for piece, is_class in _pieces(pattern):
        if _is_assertion(piece, is_class=is_class):
            pieces.append("(?:)")
        elif not is_class and piece.startswith(("(?P<", "(?<")):
            pieces.append("(?:")
        else:
            pieces.append(piece)
    return "".join(pieces)


def _is_assertion(piece: str, *, is_class: bool) -> bool:
    return not is_class and (piece in {"^", "$"} or (piece[0] == "\\" and piece[1:] in _ASSERTIONS))


def has_assertions(pattern: str) -> bool:
    r"""Whether a pattern has `^`, `$`, `\b` or their like."""
    return without_assertions(pattern) != re.sub(r"\(\?P?<[^>]*>", "(?:", pattern)


def is_wide(pattern: str) -> bool:
    """Whether a pattern may match a character outside ASCII: then any escape in a line may be part of a match."""
    return not pattern.isascii() or any(
        _is_wide_piece(piece, is_class=is_class) for piece, is_class in _pieces(pattern)
    )


def _is_wide_piece(piece: str, *, is_class: bool) -> bool:
    if is_class:
        return piece.startswith("[^") or _WIDE_IN_CLASS.search(piece) is not None
    if piece.startswith("(?"):
        return piece not in {"(?:", "(?P<value>"}  # a flag: where case does not count, K is also the sign of Kelvin
    return piece == "." or (piece[0] == "\\" and (piece[1:2] in _WIDE or piece[1:3] == "x{"))


_PIECE = re.compile(
    r"(?P<literal>\\Q.*?(?:\\E|$))|\\x\{[^}]*\}|\\[pP]\{[^}]*\}|\\.|(?P<class>\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^\]\\])*\])"
    r"|\(\?(?:P?<[^>]*>|[a-zA-Z\-]*[:)])|.",
    re.DOTALL,
)


def _pieces(pattern: str) -> list[tuple[str, bool]]:
    """The pieces of a pattern in RE2's syntax, and whether each is a class or a quoted literal."""
    return [
        (match[0], match["class"] is not None or match["literal"] is not None) for match in _PIECE.finditer(pattern)
    ]


def _invalid(where: str, field: str, value: object, expected: str) -> InvalidPolicy:
    return InvalidPolicy(f"{where}.{field}={shown(value)}: expected {expected}; correct it")
