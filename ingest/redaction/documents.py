"""Turns a JSON document into the same document with some of its strings and numbers replaced, and nothing else.

The document is read token by token and spliced, never built as Python objects: what is not replaced keeps its very
bytes, its spacing, the order and even the repetition of its keys. Documents inside strings are read in the same way.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?[0-9][0-9.eE+\-]*+|[{}\[\]:,]|true|false|null', re.DOTALL)
_DEEPEST = 16  # documents inside strings inside documents; what lies deeper is text
_MAY_HOLD_A_DOCUMENT = re.compile(rb'"(?:\s|\\[nrt])*[{\[]')
_encode = msgspec.json.Encoder().encode

Path = tuple[str, ...]  # the keys that lead to a value, the column first; the items of an array have the array's path


class Scalar(NamedTuple):
    """A string, a number or a key in a document."""

    path: Path  # of a value, from the outermost document on; of a key the path of its object
    is_key: bool
    start: int  # of the token in the document
    end: int
    text: bytes  # as it stands there, a string with its quotes
    key_start: int  # of the key right before it, which tells what it is; `start` if something else stands between
    object_start: int  # of the innermost object around it, which its neighbours have too; -1 outside of any

    @property
    def is_text(self) -> bool:
        """Whether it is no number."""
        return self.text[:1] == b'"'

    @property
    def value(self) -> bytes:
        """A string's text in UTF-8, a number's digits."""
        return decoded(self.text) if self.is_text else self.text


def scalars(document: bytes, base: Path = ()) -> Iterator[Scalar]:
    """The strings, numbers and keys of a document that is known to be one, from left to right, below `base`."""
    path = base
    is_object: list[bool] = []  # of each open object or array
    starts = [-1]  # of each open object
    is_key = False
    key_start: int | None = None
    for match in _TOKEN.finditer(document):
        token = match[0]
        first = token[0]
        if first == _QUOTE and is_key:
            key_start = match.start()
            yield Scalar(path[:-1], True, key_start, match.end(), token, key_start, starts[-1])
            path = (*path[:-1], decoded(token).decode(errors="replace"))
            is_key = False
        elif first == _QUOTE or first in _DIGITS:
            start = match.start()
            before = start if key_start is None else key_start
            yield Scalar(path, False, start, match.end(), token, before, starts[-1])
            key_start = None
        elif first == _COMMA:
            is_key = is_object[-1]
            key_start = None
        elif first == _OPEN_OBJECT:
            is_object.append(True)
            starts.append(match.start())
            path = (*path, "")
            is_key = True
            key_start = None
        elif first == _OPEN_ARRAY:
            is_object.append(False)
        elif first in _CLOSE:
            is_key = False
            key_start = None
            if is_object.pop():
                starts.pop()
                path = path[:-1]


_QUOTE, _COMMA, _OPEN_OBJECT, _OPEN_ARRAY = b'",{['
_CLOSE = frozenset(b"}]")
_DIGITS = frozenset(b"-0123456789")


def decoded(token: bytes) -> bytes:
    """The text of a string's token as UTF-8; a lone half of a surrogate pair becomes a question mark."""
    if b"\\" not in token:
        return token[1:-1]
    try:
        return msgspec.json.decode(token, type=str).encode()
    except (msgspec.DecodeError, UnicodeEncodeError):  # what was stored by others may not be JSON by the letter
        return str(json.loads(token, strict=False)).encode(errors="replace")


def encoded(text: bytes) -> bytes:
    """The token of a string."""
    return _encode(text.decode(errors="replace"))


def inner_document(scalar: Scalar) -> bytes | None:
    """The object or array that a string holds as JSON text; None if it holds none."""
    if scalar.is_key or not _MAY_HOLD_A_DOCUMENT.match(scalar.text):
        return None
    text = scalar.value
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return text


def every_scalar(document: bytes, path: Path = (), depth: int = 0) -> Iterator[Scalar]:
    """The scalars of a document and of the documents inside its strings, the innermost instead of their string."""
    for scalar in scalars(document, path):
        inner = inner_document(scalar) if depth < _DEEPEST else None
        if inner is None:
            yield scalar
        else:
            yield from every_scalar(inner, scalar.path, depth + 1)


def replace_scalars(
    document: bytes,
    whole: Callable[[Scalar], bytes | None],
    part: Callable[[bytes, Scalar], bytes | None],
    path: Path = (),
    depth: int = 0,
) -> bytes:
    """The document with each scalar's token replaced for which one of the two functions gives another one.

    `whole` is asked about every scalar. Where it gives None, the document in a string is gone through, and `part` is
    asked about what is no document; it is also given the document that the scalar stands in.
    """
    pieces, taken = list[bytes](), 0
    for scalar in scalars(document, path):
        new = whole(scalar)
        if new is None:
            inner = inner_document(scalar) if depth < _DEEPEST else None
            if inner is None:
                new = part(document, scalar)
            else:
                changed = replace_scalars(inner, whole, part, scalar.path, depth + 1)
                new = None if changed == inner else encoded(changed)
        if new is not None:
            pieces += [document[taken : scalar.start], new]
            taken = scalar.end
    return b"".join([*pieces, document[taken:]]) if pieces else document
