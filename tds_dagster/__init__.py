"""The platform: Dagster assets, schedules, checks and the `tds` command over the data that `ingest` keeps."""
