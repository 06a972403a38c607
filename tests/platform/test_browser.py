"""What a person does in Dagster's UI, done by a real browser: choose days, materialize, find the file.

`pytest --update-screenshots` writes the pictures of the README and the docs; otherwise they go to a temporary folder.
"""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ingest.records import KINDS
from tests.platform.browser_parts import export_range, exported_elsewhere
from tests.platform.dagster_parts import last_days, paths_of
from tests.platform.tree_parts import Platform

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

DAYS = last_days(10)[:7]


def test_seven_days_chosen_in_the_dialog_become_the_file_that_tds_export_writes(
    platform: Platform, page: Page, pictures: Path, tmp_path: Path
) -> None:
    start, end = DAYS[0], DAYS[-1]
    range_file = export_range(platform, page, pictures, DAYS)
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
