"""Ways to reach Redis: TLS with its certificate checked, a user with a password, a server in cluster mode."""

import asyncio
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ingest import Settings, TrainingDataStore
from ingest.errors import SynapseUnavailable
from ingest.pipeline.synapse import connect, marks_key, producers_key, redis_errors, stream_key
from ingest.pipeline.writer import run_writers
from ingest.records import KINDS
from tests.parts import PROJECT, RedisServer, csv_rows, free_port, listening, skip_unless_required, wait_until


def goes_through(settings: Settings) -> None:
    """Store, write and follow records of an agent, a writer, and a plain and a durable subscriber."""
    store, stop = TrainingDataStore(settings), threading.Event()
    writer = threading.Thread(target=run_writers, args=(settings, ["events"], stop))

    async def listen() -> list[object]:
        stream, group = await listening(store), store.subscribe("events", group="trainer")
        waiting = asyncio.ensure_future(anext(group))
        await asyncio.sleep(0.2)  # the group is made, or else begins with what was there: "listening?" comes then
        for n in range(100):
            await store.store_agent_event(f"event {n}")
        await store.flush()
        plain = [(await anext(stream))["event_type"] for _ in range(100)]
        grouped = [(await waiting)["event_type"]]
        while len(grouped) < 100:
            grouped.append((await anext(group))["event_type"])
        await stream.aclose()
        await group.aclose()
        assert grouped[0] in {"event 0", "listening?"}
        return plain

    writer.start()
    try:
        assert asyncio.run(asyncio.wait_for(listen(), 30)) == [f"event {n}" for n in range(100)]
    finally:
        stop.set()
        writer.join(20)
        store.sync.close()
    names = [row["event_type"] for row in csv_rows(settings, "events")]
    assert [name for name in names if name != "listening?"] == [f"event {n}" for n in range(100)]


