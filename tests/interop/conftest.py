"""What the trainers' own packages make of a dataset; `make interop` installs them and runs these tests.

They pull in a gigabyte, so that `make test` does without: where they are not installed, nothing here is collected.
"""

import asyncio
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import pytest

from ingest import Settings, TrainingDataStore
from tds_dagster.cli.simulation import work

collect_ignore_glob = [] if find_spec("trl") and find_spec("openai") else ["test_*.py"]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tool_selection dataset: two made-up days of agents at work."""
    from tds_dagster.datasets.build import build_dataset
    from tds_dagster.datasets.recipe import read_recipe

    settings = Settings(data_dir=tmp_path_factory.mktemp("interop") / "data")

    async def live() -> None:
        store = TrainingDataStore(settings)
        await work(store, [date(2024, 5, 15), date(2024, 5, 16)], seed=7, progress=lambda _: None)
        await store.flush()
        await store.close()

    asyncio.run(live())
    return build_dataset(settings, read_recipe("tool_selection", {"split_by": "time"})).folder
