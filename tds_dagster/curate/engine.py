"""Runs SQL on DuckDB, inside this process, with a private scratch folder that goes when the work is done.

Opening a connection costs 16 to 33 ms, as much as a small day takes, so one serves all days of a build; and it
is opened when first used, so that a build in which nothing changed never loads DuckDB (80 ms).
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import EngineFailed
from ingest.pipeline.partitions import DataPaths, make_folder

if TYPE_CHECKING:
    import duckdb

_MOST_MEMORY_BYTES = 2 << 30  # beyond it DuckDB spills into the scratch folder; a day of 400 MB just fits


class Engine:
    """One DuckDB connection for one thread, and a folder for files of the moment."""

    def __init__(self, paths: DataPaths, sharers: int = 1, threads: int | None = None) -> None:
        """Note where the data lie; nothing is opened yet.

        `sharers` is how many engines are at work at a time, `threads` how many this one has (None: its share).
        """
        self._home = paths.state / "scratch"
        self._sharers = sharers
        self._threads = max(1, (os.cpu_count() or 1) // sharers) if threads is None else threads
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._parsed: dict[str, duckdb.Statement] = {}
        self._folder: Path | None = None
        self._lock = -1

    @property
    def folder(self) -> Path:
        """A private folder on the data's disk; emptied and removed by `close`."""
        if self._folder is None:
            make_folder(self._home)
            _remove_leftovers(self._home)
            self._folder, self._lock = _make_locked_folder(self._home)
        return self._folder

    @property
    def connection(self) -> "duckdb.DuckDBPyConnection":
        """The connection. Times are UTC, rows keep their order, nothing is fetched from the network."""
        if self._connection is None:
            import duckdb

            self._connection = duckdb.connect(
                config={
                    "memory_limit": f"{_memory_bytes() // self._sharers >> 20}MiB",
                    "threads": str(self._threads),
                    "temp_directory": str(self.folder / "spill"),
                    "preserve_insertion_order": "true",
                    "autoinstall_known_extensions": "false",
                    # Arrow's usual strings end at 2 GiB a batch, and 2,048 records may be larger than that.
                    "arrow_large_buffer_size": "true",
                }
            )
            self._connection.execute("SET TimeZone = 'UTC'")
            # After two seconds it would draw one on stdout, where a command's result belongs.
            self._connection.execute("SET enable_progress_bar = false")
        return self._connection

    def execute(self, statement: str, *parameters: object) -> "duckdb.DuckDBPyConnection":
        """Execute one statement, which is parsed once: of a small day's query that is a third.

        So its text should be the same for every day, and what is not belongs into `parameters` ($1 and so on).
        """
        parsed = self._parsed.get(statement)
        if parsed is None:
            (parsed,) = self.connection.extract_statements(statement)
            self._parsed[statement] = parsed
        return self.connection.execute(parsed, parameters)

    def interrupt(self) -> None:
        """Stop the query that another thread runs, if it runs one."""
        if self._connection is not None:
            self._connection.interrupt()

    def close(self) -> None:
        """Close the connection and remove the folder. May be called twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._parsed.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            os.close(self._lock)
            self._folder = None


@contextmanager
def open_engine(paths: DataPaths, sharers: int = 1, threads: int | None = None) -> Iterator[Engine]:
    """An engine for the length of a `with`; see `Engine`."""
    engine = Engine(paths, sharers, threads)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def engine_errors(task: str) -> Iterator[None]:
    """Turn DuckDB's errors into EngineFailed, which says what was being done.

    Only what is said about memory and disk is passed on: other messages may quote a record, and Dagster's event log
    keeps what is raised.
    """
    import duckdb

    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as err:
        raise EngineFailed(f"{task}: DuckDB gave up: {err}; run it again with more free disk or memory") from err
    except RuntimeError as err:
        if "interrupted" in str(err).lower():
            raise KeyboardInterrupt from None  # DuckDB's way of saying Ctrl-C
        raise
    except duckdb.Error as err:
        raise EngineFailed(f"{task}: DuckDB gave up ({type(err).__name__}); run it again, or report it") from None


def _memory_bytes() -> int:
    """Half of the machine's memory, but not more than a large day needs."""
    return min(_MOST_MEMORY_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def _make_locked_folder(home: Path) -> tuple[Path, int]:
    """A new folder, held with flock, which says that its owner lives."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=home))
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another process took it for a leftover
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():
            return folder, descriptor
        os.close(descriptor)


def _remove_leftovers(home: Path) -> None:
    """Remove the folders of processes that were killed: those whose lock is free."""
    for folder in home.iterdir():
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # its owner has just removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(descriptor)
