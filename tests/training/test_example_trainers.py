"""The trainers under examples/ work as they stand, started by TDS_TRAINER: one that counts, one that asks an API."""

import json
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ingest import Settings
from ingest.errors import TrainingFailed
from ingest.pipeline.partitions import DataPaths
from tds_dagster.datasets.manifest import find_dataset
from tds_dagster.training.baselines import fit_baselines
from tds_dagster.training.contract import open_predictor, run_in_subprocess, trainer_name
from tds_dagster.training.questions import read_split
from tests.parts import PROJECT, wait_until

KEY = "sk-test-5f2b9c"
Json = Any


def settings_of(tmp_path: Path, example: str) -> Settings:
    trainer = shlex.join([sys.executable, str(PROJECT / "examples" / example)])
    return Settings(data_dir=tmp_path / "data", trainer=trainer)


def test_the_trainer_of_ten_lines_beats_the_commonest_class(prepared_data: Path, tmp_path: Path) -> None:
    settings, told = settings_of(tmp_path, "ten_line_trainer.py"), list[str]()
    dataset = find_dataset(DataPaths(prepared_data), "event_prediction")
    run_in_subprocess(settings, dataset.folder, tmp_path / "output", lambda line, _figures: told.append(line))
    assert told == [f"counted: event types 10, rows {dataset.splits['train'].rows}"]
    rows = list(read_split(dataset, "test"))
    with open_predictor(settings, "event_prediction", tmp_path / "output", trainer_name(settings)) as predictor:
        found = list(predictor.predict(row.question for row in rows))
        (checked,) = predictor.predict([{"history": [{"event_type": "flights_checked"}]}])
    assert checked.prediction == "answer_noted"  # what came after most checks, and not the errors
    majority = fit_baselines(dataset)["majority"]
    right = sum(one.prediction == row.label for one, row in zip(found, rows, strict=True))
    assert right > 0.8 * len(rows)
    assert right > 3 * sum(majority.predict(row.question).prediction == row.label for row in rows)
    assert all(one.score is not None and 0 < one.score <= 1 for one in found)


class Api(ThreadingHTTPServer):
    """The calls of OpenAI's API that the example makes; what was sent to it is in `files` and `chats`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, Json] = {}
        self.chats: list[Json] = []
        self.calls: list[str] = []
        self.outcome: Json = {"status": "succeeded", "fine_tuned_model": "ft:small:1", "error": None}
        self.busy = 2  # calls that are answered with 503 before the first that is not
        self.lasts = 3  # times that a job is asked for before it is over

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Be quiet."""

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes) -> None:
        api, path = self.server, self.path.removeprefix("/v1/")
        api.calls.append(f"{self.command} {path}")
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.reply(401, {"error": {"message": f"wrong key: {self.headers['Authorization']}"}})
        elif api.busy:
            api.busy -= 1
            self.reply(503, {"error": {"message": "busy"}})
        else:
            self.reply(200, self.made(path, body))

    def reply(self, status: int, value: Json) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def made(self, path: str, body: bytes) -> Json:
        api = self.server
        if path == "files":
            return api_file(api, self.headers["Content-Type"], body)
        if path == "fine_tuning/jobs":
            job = {"id": "job-1", "status": "queued", "asked": json.loads(body), "fine_tuned_model": None}
            api.jobs["job-1"] = job
            return job
        if path == "fine_tuning/jobs/job-1/cancel":
            return api.jobs["job-1"] | {"status": "cancelled"}
        if path == "fine_tuning/jobs/job-1":
            api.lasts -= 1
            return api.jobs["job-1"] | ({"status": "running"} if api.lasts > 0 else api.outcome)
        assert path == "chat/completions"
        asked = json.loads(body)
        api.chats.append(asked)
        word = asked["messages"][-1]["content"].split()
        name = f"{'find' if 'find' in word else 'change'}_{word[2]}"
        call = {"id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}}
        return {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [call]}}]}


def api_file(api: Api, content_type: str, body: bytes) -> Json:
    boundary = content_type.partition("boundary=")[2].encode()
    purpose, file = body.split(b"--" + boundary)[1:3]
    assert b'name="purpose"\r\n\r\nfine-tune' in purpose
    name = file.partition(b'filename="')[2].partition(b'"')[0].decode()
    api.files[name] = file.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
    return {"id": f"file-{name}"}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    server = Api()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_BASE_MODEL", "small")
    monkeypatch.setenv("OPENAI_FIRST_PAUSE_S", "0.01")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_fine_tune_at_an_api_is_trained_followed_and_asked(prepared_data: Path, tmp_path: Path, api: Api) -> None:
    settings, told = settings_of(tmp_path, "api_fine_tune.py"), list[str]()
    dataset = find_dataset(DataPaths(prepared_data), "tool_selection")
    run_in_subprocess(settings, dataset.folder, tmp_path / "output", lambda line, _figures: told.append(line))
    for split in ("train", "validation"):
        assert api.files[f"{split}.jsonl"] == (dataset.folder / "openai" / f"{split}.jsonl").read_bytes()
    assert api.jobs["job-1"]["asked"] == {
        "model": "small", "training_file": "file-train.jsonl", "validation_file": "file-validation.jsonl",
    }  # fmt: skip
    assert [line.partition(":")[2].partition(":")[0].strip() for line in told[2:]] == [
        "queued", "running", "running", "succeeded",
    ]  # fmt: skip
    assert json.loads((tmp_path / "output" / "model.json").read_text())["model"] == "ft:small:1"
    rows = list(read_split(dataset, "test"))
    with open_predictor(settings, "tool_selection", tmp_path / "output", trainer_name(settings)) as predictor:
        found = list(predictor.predict(row.question for row in rows))
    assert [(one.prediction, one.score) for one in found] == [(row.label, None) for row in rows]
    assert {chat["model"] for chat in api.chats} == {"ft:small:1"}
    assert "weight" not in json.dumps(api.chats)
    assert KEY not in "\n".join(told) + "".join(path.read_text() for path in (tmp_path / "output").iterdir())


def test_a_job_that_fails_and_a_key_that_is_wrong_are_told_without_the_key(
    prepared_data: Path, tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, "api_fine_tune.py")
    dataset = find_dataset(DataPaths(prepared_data), "tool_selection")
    api.outcome = {"status": "failed", "error": {"message": "too few examples"}}
    with pytest.raises(TrainingFailed, match=r"job job-1: failed \(too few examples\), expected it to succeed"):
        run_in_subprocess(settings, dataset.folder, tmp_path / "output")
    assert not (tmp_path / "output" / "model.json").exists()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key")
    with pytest.raises(TrainingFailed, match=r"401 .*wrong key: Bearer \*\*\*") as caught:
        run_in_subprocess(settings, dataset.folder, tmp_path / "output")
    assert "sk-another-key" not in str(caught.value)


def test_an_interrupted_fine_tune_cancels_its_job(prepared_data: Path, tmp_path: Path, api: Api) -> None:
    dataset = find_dataset(DataPaths(prepared_data), "tool_selection")
    api.lasts = 10**9
    command = [sys.executable, str(PROJECT / "examples" / "api_fine_tune.py"), str(dataset.folder), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_until(lambda: "GET fine_tuning/jobs/job-1" in api.calls, "the job is followed")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert api.calls[-1] == "POST fine_tuning/jobs/job-1/cancel"
