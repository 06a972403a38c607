"""Turns a manifest's JSON into text that tells when a byte of it has changed, and in which field.

It is indented JSON with two fields at its end. `checksums` has for every field before it the first 8 hex digits of
SHA-256 over its text, from the name on, and `seal` is the same of `checksums`: so that it is known which of the two
was hit, a field or its checksum. What lies between the fields is always the same.
"""

import hashlib
import re

import msgspec

CHECKSUMS, SEAL = "checksums", "seal"

_FIELD = re.compile(rb'^  "([^"\n]+)": ', re.MULTILINE)  # one of a manifest's own, not one inside another
_CHECKSUM = re.compile(rb'^    "([^"\n]+)": "([0-9a-f]{8})"', re.MULTILINE)


class Flaw(msgspec.Struct, frozen=True):
    """Where a manifest's text is not what was written."""

    field: str | None  # None: between its fields
    offset: int  # the first byte of the field, or between the fields the first one that differs


class _Chunk(msgspec.Struct, frozen=True):
    """A field as it stands in a manifest, from the name on and without the comma behind it."""

    offset: int
    text: bytes

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text).hexdigest()[:8]


def seal(manifest: bytes) -> bytes:
    """A JSON object, of one field or more, as the text of a manifest."""
    text = msgspec.json.format(manifest, indent=2)
    checksums = _Chunk(len(text), _checksums_text(_chunks(text + b"\n")))
    return b",\n".join([text.removesuffix(b"\n}"), checksums.text, _seal_text(checksums)]) + b"\n}\n"


def find_flaw(text: bytes) -> Flaw | None:
    """Where a manifest's text is not as `seal` wrote it; None if it is. The text need not be JSON any more."""
    chunks = _chunks(text)
    checksums, end = chunks.pop(CHECKSUMS, None), chunks.pop(SEAL, None)
    if checksums is None or end is None or end.text != _seal_text(checksums):
        return _flaw_at_end(chunks, checksums, end, len(text))
    expected = {name.decode(): checksum.decode() for name, checksum in _CHECKSUM.findall(checksums.text)}
    # A name that was hit is not found, and its text counts as the field's before it: so what is missing is told first.
    for name in expected:
        if name not in chunks:
            return Flaw(name, 0)
    for name, chunk in chunks.items():
        if expected.get(name) != chunk.checksum:
            return Flaw(name, chunk.offset)
    written = b"{\n" + b",\n".join(chunk.text for chunk in (*chunks.values(), checksums, end)) + b"\n}\n"
    if text == written:
        return None
    pairs = enumerate(zip(text, written, strict=False))
    parted = next((place for place, (found, wanted) in pairs if found != wanted), min(len(text), len(written)))
    return Flaw(None, parted)


def _flaw_at_end(chunks: dict[str, _Chunk], checksums: _Chunk | None, end: _Chunk | None, size: int) -> Flaw:
    """Which of the two last fields is not as it was written; one that is not found may be part of the one before it."""
    if checksums is not None:
        before = {name: chunk for name, chunk in chunks.items() if chunk.offset < checksums.offset}
        if checksums.text.startswith(_checksums_text(before)):
            return Flaw(SEAL, size if end is None else end.offset)
    return Flaw(CHECKSUMS, size if checksums is None else checksums.offset)


def _chunks(text: bytes) -> dict[str, _Chunk]:
    """The fields of a manifest's text, by name."""
    starts = [(match.start(), match[1].decode(errors="replace")) for match in _FIELD.finditer(text)]
    ends = [*(start for start, _ in starts[1:]), len(text.removesuffix(b"\n}\n"))]
    return {
        name: _Chunk(start, text[start:end].removesuffix(b"\n").removesuffix(b","))
        for (start, name), end in zip(starts, ends, strict=False)
    }


def _checksums_text(chunks: dict[str, _Chunk]) -> bytes:
    lines = ",\n".join(f'    "{name}": "{chunk.checksum}"' for name, chunk in chunks.items())
    return f'  "{CHECKSUMS}": {{\n{lines}\n  }}'.encode()


def _seal_text(checksums: _Chunk) -> bytes:
    return f'  "{SEAL}": "{checksums.checksum}"'.encode()
