"""Runs a command and keeps the end of its stderr in a file: `python -m tds_dagster.training.last_lines FILE COMMAND…`.

Dagster's client for subprocesses hands stderr through and tells nothing but an exit code; whoever reads that a training
failed wants to know why. Input, output and exit code pass through, and so does stderr, line by line. FILE is written if
the command ends badly. Signals are for the command, which is in the same process group (`leash`).
"""

import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

LAST_LINES = 20
_REST_TIMEOUT_S = 2.0  # for what is still in the pipe; a process that the command left behind may hold it open


def keeping_last_lines(command: Sequence[str], file: Path) -> list[str]:
    """The command that runs a command so."""
    return [sys.executable, "-m", "tds_dagster.training.last_lines", str(file), *command]


def main(file: Path, command: Sequence[str]) -> int:
    """Run the command; gives its exit code, 128 + n if signal n ended it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _wait_on)  # a handler, for what is ignored stays ignored in the command
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
    except OSError as err:
        text = f"{command[0]}: {err.strerror}: expected a program; correct TDS_TRAINER\n"
        sys.stderr.write(text)
        file.write_text(text, encoding="utf-8")
        return 127
    last: deque[bytes] = deque(maxlen=LAST_LINES)
    listener = threading.Thread(target=_pass_on, args=(process.stderr, last), daemon=True)
    listener.start()
    code = process.wait()
    listener.join(_REST_TIMEOUT_S)
    if code:
        file.write_bytes(b"".join(last.copy()))
    return code if code >= 0 else 128 - code


def _wait_on(_number: int, _frame: FrameType | None) -> None:
    """The command got the signal too, and decides."""


def _pass_on(pipe: IO[bytes] | None, last: deque[bytes]) -> None:
    for line in pipe or ():
        last.append(line)
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
