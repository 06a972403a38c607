"""Erasing from Redis: what comes back into a stream while the erasure goes on is erased too."""

import importlib
from pathlib import Path
from typing import cast

import pytest
import redis

from ingest import Settings, TrainingDataStore
from ingest.pipeline.accounting import account
from ingest.pipeline.synapse import stream_key
from ingest.pipeline.writer import KindWriter, make_shipper
from tds_dagster.erasure import Selector, erase
from tests.parts import RedisServer, wait_until

Entries = list[tuple[bytes, dict[bytes, bytes]]]


def test_what_a_redis_that_went_back_has_again_is_erased_before_its_files_are_written(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path / "data", redis_url=redis_server.url)
    store = TrainingDataStore(settings)
    for agent in ("the-subject", "somebody"):
        store.sync.store_agent_event("said", agent_id=agent)
    store.sync.close()
    client = redis.Redis.from_url(redis_server.url)
    key, writer = stream_key("events"), KindWriter(settings, "events")
    shipper = make_shipper(settings, "events")
    assert shipper is not None
    wait_until(lambda: shipper.step() + writer.step() == 0 and bool(client.exists(key)), "all is written")
    shipper.close()
    writer.close()
    former = cast("Entries", client.xrange(key))

    def rebuild(*_: object) -> tuple[list[object], list[str]]:
        assert b"the-subject" not in lines_of(client, key), "it was erased"
        for fields in (fields for _, fields in former):
            client.xadd(key, fields)  # type: ignore[arg-type]  # bytes are fields too
        return [], []

    monkeypatch.setattr(importlib.import_module("tds_dagster.erasure.erase"), "rebuild", rebuild)
    erase(settings, Selector(agent_ids=("the-subject",)), observe=lambda *_: None, progress=lambda *_: None)
    assert b"somebody" in lines_of(client, key)
    assert b"the-subject" not in lines_of(client, key)
    writer = KindWriter(settings, "events")
    wait_until(lambda: writer.step() == 0, "what came twice is passed over")
    writer.close()
    assert (account(settings, "events").rows, account(settings, "events").balanced) == (1, True)
    client.close()


def lines_of(client: redis.Redis, key: str) -> bytes:
    """All text in a stream."""
    return b"\n".join(fields[b"d"] for _, fields in cast("Entries", client.xrange(key)))
