"""The `tds` command, a module a command; `main` is its entry point."""

from tds_dagster.cli.app import main as main
