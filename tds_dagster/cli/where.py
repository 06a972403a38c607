"""Turns `tds where` into the place where a thing belongs, and shows why, or what to ask first."""

from typing import Annotated

import typer

from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import print_json

EXAMPLE = 'tds where "the rating a user gave an answer"'


def show_place(
    description: Annotated[str, typer.Argument(metavar="TEXT", help="What you want to keep, or an old table's name.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say where a thing belongs, and which call takes it there.

    The store is for what models learn from. Conversations, configs, running instances and metrics have places of their
    own; what cannot be told from the words is answered with the questions that decide it.
    """
    from ingest.agents.routing import route

    found = route(description)
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found.place}: {found.where}")
    typer.echo(f"  call  {found.call}")
    typer.echo(f"  why   {found.why}")
    if found.matched:
        typer.echo(f"  from  {', '.join(found.matched)}")
    for number, question in enumerate(found.questions, 1):
        typer.echo(f"  {number:>2}. {question}")
