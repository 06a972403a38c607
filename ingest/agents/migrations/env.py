"""Runs the migrations on the connection that `ingest.agents.database.upgrade` opened; Alembic loads it by its name."""

from alembic import context

VERSIONS = "agent_playground_messages_version"  # the table with the revision that this one is at

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSIONS,
    version_table_schema=context.config.attributes["schema"],
)
context.run_migrations()
