"""Turns the values found by their path into the same tokens wherever else they stand: a name in what was said.

A line's `first_name` tells what the customer is called; the text beside it greets them by it. Only lines that are
redacted together share what they tell, so a line's redaction never depends on what came before it.
"""

import re
from collections import Counter
from collections.abc import Callable

from ingest.redaction.documents import every_scalar
from ingest.redaction.rules import ActiveRule, ActiveRules

_SHORTEST = 2  # bytes
_CASELESS = 4  # a shorter one only as it is written: "Li" is a name, "li" may be part of anything
_MOST = 1000  # values of one line or session
# Names that are words as well: a passenger called May does not take the month out of a flight's date.
_WORDS = frozenset(
    b"january february march april may june july august september october november december monday tuesday wednesday "
    b"thursday friday saturday sunday will mark art bill grant rose hope faith grace joy sky the and for you "
    # What a form, a model or a test writes where a name is missing, and the words of messages, schemas and states:
    # taken out of a session's texts they would tear its structure.
    b"user assistant system developer tool function agent bot human customer client guest passenger member person "
    b"admin anonymous unknown none null nil nan n/a na undefined default empty missing test tester example sample demo "
    b"dummy string str number integer int float boolean bool object array list dict text type role name first last "
    b"full id value data input output content message email phone address true false yes no ok okay done not all any "
    b"new other error warning info debug success failure failed completed pending running started cancelled active "
    b"inactive open closed medium high critical normal".split()
)


class Spread:
    """The values that some lines tell by their paths."""

    def __init__(self, rules: ActiveRules, replacement: Callable[[ActiveRule, bytes], bytes]) -> None:
        """`replacement` gives what stands for a value of a rule."""
        self._rules = rules
        self._replacement = replacement
        self._by_value: dict[bytes, tuple[ActiveRule, bytes]] = {}
        self._compiled: tuple[re.Pattern[bytes], re.Pattern[bytes]] | None = None

    def learn(self, line: bytes) -> None:
        """Take in what a line tells."""
        if not self._rules.may_spread(line):
            return
        for scalar in every_scalar(line):
            rule = None if scalar.is_key or not scalar.is_text else self._rules.of_path(scalar.path)
            if rule is None or not rule.spread or len(self._by_value) >= _MOST:
                continue
            value = scalar.value.strip()
            if _may_be_a_name(value):
                self._by_value[_key(value)] = rule, self._replacement(rule, self._rules.form_of(rule, value))
                self._compiled = None

    def may_be_in(self, text: bytes) -> bool:
        r"""Whether any of them may stand in a text as a JSON line holds it, where \n comes before a word as n does."""
        if not self._by_value:
            return False
        return b"\\u" in text or self._patterns()[1].search(text) is not None

    def taken_from(self, text: bytes, token: re.Pattern[bytes], counts: Counter[str]) -> bytes:
        """The text with them replaced, but inside what `token` matches."""
        if not self._by_value:
            return text
        pieces, taken = list[bytes](), 0
        for match in token.finditer(text):
            pieces += [self._replaced(text[taken : match.start()], counts), match[0]]
            taken = match.end()
        return b"".join([*pieces, self._replaced(text[taken:], counts)])

    def _replaced(self, text: bytes, counts: Counter[str]) -> bytes:
        def replacement(match: re.Match[bytes]) -> bytes:
            rule, token = self._by_value[_key(match[0])]
            counts[rule.name] += 1
            return token

        return self._patterns()[0].sub(replacement, text)

    def _patterns(self) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
        """All of them as whole words, longer ones first (a full name before the first name in it), and as any text."""
        if self._compiled is None:
            values = sorted(self._by_value, key=len, reverse=True)
            any_of = b"|".join(b"(?i:" + re.escape(v) + b")" if len(v) >= _CASELESS else re.escape(v) for v in values)
            word = rb"(?<![0-9A-Za-z\x80-\xff])(?:" + any_of + rb")(?![0-9A-Za-z\x80-\xff])"
            self._compiled = re.compile(word), re.compile(any_of)
        return self._compiled


def _may_be_a_name(value: bytes) -> bool:
    """Whether a value may be taken out of texts: no token, common word, number, or identifier such as `find_order`."""
    is_code = b"<" in value or value.isdigit() or (b"_" in value and b" " not in value)
    return len(value) >= _SHORTEST and not is_code and value.lower() not in _WORDS


def _key(value: bytes) -> bytes:
    return value.lower() if len(value) >= _CASELESS else value
