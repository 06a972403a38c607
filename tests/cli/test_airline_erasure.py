"""One customer of the real runs is erased, by `tds erase` that is killed five times: grep finds nothing of them.

What is theirs alone is found in the log by a reading that shares nothing with the import: user id, email, full name and
payment ids that no run of anybody else has.
"""

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import cast

import msgspec
import pytest
import redis

from ingest import Settings
from ingest.pipeline.accounting import account
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.synapse import stream_key
from ingest.records import KINDS
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.recipe import read_recipe
from tds_dagster.export import export_range, unbalanced_days
from tests.parts import PROJECT, RedisServer, environment, wait_until

AIRLINE_RUNS = PROJECT.parent / "shared" / "data" / "airline_runs.jsonl.gz"
CUSTOMER = "sophia_silva_7557"  # in 16 runs
_RECORD_ID = re.compile(rb'"([0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f-]{21})"')  # of what was imported
DAYS = ("2024-05-15", "2024-05-21")
ERASE = ("erase", "--where", f"contains(payload, '{CUSTOMER}')", "--text", CUSTOMER, "--whole-sessions", "--yes")


def runs_of_the_log() -> tuple[list[str], list[str]]:
    """The customer's runs, and some of other people's."""
    with gzip.open(AIRLINE_RUNS, "rt") as log:
        lines = log.readlines()
    theirs = [line for line in lines if CUSTOMER in line]
    return theirs, [line for line in lines if CUSTOMER not in line][:16]


def what_is_theirs_alone(theirs: list[str], others: list[str]) -> list[str]:
    """Of user id, email, full name and payment ids those that stand in nobody else's runs."""
    profiles = [
        json.loads(answer["content"])
        for line in theirs
        for call, answer in pairwise(json.loads(line)["traj"])
        if CUSTOMER in str(call.get("tool_calls")) and answer.get("name") == "get_user_details"
    ]
    name = profiles[0]["name"]
    found = {CUSTOMER, profiles[0]["email"], f"{name['first_name']} {name['last_name']}"}
    found |= {payment for profile in profiles for payment in profile["payment_methods"]}
    return sorted(text for text in found if not any(text in line for line in others))


