"""Turns a command line into one process of the store under attack: a worker, `tds`, or a flush.

`python -m tests.chaos.child worker '{...}'`, `... tds writer`, `... flush 30`. Where CHAOS_WITHOUT names a protection
it is switched off first, here and nowhere else: the product has no switch for it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
STUCK = 3  # the exit code of a flush that did not come to its end


def main() -> None:
    """Do what the command line says, in a process that ends with the harness."""
    # linux/prctl.h: the kernel kills this process when the harness dies, however that happens.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    without = os.environ.get("CHAOS_WITHOUT")
    if without:
        from tests.chaos.controls import CONTROLS

        CONTROLS[without].switch_off()
    role, *arguments = sys.argv[1:]
    if role == "worker":
        from tests.chaos.worker import work

        work(arguments[0])
    elif role == "flush":
        flush(float(arguments[0]))
    else:
        from tds_dagster.cli import main as tds

        sys.argv = ["tds", *arguments]
        tds()


def flush(timeout_s: float) -> None:
    """Write what all processes left; the exit code is STUCK if that does not come to its end."""
    from ingest import FlushTimeout, get_training_data_store

    store = get_training_data_store()
    try:
        store.sync.flush(timeout_s)
    except FlushTimeout as err:
        print(err, file=sys.stderr)
        os._exit(STUCK)
    store.sync.close()


if __name__ == "__main__":
    main()
