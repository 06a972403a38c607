"""Runs a trainer's command so that it ends with whoever asked for it: `python -m tds_dagster.training.leash COMMAND…`.

A run worker that is killed cannot end what it started, and a training that goes on alone holds a core, or a GPU, for
hours beside the one that took its place. This process asks who its parent is; when that has changed, it kills the
command's process group, which has what the command itself started. Input, output, signals to end and the exit code
pass through. It polls, because Linux's parent-death signal goes to one process only, and macOS has none.
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

POLL_S = 0.2
GRACE_S = 5.0  # from a signal to end, which is passed on, to SIGKILL
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leashed(command: Sequence[str]) -> list[str]:
    """The command that runs a command so."""
    return [sys.executable, "-m", "tds_dagster.training.leash", str(os.getpid()), *command]


def main(owner: int, command: Sequence[str]) -> int:
    """Run the command until it ends, its owner is gone, or it was asked to end and `GRACE_S` are over.

    Gives its exit code, 128 + n if signal n ended it.
    """
    # Out of the owner's process group: who kills that whole group would kill this process, and leave the command alone.
    os.setsid()
    try:
        process = subprocess.Popen(command, start_new_session=True)
    except OSError as err:
        sys.stderr.write(f"{command[0]}: {err.strerror}: expected a program; correct TDS_TRAINER\n")
        return 127
    deadline = math.inf

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal deadline
        deadline = min(deadline, time.monotonic() + GRACE_S)
        _signal_group(process.pid, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    code = None
    while code is None and os.getppid() == owner and time.monotonic() < deadline:
        try:
            code = process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
    _signal_group(process.pid, signal.SIGKILL)  # it, or what it started and left behind
    code = process.wait()
    return code if code >= 0 else 128 - code


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # gone; macOS says the latter of a group of zombies
        return


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
