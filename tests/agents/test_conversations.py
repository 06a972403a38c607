import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ingest import Settings, TrainingDataStore
from ingest.agents.database import open_engine, upgrade
from ingest.agents.messages import Messages
from ingest.errors import DatabaseUnavailable, InvalidRecord
from tests.parts import PostgresServer, csv_rows

Work = Callable[[Messages], Coroutine[Any, Any, Any]]
schemas = iter(range(1000))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """Settings of a database without conversations."""
    if request.param == "sqlite":
        return settings
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return msgspec.structs.replace(settings, postgres_url=server.url, postgres_schema=f"test_{next(schemas)}")


def during(settings: Settings, work: Work, **more: Any) -> Any:
    async def run() -> Any:
        async with Messages(settings, **more) as messages:
            return await work(messages)

    return asyncio.run(run())


def test_a_history_is_in_the_order_of_the_calls_whatever_their_times_say(database: Settings) -> None:
    same, earlier = datetime(2026, 3, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)

    async def talk(messages: Messages) -> list[str]:
        for n in range(50):
            await messages.add_message("i", "user", str(n), created_at=earlier if n % 7 == 3 else same)
        await asyncio.gather(*(messages.add_message("i", "user", str(n), created_at=same) for n in range(50, 150)))
        return [message.content for message in await messages.get_history("i", 1000)]

    assert during(database, talk) == [str(n) for n in range(150)]


def test_a_history_is_read_page_by_page_from_its_end(database: Settings) -> None:
    async def talk(messages: Messages) -> list[list[str]]:
        for n in range(25):
            await messages.add_message("i", "user", str(n))
            await messages.add_message("another", "user", "not this one")
        pages, before = [], None
        while page := await messages.get_history("i", limit=10, before=before):
            pages.append([message.content for message in page])
            before = page[0].message_id
        return pages

    expected = [[str(n) for n in range(*bounds)] for bounds in ((15, 25), (5, 15), (0, 5))]
    assert during(database, talk) == expected


def test_a_message_comes_back_as_it_was_given(database: Settings) -> None:
    async def talk(messages: Messages) -> Any:
        await messages.add_message(
            "i", "assistant", None, agent_id="a", tool_calls=[{"name": "find", "arguments": {"n": 1.5}}], is_error=True,
            metadata={"model": "m", "at": datetime(2026, 1, 1, tzinfo=UTC)}, message_id="m1",
            created_at="2026-05-15T10:00:00.000001+02:00",
        )  # fmt: skip
        return (await messages.get_history("i"))[0]

    found = during(database, talk)
    assert (found.message_id, found.role, found.content, found.agent_id) == ("m1", "assistant", "", "a")
    assert found.tool_calls == [{"name": "find", "arguments": {"n": 1.5}}]
    assert (found.is_error, found.metadata) == (True, {"model": "m", "at": "2026-01-01T00:00:00Z"})
    assert found.created_at == datetime(2026, 5, 15, 8, 0, 0, 1, tzinfo=UTC)
    assert found.created_at.utcoffset() == timedelta(0)


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.text(), deep=st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists, max_leaves=5)
)
def test_any_text_and_any_metadata_is_taken_by_both_databases(database: Settings, content: str, deep: object) -> None:
    async def talk(messages: Messages) -> Any:
        written = await messages.add_message("i", "user", content, metadata={"deep": deep})
        (found,) = await messages.get_history("i", 1)
        return written == found.message_id, found.content

    is_last, found = during(database, talk)
    assert is_last
    if "\0" not in content and content.isprintable():
        assert found == content


def test_a_nul_becomes_its_picture(database: Settings) -> None:
    async def talk(messages: Messages) -> Any:
        await messages.add_message("i", "user", "a\0b", metadata={"k\0": ["\0"]})
        return (await messages.get_history("i"))[0]

    found = during(database, talk)
    assert (found.content, found.metadata) == ("a␀b", {"k␀": ["␀"]})


