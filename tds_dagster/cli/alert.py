"""Turns `tds alert --test` into one alert, posted as the sensors post theirs."""

from typing import Annotated

import typer

EXAMPLE = "tds alert --test"


def post_alert(
    *,
    is_test: Annotated[bool, typer.Option("--test", help="Post a test alert.")] = False,
) -> None:
    """Try the webhook of TDS_ALERT_URL.

    One alert is posted, as failed runs and checks are. `tds up` posts by itself while the sensors alert_failed_runs
    and alert_failed_checks are on. docs/operations.md has the fields and how to point it at Slack.
    """
    from ingest.settings import read_settings
    from tds_dagster.automation.webhook import Alert, post
    from tds_dagster.curate.artifacts import made_now

    if not is_test:
        raise typer.BadParameter("expected --test; alerts of failures are posted by `tds up`")
    settings = read_settings()
    post(
        settings,
        Alert(
            kind="test", severity="warning", title="Test alert", at=made_now(), url=settings.ui_url,
            text="Somebody ran `tds alert --test`: failed runs and checks will arrive here.",
        ),
    )  # fmt: skip
    typer.echo(f"posted in the format {settings.alert_format}: the webhook took it")
