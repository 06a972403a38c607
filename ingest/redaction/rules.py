"""Turns the rules of a policy into what finds their values: in plain text, and by the path of keys that leads there.

A rule of paths also looks for its keys in running text, such as a cut-off document or a Python dict's `repr`.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from operator import itemgetter

from ingest.redaction.detectors import LEFT, Found, compiled, detector_named, tested
from ingest.redaction.documents import Path
from ingest.redaction.policy import MEASURES, Rule, has_assertions, is_wide, without_assertions

# Between line breaks, quotes and tokens: no pattern of a policy matches across one of these, for a line holds it as
# it is and not as an escape, so that the pattern finds in the line what it finds in the text.
_SEGMENT = re.compile(rb'[^"\\\x00-\x1f]+')
_BOUNDARY = re.compile(rb'["\\\x00-\x1f]')
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|\*+|[^A-Za-z0-9*_\- ]+")
_ANY_OF_A_KEY = r'[^\x00"\\]*'
_TOGETHER = 6
_NO_VALUES = {b"null", b"true", b"false", b"None", b"True", b"False"}


class ActiveRule:
    """A rule as it is applied."""

    def __init__(self, name: str, rule: Rule) -> None:
        """Compile the rule's patterns; the policy has checked that they are good."""
        self.name = name
        self.label = rule.label
        self.spread = rule.spread
        self.has_token = rule.replace == "token"
        self.is_wide = any(map(is_wide, rule.patterns))
        self.is_placed = False  # whether it has paths that only say something about a whole document
        self.by_path = compiled("|".join(f"(?:{_path_pattern(path)})" for path in rule.paths)) if rule.paths else None
        if rule.detector is not None:
            self.hint, self._find = detector_named(rule.detector, rule.regions)
        elif rule.paths:
            self.hint = "|".join(dict.fromkeys(map(_key_hint, rule.paths)))
            anywhere = [path for path in rule.paths if _is_a_key_anywhere(path)]
            self._find = _find_behind_keys([path.removeprefix("**.") for path in anywhere])
            self.is_placed = len(anywhere) < len(rule.paths)
        else:
            self.hint = "|".join(_pattern_hint(pattern, bounded=rule.bounded) for pattern in rule.patterns)
            self._find = _find_patterns(rule)
        self.has_hint = tested(self.hint).search

    def found_in(self, text: bytes) -> Iterator[Found]:
        """The rule's values in a plain text."""
        return self._find(text) if self.has_hint(text) else iter(())

    def leads_here(self, path: Path) -> bool:
        """Whether the rule is one of paths, and this is one of them."""
        return self.by_path is not None and self.by_path.fullmatch(_joined(path)) is not None


def _joined(path: Path) -> bytes:
    return "\0".join(key.replace("\0", " ") for key in path).encode(errors="replace")


def _key_pattern(key: str) -> str:
    """A key in any of its spellings: `first_name` is also `firstName`, `FIRST-NAME` and `First name`."""
    words = _WORD.findall(key)
    return "(?i:" + r"[_\- ]?".join(_ANY_OF_A_KEY if set(word) == {"*"} else re.escape(word) for word in words) + ")"


def _path_pattern(path: str) -> str:
    """The pattern, over keys joined by NUL, of a path such as `payload.**.first_name`. A column is all in it."""
    if "." not in path:
        return _key_pattern(path) + r"(?:\x00[^\x00]*)*"
    parts = path.split(".")
    pattern = ""
    for place, part in enumerate(parts):
        is_last = place == len(parts) - 1
        if part == "**":
            pattern += r"[^\x00]*(?:\x00[^\x00]*)*" if is_last else r"(?:[^\x00]*\x00)*"
        else:
            pattern += _key_pattern(part) + ("" if is_last else r"\x00")
    return pattern


def _is_a_key_anywhere(path: str) -> bool:
    """Whether a path is a key, or its end, and nothing else: then text that is no document tells it too.

    Such as `**.first_name` and `**.*_password`.
    """
    key = path.removeprefix("**.").lstrip("*")
    return path.startswith("**.") and key != "" and "." not in key and "*" not in key


def _key_hint(path: str) -> str:
    """A pattern over a line as it stands for the key that tells most: the longest one, but not the column."""
    parts = path.split(".")
    keys = [part for part in parts[1:] if set(part) != {"*"}] or parts[:1]
    key = max(reversed(keys), key=len).lstrip("*")
    return _key_pattern(key).replace(_ANY_OF_A_KEY, r'[^"]*') + r"\\*[\"']"


def _pattern_hint(pattern: str, *, bounded: bool) -> str:
    return f"{LEFT if bounded else ''}(?:{without_assertions(pattern)})"


