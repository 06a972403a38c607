"""Writes what dead processes left in the spool before a command looks at the files, or says why it cannot."""

import sqlite3
from collections.abc import Iterable

from ingest.errors import TdsError
from ingest.pipeline.writer import drain
from ingest.settings import Settings
from tds_dagster.cli.output import print_warning


def write_leftovers(settings: Settings, kinds: Iterable[str]) -> None:
    """`drain`, kind by kind. Where it fails, such as for a damaged day, a warning says so and the records wait."""
    for kind in kinds:
        try:
            drain(settings, [kind])
        except (TdsError, OSError, sqlite3.Error) as err:
            print_warning(f"{kind}: what waits in the spool is not written now: {err}")
