"""What one check of `tds doctor` gives."""

from typing import Literal, NamedTuple

State = Literal["ok", "warning", "broken"]  # broken: records cannot be stored or exported now, or data is damaged


class Check(NamedTuple):
    """What one check found."""

    name: str
    state: State
    found: str
    advice: str | None = None
