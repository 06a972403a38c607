"""Turns one kind's live records into lines of JSON on stdout."""

import asyncio
from typing import Annotated

import typer

from tds_dagster.cli.arguments import KindArgument, checked_kind

EXAMPLE = "tds tail events"


def follow_kind(
    kind: KindArgument,
    *,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="Begin behind the record of this id, instead of with the next one.")
    ] = None,
) -> None:
    """Print each record as it arrives, until Ctrl-C.

    A record is a line of JSON. With Redis (TDS_REDIS_URL) records come from Synapse; without it, from what the writer
    has committed.
    """
    name = checked_kind(kind)
    try:
        asyncio.run(_follow(name, after))
    except KeyboardInterrupt:
        return  # that is how one stops it


async def _follow(kind: str, after: str | None) -> None:
    import sys

    import msgspec

    from ingest import TrainingDataStore
    from ingest.settings import read_settings

    store = TrainingDataStore(read_settings())
    source = store.settings.redis_url_without_password or store.settings.data_dir
    sys.stderr.write(f"waiting for {kind} in {source}; Ctrl-C ends it\n")
    try:
        async for record in store.subscribe(kind, after=after):
            sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
            sys.stdout.flush()
    finally:
        await store.close()
