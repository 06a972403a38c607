"""Programs in other languages read the stream by what docs/synapse.md says."""

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import redis

from ingest import Settings, TrainingDataStore
from ingest.pipeline.synapse import stream_key
from tests.parts import PROJECT, RedisServer, environment, skip_unless_required, wait_until


def program_in_the_docs(language: str) -> str:
    page = (PROJECT / "docs" / "synapse.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return str(code)


def test_the_program_in_javascript_reads_what_agents_stored_and_goes_on_live(
    redis_server: RedisServer, redis_binary: str, tmp_path: Path
) -> None:
    node = shutil.which("node")
    if node is None:
        skip_unless_required("no node on this machine")
    code = program_in_the_docs("js")
    assert len(code.splitlines()) <= 12, "about ten lines"
    settings = Settings(data_dir=tmp_path / "data", redis_url=redis_server.url)
    store = TrainingDataStore(settings)
    names = [f"event {n} \"quoted\" ünïcode \\ 'x'" for n in range(1200)]
    for name in names[:1000]:
        store.sync.store_agent_event(name, payload={"text": "line\nbreak", "n": 1})
    with redis.Redis(port=redis_server.port) as client:
        wait_until(lambda: client.xlen(stream_key("events")) > 1, "they are in Redis")
    path = f"{Path(redis_binary).parent}:{Path(node).parent}:/usr/bin:/bin"
    reader = subprocess.Popen(
        [node, "-e", code],
        env={**environment(settings), "PATH": path, "TDS_REDIS_URL": redis_server.url},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        assert reader.stdout is not None
        lines = [reader.stdout.readline().removesuffix("\n") for _ in range(1000)]
        for name in names[1000:]:
            store.sync.store_agent_event(name)
        lines += [reader.stdout.readline().removesuffix("\n") for _ in range(200)]
    finally:
        reader.kill()
        reader.communicate()
        store.sync.close()
    (producer,) = (folder.name for folder in (settings.spool / "events").iterdir() if not folder.name.startswith("."))
    assert lines == [f"{producer} {seq} {name}" for seq, name in enumerate(names, 1)]


def test_the_program_passes_over_tombstones_and_keeps_the_numbers(
    redis_server: RedisServer, redis_binary: str, tmp_path: Path
) -> None:
    node = shutil.which("node")
    if node is None:
        skip_unless_required("no node on this machine")
    record = msgspec.json.encode({"record_id": "r", "timestamp": "2024-05-15T08:30:00.000000Z", "event_type": "x"})
    with redis.Redis(port=redis_server.port) as client:
        for first, lines in ((1, [b"", record]), (3, [b""]), (4, [record, b""]), (6, [record])):
            fields = {"v": 1, "p": "p", "o": first, "n": len(lines), "d": b"\n".join(lines)}
            client.xadd(stream_key("events"), fields)
    reader = subprocess.Popen(
        [node, "-e", program_in_the_docs("js")],
        env={"PATH": f"{Path(redis_binary).parent}:{Path(node).parent}", "TDS_REDIS_URL": redis_server.url},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert reader.stdout is not None
        assert [reader.stdout.readline() for _ in range(3)] == ["p 2 x\n", "p 4 x\n", "p 6 x\n"]
    finally:
        reader.kill()
        reader.communicate()
