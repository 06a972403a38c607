"""Turns JSON lines into lines without what their level of redaction promises to be gone, and looks for what is left.

`redact_line` takes a line apart and knows where it is: columns, keys, documents inside strings. `find_leaks` takes
any text as it stands and knows nothing of that, so that it sees what the other one overlooked. Both look only at lines
that match `suspect`, one pattern that DuckDB and RE2 run over gigabytes.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version as version_of
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, cast

import msgspec

from ingest.records import KINDS
from ingest.redaction.detectors import CONTEXT_BYTES, tested
from ingest.redaction.documents import Scalar, encoded, replace_scalars
from ingest.redaction.plain_text import ESCAPED_ANY, ESCAPED_ASCII, FOLDABLE, Reader
from ingest.redaction.policy import COLUMNS, Place, Policy, read_policy
from ingest.redaction.rules import ActiveRule, ActiveRules
from ingest.redaction.spread import Spread
from ingest.redaction.structure import is_structure
from ingest.redaction.tokens import Tokens, read_key
from ingest.settings import RedactionLevel, Settings

Level = RedactionLevel

_KEPT_TYPES = {"id", "timestamp", "integer", "number"}  # of columns that joins and clocks need; a path may name one
_KEPT_ANYWHERE = frozenset(
    column.name for kind in KINDS.values() for column in kind.columns if column.type in _KEPT_TYPES
)
_KEPT_CELL = re.compile(
    rb'"(?:' + "|".join(sorted(_KEPT_ANYWHERE)).encode() + rb')": ?(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?[0-9][0-9.eE+\-]*)'
)
# Text columns that hold one of a few words rather than prose: a customer called Order does not take it out of them.
_VOCABULARY = frozenset(column.name for kind in KINDS.values() for column in kind.columns if column.type == "text") - {
    "error",
    "comment",
    "description",
}
_MOST_ROUNDS = 8  # of one text: what is left when a longer find has taken a part away is found in the next
_Search = Callable[..., re.Match[bytes] | None]


class Leak(NamedTuple):
    """Something that should be gone: where it is, never what it is."""

    detector: str  # the rule's name in the policy
    offset: int  # in bytes, from the start of the text


class Redactor:
    """Redacts lines and finds leaks at one level. Cheap for lines that do not match `suspect`."""

    def __init__(self, level: Level, policy: Policy, place: Place, tokens: Tokens | None) -> None:
        """`tokens` is None at level none only, which changes nothing and promises nothing."""
        self.level = level
        self.counts: Counter[str] = Counter()
        self._tokens = tokens
        self._rules = ActiveRules(policy.applied(level, place))
        folds = level == "full"
        self._reader = Reader(policy.labels, folds=folds)
        self._token = re.compile(rb"<(?:" + "|".join(policy.labels).encode() + rb")(?::[a-p]{16})?>")
        self.suspect = self._suspect(folds=folds)
        self._is_suspect = tested(self.suspect).search if self.suspect else None
        self.version = "none" if tokens is None else _version(level, policy, place, tokens)

    def _suspect(self, *, folds: bool) -> str | None:
        if not self._rules.all:
            return None
        hints = [f"(?:{rule.hint})" for rule in self._rules.all]
        if folds:
            odd = f"{ESCAPED_ANY}|{ESCAPED_ASCII}|{FOLDABLE}"
        else:
            odd = ESCAPED_ANY if any(rule.is_wide for rule in self._rules.all) else ESCAPED_ASCII
        return "|".join([*hints, odd])

    def redact_line(self, kind: str, line: bytes) -> bytes:
        """One JSON object without line feed in, one out: the same keys in the same order.

        Columns of ids, times and numbers stay as they are, unless the policy names them. A value found by its path
        goes from the other strings of the line too, if its rule says `spread`. Untouched cells keep their bytes.
        `kind` may be that of a dataset's rows: then the columns of all kinds are kept, by their names.
        """
        return self.redact_together(kind, [line])[0]

    def redact_together(self, kind: str, lines: Sequence[bytes]) -> list[bytes]:
        """Redact lines that belong together, such as a session's: what `spread` finds in one goes from all of them."""
        is_suspect = self._is_suspect
        if is_suspect is None:
            return list(lines)
        suspects = [line for line in lines if is_suspect(line)]
        if not suspects:
            return list(lines)
        kept = _kept_columns(kind)
        spread = Spread(self._rules, self.replacement)
        for line in suspects:
            spread.learn(line)
        return [
            self._redacted(line, kept, spread) if is_suspect(line) or spread.may_be_in(line) else line for line in lines
        ]

    def _redacted(self, line: bytes, kept: frozenset[str], spread: Spread) -> bytes:
        """One line, known to be worth a look."""
        nothing = Spread(self._rules, self.replacement)

        def whole(scalar: Scalar) -> bytes | None:
            rule = None if scalar.is_key else self._rules.of_path(scalar.path)
            return None if rule is None else self._replaced_whole(rule, scalar)

        def part(document: bytes, scalar: Scalar) -> bytes | None:
            column = scalar.path[0] if scalar.path else ""
            if column in kept or _is_column(scalar):
                return None
            return self._redacted_scalar(document, scalar, nothing if column in _VOCABULARY else spread)

        return replace_scalars(line, whole, part)

    def _replaced_whole(self, rule: ActiveRule, scalar: Scalar) -> bytes | None:
        """The token of a value that is found by its path; None for one that is empty or was replaced before."""
        value = scalar.value
        if not value.strip() or self._token.fullmatch(value):
            return None
        self.counts[rule.name] += 1
        return encoded(self.replacement(rule, self._rules.form_of(rule, value)))

    def _redacted_scalar(self, document: bytes, scalar: Scalar, spread: Spread) -> bytes | None:
        """The token of a string, number or key with what was found in it replaced; None if there is nothing."""
        lead = document[max(scalar.key_start, scalar.start - CONTEXT_BYTES) : scalar.start + scalar.is_text]
        is_suspect = cast("_Search", self._is_suspect)(lead + scalar.text)
        if not is_suspect and not spread.may_be_in(scalar.text):
            return None
        before = self._reader.read(lead).plain
        text = self._redacted_text(before, scalar.value) if is_suspect else scalar.value
        if not scalar.is_key and spread.may_be_in(text) and not is_structure(document, scalar):
            text = spread.taken_from(text, self._token, self.counts)
        return None if text == scalar.value else encoded(text)

    def _redacted_text(self, before: bytes, text: bytes) -> bytes:
        """A text with what the rules find in it replaced; `before` is what stands before it in its document."""
        for _ in range(_MOST_ROUNDS):
            plain = self._reader.read(text)
            found = self._rules.found_in(before + plain.plain)
            pieces, taken = list[bytes](), 0
            for rule, value in found:
                if value.start >= len(before):
                    start, end = plain.original(value.start - len(before), value.end - len(before))
                    pieces += [text[taken:start], self.replacement(rule, value.value)]
                    taken = end
                    self.counts[rule.name] += 1
            if not pieces:
                break
            text = b"".join([*pieces, text[taken:]])
        return text

    def find_leaks(self, text: bytes) -> list[Leak]:
        """What the level promises to be gone and is there: in any text, a line at a time, with no regard to JSON.

        Values of columns that are kept (ids, times, numbers) do not count.
        """
        is_suspect = self._is_suspect
        leaks: list[Leak] = []
        position = 0
        while is_suspect is not None and (match := is_suspect(text, position)):
            start = text.rfind(b"\n", 0, match.start() + 1) + 1
            position = text.find(b"\n", match.start() + 1)
            position = len(text) if position < 0 else position
            leaks += [Leak(name, start + offset) for name, offset in self._leaks_in_line(text[start:position])]
        return leaks

    def _leaks_in_line(self, line: bytes) -> list[tuple[str, int]]:
        plain = self._reader.read(line)
        found = [(rule.name, *plain.original(one.start, one.end)) for rule, one in self._rules.found_in(plain.plain)]
        kept = _kept_spans(line) if found else []
        leaks = [
            (name, start)
            for name, start, end in found
            if not any(first <= start and end <= last for first, last in kept)
        ]
        if self._rules.placed(line):
            leaks += self._leaks_by_path(line)
        return sorted(leaks, key=itemgetter(1))

    def _leaks_by_path(self, line: bytes) -> list[tuple[str, int]]:
        """What stands at a path that only a whole document tells; the line is parsed, as its reader will."""
        leaks = list[tuple[str, int]]()
        for path, value in _parsed_scalars(line.decode(errors="replace"), ()):
            rule = self._rules.of_path(path)
            if rule is not None and rule.is_placed and value.strip() and not self._token.fullmatch(value.encode()):
                token = encoded(value.encode(errors="replace"))
                leaks.append((rule.name, max(line.find(token) + 1 or line.find(token[1:-1]), 0)))
        return leaks

    def replacement(self, rule: ActiveRule, value: bytes) -> bytes:
        """What stands for a value."""
        if rule.has_token and self._tokens is not None:
            return self._tokens.token(rule.label, value)
        return f"<{rule.label}>".encode()


