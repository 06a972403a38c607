"""Says on what machine a measurement was made: processor, memory, kernel, and how long an fsync takes on its disk."""

import os
import platform
import statistics
import sys
import time
from pathlib import Path

from benchmarks.tools import working_folder

FSYNCS = 100


def describe_machine() -> list[str]:
    """Lines about the machine, naming neither it nor a path on it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    longest, median = fsync_ms()
    return [
        f"Processor: {_processor()}, {os.cpu_count()} cores; memory: {memory:.0f} GiB",
        f"System: {platform.system()} {platform.release()}, {platform.machine()}",
        f"Disk: an fsync of 4 KiB appended takes {median:.2f} ms, the longest of {FSYNCS} took {longest:.1f} ms",
    ]


def load_average() -> str:
    """How busy the machine is, for a reader to judge by: what the benchmark itself does counts as well."""
    return f"{os.getloadavg()[0]:.1f}"


def fsync_ms() -> tuple[float, float]:
    """The longest and the median time of an fsync after 4 KiB were appended to a file."""
    took = []
    with working_folder() as folder, Path(folder, "probe").open("wb", buffering=0) as out:
        for _ in range(FSYNCS):
            out.write(bytes(4096))
            began = time.perf_counter()
            os.fsync(out.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return max(took), statistics.median(took)


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
