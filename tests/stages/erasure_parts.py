"""What the tests of erasing share: two days of two agents, one of whom is the subject, and what is left of them."""

import sqlite3
from contextlib import closing
from itertools import product
from pathlib import Path

import msgspec

from ingest import Settings, TrainingDataStore
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.writer import drain
from ingest.records import KINDS
from tds_dagster.erasure import Found, Receipt, Selector, erase
from tds_dagster.export import export_range

DAYS = ("2024-05-15", "2024-05-16")
SUBJECT = "the-subject"
_SHARED_ID = "01a21527-64fb-7132-8acf-e9128e64ba1e"
KILLED = """
from ingest.settings import read_settings
from tds_dagster.erasure import Selector, erase
erase(read_settings(), Selector(agent_ids=("the-subject",)), observe=lambda *_: None, progress=lambda *_: None)
"""


def erase_agent(settings: Settings, agent_id: str = SUBJECT) -> tuple[list[Receipt], Found]:
    """Erase the records of an agent, the subject's unless another one is named."""
    return erase(settings, Selector(agent_ids=(agent_id,)), observe=lambda *_: None, progress=lambda *_: None)


def store_days(settings: Settings) -> None:
    """Two days of two agents, of whom one is the subject; every kind, also with idempotency keys."""
    store = TrainingDataStore(settings)
    for day, n in product(DAYS, range(6)):
        agent, key = SUBJECT if n % 3 == 1 else "somebody", f"{day}-{n}"
        by = {"agent_id": agent, "session_id": f"session-of-{agent}", "timestamp": f"{day}T08:30:0{n}Z"}
        words = {"n": n, "words": f'"of {agent}"\n'}
        fields: dict[str, dict[str, object]] = {
            "events": {"event_type": "said", "payload": words, "idempotency_key": key},
            "tasks": {"task_id": f"task-{key}", "input_data": {"who": agent}},
            "tool_executions": {"execution_id": f"call-{key}", "task_id": f"task-{key}", "error": agent},
            "workflows": {"workflow_id": f"flow-{key}", "name": f"of {agent}"},
        }
        for kind, values in fields.items():
            store.sync.store_record(kind, **values, **by)
        store.sync.store_feedback(
            "task", f"task-{key}", "reward", n, comment=f"on {agent}", timestamp=by["timestamp"], idempotency_key=key
        )
    store.sync.flush()
    store.sync.close()


def import_a_record_id_of_two_days(settings: Settings) -> None:
    """Import day files of ours in which the subject and somebody have the same record id, and the same session."""
    kind, paths = KINDS["events"], DataPaths(settings.data_dir)
    for day, agent in zip(DAYS, (SUBJECT, "somebody"), strict=True):
        cells = {"record_id": _SHARED_ID, "event_id": _SHARED_ID, "agent_id": agent, "session_id": "shared"}
        cells |= {"event_type": "said", "timestamp": f"{day}T08:30:00.000000Z"}
        row = ",".join(f'"{cells[column.name]}"' if column.name in cells else "" for column in kind.columns)
        path = paths.training("events", day)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(kind.header.decode() + row + "\n")
    drain(settings, ["events"])


def export_all(settings: Settings) -> None:
    """Export the two days of every kind."""
    for kind in KINDS:
        export_range(DataPaths(settings.data_dir), kind, *DAYS)


def files_with(folder: Path, *texts: str, besides: tuple[bytes, ...] = ()) -> list[str]:
    """Files below a folder in which one of the texts stands; `besides` are longer texts that have one within them."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for longer in besides:
            content = content.replace(longer, b"")
        found += [f"{path.relative_to(folder)}: {text}" for text in texts if text.encode() in content]
    return found


def rows_without(path: Path, text: str) -> bytes:
    """The lines of a file in which a text does not stand."""
    return b"".join(line for line in path.read_bytes().splitlines(keepends=True) if text.encode() not in line)


def ledger_content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """What a ledger says, without the times and names that are another run's."""
    with closing(sqlite3.connect(path)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        content = {table: db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables}
    content["files"] = [row[:4] for row in content["files"]]  # without mtimes
    content["erasures"] = [row[2:] for row in content["erasures"]]
    return {table: content[table] for table in ("files", "marks", "counts", "rejects", "erasures", "groups")} | {
        "keys": [(len(content["keys"]), len(content["erased_keys"]))]
    }


def end_state(settings: Settings) -> dict[str, object]:
    """Every file of the data folder by what has to be the same after any two runs."""
    state: dict[str, object] = {}
    for path in sorted(settings.data_dir.rglob("*")):
        name = str(path.relative_to(settings.data_dir))
        if not path.is_file() or path.suffix == ".lock" or name.startswith("state/erasures"):
            continue
        if path.suffix == ".sqlite":
            state[name] = ledger_content(path)
        elif path.name.endswith(".manifest.json"):
            made = msgspec.json.decode(path.read_bytes())
            state[name] = {key: value for key, value in made.items() if key not in {"made_at", "checksums", "seal"}}
        elif not path.name.endswith((".sqlite-wal", ".sqlite-shm")):
            state[name] = path.read_bytes()
    return state
