"""What a person does in the UI to export a range, and the same without it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ingest import Settings
from ingest.pipeline.partitions import DataPaths
from ingest.settings import child_environment
from tests.platform.dagster_parts import paths_of
from tests.platform.tree_parts import Platform

if TYPE_CHECKING:
    from playwright.sync_api import Page


def export_range(platform: Platform, page: "Page", pictures: Path, days: Sequence[str]) -> Path:
    """Choose the days in the dialog of exports/events, wait for the run, and read the range file's path in its log."""
    from playwright.sync_api import expect

    page.goto(f"{platform.url}/assets/exports/events")
    page.get_by_role("button", name="Materialize").first.click()
    chosen = page.get_by_placeholder("No matching partitions")
    chosen.fill(f"[{days[0]}...{days[-1]}]")
    chosen.press("Enter")
    expect(page.get_by_text(f"{len(days)} partitions", exact=True)).to_be_visible()
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
    return Path(found[1])


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
