"""Compiles, for a kind of record, the function that turns a call's values into the record's CSV row.

The agent's call makes the row where it has all values at hand: that costs 0.3 microseconds more than making the
record's JSON, and the writer appends it as it is, where decoding and making a row of JSON takes it 1.7.

A row is one format string. What changes with each record (ids of its own, times, numbers, documents) is made by the
compiled function. The cells of texts that records of a session share (its agent, its type, its severity) and what
stands between them are made once, and looked up by these texts from then on: 0.1 microseconds instead of 0.5.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import msgspec

if TYPE_CHECKING:
    from ingest.records import Kind

PlainRow = Callable[[str, str, tuple[object, ...]], bytes | None]

_MOST_KNOWN = 5000  # combinations of texts, 400 bytes each: 2 MB; where there are more, all are made anew then
_LINE_FEED, _CARRIAGE_RETURN = 10, 13
_Piece = Sequence[str | int]  # text, and places of shared texts in their tuple


def compile_plain_row(kind: "Kind") -> PlainRow:
    """The function that makes the CSV row of an id, a timestamp and the values of `kind.fields`, without a line break.

    Its bytes are those of `Kind.csv_rows`; None for what needs care: values that the columns do not hold as they
    stand, texts to be escaped, documents that are Raw or have line breaks between their tokens. It raises what encoding
    a document raises, UnicodeEncodeError for a lone surrogate, msgspec.DecodeError or UnicodeDecodeError for Raw inside
    of a document that is no JSON, and TypeError for a text that cannot be hashed.
    """
    source = _RowSource(kind)
    known: dict[tuple[object, ...], tuple[str, ...]] = {}

    def make_pieces(texts: tuple[object, ...]) -> tuple[str, ...] | None:
        cells = _shared_cells(kind, source.shared, texts)
        if cells is None:
            return None
        if len(known) >= _MOST_KNOWN:
            known.clear()
        made = ("".join(cells[part] if isinstance(part, int) else part for part in piece) for piece in source.pieces)
        pieces = known[texts] = tuple(made)
        return pieces

    scope: dict[str, object] = {
        "encode": msgspec.json.Encoder().encode,
        "check": msgspec.json.Decoder(msgspec.Raw).decode,  # Raw inside of a document is copied by `encode` unseen
        "Raw": msgspec.Raw,
        "known": known,
        "make_pieces": make_pieces,
        "is_plain": _is_plain,
    }
    exec(source.text(), scope)  # noqa: S102 - made of the kind's columns and nothing else
    return cast("PlainRow", scope["plain_row"])


class _RowSource:
    """The source of one kind's function, put together column by column."""

    def __init__(self, kind: "Kind") -> None:
        self._kind = kind
        self._values = {name: f"v{place}" for place, name in enumerate(kind.fields)}
        self.shared = [c.name for c in kind.columns if c.name in self._values and self._is_shared(c.name)]
        self.pieces = list[_Piece]()  # those that have a shared text in them
        self._cells, self._parts = list[str](), list[str]()
        between = list[str | int]()  # since the last part
        for column in kind.columns:
            if column.name in self.shared:
                between.append(self.shared.index(column.name))
            else:
                between = self._add(column.name, between)
            between.append(",")
        self._end_piece([*between[:-1]])

    def _is_shared(self, name: str) -> bool:
        """Whether a column holds texts that other records have too."""
        column_type = self._kind.types[name]
        return column_type == "text" or (column_type == "id" and name not in self._kind.required)

    def _add(self, name: str, between: list[str | int]) -> list[str | int]:
        """Add a column that each record has a value of its own for; gives how the text behind it begins."""
        from ingest.records import ALIASES

        value, column_type = self._values.get(name), self._kind.types[name]
        if column_type == "json":
            self._cells.append(
                f" if {value} is None: {value} = q{value} = ''\n"
                f" elif type({value}) is Raw: return None\n"
                f" elif ({value} := encode({value})) == b'null': {value} = q{value} = ''\n"
                f" elif {_LINE_FEED} in {value} or {_CARRIAGE_RETURN} in {value}: return None\n"
                f" else:\n"
                f"  check({value})\n"
                f"  {value}, q{value} = {value}.replace(b'\"', b'\"\"').decode(), '\"'"
            )
            self._end_piece(between)
            self._parts.append(f"{{q{value}}}{{{value}}}{{q{value}}}")
            return []
        if value is None or name in self._kind.required:
            self._end_piece([*between, '"'])
            self._parts.append(f"{{{value or ALIASES.get(name, name)}}}")
            if value is not None:
                self._cells.append(f" if type({value}) is not str or not is_plain({value}): return None")
            return ['"']
        check, text = self._kind.type_check(name, value), value
        if column_type == "number":
            check, text = f"({check}) and {value} - {value} == 0", f"encode({value}).decode()"
        self._cells.append(
            f" if {value} is None: {value} = ''\n elif {check}: {value} = f'\"{{{text}}}\"'\n else: return None"
        )
        self._end_piece(between)
        self._parts.append(f"{{{value}}}")
        return []

    def _end_piece(self, between: list[str | int]) -> None:
        """End the text before a part: a constant, or a piece that shared texts are in."""
        if any(isinstance(part, int) for part in between):
            self._parts.append(f"{{p{len(self.pieces)}}}")
            self.pieces.append(between)
        else:
            self._parts.append("".join(map(str, between)))

    def text(self) -> str:
        """All of it."""
        shared = "".join(f"{self._values[name]}, " for name in self.shared)
        pieces = "".join(f"p{place}, " for place in range(len(self.pieces)))
        return "\n".join(
            [
                "def plain_row(record_id, timestamp, values):",
                f" {', '.join(self._values.values())} = values",
                f" try: {pieces}= known[{shared}]",
                " except KeyError:",
                f"  made = make_pieces(({shared}))",
                "  if made is None: return None",
                f"  {pieces}= made",
                *self._cells,
                f" return f'{''.join(self._parts)}'.encode()",
            ]
        )


def _is_plain(text: str) -> bool:
    """Whether a text stands in its cell as it is."""
    return not ('"' in text or "\\" in text or "\n" in text or "\r" in text)


def _shared_cells(kind: "Kind", names: Sequence[str], texts: Sequence[object]) -> list[str] | None:
    """The cells of shared texts; None if one of them needs care."""
    cells = []
    for name, text in zip(names, texts, strict=True):
        if text is None and name not in kind.required:
            cells.append("")
        elif type(text) is str and _is_plain(text) and text in kind.choices.get(name, (text,)):
            cells.append(f'"{text}"')
        else:
            return None
    return cells
