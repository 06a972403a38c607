"""Turns made-up agents at work into exports, datasets and models, the way that real records take, and shows them."""

import asyncio
import subprocess
import sys
import time
from collections import deque
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ingest import Settings, TrainingDataStore, read_settings
from ingest.errors import InvalidSetting, RunFailed
from ingest.pipeline.partitions import DataPaths, manifest_of, today
from ingest.records import KINDS
from ingest.settings import child_environment
from tds_dagster.cli.arguments import JsonOption
from tds_dagster.cli.output import Advance, print_json, print_table, progress, size_text
from tds_dagster.cli.status import read_status
from tds_dagster.datasets.manifest import find_dataset
from tds_dagster.datasets.recipe import MODELS, SPLITS
from tds_dagster.training.manifest import champion_version, latest_trained

EXAMPLE = "tds demo"
_DAYS = 7
_LAST_LINES = 20  # of a failed run's log


class DemoKind(msgspec.Struct, frozen=True):
    days: int
    rows: int  # lines of the range file, earlier rounds of the demo included
    bytes: int
    path: str  # the range's JSONL file


class DemoDataset(msgspec.Struct, frozen=True):
    version: str
    rows: dict[str, int]  # of train, validation and test
    path: str  # the folder


class DemoModel(msgspec.Struct, frozen=True):
    version: str
    accuracy: float  # on its test split, 0 to 1
    low: float  # of its 95 % interval
    high: float
    rows: int  # of the test split
    baseline: float  # accuracy of the better one of majority and most recent class
    champion: str | None  # the version in use
    path: str  # the folder


class Demo(msgspec.Struct, frozen=True):
    """What `tds demo --json` prints."""

    data_dir: str
    start: str  # first day, YYYY-MM-DD
    end: str  # last day, included
    stored: int  # records that the agents stored this time
    seconds: float
    balanced: bool
    verdict: str  # of the account of all records, as `tds status` has it
    kinds: dict[str, DemoKind]
    datasets: dict[str, DemoDataset]
    models: dict[str, DemoModel]


class _Manifest(msgspec.Struct, frozen=True):
    rows: int
    bytes: int


