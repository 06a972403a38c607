"""Turns the first day of the settings into the daily partitions that raw, curated and exports share."""

import dagster as dg

from ingest.settings import read_settings

# One object for the three groups: Dagster maps day to day only between equal definitions, and the UI offers one range
# for them. `end_offset=1` makes the present day a partition before it is over.
DAILY = dg.DailyPartitionsDefinition(start_date=read_settings().start_date.isoformat(), timezone="UTC", end_offset=1)
