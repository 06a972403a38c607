"""`tds verify`: exit codes, the line for a damaged file, and the JSON that programs read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from ingest import Settings, TrainingDataStore
from tds_dagster.cli.verify import Verified, VerifiedFile

Tds = Callable[..., Result]
DAYS = [f"2024-05-{day}" for day in range(10, 13)]


@pytest.fixture
def shard(settings: Settings, store: TrainingDataStore, tds: Tds) -> Path:
    """Seven days, exported; gives the first one's shard."""
    for day in DAYS:
        store.sync.store_agent_event("started", payload={"day": day}, timestamp=f"{day}T12:00:00Z")
    store.sync.flush()
    assert tds("export", "events", "--start", DAYS[0], "--end", DAYS[-1]).exit_code == 0
    return settings.data_dir / "exports" / "events" / "days" / f"events_{DAYS[0]}.jsonl"


def test_what_is_sound_exits_with_0_and_says_what_was_read(tds: Tds, shard: Path) -> None:
    result = tds("verify")

    assert result.exit_code == 0
    assert result.stdout.endswith(": all as they were built\n")


def test_a_flipped_byte_exits_with_1_and_names_file_byte_and_line(tds: Tds, shard: Path) -> None:
    content = shard.read_bytes()
    offset = content.index(b"started")
    shard.write_bytes(content.replace(b"started", b"sTarted", 1))

    result = tds("verify", shard.parent)

    assert result.exit_code == 1
    assert result.stdout.startswith(f"damaged: {shard}, byte {offset + 1}, line 1: is not what was built; remove it, ")


def test_a_damaged_shard_is_mended_as_the_message_says(tds: Tds, shard: Path) -> None:
    shard.write_bytes(shard.read_bytes().replace(b"started", b"sTarted", 1))
    shard.unlink()

    assert tds("export", "events", "--start", DAYS[0], "--end", DAYS[-1]).exit_code == 0
    assert tds("verify").exit_code == 0


def test_a_changed_manifest_exits_with_1_and_names_the_field(tds: Tds, shard: Path) -> None:
    manifest = shard.with_suffix(".manifest.json")
    manifest.write_bytes(manifest.read_bytes().replace(b'"made_at": "2', b'"made_at": "3', 1))

    result = tds("verify", manifest)

    assert result.exit_code == 1
    assert f"damaged: {manifest}, field made_at, byte " in result.stdout


def test_json_is_one_object_with_the_documented_fields(tds: Tds, shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])

    result = tds("verify", shard, "--json")

    told = json.loads(result.stdout)
    assert (result.exit_code, told["sound"], list(told)) == (1, False, list(Verified.__struct_fields__))
    assert [list(finding) for finding in told["findings"]] == [list(VerifiedFile.__struct_fields__)]
    assert told["findings"][0]["offset"] == shard.stat().st_size


def test_stale_files_are_no_error_and_do_not_fill_the_screen(
    tds: Tds, shard: Path, store: TrainingDataStore, settings: Settings
) -> None:
    for day in DAYS:
        store.sync.store_agent_event("late", timestamp=f"{day}T13:00:00Z")
    store.sync.flush()

    result = tds("verify")

    assert result.exit_code == 0
    assert result.stdout.count("stale: /") == 5
    assert f"stale: {2 * len(DAYS) - 5} more; --json lists them all" in result.stdout


@pytest.mark.parametrize("path", ["absent", "state"])
def test_a_wrong_path_exits_with_2(tds: Tds, shard: Path, settings: Settings, path: str) -> None:
    result = tds("verify", settings.data_dir / path)

    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{settings.data_dir / path}: " in result.stderr


def test_a_data_folder_without_artifacts_exits_with_0_and_warns(tds: Tds, settings: Settings) -> None:
    result = tds("verify")

    assert result.exit_code == 0
    assert result.stderr.startswith("Warning: there is nothing to verify yet")
