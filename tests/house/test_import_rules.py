"""The import arrows of the layout hold, private names stay in their folder, and breaking either is noticed."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
PACKAGES = ("ingest", "tds_dagster")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code and its rules, to break."""
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    return tmp_path


def run(tree: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAMS / program), *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=60)


def import_contracts(tree: Path) -> subprocess.CompletedProcess[str]:
    return run(tree, "lint-imports", "--no-logo", "--no-cache")


def add_line(module: Path, line: str) -> None:
    """Put a line behind a module that is there, or into a new one."""
    module.parent.mkdir(exist_ok=True)
    former = module.read_text(encoding="utf-8") if module.exists() else '"""A newcomer."""\n'
    module.write_text(f"{former}\n{line}\n", encoding="utf-8")


def test_the_import_contracts_hold() -> None:
    result = import_contracts(PROJECT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("tds_dagster/curate/newcomer.py", "import tds_dagster.assets", "stages"),
        ("tds_dagster/assets/newcomer.py", "import tds_dagster.definitions", "stages"),
        ("tds_dagster/assets/newcomer.py", "import tds_dagster.cli", "stages"),
        ("tds_dagster/automation/newcomer.py", "import tds_dagster.cli", "stages"),
        ("tds_dagster/export/newcomer.py", "import tds_dagster.partitions", "stages"),
        ("tds_dagster/newcomer.py", "import json", "stages"),
        ("tds_dagster/curate/newcomer.py", "import dagster", "no-dagster-below"),
        ("tds_dagster/export/newcomer.py", "from dagster import asset", "no-dagster-below"),
        ("tds_dagster/export/newcomer.py", "import dagster_postgres", "no-dagster-below"),
        ("ingest/newcomer.py", "import dagster", "no-dagster-below"),
        ("ingest/newcomer.py", "import tds_dagster.export", "client-alone"),
        ("ingest/pipeline/newcomer.py", "import tds_dagster.curate", "client-alone"),
        ("ingest/store.py", "import tds_dagster.curate", "client-alone"),
        ("tds_dagster/curate/newcomer.py", "import ingest.store", "reads-only"),
        ("tds_dagster/assets/newcomer.py", "from ingest import TdsError", "reads-only"),
        ("tds_dagster/export/newcomer.py", "import ingest.pipeline.spool", "reads-only"),
        ("tds_dagster/__init__.py", "import tds_dagster.curate", "package-file"),
        ("tds_dagster/__init__.py", "import ingest.settings", "package-file"),
    ],
)
def test_a_broken_import_arrow_is_noticed_and_the_module_is_named(
    tree: Path, module: str, line: str, contract: str
) -> None:
    add_line(tree / module, line)
    result = run(tree, "lint-imports", "--no-logo", "--no-cache", "--contract", contract)
    assert result.returncode == 1, result.stdout
    assert "0 kept, 1 broken" in result.stdout
    broken_by = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert broken_by.removeprefix("tds_dagster.") in result.stdout.split("Broken contracts", 1)[1]


def private_names_from_elsewhere(root: Path) -> list[str]:
    """Lines that import a `_` name out of another folder, as `path:line: name`.

    ruff's PLC2701 sees only those that cross from one top-level package into another, SLF001 only attributes.
    """
    found = []
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(PACKAGES):
                continue
            module = root / (node.module or "").replace(".", "/")
            folder = module if module.is_dir() else module.parent
            hidden = [name for name in node.names if name.name.startswith("_")]
            if folder != path.parent:
                found += [f"{path.relative_to(root)}:{node.lineno}: {node.module}.{name.name}" for name in hidden]
    return found


def test_private_names_stay_in_their_folder() -> None:
    assert private_names_from_elsewhere(PROJECT) == []


@pytest.mark.parametrize(
    "module", ["ingest/pipeline/newcomer.py", "tds_dagster/curate/newcomer.py", "tds_dagster/newcomer.py"]
)
def test_a_private_name_from_another_folder_is_noticed(tree: Path, module: str) -> None:
    add_line(tree / module, "from ingest.records import _COMMON")
    assert private_names_from_elsewhere(tree) == [f"{module}:3: ingest.records._COMMON"]


@pytest.mark.parametrize(
    ("module", "rule", "line"),
    [
        ("tds_dagster/curate/newcomer.py", "PLC2701", "from ingest.records import _COMMON"),
        ("tds_dagster/assets/newcomer.py", "SLF001", "import ingest.records\n\nX = ingest.records._COMMON"),
        ("ingest/newcomer.py", "SLF001", "import ingest.records\n\nX = ingest.records._COMMON"),
        ("ingest/pipeline/newcomer.py", "TID253", "import pandas"),
        ("ingest/newcomer.py", "TID253", "import redis"),
        ("ingest/newcomer.py", "TID253", "import tds_dagster.export"),
        ("ingest/newcomer.py", "TID252", "from . import errors"),
    ],
)
def test_ruff_notices_private_names_across_packages_and_heavy_imports_in_the_client(
    tree: Path, module: str, rule: str, line: str
) -> None:
    add_line(tree / module, line)
    result = run(tree, "ruff", "check", "--no-cache", "--output-format", "concise", module)
    assert result.returncode == 1
    name = {"PLC2701": "import-private-name", "SLF001": "private-member-access"}
    names = name | {"TID253": "banned-module-level-imports", "TID252": "relative-imports"}
    assert names[rule] in result.stdout
