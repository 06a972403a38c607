"""Turns a file into a lock that is free again when its holder dies (flock)."""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest.pipeline.partitions import PRIVATE_FILE, make_folder

# A fork between the flock and its entry below would leave the child with a lock that it does not know of.
_acquiring = threading.Lock()
_LOOK_INTERVAL_S = 0.1  # between two looks whether somebody asks for a lock
_ASK_AGAIN_S, _ASKING_S = 0.001, 1.0  # a look takes some 10 us, and keeps a question from being asked
os.register_at_fork(before=_acquiring.acquire, after_in_parent=_acquiring.release, after_in_child=_acquiring.release)


class FileLock:
    """A lock that is free again when its holder dies (flock)."""

    def __init__(self, path: Path) -> None:
        """Name the lock; nothing is opened before `acquire`."""
        self._path = path
        self._file = -1

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file >= 0

    def acquire(self) -> bool:
        """Take the lock if it is free, or keep it; False if somebody else has it."""
        if self.is_held:
            return True
        make_folder(self._path.parent)
        with _acquiring:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except BaseException:
                os.close(descriptor)
                raise
            self._file = descriptor
        return True

    def release(self) -> None:
        """Let it go. In a forked child this only drops the copy: the parent keeps the lock."""
        if self.is_held:
            os.close(self._file)
            self._file = -1

    @staticmethod
    def is_taken(path: Path) -> bool:
        """Whether somebody holds the lock at `path` now."""
        if not path.exists():
            return False
        probe = FileLock(path)
        if probe.acquire():
            probe.release()
            return False
        return True


class YieldingLock(FileLock):
    """A lock that its holder lets go, at its next `acquire`, when somebody asks for it (`asking`)."""

    def __init__(self, path: Path, let_go: Callable[[], None]) -> None:
        """`let_go` brings what is under way to its end before the lock goes free."""
        super().__init__(path)
        self._let_go = let_go
        self._asked = _asked_file(path)
        self._is_asked = False
        self._next_look = 0.0

    def acquire(self) -> bool:
        """Take the lock if it is free, or keep it; False if somebody else has it or asks for it."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_INTERVAL_S
            self._is_asked = _is_held(self._asked)
        if not self._is_asked:
            return super().acquire()
        if self.is_held:
            self._let_go()
            self.release()
        return False


@contextmanager
def asking(path: Path) -> Iterator[None]:
    """Ask whoever holds the lock at `path` to let it go, and all others to leave it. One process asks at a time."""
    request = FileLock(_asked_file(path))
    deadline = time.monotonic() + _ASKING_S
    while not request.acquire() and time.monotonic() < deadline:
        time.sleep(_ASK_AGAIN_S)
    try:
        yield
    finally:
        if request.is_held:
            _asked_file(path).unlink(missing_ok=True)
        request.release()


def holder_of(path: Path) -> int | None:
    """The process that holds the lock at `path`, where the system tells (Linux)."""
    with contextlib.suppress(OSError):
        inode = path.stat().st_ino
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                return int(fields[4])
    return None


def _asked_file(path: Path) -> Path:
    return path.with_suffix(".asked")


def _is_held(path: Path) -> bool:
    """Whether somebody holds the file for itself. The look is a shared lock: two that look do not see each other."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