def _find_patterns(rule: Rule) -> Callable[[bytes], Iterator[Found]]:
    """A finder of a rule's patterns."""
    left, right = (r"(?:^|[^0-9A-Za-z])", r"(?:[^0-9A-Za-z]|$)") if rule.bounded else ("", "")
    searches = [compiled(f"{left}(?P<whole_match>{pattern}){right}") for pattern in rule.patterns]
    anchored = [has_assertions(pattern) for pattern in rule.patterns]

    def find(text: bytes) -> Iterator[Found]:
        for search, is_anchored in zip(searches, anchored, strict=True):
            # The whole text in one go is a hundred times faster, and gives the same unless a match goes too far.
            found = None if is_anchored else _matches(search, text, 0)
            if found is None:
                found = [
                    one for part in _SEGMENT.finditer(text) for one in _matches(search, part[0], part.start()) or ()
                ]
            yield from found

    return find


def _matches(search: re.Pattern[bytes], text: bytes, offset: int) -> list[Found] | None:
    """The matches of one pattern, by their group `value` if it has one; None if one of them goes over a boundary.

    `offset` is added to their places.
    """
    whole = search.groupindex["whole_match"]
    group = search.groupindex.get("value", whole)
    found, position = list[Found](), 0
    while match := search.search(text, position):
        if _BOUNDARY.search(match[whole]):
            return None
        start, end = match.span(group)
        position = max(match.end(whole), position + 1)
        if start < end:
            found.append(Found(offset + start, offset + end, text[start:end]))
    return found


def _find_behind_keys(keys: list[str]) -> Callable[[bytes], Iterator[Found]]:
    """A finder of what stands behind one of these keys and a colon, in double or single quotes, or as a number.

    Of a key that begins with `*` only the end is looked for: what is before it could reach over another key.
    """
    if not keys:
        return lambda _text: iter(())
    names = "|".join(("" if key[0] == "*" else r"[\"']") + _key_pattern(key.lstrip("*")) for key in keys)
    search = compiled(
        rf"(?:{names})[\"'] {{0,4}}[:=] {{0,4}}(?:\"([^\"\x00][^\"\x00]*)|'([^'\x00][^'\x00]*)|(-?[0-9][0-9.]*))"
    )

    def find(text: bytes) -> Iterator[Found]:
        for match in search.finditer(text):
            start, end = match.span(match.lastindex or 0)
            if text[start:end].strip() not in _NO_VALUES:
                yield Found(start, end, one_form(text[start:end]))

    return find


def one_form(value: bytes) -> bytes:
    """The form of a value found by its path from which its token is made: case and outer spaces do not count."""
    return value.decode(errors="replace").strip().casefold().encode(errors="replace")


class ActiveRules:
    """All rules of a level, in their order."""

    def __init__(self, rules: dict[str, Rule]) -> None:
        """Compile them."""
        self.all = [ActiveRule(name, rule) for name, rule in rules.items()]
        self._with_paths = [rule for rule in self.all if rule.by_path is not None]
        self._known: dict[Path, ActiveRule | None] = {}
        # A few at a time are asked whether they may find anything: one search for six instead of six.
        groups = [self.all[place : place + _TOGETHER] for place in range(0, len(self.all), _TOGETHER)]
        self._groups = [(tested("|".join(f"(?:{rule.hint})" for rule in group)).search, group) for group in groups]

    def placed(self, line: bytes) -> bool:
        """Whether a rule with paths from a column on may find a value in this line."""
        return any(rule.is_placed and rule.has_hint(line) for rule in self._with_paths)

    def may_spread(self, line: bytes) -> bool:
        """Whether a rule with `spread` may find a value in this line."""
        return any(rule.spread and rule.has_hint(line) for rule in self._with_paths)

    def of_path(self, path: Path) -> ActiveRule | None:
        """The first rule that a path belongs to."""
        if path in self._known:
            return self._known[path]
        if len(path) == 1 and path[0] in MEASURES:
            return None
        rule = next((rule for rule in self._with_paths if rule.leads_here(path)), None)
        if len(self._known) < 50_000:  # keys may be data
            self._known[path] = rule
        return rule

    def form_of(self, rule: ActiveRule, value: bytes) -> bytes:
        """The form of a value that a rule of paths has found: that of a detector with the same label, if it knows it.

        So a date of birth has one token, whether it was found by its key or in a sentence.
        """
        value = value.strip()
        for other in self.all:
            if other.label == rule.label and other.by_path is None:
                for found in other.found_in(value):
                    if (found.start, found.end) == (0, len(value)):
                        return found.value
        return one_form(value)

    def found_in(self, text: bytes) -> list[tuple[ActiveRule, Found]]:
        """The values in a plain text, from left to right, none over another; the earlier rule has the text."""
        taken: list[tuple[int, int, ActiveRule, Found]] = []
        for has_hint, group in self._groups:
            for rule in group if has_hint(text) else ():
                for found in rule.found_in(text):
                    place = bisect_left(taken, found.end, key=itemgetter(0))  # the first one that begins behind it
                    if place == 0 or taken[place - 1][1] <= found.start:
                        taken.insert(place, (found.start, found.end, rule, found))
        return [(rule, found) for _, _, rule, found in taken]
