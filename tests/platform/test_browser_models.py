"""In the browser a model is followed to its dataset, the dataset's exports, their curated days and the CSV file."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from tds_dagster.assets.daily import daily_definitions
from tds_dagster.assets.datasets import dataset_asset
from tds_dagster.assets.models import model_asset
from tds_dagster.assets.raw import raw_specs
from tds_dagster.automation.checks import CHECK
from tds_dagster.cli.up import prepare_home
from tds_dagster.datasets.recipe import Model
from tds_dagster.export.plot import WIDTH
from tds_dagster.training.manifest import champion_of
from tests.platform.dagster_parts import last_days, paths_of, report_raw, run_days
from tests.platform.tree_parts import Platform
from tests.training.training_parts import settings_of, store_sessions

if TYPE_CHECKING:
    from playwright.sync_api import Page

MODEL: Model = "tool_selection"
LOCATION = "tds_dagster.definitions"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """`tds up` over sixty sessions of yesterday, exported, in a dataset, and in a model."""
    settings = settings_of(tmp_path_factory.mktemp("trained") / "data", keep_versions=10)
    (day,) = last_days(1)
    store_sessions(settings.data_dir, range(60), day=day)
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = [
        *raw_specs(), *daily_definitions(), dataset_asset(MODEL), model_asset(MODEL)
    ]  # fmt: skip
    with dg.DagsterInstance.from_config(str(prepare_home(settings))) as instance:
        report_raw(instance, settings)
        groups = [f"{group}/{kind}" for group in ("curated", "exports") for kind in ("events", "tool_executions")]
        assert run_days(instance, settings, [day], *groups).success
        resources = {"settings": settings, "pipes": dg.PipesSubprocessClient()}
        selected = [f"datasets/{MODEL}", f"models/{MODEL}"]
        assert dg.materialize(assets, selection=selected, instance=instance, resources=resources).success
        shard = paths_of(settings).shard("events", day)
        shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:-1]))  # a lost row, for a check to see
        check = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey(["exports", "events"]), CHECK))
        assert dg.materialize(assets, selection=check, instance=instance, resources=resources).success
    platform = Platform(settings)
    platform.start()
    yield platform
    platform.stop()


@pytest.mark.timeout(300)  # half a minute alone; the platform starts, and a browser
def test_a_model_is_followed_in_the_ui_to_its_days_and_their_csv_files(
    trained: Platform, page: "Page", pictures: Path
) -> None:
    from playwright.sync_api import expect

    champion = champion_of(paths_of(trained.settings), MODEL)
    assert champion is not None

    def open_asset(key: str, view: str) -> None:
        page.goto(f"{trained.url}/assets/{key}?view={view}")

    open_asset(f"models/{MODEL}", "overview")
    expect(page.get_by_text(champion.version).first).to_be_visible()
    expect(page.get_by_text("It beats the best baseline").first).to_be_visible()
    for key, above in [
        (f"models/{MODEL}", f"datasets/{MODEL}"),
        (f"datasets/{MODEL}", "exports/tool_executions"),
        ("exports/tool_executions", "curated/tool_executions"),
        ("curated/tool_executions", "raw/tool_executions"),
    ]:
        open_asset(key, "lineage&lineageScope=upstream&lineageDepth=1")
        group, _, name = above.partition("/")
        expect(page.get_by_text(group, exact=True).last).to_be_visible()
        expect(page.get_by_text(name, exact=True).last).to_be_visible()
    (day,) = last_days(1)
    csv = paths_of(trained.settings).training("tool_executions", day)
    open_asset("raw/tool_executions", f"partitions&partition={day}")
    expect(page.get_by_text(str(csv)).first).to_be_visible()
    assert csv.is_file()


@pytest.mark.timeout(300)
def test_the_tour_of_the_ui_is_as_its_page_shows_it(trained: Platform, page: "Page", pictures: Path) -> None:
    from playwright.sync_api import expect

    page.goto(f"{trained.url}/assets/models/{MODEL}?view=overview")
    expect(page.get_by_text("It beats the best baseline").first).to_be_attached()
    page.screenshot(path=pictures / "model.png")
    page.get_by_text("[Show Markdown]").nth(1).click()  # what has more than 1,000 characters; the second of two plots
    plot = page.get_by_alt_text("confusion matrix")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.naturalWidth") == WIDTH
    page.wait_for_timeout(500)  # the dialog fades in
    plot.screenshot(path=pictures / "confusion.png")

    page.goto(f"{trained.url}/assets/models/{MODEL}?view=lineage&lineageScope=upstream&lineageDepth=4")
    for group in ("raw", "curated", "exports", "datasets", "models"):
        expect(page.get_by_text(group, exact=True).last).to_be_attached()
    expect(page.get_by_text("Loading")).to_have_count(0)
    page.screenshot(path=pictures / "model_lineage.png")

    page.goto(f"{trained.url}/assets/exports/events?view=checks&checkDetail={CHECK}")
    expect(page.get_by_text("days that do not add up").first).to_be_visible()
    page.screenshot(path=pictures / "failing_check.png")

    page.goto(f"{trained.url}/locations/{LOCATION}/sensors/retrain_{MODEL}")
    expect(page.get_by_text(f"retrain_{MODEL}").first).to_be_visible()
    expect(page.get_by_text("Loading")).to_have_count(0)
    expect(page.get_by_text("0 runs requested").first).to_be_visible(timeout=90_000)  # the first tick
    page.screenshot(path=pictures / "retraining_sensor.png")