def start_tds(settings: Settings, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [Path(sys.executable).with_name("tds"), *map(str, arguments)],
        env=environment(settings), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_tds(settings: Settings, *arguments: object) -> str:
    process = start_tds(settings, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def kill_five_times(settings: Settings, *steps: str) -> None:
    for step in steps:
        process = start_tds(msgspec.structs.replace(settings, failpoint=step), *ERASE)
        _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, f"{step}: {err}"


def grep(folders: list[Path], texts: list[str]) -> list[str]:
    return [
        f"{path}: {text}"
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for text in texts
        if text.encode() in path.read_bytes()
    ]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The customer's runs among 16 others, and the texts that are the customer's alone."""
    theirs, others = runs_of_the_log()
    path = tmp_path_factory.mktemp("log") / "runs.jsonl"
    path.write_text("".join([*others[:8], *theirs, *others[8:]]))
    texts = what_is_theirs_alone(theirs, others)
    assert len(theirs) == 16
    assert len(texts) >= 4, texts
    return path, texts


def check_what_is_left(before: Path, settings: Settings) -> None:
    """Each file of rows has the others' rows, byte by byte, and the accounts add up."""
    kept = {n for path in settings.data_dir.glob("training/*/*.csv") for n in _RECORD_ID.findall(path.read_bytes())}
    erased = 0
    for path in [*before.glob("training/*/*.csv"), *before.glob("exports/*/*/*.jsonl")]:
        lines = path.read_bytes().splitlines(keepends=True)
        ids_of = {line: {*_RECORD_ID.findall(line)} for line in lines}  # a header has none
        stay = [line for line in lines if not ids_of[line] or kept & ids_of[line]]
        erased += len(lines) - len(stay)
        assert (settings.data_dir / path.relative_to(before)).read_bytes() == b"".join(stay), path
    assert erased > 100
    for kind in KINDS:
        assert account(settings, kind).balanced
        assert unbalanced_days(DataPaths(settings.data_dir), kind) == []


def test_embedded_nothing_of_the_customer_is_left_after_five_kills(log: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, texts = log
    settings = Settings(data_dir=tmp_path / "data", redaction="none", dataset_redaction="none")
    run_tds(settings, "import", path, "--format", "openai-chat", "--start", "2024-05-15", "--days", 7)
    for kind in KINDS:
        export_range(DataPaths(settings.data_dir), kind, *DAYS, settings=settings)
    build_dataset(settings, read_recipe("event_prediction", {"allow_empty_splits": True}))
    assert {text for text in texts if grep([settings.data_dir], [text])} == set(texts)
    shutil.copytree(settings.data_dir, tmp_path / "before")
    kill_five_times(settings, "rewrite:2", "erase:2", "rename:5", "derived", "rebuild")
    said = run_tds(settings, *ERASE)
    assert "event_prediction" in said
    assert grep([settings.data_dir], texts) == []
    check_what_is_left(tmp_path / "before", settings)


def test_through_redis_nothing_of_the_customer_is_left_there_either(
    log: tuple[Path, list[str]], tmp_path: Path, redis_server: RedisServer
) -> None:
    path, texts = log
    settings = Settings(
        data_dir=tmp_path / "data", spool_dir=tmp_path / "spool", redis_url=redis_server.url, redaction="none"
    )
    client = redis.Redis.from_url(redis_server.url)
    client.config_set("rdbcompression", "no")  # so that grep would find it in a dump
    client.config_set("save", "3600 1")
    writer = start_tds(settings, "writer")
    try:
        run_tds(settings, "import", path, "--format", "openai-chat", "--start", "2024-05-15", "--days", 7)
        for kind in KINDS:
            client.xgroup_create(stream_key(kind), "trainer", id="0", mkstream=True)
        client.bgsave()
        wait_until(lambda: not client.info("persistence")["rdb_bgsave_in_progress"], "the dump is written")
        before = {kind: entries_of(client, kind) for kind in KINDS}
        folders = [settings.data_dir, settings.spool, redis_server.folder]
        assert grep([redis_server.folder], [CUSTOMER])
        shutil.copytree(settings.data_dir, tmp_path / "before")
        kill_five_times(settings, "plan", "erase", "stream:2", "leftovers:3", "receipt")
        said = run_tds(settings, *ERASE, "--json")
        assert json.loads(said)["synapse_files"] == "BGREWRITEAOF done; BGSAVE done"
        assert grep(folders, texts) == []
        assert writer.poll() is None, "the writer let go, and goes on"
        for kind in KINDS:
            check_entries(before[kind], entries_of(client, kind), texts)
            groups = {group["name"]: group for group in client.xinfo_groups(stream_key(kind))}
            assert groups[b"trainer"]["last-delivered-id"] == b"0-0"
        check_what_is_left(tmp_path / "before", settings)
        run_tds(settings, "import", path, "--format", "openai-chat", "--start", "2024-05-15", "--days", 7)
        assert grep([settings.data_dir / "training"], texts) == [], "an import that is run again brings nothing back"
    finally:
        writer.kill()
        writer.communicate()
        client.close()


Entries = list[tuple[bytes, dict[bytes, bytes]]]


def entries_of(client: redis.Redis, kind: str) -> Entries:
    return cast("Entries", client.xrange(stream_key(kind)))


def check_entries(before: Entries, after: Entries, texts: list[str]) -> None:
    """The same entries under the same ids; a line is as it was or empty."""
    assert [entry_id for entry_id, _ in after] == [entry_id for entry_id, _ in before]
    for (_, old), (_, new) in zip(before, after, strict=True):
        assert {**old, b"d": b""} == {**new, b"d": b""}
        lines = list(zip(old[b"d"].split(b"\n"), new[b"d"].split(b"\n"), strict=True))
        assert all(line == left or not left for line, left in lines)
        assert not any(text.encode() in left for _, left in lines for text in texts)
