"""Real runs of an airline agent, with a phone number, a card, an IBAN and an API key put in: none is in any dataset."""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from ingest import Settings
from tests.parts import PROJECT

AIRLINE_RUNS = PROJECT.parent / "shared" / "data" / "airline_runs.jsonl.gz"
RUNS = 40
MODELS = ("event_prediction", "task_completion", "tool_selection")
PLANTED = {
    "phone": "+1 650-253-0000",
    "card": "4242 4242 4242 4242",
    "iban": "DE89 3704 0044 0532 0130 00",
    "api key": "sk-proj-9fK2mQ7xT4vB8nL1cR5wZ3yH6dJ0sA",
}


def documents_in(value: Any) -> Iterator[Any]:
    """A value and all below it, also what is JSON inside of texts."""
    if isinstance(value, str) and value[:1] in {"{", "["}:
        try:
            value = json.loads(value)
        except ValueError:
            yield value
            return
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from documents_in(part)


def personal_values(runs: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Every email, date of birth and payment id of the runs: texts to look for, found without the detectors."""
    text = json.dumps(runs, ensure_ascii=False)
    objects = [value for value in documents_in(runs) if isinstance(value, dict)]
    return {
        "email": set(re.findall(r"[\w.+-]+@[\w-]+\.\w+", text)),
        "date of birth": {str(value["dob"]) for value in objects if value.get("dob")},
        "payment id": set(re.findall(r"(?:credit_card|gift_card|certificate)_\d+", text)),
        **{name: {value} for name, value in PLANTED.items()},
    }


def plant(run: dict[str, Any]) -> None:
    """Put the four values into what the user says, into a call's arguments, which are JSON in JSON, and an answer."""
    said = ", ".join(PLANTED.values())
    for message in run["traj"]:
        if message["role"] in {"user", "tool"}:
            message["content"] = f"{message['content']} Note: {said}."
        for call in message.get("tool_calls") or ():
            arguments = json.loads(call["function"]["arguments"])
            call["function"]["arguments"] = json.dumps({**arguments, "note": said, "more": {"card": PLANTED["card"]}})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    with gzip.open(AIRLINE_RUNS) as log:
        runs = [json.loads(line) for line, _ in zip(log, range(RUNS), strict=False)]
    for run in runs[::3]:
        plant(run)
    path = tmp_path_factory.mktemp("privacy") / "runs.jsonl"
    path.write_text("".join(json.dumps(run) + "\n" for run in runs), encoding="utf-8")
    return path, runs


def test_no_email_birth_date_payment_id_or_planted_value_is_in_any_file_of_a_dataset(
    source: tuple[Path, list[dict[str, Any]]], run_tds: Callable[..., Result]
) -> None:
    log, runs = source
    settings = Settings(data_dir=log.parent / "data")
    days = ("--start", "2024-05-15", "--end", "2024-05-21")
    imported = run_tds(settings, "import", log, "--format", "openai-chat", "--start", "2024-05-15", "--days", 7)
    assert imported.exit_code == 0, imported.stderr
    plain = []
    for kind in ("events", "tasks", "tool_executions"):
        out = log.with_name(f"{kind}.jsonl")
        assert run_tds(settings, "export", kind, *days, "--redaction", "none", "--out", out).exit_code == 0
        plain.append(out.read_text(encoding="utf-8"))
    wanted = personal_values(runs)
    assert {name: sum(value not in "".join(plain) for value in values) for name, values in wanted.items()} == (
        dict.fromkeys(wanted, 0)
    )
    for model in MODELS:
        made = run_tds(settings, "dataset", model, *days, "--window", 4, "--json")
        assert made.exit_code == 0, made.stderr
        folder = Path(json.loads(made.stdout)["path"])
        files = [path for path in folder.rglob("*") if path.is_file()]
        text = "\n".join(path.read_text(encoding="utf-8") for path in files)
        left = {name: [value for value in values if value in text] for name, values in wanted.items()}
        assert left == {name: [] for name in wanted}, model
