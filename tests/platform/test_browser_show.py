"""The page of `tds show --html` in a real browser: it is read, it commands nothing, it asks nobody for anything.

`pytest --update-screenshots` writes the picture of docs/looking.md; otherwise it goes to a temporary folder.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Page, expect

from ingest import Settings, TrainingDataStore
from ingest.pipeline.partitions import DataPaths
from tds_dagster.cli.page import page_of
from tds_dagster.export.run import read_run
from tests.cli.story import HOSTILE, SESSION, tell_story

pytestmark = pytest.mark.browser


class Seen(NamedTuple):
    """What the browser said and asked for while the page was open."""

    console: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a session in which somebody is hostile, and of one in which nobody is."""
    found = {}
    for name, said in (("hostile", HOSTILE), ("kind", "Thank you. Can I have my money back?")):
        folder = tmp_path_factory.mktemp(name)
        store = TrainingDataStore(Settings(data_dir=folder / "data"))
        tell_story(store, said=said)
        store.sync.close()
        found[name] = folder / "run.html"
        found[name].write_text(page_of(read_run(DataPaths(folder / "data"), "session", SESSION)), encoding="utf-8")
    return found


@pytest.fixture
def seen(page: Page) -> Iterator[Seen]:
    """Fails a test whose page has an error, a warning, or a request of its own."""
    seen = Seen([], [])
    page.on("console", lambda message: seen.console.append(message.text))
    page.on("pageerror", lambda error: seen.console.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    yield seen
    assert seen.console == []
    assert [url for url in seen.requests if not url.startswith("file:")] == []


def test_a_run_is_read_from_top_to_bottom(files: dict[str, Path], page: Page, seen: Seen, pictures: Path) -> None:
    page.goto(files["kind"].as_uri())
    page.emulate_media(color_scheme="light")
    page.screenshot(path=pictures / "show.png")
    assert page.title() == f"session {SESSION}"
    expect(page.get_by_role("heading", name=f"session {SESSION}")).to_be_visible()
    expect(page.get_by_text("Where is my parcel A-17?").last).to_be_visible()
    call = page.locator("article.call").filter(has_text="find_order").last
    expect(call).to_contain_text("850 ms")
    expect(call).to_contain_text('"status": "delayed"')
    assert page.locator("article.task article.assistant article.call").count() == 1
    assert page.locator("article.failed").count() == 2
    order = page.locator("article > header > b").all_inner_texts()
    assert order[:5] == ["agent_started", "task task-1", "system", "user", "assistant"]
    assert order[-2:] == ["workflow parcel", "quality: 0.75"]
    assert len(seen.requests) == 1


def test_documents_are_folded_and_open_without_a_script(files: dict[str, Path], page: Page, seen: Seen) -> None:
    page.goto(files["kind"].as_uri())
    folded = page.locator("article.call details").filter(has_text="input: rows, said")
    expect(folded.locator("pre")).to_be_hidden()
    folded.locator("summary").click()
    expect(folded.locator("pre")).to_be_visible()
    expect(folded.locator("pre")).to_contain_text('"said": "Thank you.')


def test_a_bar_of_the_timeline_leads_to_its_step(files: dict[str, Path], page: Page, seen: Seen) -> None:
    page.goto(files["kind"].as_uri())
    bars = page.locator("svg a")
    assert bars.count() == page.locator("article").count() == 15
    failed = page.locator("svg a:has(rect.call.bad)")
    failed.click()
    target = page.locator("article:target")
    expect(target).to_be_in_viewport()
    expect(target.locator("> header > b")).to_have_text("issue_refund")


def test_what_a_record_says_is_text_and_nothing_else(files: dict[str, Path], page: Page, seen: Seen) -> None:
    page.goto(files["hostile"].as_uri())
    for details in page.locator("summary").all():
        details.click()
    assert page.title() == f"session {SESSION}"
    assert page.locator("img, script, iframe, link, object, form").count() == 0
    shown = page.locator("article.user > .prose pre").last.inner_text()
    assert shown == HOSTILE.replace("\x1b", "␛")
    expect(page.locator("article.call pre.error")).to_contain_text("</script></pre><img src=x onerror=")


def test_the_page_itself_lets_no_script_run(files: dict[str, Path], page: Page, tmp_path: Path) -> None:
    """Should a value ever become markup after all, the page's own policy stands behind."""
    text = files["kind"].read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</main>", f"{HOSTILE}</main>"), encoding="utf-8")
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(broken.as_uri())
    assert page.title() == f"session {SESSION}"
    assert any("Content Security Policy" in text for text in refused)


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(251, 251, 253)"), ("dark", "rgb(19, 21, 27)")])
def test_it_follows_the_readers_choice_of_light_or_dark(
    scheme: str, ground: str, files: dict[str, Path], page: Page, seen: Seen
) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # the two literals above
    page.goto(files["kind"].as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground


def test_it_fits_a_phone(files: dict[str, Path], page: Page, seen: Seen) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(files["hostile"].as_uri())
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
