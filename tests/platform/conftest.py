"""A Dagster instance for each test that asks for one, one whole platform for those that need it running, a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from ingest import Settings, TrainingDataStore
from tds_dagster.cli.up import prepare_home
from tests.parts import PROJECT, skip_unless_required
from tests.platform.dagster_parts import last_days, report_raw, run_days, store_day
from tests.platform.tree_parts import Platform

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


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


@pytest.fixture(scope="session")
def chromium() -> str:
    """The system's browser; Playwright downloads none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        skip_unless_required("no Chromium: install Debian's chromium, as .ci/run does")
        raise AssertionError
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator["Browser"]:
    """A browser for the tests of a module. Playwright's event loop runs as long: not over a whole session."""
    from playwright.sync_api import expect, sync_playwright  # most tests here do without a browser

    expect.set_options(timeout=30_000)  # milliseconds: another test file may have the other core
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """A window with an empty profile."""
    page = browser.new_page(viewport={"width": 1400, "height": 800})
    page.set_default_timeout(30_000)
    yield page
    page.close()


@pytest.fixture
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where screenshots go."""
    folder = PROJECT / "docs" / "images" if request.config.getoption("--update-screenshots") else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return folder
