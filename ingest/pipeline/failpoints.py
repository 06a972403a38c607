"""Kills this process at a named step of the write path where TDS_FAILPOINT asks for it: how recovery is tested."""

import os
import signal
from collections import Counter
from typing import Literal, get_args

from ingest.errors import InvalidSetting

Step = Literal[
    "intent", "append", "sync", "commit", "publish", "acknowledge",  # of the writer
    "plan", "rewrite", "erase", "rename", "wipe", "stream", "leftovers",  # of an erasure
    "derived", "rebuild", "receipt",
]  # fmt: skip


class Failpoint:
    """`append` kills at the first time that step is done, `append:3` at the third; None never kills."""

    def __init__(self, setting: str | None) -> None:
        """Parse the setting. Raises InvalidSetting for an unknown step or a count that is no number."""
        self._step, _, times = (setting or "").partition(":")
        if setting is not None and (self._step not in get_args(Step) or not (times or "1").isdecimal()):
            raise InvalidSetting(
                f"TDS_FAILPOINT={setting!r}: expected one of {', '.join(get_args(Step))}, with :N for the Nth time; "
                "unset it outside of tests"
            )
        self._times = int(times or 1)
        self._reached: Counter[str] = Counter()

    def reach(self, step: Step) -> None:
        """Say that a step is done."""
        if step == self._step:
            self._reached[step] += 1
            if self._reached[step] == self._times:
                os.kill(os.getpid(), signal.SIGKILL)
