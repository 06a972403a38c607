"""Turns a file into a lock that is free again when its holder dies (flock)."""

import fcntl
import os
import threading
from pathlib import Path

from ingest.pipeline.partitions import PRIVATE_FILE, make_folder

# A fork between the flock and its entry below would leave the child with a lock that it does not know of.
_acquiring = threading.Lock()
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
