"""Turns the first line of a day file into the names of its columns."""

import csv
from pathlib import Path

from ingest.errors import DamagedFile
from ingest.records import Kind


def read_header(kind: Kind, file: Path, raw_file: Path) -> list[str]:
    """The column names of a day file. A column may be missing (its cells are null), a strange one may not be there.

    Raises DamagedFile, naming `raw_file`, if the first line is no header of this kind.
    """
    with file.open("rb") as source:
        line = source.readline()
    try:
        names = next(csv.reader([line.decode()], strict=True))
    except (UnicodeDecodeError, csv.Error, StopIteration):
        names = []
    known = {column.name for column in kind.columns}
    strange = [name for name in names if name not in known]
    if strange or not names or len(set(names)) != len(names):
        # A first line of mostly unknown names may be a record: it is not quoted, for what is raised is logged.
        shown = f"unknown names in {len(strange)} of {len(names)} places" if strange else "a name twice, or no names"
        if 0 < len(strange) * 2 < len(names):
            shown = f"the unknown names {', '.join(strange)}"
        raise DamagedFile(
            f"{raw_file}: the first line has {shown}; expected each column of {kind.name} at most once "
            f"({', '.join(column.name for column in kind.columns)}); correct the first line, or update this program"
        )
    return names
