"""What holds for every command: help, exit codes, errors, what is loaded and how fast it answers."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import Result

from ingest import Settings
from ingest.records import KINDS
from tds_dagster.cli.app import app
from tests.parts import environment, run_python

COMMANDS: list[str] = list(get_command(app).commands)  # type: ignore[attr-defined]  # the app is a group
HEAVY = {"dagster", "duckdb", "pandas", "pyarrow", "pydantic", "redis", "rich"}
WITH_RESULT = ("export", "import", "status", "doctor", "demo")


def test_the_commands_of_the_contract_are_there() -> None:
    assert {"demo", "up", "writer", "tail", "status", "doctor", "export", "import"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, tds: Callable[..., Result]) -> None:
    result = tds(name, "--help")
    assert result.exit_code == 0
    example = result.stdout.partition("Example:\n")[2].strip()
    assert re.fullmatch(rf"(TDS_\w+=\S+ )?tds {name}( .+)?", example), result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_in_a_whole_sentence_what_each_does(name: str, tds: Callable[..., Result]) -> None:
    (line,) = re.findall(rf"^  {name} .*$", tds("--help").stdout, re.MULTILINE)
    assert line.endswith(".")
    assert not line.endswith("...")


@pytest.mark.parametrize("name", WITH_RESULT)
def test_every_command_that_prints_a_result_takes_json(name: str, tds: Callable[..., Result]) -> None:
    assert "--json" in tds(name, "--help").stdout


def loaded_by(settings: Settings, *arguments: str) -> set[str]:
    code = (
        "import json, sys\n"
        "sys.argv = ['tds', *sys.argv[1:]]\n"
        "from tds_dagster.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('\\n' + json.dumps([name for name in sys.modules if '.' not in name]))\n"
    )
    ran = run_python(code, settings, *arguments)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["status"], ["status", "--json"]])
def test_help_and_status_load_nothing_heavy(arguments: list[str], settings: Settings) -> None:
    assert not loaded_by(settings, *arguments) & HEAVY


def test_export_loads_no_dagster(settings: Settings) -> None:
    assert "dagster" not in loaded_by(settings, "export", "events", "--start", "2024-05-15", "--end", "2024-05-15")


@pytest.mark.parametrize("arguments", [["--help"], ["status"]])
def test_help_and_status_take_less_than_2_5_times_their_libraries(arguments: list[str], settings: Settings) -> None:
    tds = [str(Path(sys.executable).with_name("tds")), *arguments]
    libraries = [sys.executable, "-c", "import asyncio, msgspec, sqlite3, typer"]
    pairs = [(processor_s(tds, settings), processor_s(libraries, settings)) for _ in range(4)]  # in turn: 1.4 to 1.9
    assert min(of_tds for of_tds, _ in pairs) < 2.5 * min(of_libraries for _, of_libraries in pairs), pairs


def processor_s(command: list[str], settings: Settings) -> float:
    """Processor time and not the clock's: other tests may run beside this one."""
    before = os.times()
    subprocess.run(command, env=environment(settings), check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["exprot"], "Did you mean 'export'?"),
        (["export"], "Missing argument"),
        (["export", "evnts"], f"kind='evnts': expected one of {', '.join(KINDS)}"),
        (["tail", "evnts"], "kind='evnts'"),
        (["writer", "events", "evnts"], "kind='evnts'"),
        (["export", "events", "--start", "15.5.2024"], "--start='15.5.2024': expected a date as YYYY-MM-DD"),
        (["export", "events", "--end", "2024-02-30"], "--end='2024-02-30'"),
        (["export", "events", "--start", "2024-05-15", "--end", "2024-05-14"], "swap the two"),
        (["import", "x.jsonl", "--format", "strange"], "openai-chat"),
        (["import", "x.jsonl", "--format", "openai-chat", "--start", "May"], "--start='May'"),
        (["import", "x.jsonl", "--format", "openai-chat", "--days", "0"], "--days"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_was_expected(
    arguments: list[str], told: str, tds: Callable[..., Result], settings: Settings
) -> None:
    result = tds(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not result.stdout
    assert not settings.data_dir.exists()


def test_a_file_that_is_not_there_exits_with_1_and_without_a_traceback(
    tds: Callable[..., Result], tmp_path: Path
) -> None:
    result = tds("import", tmp_path / "absent.jsonl", "--format", "openai-chat")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'absent.jsonl'}: No such file or directory")


def test_a_setting_that_cannot_be_used_exits_with_1_and_names_the_variable(
    tds: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDS_KEY_DAYS", "many")
    for command in (["status"], ["export", "events"], ["tail", "events"], ["writer"]):
        result = tds(*command)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: TDS_KEY_DAYS='many': expected a whole number")


def test_the_version_is_printed(tds: Callable[..., Result]) -> None:
    assert re.fullmatch(r"training-data-store \d+\.\d+.*\n", tds("--version").stdout)


@pytest.mark.parametrize("name", ["import", "export", "status", "doctor"])
def test_the_example_of_a_command_works_as_pasted(
    name: str, tds: Callable[..., Result], tmp_path: Path, settings: Settings
) -> None:
    run = {"messages": [{"role": "user", "content": "hello"}], "reward": 1}
    (tmp_path / "runs.jsonl.gz").write_bytes(gzip.compress(json.dumps(run).encode()))
    example = tds(name, "--help").stdout.partition("Example:\n")[2].strip()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    pasted = subprocess.run(
        ["sh", "-c", example],
        cwd=tmp_path,
        env={**environment(settings), "PATH": path},
        capture_output=True,
        check=False,
    )
    assert pasted.returncode == 0, pasted.stderr
    assert pasted.stdout


def test_up_says_what_to_do_when_its_port_is_taken(tds: Callable[..., Result]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = tds("up", "--port", port)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: 127.0.0.1:{port}: expected a free port")
    assert "--port" in result.stderr
