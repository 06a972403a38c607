"""Turns `tds verify` into one call that reads artifacts again, and prints which are not what they should be."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import print_json, print_warning, progress, size_text

EXAMPLE = "tds verify data/exports data/datasets"
_MOST_STALE = 5  # files that are named


class VerifiedFile(msgspec.Struct, frozen=True):
    """A file that is not what it should be, as `tds verify --json` prints it."""

    path: str
    state: str  # damaged, stale (as it was built, and its source has changed since) or newer (not checked)
    offset: int | None  # the first byte that differs, from 0
    line: int | None  # that it stands in, from 1; of JSONL and of manifests
    field: str | None  # of a manifest
    reason: str


class Verified(msgspec.Struct, frozen=True):
    """What `tds verify --json` prints."""

    sound: bool  # nothing is damaged or of a newer version
    files: int  # that were read
    bytes: int
    findings: list[VerifiedFile]


def verify_files(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...", help="Files and folders; the whole data folder if left out.", show_default=False
        ),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Read files again, and name each one that is not as it was built.

    Artifacts are read to their last byte and held against their manifests and against what their sources give again.
    A damaged one is named with the first byte that differs or the field of its manifest, and the exit code is 1. One
    that is as it was built, but whose source has changed since, is told and is no error.
    """
    from ingest.errors import SourceMissing
    from ingest.settings import read_settings
    from tds_dagster.export.verification import verify

    try:
        with progress() as advance:
            result = verify(read_settings(), paths or [], progress=advance)
    except SourceMissing as err:
        raise typer.BadParameter(str(err)) from err
    findings = [
        VerifiedFile(str(each.path), each.state, each.offset, each.line, each.field, each.reason)
        for each in result.findings
    ]
    if as_json:
        print_json(Verified(sound=result.is_sound, files=result.files, bytes=result.bytes, findings=findings))
    else:
        _print_findings(findings)
        _print_sum(result.files, result.bytes, findings)
    if not result.is_sound:
        raise SystemExit(1)


def _print_findings(findings: list[VerifiedFile]) -> None:
    """A line for each file, damaged ones first; of stale ones, of which there may be thousands, the first few."""
    stale = [each for each in findings if each.state == "stale"]
    for each in [*(each for each in findings if each.state != "stale"), *stale[:_MOST_STALE]]:
        typer.echo(f"{each.state}: {each.path}{_place(each)}: {each.reason}")
    if len(stale) > _MOST_STALE:
        typer.echo(f"stale: {len(stale) - _MOST_STALE} more; --json lists them all")


def _place(found: VerifiedFile) -> str:
    """Where in a file, in words."""
    parts = [
        f"field {found.field}" if found.field else "",
        f"byte {found.offset:,}" if found.offset is not None else "",
        f"line {found.line:,}" if found.line is not None else "",
    ]
    return "".join(f", {part}" for part in parts if part)


def _print_sum(files: int, size_bytes: int, findings: list[VerifiedFile]) -> None:
    if not files:
        print_warning("there is nothing to verify yet; `tds export` makes the first artifacts")
    states = [each.state for each in findings]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "all as they were built"
    typer.echo(f"{files:,} files, {size_text(size_bytes)}: {told}")