def run_demo(
    *,
    seed: Annotated[int, typer.Option(metavar="N", help="Which story the agents tell.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Let made-up agents work for a week, export it, and train.

    Four agents store events, tasks, tool executions, workflows and feedback of the last seven full days through the
    real client; one Dagster run turns all kinds into JSONL, and one these into a dataset and a model for each of the
    four questions. Files go to TDS_DATA_DIR (./data by default). Another round adds new sessions to what is there.
    """
    began = time.monotonic()
    settings = read_settings()
    days = _last_days(settings)
    with progress() as advance:
        stored = asyncio.run(_let_agents_work(settings, days, seed, advance))
        _export_in_dagster(settings, days[0].isoformat(), days[-1].isoformat(), advance)
        _train_in_dagster(settings, advance)
    status = read_status(settings)
    demo = Demo(
        data_dir=str(settings.data_dir), start=days[0].isoformat(), end=days[-1].isoformat(), stored=stored,
        seconds=round(time.monotonic() - began, 1), balanced=status.balanced, verdict=status.verdict,
        kinds={kind: _range_of(settings, kind, days) for kind in KINDS},
        datasets={model: _dataset_of(settings, model) for model in MODELS},
        models={model: _model_of(settings, model) for model in MODELS},
    )  # fmt: skip
    if as_json:
        print_json(demo)
    else:
        _print_demo(demo)
    if not demo.balanced:
        raise SystemExit(1)


def _last_days(settings: Settings) -> list[date]:
    """The last seven full days, as far as they have partitions."""
    days = [today() - timedelta(days=n) for n in range(_DAYS, 0, -1)]
    days = [day for day in days if day >= settings.start_date]
    if not days:
        raise InvalidSetting(
            f"TDS_START_DATE={settings.start_date}: expected a day before today, for the demo's records are of the "
            "past week; set an earlier one"
        )
    return days


async def _let_agents_work(settings: Settings, days: list[date], seed: int, advance: Advance) -> int:
    """Store the agents' records and wait until they are in the CSV files; gives how many they are."""
    from tds_dagster.cli.simulation import ROLES, work

    store = TrainingDataStore(msgspec.structs.replace(settings, on_full="raise"))
    try:
        total = len(days) * len(ROLES)
        stored = await work(store, days, seed=seed, progress=lambda done: advance("agents at work", done, total))
        await store.flush(60.0)
    finally:
        await store.close()
    return stored


def _export_in_dagster(settings: Settings, start: str, end: str, advance: Advance) -> None:
    """One run over the range for all kinds, as the UI's backfill would start it. Raises RunFailed if it fails."""
    days = (date.fromisoformat(end) - date.fromisoformat(start)).days + 1
    asked = ["--select", "group:curated or group:exports", "--partition-range", f"{start}...{end}"]
    _run_dagster(settings, f"the Dagster run over {start} to {end}", asked, 2 * days * len(KINDS), advance)


def _train_in_dagster(settings: Settings, advance: Advance) -> None:
    """One run for all datasets and models, a run of its own: they are not of a day. Raises RunFailed."""
    # Made-up agents repeat themselves, and copies of an example are in one split: a split may be left without rows.
    recipe = {"config": {"allow_empty_splits": True}}
    config = {"ops": {f"datasets__{model}": recipe for model in MODELS}}
    chosen = "group:datasets or group:models"
    asked = ["--select", chosen, "--config-json", msgspec.json.encode(config).decode()]
    _run_dagster(settings, "the Dagster run that builds datasets and models", asked, 2 * len(MODELS), advance)


def _run_dagster(settings: Settings, what: str, asked: list[str], total: int, advance: Advance) -> None:
    """A run of a process of its own, which makes `total` materializations. Raises RunFailed if it fails."""
    from tds_dagster.cli.up import DEFINITIONS, prepare_home

    home = prepare_home(settings)
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", DEFINITIONS, *asked]
    done = 0
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)
    environment = child_environment(settings, DAGSTER_HOME=str(home))
    with subprocess.Popen(
        command, env=environment, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        advance(what.partition(" ")[2], done, total)
        for line in run.stdout or ():
            last_lines.append(line)
            if "ASSET_MATERIALIZATION" in line:
                done += 1
                advance(what.partition(" ")[2], min(done, total), total)
    if run.returncode:
        raise RunFailed(f"{what} ended with {run.returncode}:\n{''.join(last_lines)}")


def _range_of(settings: Settings, kind: str, days: list[date]) -> DemoKind:
    path = DataPaths(settings.data_dir).range_export(kind, days[0].isoformat(), days[-1].isoformat())
    manifest = msgspec.json.decode(manifest_of(path).read_bytes(), type=_Manifest)
    return DemoKind(len(days), manifest.rows, manifest.bytes, _shown(path))


def _dataset_of(settings: Settings, model: str) -> DemoDataset:
    built = find_dataset(DataPaths(settings.data_dir), model)
    return DemoDataset(built.version, {name: split.rows for name, split in built.splits.items()}, _shown(built.folder))


def _model_of(settings: Settings, model: str) -> DemoModel:
    paths = DataPaths(settings.data_dir)
    trained = latest_trained(paths, model)
    if trained is None:
        raise RunFailed(f"{model}: the run ended well, and made no model that can be read")
    score, (_, baseline) = trained.metrics.score, trained.metrics.best_baseline
    return DemoModel(
        trained.version, round(score.accuracy, 4), round(score.interval.low, 4), round(score.interval.high, 4),
        score.rows, round(baseline.accuracy, 4), champion_version(paths, model), _shown(trained.folder),
    )  # fmt: skip


def _shown(path: Path) -> str:
    """A path as short as one can paste it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)


def _print_demo(demo: Demo) -> None:
    print_table(
        ["kind", "days", "rows", "size", "export"],
        [[kind, made.days, made.rows, size_text(made.bytes), made.path] for kind, made in demo.kinds.items()],
    )
    typer.echo("")
    print_table(
        ["dataset", *SPLITS, "folder"],
        [[model, *made.rows.values(), made.path] for model, made in demo.datasets.items()],
    )
    typer.echo("")
    print_table(
        ["model", "right on test", "95 % interval", "best baseline", "in use", "folder"],
        [
            [model, f"{made.accuracy:.1%}", f"{made.low:.1%} to {made.high:.1%}", f"{made.baseline:.1%}",
             "yes" if made.champion == made.version else "no", made.path]
            for model, made in demo.models.items()
        ],
    )  # fmt: skip
    typer.echo(f"\n{demo.stored:,} records stored by the agents, {demo.start} to {demo.end}, in {demo.seconds:.0f} s")
    typer.echo(f"account: {demo.verdict} (`tds status`)")
    typer.echo("next: `tds up` opens the Dagster UI at http://127.0.0.1:3000, `tds export events` writes one kind")
