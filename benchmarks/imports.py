"""Times what an agent pays at its start: imports, each in a new process."""

import statistics
import subprocess
import sys

MODULES = {"ingest": "ingest", "of this, msgspec": "msgspec", "redis-py, for comparison": "redis"}


def import_ms(module: str) -> float:
    """Wall time of one import in a new process."""
    code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout) * 1000


def import_medians(runs: int) -> dict[str, float]:
    """Median milliseconds of each import; they take turns."""
    took: dict[str, list[float]] = {name: [] for name in MODULES}
    for _ in range(2 * runs):
        for name, module in MODULES.items():
            took[name].append(import_ms(module))
    return {name: statistics.median(figures) for name, figures in took.items()}
