"""Turns one kind's live records into lines of JSON on stdout."""

import asyncio
from typing import Annotated

import typer

from tds_dagster.cli.arguments import KindArgument, checked_kind

EXAMPLE = "tds tail events --group trainer"


def follow_kind(
    kind: KindArgument,
    *,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="Begin behind the record of this id, instead of with the next one.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Go on where the durable group of this name stands; it is made if need be."),
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget the group and its place instead, once its consumers have ended.")
    ] = False,
) -> None:
    """Print each record as it arrives, until Ctrl-C.

    A record is a line of JSON. With Redis (TDS_REDIS_URL) records come from Synapse; without it, from what the writer
    has committed. A group has a place of its own that lasts over restarts: each record is printed at least once, by
    one of the group's consumers.
    """
    name = checked_kind(kind)
    if forget:
        _forget(name, group)
        return
    try:
        asyncio.run(_follow(name, after, group))
    except KeyboardInterrupt:
        return  # that is how one stops it


def _forget(kind: str, group: str | None) -> None:
    from ingest.pipeline.subscription import forget_group
    from ingest.settings import read_settings

    if group is None:
        raise typer.BadParameter("--forget needs --group NAME: which group is to be forgotten")
    was_there = forget_group(read_settings(), kind, group)
    typer.echo(f"{kind}: group {group} is forgotten" if was_there else f"{kind}: there is no group {group}")


async def _follow(kind: str, after: str | None, group: str | None) -> None:
    import sys
    from contextlib import aclosing

    import msgspec

    from ingest import TrainingDataStore
    from ingest.settings import read_settings

    store = TrainingDataStore(read_settings())
    source = store.settings.redis_url_without_password or store.settings.data_dir
    sys.stderr.write(f"waiting for {kind} in {source}; Ctrl-C ends it\n")
    try:
        async with aclosing(store.subscribe(kind, after=after, group=group)) as records:
            async for record in records:
                sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
                sys.stdout.flush()
    finally:
        await store.close()