def test_one_id_is_one_message_and_the_first_stays(database: Settings) -> None:
    async def talk(messages: Messages) -> list[str]:
        ids = await asyncio.gather(*(messages.add_message("i", "user", str(n), message_id="once") for n in range(20)))
        assert set(ids) == {"once"}
        return [message.content for message in await messages.get_history("i")]

    assert during(database, talk) == ["0"]


def test_deleting_a_history_leaves_the_others(database: Settings) -> None:
    async def talk(messages: Messages) -> Any:
        for name in ("i", "i", "j"):
            await messages.add_message(name, "user", "x")
        return (
            await messages.delete_history("i"),
            await messages.delete_history("i"),
            len(await messages.get_history("i")),
            len(await messages.get_history("j")),
        )

    assert during(database, talk) == (2, 0, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "user", "x"), "instance_id=''"),
        (("i", 3, "x"), r"role=3 \(int\)"),
        (("i", "user", None), "content=None"),
        (("i", "user", 4.5), r"content=4.5 \(float\)"),
    ],
)
def test_a_wrong_call_names_argument_and_value(settings: Settings, arguments: Any, message: str) -> None:
    with pytest.raises(InvalidRecord, match=message):
        during(settings, lambda messages: messages.add_message(*arguments))


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_a_limit_out_of_range_is_an_error(settings: Settings, limit: int) -> None:
    with pytest.raises(InvalidRecord, match=f"limit={limit}"):
        during(settings, lambda messages: messages.get_history("i", limit))


def test_a_page_before_a_message_of_another_conversation_is_an_error(database: Settings) -> None:
    async def talk(messages: Messages) -> None:
        other = await messages.add_message("j", "user", "x")
        await messages.get_history("i", before=other)

    with pytest.raises(InvalidRecord, match="before="):
        during(database, talk)


