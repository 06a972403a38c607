"""Turns a command line into one call, and its outcome into an exit code: 0 done, 1 failed, 2 wrong usage."""

import os
import sqlite3
import sys
from collections.abc import Callable
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from ingest.errors import (
    InvalidPredicate,
    InvalidRange,
    InvalidRecipe,
    InvalidSelection,
    MissingExtra,
    TdsError,
    UnknownKind,
)
from tds_dagster.cli import (
    alert,
    dataset,
    demo,
    diff,
    doctor,
    erase,
    export,
    import_log,
    inspect,
    lineage,
    metrics,
    migrate,
    predict,
    serve,
    show,
    status,
    tail,
    train,
    verify,
    where,
    writer,
)

_USAGE_ERRORS = (InvalidPredicate, InvalidRange, InvalidRecipe, InvalidSelection, UnknownKind)


class _QuickHelp:
    """A `--help` that is False when it is not given: for None, typer imports pydantic (50 ms) to look at it."""

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - both types are typer's own
        option = super().get_help_option(ctx)  # type: ignore[misc]  # of the command that this is mixed into
        if option is not None:
            option.default = False
        return option


class Command(_QuickHelp, TyperCommand):
    """One command."""


class Commands(_QuickHelp, TyperGroup):
    """The commands, and the one place where an error becomes a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - both types are typer's own
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read has seen enough (`tds tail events | head`). Python flushes stdout once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None
        except _USAGE_ERRORS as err:
            raise _failed(str(err), 2) from err
        except TdsError as err:
            raise _failed(str(err), 1) from err
        except ModuleNotFoundError as err:
            if (err.name or "").partition(".")[0] in {"ingest", "tds_dagster"}:
                raise  # not a package that somebody could install
            raise _failed(str(MissingExtra(err.name)), 1) from err
        except OSError as err:
            raise _failed(_os_error_text(err), 1) from err
        except sqlite3.Error as err:
            raise _failed(f"a ledger cannot be used ({err}); `tds doctor` says which and what to do", 1) from err


def _failed(message: str, exit_code: int) -> SystemExit:
    typer.echo(f"Error: {message}", err=True)
    return SystemExit(exit_code)


def _os_error_text(err: OSError) -> str:
    if err.filename is None or err.strerror is None:
        return f"{err}; `tds doctor` checks folders, servers and disk"
    return f"{os.fsdecode(err.filename)}: {err.strerror}; check the path and who may read and write it"


_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help takes 0.1 s less, and reads the same in a pipe
    pretty_exceptions_enable=False,
    context_settings=_HELP,
    epilog="Settings are TDS_* variables (see .env.example); files live in TDS_DATA_DIR, ./data by default.",
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the shape that typer calls
    if wanted:
        from importlib.metadata import version

        typer.echo(f"training-data-store {version('training-data-store')}")
        raise SystemExit(0)


@app.callback()
def tds(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Keep what agents do, and turn it into training data."""


def _epilog(example: str) -> str:
    lines = "".join(f"\n  {line}" for line in example.strip().splitlines())
    return f"\b\nExample:{lines}"


def _register(name: str, command: Callable[..., None], example: str) -> None:
    app.command(name, cls=Command, epilog=_epilog(example))(command)


_register("demo", demo.run_demo, demo.EXAMPLE)
_register("up", serve.serve_platform, serve.EXAMPLE)
_register("import", import_log.import_file, import_log.EXAMPLE)
_register("export", export.export_kind, export.EXAMPLE)
_register("inspect", inspect.inspect_artifact, inspect.EXAMPLE)
_register("dataset", dataset.build_model_dataset, dataset.EXAMPLE)
_register("train", train.train, train.EXAMPLE)
_register("predict", predict.predict, predict.EXAMPLE)
_register("rollback", train.rollback, train.ROLLBACK_EXAMPLE)
_register("lineage", lineage.show_lineage, lineage.EXAMPLE)
_register("diff", diff.show_difference, diff.EXAMPLE)
_register("verify", verify.verify_files, verify.EXAMPLE)
_register("show", show.show_run, show.EXAMPLE)
_register("erase", erase.erase_records, erase.EXAMPLE)
_register("where", where.show_place, where.EXAMPLE)
_register("status", status.show_status, status.EXAMPLE)
_register("doctor", doctor.show_checks, doctor.EXAMPLE)
_register("alert", alert.post_alert, alert.EXAMPLE)
_register("metrics", metrics.show_metrics, metrics.EXAMPLE)
_register("tail", tail.follow_kind, tail.EXAMPLE)
_register("writer", writer.write_kinds, writer.EXAMPLE)


# A group of its own, for `tds migrate code`; without a name behind it, it moves the rows.
_migrate = typer.Typer(cls=Commands, invoke_without_command=True, rich_markup_mode=None, context_settings=_HELP)
_migrate.callback(epilog=_epilog(migrate.EXAMPLE))(migrate.migrate)
_migrate.command("code", cls=Command, epilog=_epilog(migrate.CODE_EXAMPLE))(migrate.search_code)
app.add_typer(_migrate, name="migrate")


def main() -> None:
    """Run `tds` with the process's arguments."""
    cast("Callable[[], None]", app)()
