"""Whatever is raised on purpose is one family, and its docstring draws the family as it is."""

import ast
import inspect
import re
from pathlib import Path

import ingest.errors
from ingest.errors import TdsError

PROJECT = Path(__file__).parents[2]
# Raised where the language or a framework asks for them, never to tell of a value: see the test below.
LANGUAGE_ERRORS = {"NotImplementedError", "StopIteration", "StopAsyncIteration", "SystemExit", "KeyboardInterrupt"}


def drawn_tree() -> dict[str, str]:
    """Child to parent, from the drawing in the docstring of ingest.errors."""
    parents: dict[str, str] = {}
    branch: list[tuple[int, str]] = []
    for line in (inspect.getdoc(ingest.errors) or "").splitlines():
        match = re.match(r"^([ │├└─]*)([A-Z]\w+)(?=$|  )", line)
        if not match or not line.startswith("    "):
            continue
        depth = len(match[1])
        branch = [(d, name) for d, name in branch if d < depth]
        if branch:
            parents[match[2]] = branch[-1][1]
        branch.append((depth, match[2]))
    return parents


def test_the_tree_in_the_docstring_is_the_real_tree() -> None:
    real = {
        name: next(base.__name__ for base in cls.__bases__ if issubclass(base, TdsError))
        for name, cls in vars(ingest.errors).items()
        if inspect.isclass(cls) and issubclass(cls, TdsError) and cls is not TdsError
    }
    assert drawn_tree() == real
    assert "UnknownKind" in real


def test_every_error_says_what_it_is_about_in_a_docstring_of_its_own() -> None:
    classes = [cls for cls in vars(ingest.errors).values() if inspect.isclass(cls)]
    assert [cls.__name__ for cls in classes if not (cls.__doc__ or "").endswith(".")] == []


def raised_names(source: str) -> set[str]:
    """Names of the classes, or of the functions that make the error, in `raise Name(...)`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            function = node.exc.func
            names.add(function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "?"))
    return names


def test_nothing_outside_the_family_is_raised_on_purpose() -> None:
    family = {name for name, value in vars(ingest.errors).items() if inspect.isclass(value)}
    strangers = {}
    for path in sorted([*PROJECT.glob("ingest/**/*.py"), *PROJECT.glob("tds_dagster/**/*.py")]):
        # A private function that makes an error is typed to return one of the family: mypy holds that.
        made = {name for name in raised_names(path.read_text(encoding="utf-8")) if not name.startswith("_")}
        unknown = made - family - LANGUAGE_ERRORS - ALLOWED.get(path.relative_to(PROJECT).as_posix(), set())
        if unknown:
            strangers[path.relative_to(PROJECT).as_posix()] = unknown
    assert strangers == {}


# Raised to a caller within the project that catches it by this name, or because the framework wants its own class.
ALLOWED: dict[str, set[str]] = {
    "ingest/agents/config_files.py": {"wrong"},  # ConfigFile.wrong makes an InvalidConfig with file and line
    "ingest/agents/configs.py": {"wrong"},  # the same
    "ingest/agents/prompts.py": {"wrong", "SecurityError"},  # the same; Jinja's own, which render turns into ours
    "ingest/calls.py": {"RuntimeError"},  # blocking: a call of ours that suspends would be a mistake in this package
    "ingest/pipeline/synapse.py": {"TimeoutError"},  # redis-py's own, which redis_errors around it turns into ours
    "ingest/pipeline/partitions.py": {"ValueError"},  # filing_day: the writer quarantines the line
    "ingest/records.py": {"ValueError"},  # read_row: a row that this project did not write
    "tds_dagster/curate/folders.py": {"refuse"},  # the caller's class, by its type one of the family
    "tds_dagster/training/questions.py": {"ValueError"},  # a line of a dataset, which read_split tells with its file
    "tds_dagster/cli/alert.py": {"BadParameter"},  # typer's own, for exit 2 and the usage line
    "tds_dagster/cli/erase.py": {"BadParameter"},  # typer's own, for exit 2 and the usage line
    "tds_dagster/cli/show.py": {"BadParameter"},  # the same
    "tds_dagster/cli/tail.py": {"BadParameter"},  # the same
    "tds_dagster/cli/verify.py": {"BadParameter"},  # the same
}
