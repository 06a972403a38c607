"""Locks: what is asked of a holder is heard."""

import fcntl
import os
import threading
from pathlib import Path

from ingest.pipeline import locks


def test_a_question_is_asked_again_where_somebody_looked_at_that_moment(tmp_path: Path) -> None:
    lock, gone = tmp_path / "kind.lock", list[str]()
    holder = locks.YieldingLock(lock, lambda: gone.append("let go"))
    assert holder.acquire()
    asked = tmp_path / "kind.asked"
    asked.touch()
    looking = os.open(asked, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.03, os.close, [looking]).start()
    with locks.asking(lock):
        holder._next_look = 0.0
        assert not holder.acquire()
        assert gone == ["let go"]
    assert not asked.exists()
    holder._next_look = 0.0
    assert holder.acquire()
