"""Turns `tds predict` into the champion's answers to the questions of a file, a line in and a line out."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from tds_dagster.cli.output import print_warning
from tds_dagster.cli.train import ModelArgument

EXAMPLE = "tds predict tool_selection --input questions.jsonl"


def predict(
    model: ModelArgument,
    *,
    source: Annotated[
        str, typer.Option("--input", metavar="FILE", help="Questions, a JSON object a line; - is stdin.")
    ],
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Ask this version; default: the champion.")
    ] = None,
) -> None:
    """Ask a model: a JSON line in, its prediction out.

    The answer has `prediction` and `score`. A question is a row of the model's dataset without its answer:
    {"history": […]}, {"messages": […]} or a task's fields. A line that is no question is told on stderr by its number,
    the others are answered, and the exit code is 1.
    """
    import msgspec

    from ingest.errors import ModelMissing
    from ingest.pipeline.partitions import DataPaths
    from ingest.settings import read_settings
    from tds_dagster.training.champion import Champion, load_champion
    from tds_dagster.training.manifest import find_model

    settings, wrong = read_settings(), list[str]()
    with _opened(source) as lines:
        if version is None:
            asked = load_champion(settings, model)
        else:
            named = version if "/" in version else f"{model}/{version}"
            found = find_model(DataPaths(settings.data_dir), named)
            if found.model != model:
                raise ModelMissing(
                    f"--version {version}: a model of {found.model}, expected one of {model}; "
                    f"`tds predict {found.model}` asks it"
                )
            asked = Champion(settings, found)
        with asked as champion:
            if champion.is_tainted:
                print_warning(f"{model} {champion.version}: records that it was trained on were erased; train it anew")
            for answer in champion.predict_each(_questions(model, source, lines, wrong)):
                typer.echo(msgspec.json.encode(answer).decode())
    if wrong:
        raise SystemExit(1)


def _questions(model: str, source: str, lines: Iterable[bytes], wrong: list[str]) -> Iterator[dict[str, object]]:
    """The questions of a file's lines; what is none is told and added to `wrong`."""
    from ingest.errors import InvalidRecord
    from tds_dagster.training.questions import checked_question, read_object

    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = checked_question(model, read_object(line))
        except (InvalidRecord, ValueError, RecursionError) as err:
            wrong.append(f"{source}, line {number}: {err}")
            print_warning(wrong[-1])
        else:
            yield question


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
        return
    with Path(source).open("rb") as lines:
        yield lines
