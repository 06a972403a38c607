"""A Dagster instance for each test that asks for one, and one whole platform for those that need it running."""

from collections.abc import Iterator

import dagster as dg
import pytest

from ingest import Settings, TrainingDataStore
from tds_dagster.cli.up import prepare_home
from tests.platform.dagster_parts import last_days, report_raw, run_days, store_day
from tests.platform.tree_parts import Platform


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A real instance, its storage in memory."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """`tds up` over 30 days of events and tasks up to yesterday, all of them reported, curated and exported."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("platform") / "data")
    store = TrainingDataStore(settings)
    for kind in ("events", "tasks"):
        for day in last_days(30):
            store_day(store, day, rows=2, kind=kind)
    store.sync.close()
    with dg.DagsterInstance.from_config(str(prepare_home(settings))) as instance:
        report_raw(instance, settings)
        run = run_days(instance, settings, last_days(30), *(
            f"{group}/{kind}" for group in ("curated", "exports") for kind in ("events", "tasks")
        ))  # fmt: skip
        assert run.success
    platform = Platform(settings)
    platform.start()
    yield platform
    platform.stop()
