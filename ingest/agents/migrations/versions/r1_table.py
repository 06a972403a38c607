"""The table, unless an application has made it itself."""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import JSONB

revision = "1"
down_revision = None

TABLE = "agent_playground_messages"


def upgrade() -> None:
    """Make the table and its indexes. SQLite has the position as its key, for only such a one is never given again."""
    schema = context.config.attributes["schema"]
    document = sa.JSON().with_variant(JSONB(), "postgresql")
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    key = [sa.Column("position", sa.Integer, primary_key=True, autoincrement=True)] if is_sqlite else []
    op.create_table(
        TABLE,
        *key,
        sa.Column("message_id", sa.Text, primary_key=not is_sqlite, unique=is_sqlite or None, nullable=False),
        sa.Column("instance_id", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("tool_calls", document),
        sa.Column("is_error", sa.Boolean, server_default=sa.false()),
        sa.Column("metadata", document),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
        schema=schema,
        if_not_exists=True,
        sqlite_autoincrement=is_sqlite,
    )
    for name, column in (("agent", "agent_id"), ("created", "created_at")):
        op.create_index(f"idx_playground_messages_{name}", TABLE, [column], schema=schema, if_not_exists=True)
    if is_sqlite:
        op.create_index("idx_playground_messages_instance", TABLE, ["instance_id", "position"], if_not_exists=True)
