"""Finds the lines of a CSV file that are no rows, so that DuckDB reads a file of nothing but rows.

One line is one row in our files (RFC 4180 without line breaks inside a field), so each can be judged alone. DuckDB's
own `store_rejects` is not enough: of an open quote it makes one reject out of two lines, so that a good row is lost
with a bad one; extra columns at a row's end pass if they are null, and so shift a row unseen; it lists some lines
twice, passes over empty ones and shows bytes that are not UTF-8 as `?`.

A piece of a mebibyte is judged at once by RE2, which is a matter of one pass and holds no lock of Python (0.5 s for
400 MB; line by line it was 1.1 s, and no other thread could work). Only a piece with a flaw is taken apart.
"""

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from ingest.pipeline.partitions import PRIVATE_FILE
from tds_dagster.curate.artifacts import CHUNK_BYTES
from tds_dagster.curate.raw import line_feeds

# Possessive (`*+`), so that a field of 16 MiB needs no stack. Stricter than DuckDB: what passes here, it reads too.
_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"'
_FIELD = rb'(?:%s|[^",\r]*+)' % _QUOTED
_QUOTED_FIELD = re.compile(_QUOTED)
_RE2_FIELD = rb'(?:"(?:[^"\n]|"")*"|[^",\r\n]*)'  # the same language as _FIELD, for text with line feeds
_ANY_ROW = re.compile(rb"%s(?:,%s)*" % (_FIELD, _FIELD))


class Sieve:
    """The lines of a CSV file that are no rows of so many columns.

    `lines` counts all lines, the header among them; `flaws` maps line numbers to reasons (the header is line 1 and
    not judged); no line is longer than `longest_bytes`.
    """

    def __init__(self, path: Path, columns: int) -> None:
        """Read the file once."""
        self.path = path
        self.lines = 1
        self.longest_bytes = 0
        self.flaws: dict[int, str] = {}
        self._columns = columns
        self._row = re.compile(rb"%s(?:,%s){%d}" % (_FIELD, _FIELD, columns - 1))
        is_rows = _compile_rows(columns)
        for piece in _pieces(path):
            if is_rows(piece) is None or not _is_text(piece):
                self._judge(piece.split(b"\n")[:-1])
            self.lines += line_feeds(piece)
            self.longest_bytes = max(self.longest_bytes, len(piece))

    def _judge(self, lines: list[bytes]) -> None:
        for number, line in enumerate(lines, self.lines + 1):
            reason = self._flaw(line)
            if reason is not None:
                self.flaws[number] = reason

    def _flaw(self, line: bytes) -> str | None:
        """Why a line is no row; None if it is one."""
        if not line:
            return "an empty line"
        try:
            line.decode()
        except UnicodeDecodeError as err:
            return f"not UTF-8: byte {err.start} of the line"
        if self._row.fullmatch(line):
            return None
        if _ANY_ROW.fullmatch(line):
            return f"{_QUOTED_FIELD.sub(b'', line).count(b',') + 1} columns instead of {self._columns}"
        return "not CSV: a quote is missing or out of place"

    def sifted(self, scratch: Path) -> Path:
        """A file without the flawed lines: the same one if there are none, else a copy in `scratch`."""
        if not self.flaws:
            return self.path
        target = scratch / f"sifted_{self.path.name}"
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE)
        with self.path.open("rb") as source, os.fdopen(descriptor, "wb") as out:
            out.writelines(line for number, line in enumerate(source, 1) if number not in self.flaws)
        return target

    def line_numbers(self) -> range | list[int]:
        """The line number of each row of the sifted file, in order."""
        numbers = range(2, self.lines + 1)
        return [number for number in numbers if number not in self.flaws] if self.flaws else numbers


@cache
def _compile_rows(columns: int) -> Callable[[bytes], object]:
    """Any number of rows, each with its line feed, byte by byte."""
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_capture = True
    matched: Callable[[bytes], object] = re2.compile(
        rb"(?:%s(?:,%s){%d}\n)*" % (_RE2_FIELD, _RE2_FIELD, columns - 1), options
    ).fullmatch
    return matched


def _pieces(path: Path) -> Iterator[bytes]:
    """The file behind its first line in pieces of whole lines, about a mebibyte each."""
    with path.open("rb") as source:
        source.readline()
        while piece := source.read(CHUNK_BYTES):
            yield piece if piece.endswith(b"\n") else piece + source.readline()


def _is_text(piece: bytes) -> bool:
    """Whether it is UTF-8."""
    try:
        return piece.isascii() or bool(piece.decode())
    except UnicodeDecodeError:
        return False
