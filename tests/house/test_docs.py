"""Every command and every piece of Python that the docs show works as shown."""

import importlib.util
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ingest.agents.old_tables import OLD_TABLES
from tests.agents.old_parts import OldDatabase, fill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.parts import PostgresServer, RedisServer

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(PROJECT).as_posix()
    for path in [*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), PROJECT / "data" / "README.md"]
)
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*) -->\n+)?```(?P<language>sh|python)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_WITHOUT_SERVER = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-W", "error", "-c"]}
MOST_NOT_RUN = 6  # whatever is not run here is a promise that nobody holds


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    language: str
    code: str
    reason: str | None  # why it is not run


def blocks_of(page: str) -> list[Block]:
    text = (PROJECT / page).read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, match.start("language")) + 1, match["language"], match["code"], match["reason"])
        for match in _FENCE.finditer(text)
    ]


def pages_with_blocks() -> list[str]:
    return [page for page in PAGES if any(block.reason is None for block in blocks_of(page))]


@pytest.mark.parametrize("page", pages_with_blocks())
def test_a_pages_commands_and_python_work_one_after_the_other(
    request: pytest.FixtureRequest, tmp_path: Path, page: str
) -> None:
    blocks = [block for block in blocks_of(page) if block.reason is None]
    environment = {**os.environ, "TDS_DATA_DIR": str(tmp_path / "data"), "HOME": str(tmp_path)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if any("TDS_REDIS_URL" in block.code for block in blocks):
        server: RedisServer = request.getfixturevalue("redis_server")
        environment["TDS_REDIS_URL"] = server.url
        environment["PATH"] += f":{Path(request.getfixturevalue('redis_binary')).parent}"
    with old_tables(request, blocks) as of_postgres:
        for block in blocks:
            run(page, block, tmp_path, environment | of_postgres)


@contextmanager
def old_tables(request: pytest.FixtureRequest, blocks: list[Block]) -> "Iterator[dict[str, str]]":
    """The address of a PostgreSQL with some rows in the old tables, for pages that migrate them."""
    if not any("tds migrate" in block.code for block in blocks):
        yield {}
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    database = OldDatabase(server.url, "old_of_docs")
    database.execute("SET search_path TO public")
    database.schema = "public"
    database.create()
    fill(database)
    try:
        yield {"TDS_POSTGRES_URL": server.url}
        assert not {*OLD_TABLES} & database.tables()
    finally:
        database.close()


def run(page: str, block: Block, folder: Path, environment: dict[str, str]) -> None:
    if block.language == "sh" and all(line.startswith(("make ", "#")) for line in block.code.splitlines()):
        check_targets(page, block)  # make test would be this test, in itself
        return
    command = [*_WITHOUT_SERVER[block.language], block.code]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    # redis-cli prints an error reply and exits 0.
    failed = done.returncode != 0 or re.search(r"^(ERR|WRONGTYPE|NOGROUP) ", done.stdout, re.MULTILINE)
    assert not failed, f"{page}:{block.line}\n{block.code}\n{done.stdout}\n{done.stderr}"


def check_targets(page: str, block: Block) -> None:
    for target in re.findall(r"^make ([a-z]+)", block.code, re.MULTILINE):
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, f"{page}:{block.line}: make {target}\n{done.stderr}"


def test_what_is_not_run_is_little_and_says_why() -> None:
    not_run = [(page, block) for page in PAGES for block in blocks_of(page) if block.reason is not None]
    assert len(not_run) <= MOST_NOT_RUN
    assert [(page, block.line) for page, block in not_run if len(block.reason or "") < 10] == []


def test_every_block_is_one_of_a_kind_that_is_run() -> None:
    """`console` and `text` hold output and pictures; a block without a language would be passed over unseen.

    `js` is run by tests/ingest/test_synapse_readers.py, where there is a node.
    """
    known = {"sh", "python", "console", "text", "json", "mermaid", "js"}
    for page in PAGES:
        opened = re.findall(r"^```(.*)$", (PROJECT / page).read_text(encoding="utf-8"), re.MULTILINE)[::2]
        assert set(opened) <= known, page


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = (PROJECT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in link:
                assert (PROJECT / page).parent.joinpath(link).exists(), f"{page}: {link}"


def test_files_and_folders_of_the_project_that_a_page_names_exist() -> None:
    for page in PAGES:
        text = (PROJECT / page).read_text(encoding="utf-8")
        for name in re.findall(r"`((?:ingest|tds_dagster|tests|docs|benchmarks|requirements)/[\w./-]*)`", text):
            assert (PROJECT / name).exists(), f"{page}: {name}"


def test_every_make_target_that_a_page_names_exists_and_does_something() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*##", makefile, re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"`make ([a-z]+)", (PROJECT / page).read_text(encoding="utf-8"))
    }
    assert named <= targets
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == targets
    for program in re.findall(r"\$\(BIN\)/python -m (\w+)|\$\(BIN\)/python (\S+\.py)", makefile):
        for name in filter(None, program):
            assert (PROJECT / name).exists() or name == "pip" or (PROJECT / name / "__main__.py").exists(), name


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", PROJECT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_and_the_example_of_settings_are_those_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert generator().main(["--check"]) == 0, capsys.readouterr().err


def test_a_page_that_is_not_up_to_date_is_noticed_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    page = (PROJECT / "docs" / "files.md").read_text(encoding="utf-8")
    (tmp_path / "docs" / "files.md").write_text(page.replace("| `payload` | json |", "| `payload` | text |"), "utf-8")
    generate = generator()
    monkeypatch.setattr(generate, "PROJECT", tmp_path)
    assert generate.main(["--check"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told == [f"{name} is not up to date: run `make docs`" for name in ("docs/files.md", ".env.example")]
    assert generate.main([]) == 0
    assert (tmp_path / "docs" / "files.md").read_text(encoding="utf-8") == page
    assert generate.main(["--check"]) == 0


def test_the_example_of_settings_has_every_variable_and_loads_as_the_defaults() -> None:
    from ingest.settings import Settings, read_settings

    example = (PROJECT / ".env.example").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^#(TDS_\w+)=(.*)$", example, re.MULTILINE))
    assert list(variables) == [f"TDS_{name.upper()}" for name in Settings.__struct_fields__]
    assert read_settings(variables) == read_settings({})
