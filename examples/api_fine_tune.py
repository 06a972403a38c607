"""A trainer that has the work done elsewhere: fine-tunes a model at OpenAI, or at whoever speaks its API.

    export OPENAI_API_KEY=… OPENAI_BASE_URL=https://api.openai.com/v1 OPENAI_BASE_MODEL=gpt-4.1-mini-2025-04-14
    export TDS_TRAINER="python /path/to/api_fine_tune.py"
    tds dataset tool_selection
    tds train tool_selection

It uploads `openai/train.jsonl` and `openai/validation.jsonl` of the dataset, starts a job and asks how it is, less and
less often, until it is over. What it keeps is the name of the model that was made. A training that is interrupted
cancels its job, which would cost money and make a model that nobody knows. The rows leave your machines: what they are
cleaned of is the recipe's `redaction`.

https://platform.openai.com/docs/api-reference/fine-tuning has the calls.
"""

import json
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ingest.errors import TrainingFailed
from tds_dagster.datasets.dialects import Row, openai_row
from tds_dagster.training.contract import Answer, Report, run_trainer

FIRST_PAUSE_S = float(os.environ.get("OPENAI_FIRST_PAUSE_S", "2"))
LONGEST_PAUSE_S = 60.0
TRIES = 5  # of a call that was not answered, or with 429 or 5xx
CALL_TIMEOUT_S = 120.0
OVER = ("succeeded", "failed", "cancelled")


def train(dataset: Path, output: Path, report: Report) -> None:
    """Have a model made of the dataset's train split; raises TrainingFailed if none came of it."""
    files = {}
    for split in ("train", "validation"):
        content = (dataset / "openai" / f"{split}.jsonl").read_bytes()
        if content:
            files[split] = upload(f"{split}.jsonl", content)
            report(f"uploaded {split}", {"bytes": len(content), "file": files[split]})
    asked = {"model": os.environ["OPENAI_BASE_MODEL"], "training_file": files["train"]}
    if "validation" in files:
        asked["validation_file"] = files["validation"]
    job = call("POST", "fine_tuning/jobs", asked)
    try:
        job = followed(job, report)
    except KeyboardInterrupt:
        call("POST", f"fine_tuning/jobs/{job['id']}/cancel", {})
        raise
    if job["status"] != "succeeded":
        reason = (job.get("error") or {}).get("message", "no reason given")
        raise TrainingFailed(
            f"job {job['id']}: {job['status']} ({reason}), expected it to succeed; correct what it says and train again"
        )
    (output / "model.json").write_text(json.dumps({"model": job["fine_tuned_model"], "job": job["id"]}) + "\n")


def followed(job: dict[str, Any], report: Report) -> dict[str, Any]:
    """The job as it is when it is over."""
    pause_s = FIRST_PAUSE_S
    while job["status"] not in OVER:
        report(f"job {job['id']}: {job['status']}", {"trained tokens": job.get("trained_tokens") or 0})
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
        job = call("GET", f"fine_tuning/jobs/{job['id']}")
    report(f"job {job['id']}: {job['status']}", {"trained tokens": job.get("trained_tokens") or 0})
    return job


def predict(output: Path) -> Answer:
    """Answer with the tool that the model calls; an API gives no probability of it."""
    model = json.loads((output / "model.json").read_text())["model"]

    def answer(question: Mapping[str, object]) -> tuple[str, float | None]:
        chat = openai_row(cast("Row", {"messages": question["messages"], "tools": question["tools"] or []}))
        messages = cast("list[dict[str, object]]", chat["messages"])
        asked = {
            "model": model,
            "messages": [{key: each for key, each in message.items() if key != "weight"} for message in messages],
            "temperature": 0,
            **({"tools": chat["tools"], "tool_choice": "required"} if chat["tools"] else {}),
        }
        calls = call("POST", "chat/completions", asked)["choices"][0]["message"].get("tool_calls")
        return (str(calls[0]["function"]["name"]) if calls else "no call"), None

    return answer


def upload(name: str, content: bytes) -> str:
    """Upload a file of examples; gives its id."""
    boundary = uuid.uuid4().hex
    body = b"".join([
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'.encode(),
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'.encode(),
        b"Content-Type: application/jsonl\r\n\r\n", content, f"\r\n--{boundary}--\r\n".encode(),
    ])  # fmt: skip
    return str(send("POST", "files", body, f"multipart/form-data; boundary={boundary}")["id"])


def call(method: str, path: str, value: Mapping[str, object] | None = None) -> dict[str, Any]:
    """A call with a JSON body."""
    return send(method, path, None if value is None else json.dumps(value).encode(), "application/json")


def send(method: str, path: str, body: bytes | None, content_type: str) -> dict[str, Any]:
    """A call, tried again with longer and longer pauses where that can help; raises TrainingFailed where it did not."""
    key, base = os.environ["OPENAI_API_KEY"], os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": content_type}
    request = urllib.request.Request(f"{base.rstrip('/')}/{path}", body, headers, method=method)  # noqa: S310 - the user's
    problem = ""
    for attempt in range(TRIES):
        time.sleep(FIRST_PAUSE_S * (2**attempt - 1))
        try:
            with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as response:  # noqa: S310 - as above
                return cast("dict[str, Any]", json.load(response))
        except urllib.error.HTTPError as err:
            problem = f"{err.code} {err.read(500).decode(errors='replace')}"
            if err.code != 429 and err.code < 500:
                break
        except (urllib.error.URLError, TimeoutError) as err:
            problem = str(err)
    raise TrainingFailed(
        f"{method} {base}/{path}: {problem.replace(key, '***')}, expected an answer; check OPENAI_BASE_URL, "
        "OPENAI_API_KEY and what it says"
    )


if __name__ == "__main__":
    run_trainer(train, predict)
