"""Turns code into the places where it uses the old tables, each with the call to use instead, also as SARIF 2.1.0.

SQL is found in any text file by its verbs (`INSERT INTO agent_events`), in Python only inside of string literals; there
models count too: `__tablename__`, `db_table` and `Table("…")`. Comments do not. SARIF is the OASIS standard for
findings in code (https://docs.oasis-open.org/sarif/sarif/v2.1.0/).
"""

import ast
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from ingest.agents.old_tables import OLD_TABLES

_NAMES = "|".join(OLD_TABLES)
_TABLE = rf"\s+(?:only\s+)?(?:[\w\"`{{}}$]+\.)?[\"`]?(?P<table>{_NAMES})\b(?![.\w])"
_SQL = re.compile(
    r"\b(?P<verb>insert\s+into|delete\s+from|update|truncate(?:\s+table)?|(?:create|alter|drop)\s+table"
    rf"(?:\s+if\s+(?:not\s+)?exists)?|copy|join|from|references|on){_TABLE}",
    re.IGNORECASE,
)
# Words that are English too: what has to stand before or behind them in a statement.
_BEFORE = {
    "from": re.compile(r"\bselect\b", re.IGNORECASE),
    "join": re.compile(r"\bselect\b|\bupdate\b|\bdelete\b", re.IGNORECASE),
    "references": re.compile(r"\b(?:create|alter)\s+table\b", re.IGNORECASE),
    "on": re.compile(r"\b(?:create|drop)\s+(?:unique\s+)?(?:index|trigger)\b", re.IGNORECASE),
}
_BEHIND = {
    "update": re.compile(r"[\s\"`]+(?:as\s+)?(?:\w+\s+)?set\b", re.IGNORECASE),
    "copy": re.compile(r"[^;]*?\b(?:from|to)\b", re.IGNORECASE),
}
_MODEL_FIELDS = ("__tablename__", "db_table")
_SKIPPED_FOLDERS = {".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", "build", "dist"}
_MOST_BYTES = 5 << 20  # of a file of code
_STATEMENT = 2000  # characters that one statement may have
_COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """One use of an old table."""

    path: str
    line: int  # from 1
    column: int  # from 1
    table: str
    operation: str  # such as `insert into`, or `model`
    call: str  # what to call instead


def find_uses(path: Path) -> list[Use]:
    """All uses in a file or below a folder, by path and line. Files that are no text are passed over."""
    uses = [use for file in _files(path) for use in _uses_in(file)]
    return sorted(uses, key=lambda use: (use.path, use.line, use.column))


def sarif_log(uses: Sequence[Use]) -> bytes:
    """The uses as a SARIF 2.1.0 log with a rule a table, as code scanning reads it."""
    rules = [
        {
            "id": name,
            "shortDescription": {"text": f"The table {name} belongs to the old way of storing."},
            "help": {"text": f"Use instead: {table.call}"},
        }
        for name, table in OLD_TABLES.items()
    ]
    results = [
        {
            "ruleId": use.table,
            "level": "warning",
            "message": {"text": f"{use.operation} {use.table}: use instead {use.call}"},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": use.path.replace(os.sep, "/")},
                        "region": {"startLine": use.line, "startColumn": use.column},
                    }
                }
            ],
        }
        for use in uses
    ]
    tool = {"driver": {"name": "tds migrate code", "rules": rules}}
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": tool, "results": results}],
    }
    return msgspec.json.format(msgspec.json.encode(log), indent=2) + b"\n"


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            file = Path(folder) / name
            if file.is_file() and file.stat().st_size <= _MOST_BYTES:
                yield file


def _uses_in(path: Path) -> Iterator[Use]:
    content = path.read_bytes()
    if b"\0" in content or not any(name.encode() in content.lower() for name in OLD_TABLES):
        return
    text = content.decode("utf-8", errors="replace")
    if path.suffix == ".py":
        try:
            yield from _uses_in_python(str(path), ast.parse(text), text)
            return
        except (SyntaxError, ValueError):  # of another version of Python, or no Python: it is looked at as text
            pass
    bare = _COMMENTS.sub(lambda comment: re.sub(r"[^\n]", " ", comment.group()), text)
    yield from _uses_in_sql(str(path), bare, 1)


def _uses_in_python(path: str, tree: ast.Module, text: str) -> Iterator[Use]:
    lines, docstrings = text.splitlines(), {id(node) for node in _docstrings(tree)}
    found = dict[tuple[int, int], Use]()  # of two literals on a line the whole line is looked at twice
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            uses = _uses_in_sql(path, source, node.lineno)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _is_model_field(node):
            uses = _model(path, node.value)
        elif isinstance(node, ast.Call) and _called_name(node) == "Table" and node.args:
            uses = _model(path, node.args[0])
        else:
            continue
        found |= {(use.line, use.column): use for use in uses}
    yield from found.values()


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for owner in ast.walk(tree):
        if isinstance(owner, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and owner.body:
            first = owner.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


def _is_model_field(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(target, ast.Name) and target.id in _MODEL_FIELDS for target in targets)


def _called_name(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _model(path: str, value: ast.expr) -> Iterator[Use]:
    if isinstance(value, ast.Constant) and value.value in OLD_TABLES:
        yield _use(path, value.lineno, value.col_offset + 1, str(value.value), "model")


def _uses_in_sql(path: str, text: str, first_line: int) -> Iterator[Use]:
    for match in _SQL.finditer(text):
        start = match.start("table")
        line = text.count("\n", 0, start)
        column = start - (text.rfind("\n", 0, start) + 1) + 1
        verb = " ".join(match["verb"].lower().split())
        before, behind = _BEFORE.get(verb), _BEHIND.get(verb)
        if before is not None and not before.search(text, max(0, match.start() - _STATEMENT), match.start()):
            continue
        if behind is not None and not behind.match(text, match.end()):
            continue
        yield _use(path, first_line + line, column, match["table"].lower(), verb)


def _use(path: str, line: int, column: int, table: str, operation: str) -> Use:
    return Use(path=path, line=line, column=column, table=table, operation=operation, call=OLD_TABLES[table].call)
