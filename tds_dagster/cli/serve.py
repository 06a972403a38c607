"""Turns `tds up` into the supervised process tree of `up`."""

from typing import Annotated

import typer

EXAMPLE = "tds up --port 3000"


def serve_platform(
    *,
    port: Annotated[
        int, typer.Option(metavar="PORT", help="The UI's port; 0 takes a free one.", min=0, max=65535)
    ] = 3000,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address that the UI listens at.")] = "127.0.0.1",
) -> None:
    """Run the writer and Dagster's webserver and daemon.

    They run as one process tree until Ctrl-C, which stops all of it; a process that dies is started again. The URLs
    are printed as soon as the UI answers. The UI asks for no password: another --host lets others in.
    """
    from ingest.settings import read_settings
    from tds_dagster.cli.up import up

    raise SystemExit(up(read_settings(), port=port, host=host))
