# ruff: noqa: INP001 - a script, no package
"""Writes what follows from the code into the docs: the tables of docs/files.md and the whole of .env.example.

`make docs` runs it. `python docs/generate.py --check` changes nothing and exits 1 where a file is not up to date.
"""

import inspect
import sys
import textwrap
from datetime import date
from pathlib import Path

from ingest.records import KINDS, Kind
from ingest.settings import Settings

PROJECT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- from ingest/records.py, by make docs -->\n", "<!-- end -->\n"
ENV_HEADER = """\
# Settings, each with its default. Made from ingest/settings.py by `make docs`: change the comments there.
# Nothing has to be set. To set something, take the # in front of it away, and load the file into the
# environment of the agent, of `tds writer` and of `tds up`, for example with `set -a; . ./.env; set +a`.
# Sizes are bytes and may carry a unit (64MiB, 1g). An empty value counts as unset.
"""


def column_tables() -> str:
    """A section a kind: its columns in file order, with type and meaning."""
    return "\n".join(_column_table(kind) for kind in KINDS.values())


def _column_table(kind: Kind) -> str:
    rows = [
        f"| {place} | `{column.name}` | {column.type} | {'no' if _is_required(kind, column.name) else 'yes'} | "
        f"{column.description}{_choices(kind, column.name)} |"
        for place, column in enumerate(kind.columns, 1)
    ]
    head = ["| | column | type | null | holds |", "|---|---|---|---|---|"]
    return "\n".join(
        [f"### {kind.name}", "", f"{kind.description[0].upper()}{kind.description[1:]}.", "", *head, *rows, ""]
    )


def _is_required(kind: Kind, column: str) -> bool:
    return column in {"event_id", "record_id", "timestamp", *kind.required}


def _choices(kind: Kind, column: str) -> str:
    return "; no other value is taken" if column in kind.choices else ""


def env_example() -> str:
    """`.env.example`: the comment above each field of `Settings`, and its default."""
    parts = [ENV_HEADER]
    comment: list[str] = []
    for line in textwrap.dedent(inspect.getsource(Settings)).splitlines():
        text = line.strip()
        name = text.partition(":")[0]
        if text.startswith("# "):
            comment.append(text)
        elif comment and name in Settings.__struct_fields__:
            parts.append("\n".join([*comment, f"#TDS_{name.upper()}={_default(getattr(Settings(), name))}"]) + "\n")
            comment = []
    return "\n".join(parts)


def _default(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and value >= 1 << 20:
        return f"{value >> 30}GiB" if value % (1 << 30) == 0 else f"{value >> 20}MiB"
    return value.isoformat() if isinstance(value, date) else str(value)


def files_page(former: str) -> str:
    """docs/files.md with its tables made anew; the text around them stays."""
    before, _, rest = former.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{column_tables()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the files; with `--check`, only say which ones would change."""
    page = PROJECT / "docs" / "files.md"
    wanted = {page: files_page(page.read_text(encoding="utf-8")), PROJECT / ".env.example": env_example()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--check" in arguments:
            sys.stderr.write(f"{path.relative_to(PROJECT)} is not up to date: run `make docs`\n")
        else:
            path.write_text(wanted[path], encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(PROJECT)} written\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
