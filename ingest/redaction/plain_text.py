r"""Turns text as it stands in a JSON line into the plain text that detectors read, and finds the way back.

`alice\u0040example.com`, `https:\/\/`, a phone number in Arabic digits or with a no-break space mean what their plain
forms mean. Each is one unit here: its plain form takes its place, and a span of the plain text leads back to whole
units of the original. So one pattern a detector does, at any depth of escaping.
"""

import re
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable

# A line break, a quote's partner: nothing that a pattern may match lies across these.
BOUNDARY = b"\x00"
_PAIR = rb"u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\+u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})"  # of surrogates: one character
_ESCAPE = _PAIR + rb"""|u(?P<hex>[0-9a-fA-F]{4})|x(?P<byte>[0-9a-fA-F]{2})|(?P<short>["'/bfnrt])"""
_UNIT = rb"\\+(?:" + _ESCAPE + rb")|(?P<control>[\x00-\x1f])"
_CHARACTER = rb"(?P<wide>[\xc2-\xf4][\x80-\xbf]{1,3})"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043"
_NOTHING = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_SHORT = {b'"': b'"', b"'": b"'", b"/": b"/"}
# Escapes that mean printable ASCII, or one of the two other letters that are s and k where case does not count.
ESCAPED_ASCII = r"\\u00[2-7]|\\x[2-7]|\\u017[fF]|\\u212[aA]|\\/"
# The ranges, in RE2's syntax, in which the characters lie that `folded` changes. Wider than these, for each range is a
# few more states of one automaton that has thousands.
FOLDABLE = (
    r"[\x{a0}\x{ad}\x{660}-\x{1fff}\x{2000}-\x{2015}\x{202f}\x{2043}\x{205f}-\x{2060}\x{2212}\x{3000}\x{a620}-\x{abff}"
    r"\x{feff}-\x{ff5e}\x{10480}-\x{1e95f}\x{1fbf0}-\x{1fbff}]"
)
ESCAPED_ANY = r"\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2})"


class PlainText:
    """A text's plain form in `plain`; `original` leads from its offsets to those of the text."""

    def __init__(self, plain: bytes, ends: list[tuple[int, int]]) -> None:
        """`ends` are the offsets behind each unit that was replaced: in the plain text and in the original."""
        self.plain = plain
        self._ends = ends

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The span of the text that a span of its plain form stands for; whole units of it."""
        if not self._ends:
            return start, end
        return self._offset(start), self._offset(end)

    def _offset(self, offset: int) -> int:
        place = bisect_right(self._ends, (offset, sys.maxsize)) - 1
        if place < 0:
            return offset
        plain_end, original_end = self._ends[place]
        return original_end + offset - plain_end


class Reader:
    """Makes plain text; `folds` says whether digits, spaces and dashes of all scripts count as ASCII's.

    The tokens that redaction leaves, those of `labels`, become a boundary: no detector ever sees one.
    """

    def __init__(self, labels: Iterable[str], *, folds: bool) -> None:
        """`labels` are those of the policy."""
        self._folds = folds
        names = "|".join(sorted(labels)).encode()
        token = rb"(?P<token><(?:" + names + rb")(?::[a-p]{16})?>)"
        unit = rb"|".join([token, _UNIT, _CHARACTER] if folds else [token, _UNIT])
        self._unit = re.compile(unit)

    def read(self, text: bytes) -> PlainText:
        """The plain form of a text, UTF-8."""
        pieces, ends, taken, length = list[bytes](), list[tuple[int, int]](), 0, 0
        for match in self._unit.finditer(text):
            plain = self._plain(match)
            if plain is None:
                continue
            before = text[taken : match.start()]
            pieces += [before, plain]
            taken = match.end()
            length += len(before) + len(plain)
            ends.append((length, taken))
        if not ends:
            return PlainText(text, ends)
        pieces.append(text[taken:])
        return PlainText(b"".join(pieces), ends)

    def _plain(self, match: re.Match[bytes]) -> bytes | None:
        """What stands for a unit; None if it stays as it is."""
        kind = match.lastgroup
        if kind in {"token", "control"}:
            return BOUNDARY
        if kind == "short":
            return _SHORT.get(match["short"], BOUNDARY)
        if kind == "wide":
            return folded(match["wide"].decode(errors="replace"))
        code = int(match["hex"] or match["byte"] or match["low"], 16)
        if kind == "low":
            code += 0x10000 - 0xDC00 + ((int(match["high"], 16) - 0xD800) << 10)
        if code < 0x20:
            return BOUNDARY
        character = chr(code)
        as_it_is = character.encode(errors="replace")
        if not self._folds:
            return as_it_is
        plain = folded(character)
        return as_it_is if plain is None else plain


def folded(character: str) -> bytes | None:
    """The ASCII form of a digit, space, dash or full-width sign; None for any other character."""
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return b"%d" % digit
    if "\uff01" <= character <= "\uff5e":  # full-width forms, in ASCII's order
        return chr(ord(character) - 0xFEE0).encode()
    if character in _SPACES:
        return b" "
    if character in _DASHES:
        return b"-"
    return b"" if character in _NOTHING else None
