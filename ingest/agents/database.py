"""Turns an address of PostgreSQL, or none, into an engine whose table of conversations is there and up to date.

Without an address it is a SQLite file in the data folder, with the same table. The table is made and upgraded by the
Alembic migrations beside this module, also one that an application made itself before (a table of the same name whose
times have no zone): an upgrade keeps its rows.
"""

import importlib.util
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import CreateSchema

from ingest.agents import migrations
from ingest.errors import MissingExtra
from ingest.pipeline.partitions import DataPaths, make_folder
from ingest.settings import Settings

TABLE = "agent_playground_messages"
LANES = 8  # connections, and threads that each use one
_UPGRADE_LOCK = 0x7D5_0001  # any number that nobody else takes as an advisory lock


class UtcTime(sa.TypeDecorator[datetime]):
    """A moment with its zone, also where the database keeps none (SQLite)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """To UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """From UTC, which it is where no zone is kept."""
        return None if value is None else (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)


_DOCUMENT = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

# `position` is the order in which rows were written; times are the callers' and may be equal.
MESSAGES = sa.Table(
    TABLE,
    sa.MetaData(),
    sa.Column("position", sa.BigInteger, sa.Identity()),
    sa.Column("message_id", sa.Text, primary_key=True),
    sa.Column("instance_id", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("tool_calls", _DOCUMENT),
    sa.Column("is_error", sa.Boolean, nullable=False),
    sa.Column("metadata", _DOCUMENT),
    sa.Column("created_at", UtcTime, nullable=False),
)


def open_engine(settings: Settings) -> sa.Engine:
    """An engine for the conversations of these settings, its table not looked at yet.

    `TDS_POSTGRES_URL` says where; unset, a SQLite file `state/messages.sqlite` in the data folder.
    """
    if settings.postgres_url is None:
        return _sqlite_engine(settings)
    if importlib.util.find_spec("psycopg") is None:
        raise MissingExtra("psycopg")
    url = sa.make_url(settings.postgres_url).set(drivername="postgresql+psycopg")
    return sa.create_engine(
        url,
        pool_size=LANES,
        max_overflow=0,
        json_serializer=_json_text,
        json_deserializer=msgspec.json.decode,
        execution_options={"schema_translate_map": {None: settings.postgres_schema}},
        connect_args={"connect_timeout": 5, "application_name": "training-data-store"},
    )


def upgrade(engine: sa.Engine, schema: str | None) -> None:
    """Make the table, or bring one that is there up to date: all of it or nothing, one process at a time."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            if schema is not None:
                connection.execute(CreateSchema(schema, if_not_exists=True))
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes.update(connection=connection, schema=schema)
        command.upgrade(config, "head")


def _json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _sqlite_engine(settings: Settings) -> sa.Engine:
    path = DataPaths(settings.data_dir).state / "messages.sqlite"
    make_folder(path.parent)
    path.touch(mode=0o600)
    engine = sa.create_engine(
        f"sqlite:///{path}",
        json_serializer=_json_text,
        json_deserializer=msgspec.json.decode,
        connect_args={"timeout": 60},
    )

    @sa.event.listens_for(engine, "connect")
    def _durable(connection: sa.PoolProxiedConnection, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # what was acknowledged survives a power cut, as with PostgreSQL
        cursor.close()

    return engine
