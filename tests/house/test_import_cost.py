"""What an agent pays for `import ingest`."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
HEAVY = ("dagster", "tds_dagster", "pandas", "pyarrow", "numpy", "duckdb", "redis", "pydantic", "typer", "sqlalchemy")
LIST_MODULES = "import json, sys; import {name}; print(json.dumps(sorted(sys.modules)))"


def modules_after(name: str, **environment: str) -> set[str]:
    command = [sys.executable, "-c", LIST_MODULES.format(name=name)]
    found = subprocess.run(
        command, cwd=PROJECT, env=os.environ | environment, capture_output=True, check=True, timeout=60
    )
    return set(json.loads(found.stdout))


def test_import_ingest_loads_none_of_the_heavy_packages() -> None:
    loaded = {module.partition(".")[0] for module in modules_after("ingest")}
    assert loaded & {*HEAVY, "jinja2", "yaml"} == set()
    assert {"ingest", "msgspec"} <= loaded


def test_not_even_with_a_redis_address_set() -> None:
    loaded = {module.partition(".")[0] for module in modules_after("ingest", TDS_REDIS_URL="redis://localhost:1")}
    assert loaded & set(HEAVY) == set()


def test_import_ingest_reads_no_variable_so_that_a_bad_one_cannot_break_it() -> None:
    assert "ingest" in modules_after("ingest", TDS_START_DATE="nonsense", TDS_ON_FULL="nonsense")


def test_what_only_the_background_thread_or_a_waiting_call_needs_is_not_loaded_either() -> None:
    loaded = modules_after("ingest")  # measured as time in `make bench`; 30 ms, 5 ms and 3 ms of it were these
    assert loaded & {"asyncio", "sqlite3", "csv", "ingest.pipeline.exactly_once", "ingest.pipeline.lanes"} == set()


def test_every_public_name_is_there_and_all_lists_them() -> None:
    import ingest

    assert sorted(ingest.__all__) == list(ingest.__all__)
    assert all(hasattr(ingest, name) for name in ingest.__all__)
    listed = {name for name in vars(ingest) if not name.startswith("_")}
    modules = {name for name in listed if f"ingest.{name}" in sys.modules}
    assert listed - modules == set(ingest.__all__)
