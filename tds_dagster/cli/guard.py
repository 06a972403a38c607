"""Ends the process groups of a `tds up` that was killed: `python -m tds_dagster.cli.guard`, one beside each tree.

Its standard input is a pipe from `tds up`. A line is a process group of the tree; the line `done` means that nothing is
left of it. When the pipe ends without that, `tds up` was killed, and what it had started would go on: a second daemon
beside the next tree's would evaluate every sensor twice.
"""

import contextlib
import os
import signal
import sys
import time

GRACE_S = 8.0  # from SIGTERM to SIGKILL


def main() -> None:
    """Wait for the end of the pipe, then end what is left."""
    groups: list[int] = []
    for line in sys.stdin:
        if line == "done\n":
            return
        groups.append(int(line))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; macOS: only zombies are left
                os.killpg(group, number)
        if number == signal.SIGTERM:
            time.sleep(GRACE_S)


if __name__ == "__main__":
    main()
