"""Turns the checks of `diagnosis` into a list for people or programs, and into an exit code."""

import msgspec
import typer

from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import print_json

EXAMPLE = "tds doctor"


class Finding(msgspec.Struct, frozen=True):
    """One check."""

    name: str
    state: str  # ok, warning or broken
    found: str
    advice: str | None  # what to do; null where all is well


class Diagnosis(msgspec.Struct, frozen=True):
    """What `tds doctor --json` prints."""

    healthy: bool  # nothing is broken; warnings may be there
    checks: list[Finding]


def show_checks(*, as_json: JsonOption = False) -> None:
    """Check settings, servers, disk and files.

    For all that is not well it says what to do. The exit code is 1 if something is broken; a warning leaves it at 0.
    Nothing is changed or repaired.
    """
    from tds_dagster.cli.diagnosis import diagnose

    findings = [Finding(check.name, check.state, check.found, check.advice) for check in diagnose()]
    diagnosis = Diagnosis(all(finding.state != "broken" for finding in findings), findings)
    if as_json:
        print_json(diagnosis)
    else:
        for finding in findings:
            typer.echo(f"{finding.state:<8} {finding.name}: {finding.found}")
            if finding.advice is not None:
                typer.echo(f"         {finding.advice}")
        typer.echo("all is well" if diagnosis.healthy else "something is broken: see above what to do")
    if not diagnosis.healthy:
        raise SystemExit(1)