def make_certificate(folder: Path, name: str, subject: str) -> tuple[Path, Path]:
    """A certificate for an address, its own authority, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        skip_unless_required("no openssl to make a certificate with")
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=redis", "-addext", f"subjectAltName={subject}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


class TlsFront:
    """Ends TLS in front of a Redis: the one in the wheel is built without."""

    def __init__(self, certificate: tuple[Path, Path], redis_port: int) -> None:
        self.port = free_port()
        self._redis_port = redis_port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._join, "127.0.0.1", self.port, ssl=self._context)
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.05)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", self._redis_port)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, to_redis))
                both.create_task(self._pump(from_redis, writer))
        except (asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            writer.close()
            to_redis.close()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        target.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()


def ping(settings: Settings) -> None:
    with redis_errors(settings), connect(settings) as client:
        client.ping()


@pytest.fixture
def front(redis_server: RedisServer, tmp_path: Path) -> Iterator[TlsFront]:
    front = TlsFront(make_certificate(tmp_path, "redis", "IP:127.0.0.1"), redis_server.port)
    yield front
    front.close()


def test_records_go_through_tls_with_a_password(front: TlsFront, redis_server: RedisServer, tmp_path: Path) -> None:
    with redis.Redis(port=redis_server.port) as client:
        client.config_set("requirepass", "pa/ss")
    url = f"rediss://:pa%2Fss@127.0.0.1:{front.port}/0?ssl_ca_certs={tmp_path / 'redis.pem'}"
    goes_through(Settings(data_dir=tmp_path / "data", redis_url=url))


@pytest.mark.parametrize("authority", ["none", "another", "another host"])
def test_a_certificate_that_nobody_vouches_for_is_refused_without_showing_the_password(
    redis_server: RedisServer, tmp_path: Path, authority: str
) -> None:
    right = make_certificate(tmp_path, "redis", "DNS:elsewhere" if authority == "another host" else "IP:127.0.0.1")
    trusted = make_certificate(tmp_path, "other", "IP:127.0.0.1")[0] if authority == "another" else right[0]
    front = TlsFront(right, redis_server.port)
    query = "" if authority == "none" else f"?ssl_ca_certs={trusted}"
    settings = Settings(data_dir=tmp_path, redis_url=f"rediss://tds:secret@127.0.0.1:{front.port}/0{query}")
    try:
        with pytest.raises(SynapseUnavailable, match="ssl_ca_certs") as caught:
            ping(settings)
        assert f"rediss://***@127.0.0.1:{front.port}/0" in str(caught.value)
        assert "secret" not in str(caught.value)

        async def follow() -> None:
            await anext(TrainingDataStore(settings).subscribe("events"))

        with pytest.raises(SynapseUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            asyncio.run(follow())
    finally:
        front.close()


def test_a_user_with_the_rights_that_the_docs_name_can_do_all_that_is_done(
    redis_server: RedisServer, redis_binary: str, tmp_path: Path
) -> None:
    page = (PROJECT / "docs" / "synapse.md").read_text(encoding="utf-8")
    (rule,) = re.findall(r"^redis-cli .* acl setuser (.*)$", page, re.MULTILINE)
    cli = Path(redis_binary).with_name("redis-cli")
    subprocess.run(["bash", "-c", f"'{cli}' -p {redis_server.port} acl setuser {rule}"], check=True)
    url = f"redis://tds:change-me@127.0.0.1:{redis_server.port}/0"
    goes_through(Settings(data_dir=tmp_path / "data", redis_url=url))
    with redis.Redis(port=redis_server.port) as client:
        # redis-py tells its name at each connection (CLIENT SETINFO), which it may or may not.
        assert {entry["object"] for entry in client.acl_log()} <= {"client"}, "nothing else was refused"
        with redis.Redis.from_url(url) as user, pytest.raises(redis.exceptions.NoPermissionError):
            user.flushall()
        assert "flushall" in {entry["object"] for entry in client.acl_log()}


def test_a_wrong_password_is_told_without_it(redis_server: RedisServer, tmp_path: Path) -> None:
    with redis.Redis(port=redis_server.port) as client:
        client.config_set("requirepass", "right")
    settings = Settings(data_dir=tmp_path, redis_url=f"redis://:wrong@127.0.0.1:{redis_server.port}/0")
    with pytest.raises(SynapseUnavailable, match="password") as caught:
        ping(settings)
    assert "wrong@" not in str(caught.value)


def ask(client: redis.Redis, *command: object) -> str:
    """The reply to a command for which redis-py has no method, as text."""
    return str(client.execute_command(*command))  # type: ignore[no-untyped-call]


@pytest.fixture
def cluster(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A Redis in cluster mode that has all slots itself."""
    port = free_port()
    while port > 55_535:  # the nodes talk to each other on this port plus 10,000
        port = free_port()
    folder = tmp_path_factory.mktemp("cluster")
    command = [redis_binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen([*command, "--cluster-enabled", "yes"], stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port, protocol=2)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    try:
        wait_until(answers, "redis-server answers")
        ask(client, "CLUSTER ADDSLOTS", *range(16384))
        wait_until(lambda: "'cluster_state': 'ok'" in ask(client, "CLUSTER INFO"), "the cluster is whole")
        yield client
    finally:
        client.close()
        process.kill()
        process.wait()


def test_records_go_through_a_server_in_cluster_mode_and_a_kinds_keys_share_a_slot(
    cluster: redis.Redis, tmp_path: Path
) -> None:
    port = cluster.connection_pool.connection_kwargs["port"]
    goes_through(Settings(data_dir=tmp_path / "data", redis_url=f"redis://127.0.0.1:{port}/0"))
    slots = [
        {ask(cluster, "CLUSTER KEYSLOT", key(kind)) for key in (stream_key, marks_key, producers_key)} for kind in KINDS
    ]
    assert [len(of_kind) for of_kind in slots] == [1] * len(KINDS)
    assert len(set.union(*slots)) > 1, "kinds may be on different nodes"
