"""Turns text of records, which may hold anything, into what a terminal may show."""

import re
import shutil
import unicodedata
from collections.abc import Sequence

BARS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
# Control characters move the cursor, change colours or answer for the user; marks of direction (Unicode Technical
# Report 36, 2.11) show text in another order than it has.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text whose control characters are shown instead of obeyed: ESC is `␛`. Line feeds and tabs stay."""
    return _UNSAFE.sub(lambda match: _picture(match[0]), text)


def one_line(text: str, width: int) -> str:
    """Text on one line of at most so many columns; what is cut off is shown as `…`."""
    flat = " ".join(visible(text[: 4 * width + 80]).split())
    if columns_of(flat) <= width and len(text) <= 4 * width + 80:
        return flat
    shown, used = [], 0
    for char in flat:
        used += columns_of(char)
        if used > width - 1:
            break
        shown.append(char)
    return "".join(shown) + "…"


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: wide characters take two, combining ones none (UAX 11)."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def sparkline(values: Sequence[int]) -> str:
    """A bar a value, each one character high: `▁▄█`. A value above 0 always shows."""
    most = max(values, default=0)
    return "".join(BARS[0 if not value else max(1, round(value / most * 8))] for value in values)


def bar(share: float, width: int) -> str:
    """A bar of a share from 0 to 1, in eighths of a character."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def screen_width(asked: int | None = None) -> int:
    """Columns to write in: those asked for, the terminal's, or 100 in a pipe (COLUMNS decides where it is set)."""
    return asked if asked is not None else max(40, shutil.get_terminal_size((100, 24)).columns)


def _picture(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"


def _columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1
