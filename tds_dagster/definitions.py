"""Turns the settings, the assets and their automation into the one set of definitions that Dagster loads."""

import dagster as dg

from ingest.settings import read_settings
from tds_dagster.assets.daily import daily_definitions
from tds_dagster.assets.datasets import dataset_definitions
from tds_dagster.assets.models import champion_checks, model_assets
from tds_dagster.assets.raw import raw_specs
from tds_dagster.automation.alerts import alert_failed_checks, alert_failed_runs
from tds_dagster.automation.retention import delete_old_runs_hourly
from tds_dagster.automation.retraining import retraining_sensors
from tds_dagster.automation.schedules import export_yesterday
from tds_dagster.automation.sensors import rebuild_changed_days, report_changed_days

defs = dg.Definitions(
    assets=[*raw_specs(), *daily_definitions(), *dataset_definitions(), *model_assets()],
    asset_checks=champion_checks(),
    schedules=[export_yesterday],
    sensors=[
        report_changed_days,
        rebuild_changed_days,
        *retraining_sensors(),
        alert_failed_runs,
        alert_failed_checks,
        delete_old_runs_hourly,
    ],
    resources={"settings": read_settings(), "pipes": dg.PipesSubprocessClient()},
    executor=dg.in_process_executor,  # a process a step would cost 4 s, and a run here has one or two
)
