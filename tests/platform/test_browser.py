"""What a person does in Dagster's UI, done by a real browser: choose days, materialize, find the file.

`pytest --update-screenshots` writes the pictures of the README and the docs; otherwise they go to a temporary folder.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ingest import Settings
from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS
from ingest.settings import child_environment
from tests.platform.dagster_parts import last_days, paths_of
from tests.platform.tree_parts import Platform

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

DAYS = last_days(10)[:7]


def test_seven_days_chosen_in_the_dialog_become_the_file_that_tds_export_writes(
    platform: Platform, page: Page, pictures: Path, tmp_path: Path
) -> None:
    start, end = DAYS[0], DAYS[-1]
    page.goto(f"{platform.url}/assets/exports/events")
    page.get_by_role("button", name="Materialize").first.click()
    days = page.get_by_placeholder("No matching partitions")
    days.fill(f"[{start}...{end}]")
    days.press("Enter")
    expect(page.get_by_text("7 partitions", exact=True)).to_be_visible()
    page.screenshot(path=pictures / "materialize.png")
    page.get_by_role("button", name="Launch backfill").click()

    page.get_by_role("link", name="View", exact=True).or_(page.get_by_role("button", name="View", exact=True)).click()
    page.get_by_role("tab", name="Runs", exact=True).click()
    run = page.locator("a").filter(has_text=re.compile(r"^[0-9a-f]{8}$")).first
    run.click(timeout=90_000)  # the daemon takes up a backfill within 30 s
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=60_000)
    page.get_by_placeholder("Filter").fill("range file")
    line = page.get_by_text(re.compile(r"range file: /")).first
    expect(line).to_be_visible()
    found = re.search(r"range file: (\S+\.jsonl)", line.inner_text())
    assert found is not None
    range_file = Path(found[1])

    assert range_file == paths_of(platform.settings).range_export("events", start, end)
    from_ui = range_file.read_bytes()
    assert from_ui.count(b"\n") >= 14
    assert from_ui == exported_elsewhere(platform, tmp_path, start, end)

    page.goto(f"{platform.url}/assets/exports/events?view=events")
    page.get_by_text(end, exact=True).first.click()
    for name in ("rows a day", "record lengths", "missing values"):
        if name == "missing values":  # the one of more than 1,000 characters
            page.get_by_text("[Show Markdown]").click()
        plot = page.get_by_alt_text(name)
        expect(plot).to_be_visible()
        assert plot.evaluate("image => image.naturalWidth") == 520


def exported_elsewhere(platform: Platform, folder: Path, start: str, end: str) -> bytes:
    """What `tds export` writes of the same range from a copy of the raw files, curated anew from the beginning."""
    paths = DataPaths(folder / "copy")
    shutil.copytree(platform.settings.data_dir / "training" / "events", paths.root / "training" / "events")
    paths.state.mkdir(parents=True)
    for file in paths_of(platform.settings).state.glob("events.sqlite*"):
        shutil.copy(file, paths.state)
    output = folder / "elsewhere.jsonl"
    subprocess.run(
        [Path(sys.executable).with_name("tds"), "export", "events", "--start", start, "--end", end, "--out", output],
        env=child_environment(Settings(data_dir=paths.root)),
        check=True,
        capture_output=True,
    )
    return output.read_bytes()


def test_the_lineage_from_raw_to_curated_to_exports_is_on_screen(
    platform: Platform, page: Page, pictures: Path
) -> None:
    page.goto(f"{platform.url}/locations/tds_dagster.definitions/asset-groups/exports/lineage")
    for kind in KINDS:
        expect(page.get_by_text(kind, exact=True).first).to_be_attached()

    page.goto(f"{platform.url}/assets/exports/events?view=lineage&lineageScope=upstream&lineageDepth=2")
    for group in ("raw", "curated", "exports"):
        expect(page.get_by_text(group, exact=True).last).to_be_visible()
    expect(page.get_by_text(re.compile(r"^[\d,]+ partitions$"))).to_have_count(3)
    expect(page.get_by_text("Loading")).to_have_count(0)
    page.screenshot(path=pictures / "lineage.png")