def test_threads_and_loops_of_their_own_share_one_object(database: Settings) -> None:
    messages = Messages(database)

    def work(name: str) -> None:
        async def talk() -> None:
            for n in range(20):
                await messages.add_message(name, "user", str(n))

        asyncio.run(talk())

    threads = [threading.Thread(target=work, args=(f"i{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def read() -> list[int]:
        found = [len(await messages.get_history(f"i{n}")) for n in range(6)]
        await messages.close()
        await messages.close()
        return found

    assert asyncio.run(read()) == [20] * 6


def test_a_forked_child_writes_beside_its_parent(database: Settings) -> None:
    async def talk(messages: Messages) -> list[str]:
        await messages.add_message("i", "user", "parent")
        return [message.content for message in await messages.get_history("i")]

    async def child() -> None:
        await messages.add_message("i", "user", "child")
        await messages.close()

    messages = Messages(database)
    assert asyncio.run(talk(messages)) == ["parent"]
    process = os.fork()
    if process == 0:
        try:
            asyncio.run(child())
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    assert asyncio.run(talk(messages)) == ["parent", "child", "parent"]
    asyncio.run(messages.close())


def test_a_restarted_server_loses_and_doubles_nothing_that_was_acknowledged(
    settings: Settings, postgres_server: PostgresServer
) -> None:
    database = msgspec.structs.replace(settings, postgres_url=postgres_server.url, postgres_schema="restarted")
    names = [f"i{n}" for n in range(10)]

    async def talk(messages: Messages) -> None:
        acknowledged: dict[str, list[str]] = {name: [] for name in names}
        is_over = asyncio.Event()

        async def speak(name: str) -> None:
            while not is_over.is_set() or len(acknowledged[name]) < 20:
                acknowledged[name].append(await messages.add_message(name, "user", "x"))

        speakers = [asyncio.create_task(speak(name)) for name in names]
        for _ in range(2):
            await asyncio.sleep(0.2)
            await asyncio.to_thread(postgres_server.stop)
            await asyncio.sleep(0.2)
            await asyncio.to_thread(postgres_server.start)
        is_over.set()
        await asyncio.gather(*speakers)
        for name in names:
            found = [message.message_id for message in await messages.get_history(name, 10_000)]
            assert found == acknowledged[name]

    during(database, talk)


def test_a_server_that_stays_away_is_an_error_that_says_what_to_do_and_no_password(settings: Settings) -> None:
    gone = msgspec.structs.replace(settings, postgres_url="postgresql://me:geheim@127.0.0.1:1/db")
    with pytest.raises(DatabaseUnavailable, match="TDS_POSTGRES_URL") as caught:
        during(gone, lambda messages: messages.add_message("i", "user", "x"), timeout_s=0.2)
    assert "geheim" not in str(caught.value)


def test_a_table_that_an_application_made_itself_keeps_its_rows_in_their_order(
    settings: Settings, postgres_server: PostgresServer
) -> None:
    database = msgspec.structs.replace(settings, postgres_url=postgres_server.url, postgres_schema="cyrex")
    engine = open_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA cyrex"))
        connection.execute(
            sa.text(
                "CREATE TABLE cyrex.agent_playground_messages (message_id VARCHAR(255) PRIMARY KEY, "
                "instance_id VARCHAR(255) NOT NULL, agent_id VARCHAR(255), role VARCHAR(20) NOT NULL, "
                "content TEXT NOT NULL, tool_calls JSONB, is_error BOOLEAN DEFAULT FALSE, "
                "metadata JSONB DEFAULT '{}'::jsonb, created_at TIMESTAMP DEFAULT NOW())"
            )
        )
        for n in (2, 1, 3):
            connection.execute(
                sa.text(
                    "INSERT INTO cyrex.agent_playground_messages (message_id, instance_id, role, content, created_at) "
                    f"VALUES ('m{n}', 'i', 'user', '{n}', '2026-01-01 00:00:0{n}')"
                )
            )
    engine.dispose()

    async def talk(messages: Messages) -> Any:
        await messages.add_message("i", "a role of more than twenty letters", "4", created_at="2020-01-01T00:00:00Z")
        return await messages.get_history("i")

    found = during(database, talk)
    assert [message.content for message in found] == ["1", "2", "3", "4"]
    assert found[0].created_at == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)


def test_the_table_is_made_once_by_many_processes_at_a_time(database: Settings) -> None:
    engines = [open_engine(database) for _ in range(4)]
    threads = [threading.Thread(target=upgrade, args=(engine, database.postgres_schema)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engines[0].connect() as connection:
        schema = database.postgres_schema if connection.dialect.name == "postgresql" else None
        columns = {column["name"] for column in sa.inspect(connection).get_columns("agent_playground_messages", schema)}
        indexes = {index["name"] for index in sa.inspect(connection).get_indexes("agent_playground_messages", schema)}
    for engine in engines:
        engine.dispose()
    assert columns == {
        "position", "message_id", "instance_id", "agent_id", "role", "content", "tool_calls", "is_error", "metadata",
        "created_at",
    }  # fmt: skip
    assert {f"idx_playground_messages_{name}" for name in ("instance", "agent", "created")} <= indexes


def test_messages_are_streamed_as_events_once_if_that_is_wanted(database: Settings) -> None:
    wanted = msgspec.structs.replace(database, stream_messages=True)
    store = TrainingDataStore(wanted)

    async def talk(messages: Messages) -> None:
        for _ in range(2):
            await messages.add_message(
                "i", "user", "Where is it?", agent_id="a", message_id="m1", created_at="2026-05-15T08:00:00Z"
            )
        await messages.add_message("i", "tool", "gone", is_error=True, created_at="2026-05-15T08:00:01Z")

    during(wanted, talk, store=store)
    store.sync.flush()
    store.sync.close()
    rows = csv_rows(wanted, "events")
    assert [(row["event_type"], row["session_id"], row.get("agent_id"), row["severity"]) for row in rows] == [
        ("message", "i", "a", "info"), ("message", "i", None, "error"),
    ]  # fmt: skip
    assert rows[0]["payload"] == {"role": "user", "content": "Where is it?"}


def test_nothing_is_streamed_unless_it_is_wanted_and_the_file_is_private(settings: Settings) -> None:
    during(settings, lambda messages: messages.add_message("i", "user", "x"))
    assert not (settings.data_dir / "spool").exists()
    assert (settings.data_dir / "state" / "messages.sqlite").stat().st_mode & 0o777 == 0o600