def open_redactor(settings: Settings, level: Level) -> Redactor:
    """The redactor of exports at a level, by the policy and with the key of the settings.

    Level none reads neither. Raises InvalidPolicy, and InvalidSetting for a key file that holds none.
    """
    if level == "none":
        return Redactor(level, Policy({}), "export", None)
    return Redactor(level, read_policy(settings.redaction_policy), "export", Tokens(read_key(settings)))


def open_client_redactor(settings: Settings) -> Redactor | None:
    """The redactor of records before they are spooled; None if the policy has no rule with the place `client`."""
    policy = read_policy(settings.redaction_policy)
    if not policy.applied("full", "client"):
        return None
    return Redactor("full", policy, "client", Tokens(read_key(settings)))


def _is_column(scalar: Scalar) -> bool:
    """Whether it is the name of a column, which a policy's pattern may match."""
    return scalar.is_key and not scalar.path and scalar.value.decode(errors="replace") in COLUMNS


def _kept_columns(kind: str) -> frozenset[str]:
    """The columns of a kind that are not looked into."""
    if kind not in KINDS:
        return _KEPT_ANYWHERE
    return frozenset(column.name for column in KINDS[kind].columns if column.type in _KEPT_TYPES)


def _kept_spans(line: bytes) -> list[tuple[int, int]]:
    """Where the kept columns of a line and all columns' names stand; by the names alone if it is no object of ours."""
    try:
        cells = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return [match.span() for match in _KEPT_CELL.finditer(line)]
    spans, position = list[tuple[int, int]](), 0
    for name, cell in cells.items():
        token = encoded(name.encode())
        name_start = line.find(token, position)
        start = line.find(bytes(cell), name_start + len(token))
        position = start + len(bytes(cell))
        if name in COLUMNS:
            spans.append((name_start, name_start + len(token)))
        if name in _KEPT_ANYWHERE:
            spans.append((start, position))
    return spans


def _parsed_scalars(text: str, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each string and number of a document, as the standard library reads it, with the keys that lead there."""
    try:
        waiting = [(path, json.loads(text, parse_constant=lambda _: None))]  # Infinity is no JSON, and no secret
    except (ValueError, RecursionError):
        return
    while waiting:
        here, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*here, str(key)), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(here, inner) for inner in value]
        elif isinstance(value, str):
            yield here, value
            if value.lstrip()[:1] in {"{", "["}:
                yield from _parsed_scalars(value, here)
        elif value is not None and not isinstance(value, bool):
            yield here, str(value)


def _version(level: Level, policy: Policy, place: Place, tokens: Tokens) -> str:
    """Twelve digits over all that decides what a line becomes."""
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    packages = [version_of(name) for name in ("google-re2", "phonenumbers", "python-stdnum")]
    parts = [level, place, tokens.fingerprint, *packages, policy.labels, policy.applied(level, place)]
    return hashlib.sha256(b"\0".join([msgspec.json.encode(parts), *code])).hexdigest()[:12]
