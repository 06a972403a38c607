"""Turns records into redacted ones before they reach the spool, where a policy asks for that.

What is redacted here never was on a disk: there is no getting it back. A record takes as long as its redaction does
(2 microseconds where nothing is suspect, else 0.2 to 0.4 ms for 0.5 to 2 KB). Without such a policy nothing of this is
imported but TOML's reader, and a call does what it did.
"""

import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import MissingExtra
from ingest.pipeline.spool import Spool
from ingest.settings import Settings

if TYPE_CHECKING:
    from ingest.redaction.redactor import Redactor


class RedactingSpool(Spool):
    """A spool whose records are redacted on their way in."""

    def __init__(self, settings: Settings, kind: str, redactor: "Redactor") -> None:
        """As `Spool`."""
        super().__init__(settings, kind)
        self._redactor = redactor

    def append(
        self,
        line: bytes,
        coerced: bool = False,  # noqa: FBT001, FBT002 - as the spool's
        day: int = 0,
    ) -> bool | None:
        """As the spool's: the length that counts is that of the redacted record. Its form is JSON, `day` is 0."""
        return super().append(self._redactor.redact_line(self.kind, line), coerced, day)


def spool_opener(settings: Settings) -> Callable[[str], Spool]:
    """What opens a kind's spool: one that redacts if the policy has a rule with the place `client`.

    Raises InvalidPolicy, and MissingExtra if such a rule needs packages that are not installed.
    """
    if settings.redaction_policy is None or not names_client(settings.redaction_policy):
        return partial(Spool, settings)
    try:
        from ingest.redaction.redactor import open_client_redactor
    except ModuleNotFoundError as err:
        raise MissingExtra(err.name) from err
    redactor = open_client_redactor(settings)
    return partial(Spool, settings) if redactor is None else partial(RedactingSpool, settings, redactor=redactor)


def names_client(policy: Path) -> bool:
    """Whether a policy may have a rule for the client; also one that cannot be read, for its error is told later."""
    try:
        rules = tomllib.loads(policy.read_text(encoding="utf-8")).get("rules", {})
        return any("client" in rule.get("places", ()) for rule in rules.values())
    except (OSError, ValueError, AttributeError, TypeError):
        return True
