"""Charts of an artifact's figures: readable on any ground, small, and inert whatever a class is called."""

import base64
import re
import xml.etree.ElementTree as ET

import pytest

from tds_dagster.export.plot import (
    COLOURS,
    TEXT_COLOUR,
    classes_plot,
    lengths_plot,
    missing_plot,
    rows_plot,
    splits_plot,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</svg><script>alert(1)</script>" onload="x'
CHARTS = {
    "rows": rows_plot({"2024-05-15": 3, "2024-05-16": 0, "2024-05-17": 9}),
    "lengths": lengths_plot({7: 3, 10: 40}),
    "missing": missing_plot({"payload": 1, "agent_id": 4}, 4),
    "splits": splits_plot({"train": 80, "validation": 10, "test": 10}),
    "classes": classes_plot({"train": {"started": 6, "ended": 2}, "test": {"started": 1}}),
}
EMPTY = {
    "rows": rows_plot({}),
    "lengths": lengths_plot({}),
    "missing": missing_plot({}, 0),
    "splits": splits_plot({}),
    "classes": classes_plot({}),
}


def picture(markdown: str) -> ET.Element:
    """The SVG in a Markdown image, parsed: a browser shows nothing of one that is not well-formed."""
    found = re.fullmatch(r"!\[[^\]\[<>\n]*\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found is not None, markdown[:200]
    return ET.fromstring(base64.b64decode(found[1]))


def words(markdown: str) -> str:
    return markdown.partition("](")[0].removeprefix("![")


def texts(markdown: str) -> list[str]:
    return [text.text or "" for text in picture(markdown).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_a_picture_of_the_same_width_with_its_figures_in_words(name: str) -> None:
    assert picture(CHARTS[name]).get("width") == "520"  # the cell of the UI has 551 on a screen of 1,280
    assert re.search(r"\d", words(CHARTS[name]))


@pytest.mark.parametrize("name", EMPTY)
def test_a_chart_of_nothing_is_a_picture_too(name: str) -> None:
    assert picture(EMPTY[name]).tag == f"{SVG}svg"


def test_the_figures_in_words_are_those_that_were_given() -> None:
    assert words(CHARTS["rows"]) == "rows a day: 3 days, 12 rows, at most 9 a day"
    assert words(CHARTS["lengths"]) == "record lengths: 3 from 128 B, 40 from 1 KiB"
    assert words(CHARTS["missing"]).startswith("missing values: payload 25.0%, agent_id 100.0%")
    assert words(CHARTS["splits"]) == "split sizes: train 80, validation 10, test 10"
    assert words(CHARTS["classes"]) == "classes: share of each split, rows in all: started 7, ended 2"


def test_bars_are_as_long_as_their_figures() -> None:
    lengths = [float(length) for length in re.findall(r"h([\d.]+)v13H", base64_text(CHARTS["splits"]))]
    assert [length / lengths[0] for length in lengths] == pytest.approx([1.0, 0.125, 0.125], abs=0.01)


def test_the_bars_of_a_class_are_its_shares_of_each_split() -> None:
    bars = re.findall(r'h([\d.]+)v7H180z" fill="(#\w+)"', base64_text(CHARTS["classes"]))
    train, test = COLOURS[:2]
    assert [colour for _, colour in bars] == [train, test, train, test]
    assert [float(length) / 250 for length, _ in bars] == pytest.approx([0.75, 1.0, 0.25, 0.0], abs=0.01)


def test_names_of_classes_and_columns_are_inert() -> None:
    for chart in (classes_plot({"train": {HOSTILE: 3}}), missing_plot({HOSTILE: 1}, 2), splits_plot({HOSTILE: 1})):
        assert {element.tag for element in picture(chart).iter()} <= {
            f"{SVG}{tag}" for tag in ("svg", "text", "path", "g")
        }
        assert any(text.startswith("</svg><script>") for text in texts(chart))
        assert "<" not in words(chart)


@pytest.mark.parametrize("name", ["a\x00b", "a\x1bb", "a\ufffeb", "a\ud800b", "a\nb", "x" * 500, "]( x", "日本語"])
def test_a_name_of_any_characters_leaves_the_picture_whole(name: str) -> None:
    chart = classes_plot({"train": {name: 3}})
    assert max(len(text) for text in texts(chart)[1:]) <= 24  # behind the title
    assert "3" in texts(chart)


def test_a_hundred_classes_are_twenty_and_the_others() -> None:
    chart = classes_plot({"train": {f"class {n:03}": 100 - n for n in range(100)}})
    assert "80 others" in texts(chart)
    assert str(sum(range(1, 81))) + " " not in words(chart)
    assert f"{sum(range(1, 81)):,}" in texts(chart)


def test_the_bar_of_a_day_is_as_high_as_its_rows() -> None:
    heights = [int(height) for height in re.findall(r"v-(\d+)m10 \1", base64_text(CHARTS["rows"]))]
    assert heights == [53, 0, 160]
    assert re.findall(r"v-(\d+)m", base64_text(rows_plot({"a": 1, "b": 10_000}))) == ["1", "160"]  # one row shows too


def test_a_month_is_small_enough_to_be_shown_at_once_and_a_year_is_a_few_kilobytes() -> None:
    year = {f"2024-{month:02}-{day:02}": month * day for month in range(1, 13) for day in range(1, 32)}
    assert len(rows_plot(dict(list(year.items())[-31:]))) < 1000  # Dagster's UI hides longer ones behind a click
    assert len(rows_plot(year)) < 8_000


def luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#0f1115"])
def test_a_chart_stands_out_from_a_light_and_from_a_dark_page(ground: str) -> None:
    assert contrast(TEXT_COLOUR, ground) >= 4
    assert min(contrast(colour, ground) for colour in COLOURS) >= 3


def base64_text(markdown: str) -> str:
    (found,) = re.findall(r"base64,([A-Za-z0-9+/=]+)", markdown)
    return base64.b64decode(found).decode()
