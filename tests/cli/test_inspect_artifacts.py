"""`tds inspect` on a terminal, in a pipe and as JSON."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from ingest import Settings, TrainingDataStore
from tds_dagster.cli.screen import bar, columns_of, one_line, sparkline, visible

Tds = Callable[..., Result]
DAY = "2024-05-15"
HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202eevil"


@pytest.fixture
def shard(tds: Tds, store: TrainingDataStore, settings: Settings) -> Path:
    """The shard of a day with three events; one of them would take over the terminal."""
    for text in ("started", "started", HOSTILE):
        store.sync.store_agent_event(text, timestamp=f"{DAY}T08:00:00Z", payload={"said": text})
    store.sync.flush(30)
    assert tds("export", "events", "--start", DAY, "--end", DAY).exit_code == 0
    return settings.data_dir / "exports" / "events" / "days" / f"events_{DAY}.jsonl"


def test_it_says_what_the_file_is_what_is_in_it_and_what_it_was_made_from(tds: Tds, shard: Path) -> None:
    told = tds("inspect", shard, "--rows", 1).stdout
    assert told.startswith(f"{shard}: shard of events\n3 rows, 15 columns, ")
    assert re.search(r"^event_type +text +2  started 67%", told, re.MULTILINE)
    assert re.search(r"^session_id +id +100\.0% +0$", told, re.MULTILINE)
    assert re.search(r"^  source_sha256 +[0-9a-f]{20,}", told, re.MULTILINE)
    assert "\nrow 1\n" in told
    assert "\nrow 2\n" not in told


def test_lines_are_no_longer_than_the_terminal_is_wide(tds: Tds, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    lines = tds("inspect", shard).stdout.splitlines()
    assert max(columns_of(line) for line in lines[1:]) <= 72


def test_nothing_in_a_record_commands_the_terminal(tds: Tds, shard: Path) -> None:
    told = tds("inspect", shard).stdout
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", told)
    assert "␛[2J" in told


def test_json_is_one_object_with_every_figure(tds: Tds, shard: Path) -> None:
    found = json.loads(tds("inspect", shard, "--json", "--rows", 2).stdout)
    assert (found["what"], found["kind"], found["rows"], len(found["first"])) == ("shard of events", "events", 3, 2)
    assert found["columns"][1] == {
        "name": "event_type", "type": "text", "nulls": 0, "distinct": 2, "least": HOSTILE[:100], "greatest": "started",
        "median": None, "top": [{"value": "started", "rows": 2}], "shape": [],
        "lengths": {"median": 7, "p95": found["columns"][1]["lengths"]["p95"], "longest": len(HOSTILE.encode())},
    }  # fmt: skip
    assert found["first"][0]["payload"] == {"said": "started"}


def test_a_folder_shows_a_bar_a_day_and_a_manifest_what_it_says(tds: Tds, shard: Path) -> None:
    assert re.search(rf"^{DAY}  █+ +3$", tds("inspect", shard.parent, "--rows", 0).stdout, re.MULTILINE)
    told = tds("inspect", shard.with_suffix(".manifest.json")).stdout
    assert re.search(r"^it says\n(  .*\n)*  rows +3$", told, re.MULTILINE)


def test_a_datasets_classes_are_shown_by_split(tds: Tds, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"label": "a"}\n{"label": "b"}\n', encoding="utf-8")
    (tmp_path / "test.jsonl").write_text("", encoding="utf-8")
    splits = {"train": {"rows": 2, "classes": {"a": 1, "b": 1}}, "test": {"rows": 0, "classes": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"model": "m", "splits": splits}), encoding="utf-8")
    told = tds("inspect", tmp_path, "--rows", 0).stdout
    assert re.search(r"^train +█+ +2$", told, re.MULTILINE)
    assert re.search(r"^a +50\.0% +0\.0%$", told, re.MULTILINE)


def test_what_is_wrong_is_a_warning_and_what_is_broken_an_error(tds: Tds, shard: Path, tmp_path: Path) -> None:
    with shard.open("ab") as file:
        file.write(b'{"event_id":"x"}\n')
    result = tds("inspect", shard, "--rows", 0)
    assert (result.exit_code, "run `tds verify" in result.stderr) == (0, True)
    with shard.open("ab") as file:
        file.write(b'{"event_')
    result = tds("inspect", shard)
    assert result.exit_code == 1
    assert re.match(rf"Error: {shard}, line 5, byte \d+: no JSON object", result.stderr)
    result = tds("inspect", tmp_path / "absent")
    assert (result.exit_code, result.stderr.startswith(f"Error: {tmp_path / 'absent'}: No such file")) == (1, True)
    assert tds("inspect").exit_code == 2


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert visible("a\x1b[31mb\tc\nd\x00\x7f\x9b\u202e") == "a␛[31mb\tc\nd␀␡<U+009B><U+202E>"
    assert visible("日本 é 👩\u200d💻 العربية") == "日本 é 👩\u200d💻 العربية"


@pytest.mark.parametrize("width", [10, 11, 12, 40])
def test_a_text_is_cut_to_the_columns_that_it_takes_on_a_screen(width: int) -> None:
    assert [columns_of(text) for text in ("abc", "日本", "e\u0301", "👩\u200d💻")] == [3, 4, 1, 4]
    for text in (
        "日本語日本語日本語日本語",
        "e\u0301" * 40,
        "plain words of some length, more than forty columns",
        "a\nb",
    ):
        assert columns_of(one_line(text, width)) <= width


def test_bars_have_the_length_of_their_share() -> None:
    assert [bar(share, 4) for share in (0, 0.03, 0.5, 1, 2)] == ["", "▏", "██", "████", "████"]
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "
