"""Lives through the whole way without a hand on it: `tds up`, real runs day by day, trainings that start by themselves.

    python -m benchmarks.retraining_story --log airline_runs.jsonl.gz [--batches 14] [--write]

`tds up` starts over an empty data folder. A log of chat runs (`tds import --format openai-chat`) comes in batches, its
days shifted so that the last of them is yesterday; between batches nothing is done but to wait until the platform
rests: sensors report the days, automation builds them, sensors start trainings, models are promoted or refused. The
timeline is Dagster's event log and the models' own decisions.
"""

import argparse
import gzip
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import dagster as dg

from benchmarks.machine import describe_machine
from benchmarks.processes import free_port, wait_until
from benchmarks.tools import tell, working_folder
from ingest import Settings
from ingest.pipeline.partitions import DataPaths
from ingest.settings import child_environment
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.training.champion import decisions
from tds_dagster.training.confusion import score_text
from tds_dagster.training.manifest import find_model

PAGE = Path(__file__).with_name("RESULTS-retraining-story.md")
POLICY = "[default]\nnew_rows = 50\nmargin = 0.01\n"
DAYS_A_BATCH = 2
FIRST_BATCH = 3  # times as many runs as the others have: what a team has when it begins
RESTS_AFTER_S = 75  # without a run: two ticks of the slowest sensor, and a run that starts
_UNDER_WAY = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


def main() -> None:
    """Run it and print the timeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="runs of a chat agent, JSON lines, also .gz")
    parser.add_argument("--batches", type=int, default=14)
    parser.add_argument("--write", action="store_true", help=f"keep the page, {PAGE.name}")
    asked = parser.parse_args()
    with working_folder() as folder:
        page = _live(Path(folder), asked.log, asked.batches)
    print(page)
    if asked.write:
        PAGE.write_text(page + "\n", encoding="utf-8")


def _live(folder: Path, log: Path, batches: int) -> str:
    (folder / "policy.toml").write_text(POLICY)
    settings = Settings(
        data_dir=folder / "data", training_policy=folder / "policy.toml", redaction_key="of a benchmark only"
    )
    environment = {**child_environment(settings), "DAGSTER_HOME": ""}
    tds = [sys.executable, "-c", "from tds_dagster.cli import main; main()"]
    began, imports = datetime.now(UTC), list[tuple[datetime, str]]()
    with (folder / "told").open("wb") as told:
        up = subprocess.Popen([*tds, "up", "--port", str(free_port())], env=environment, cwd=folder, stdout=told)
        try:
            wait_until(lambda: b"lineage" in (folder / "told").read_bytes(), "the UI answers", 120)
            first = began.date() - timedelta(days=batches * DAYS_A_BATCH)
            with dg.DagsterInstance.from_config(str(settings.data_dir / "dagster")) as instance:
                for n, part in enumerate(_parts(log, folder, batches)):
                    start = first + timedelta(days=n * DAYS_A_BATCH)
                    imports.append((datetime.now(UTC), f"{part.stem}: {start} and {DAYS_A_BATCH - 1} more"))
                    arguments = ["import", str(part), "--format", "openai-chat", "--start", str(start)]
                    subprocess.run([*tds, *arguments, "--days", str(DAYS_A_BATCH)], env=environment, check=True)
                    tell(f"batch {n + 1} is imported; waiting until the platform rests")
                    _wait_for_rest(instance)
                return _page(settings, instance, began, imports)
        finally:
            up.terminate()
            up.wait(60)


def _parts(log: Path, folder: Path, batches: int) -> Iterator[Path]:
    """The log's runs in as many files, in their order."""
    with gzip.open(log) if log.suffix == ".gz" else log.open("rb") as lines:
        runs = [line for line in lines if line.strip()]
    size = -(-len(runs) // (batches + FIRST_BATCH - 1))
    ends = [size * (FIRST_BATCH + n) for n in range(batches)]
    for n, (start, end) in enumerate(pairwise([0, *ends]), 1):
        path = folder / f"batch {n}, {len(runs[start:end])} runs.jsonl"
        path.write_bytes(b"".join(runs[start:end]))
        yield path


def _wait_for_rest(instance: dg.DagsterInstance) -> None:
    """Until no run was under way for a while."""
    quiet_since, deadline = time.monotonic(), time.monotonic() + 900
    while time.monotonic() - quiet_since < RESTS_AFTER_S:
        if time.monotonic() > deadline:
            raise TimeoutError("the platform has not come to rest within 15 minutes")
        if instance.get_runs_count(dg.RunsFilter(statuses=_UNDER_WAY)):
            quiet_since = time.monotonic()
        time.sleep(1)


def _page(
    settings: Settings, instance: dg.DagsterInstance, began: datetime, imports: Sequence[tuple[datetime, str]]
) -> str:
    rows = [(moment, "import", text) for moment, text in imports]
    counts: dict[str, int] = {}
    for record in instance.get_run_records():
        run, why = record.dagster_run, record.dagster_run.tags.get("tds/retraining")
        name = "training" if why else "days"
        counts[f"{name}, {run.status.value.lower()}"] = counts.get(f"{name}, {run.status.value.lower()}", 0) + 1
        if why:
            rows.append(
                (record.create_timestamp, "sensor", f"{why} → run {run.run_id[:8]}, {run.status.value.lower()}")
            )
    for model in MODELS:
        for decision in decisions(DataPaths(settings.data_dir), model):
            verb = "**promoted**" if decision.promoted else "refused"
            text = f"{model} {decision.challenger} {verb}: {decision.reason}"
            rows.append((datetime.fromisoformat(decision.at), "decision", text))
    lines = [
        "# Retraining that starts itself, on real runs",
        "",
        (
            f"Written by `python -m benchmarks.retraining_story --write` on {began.date()}. Policy: 50 new rows, "
            "a margin of one point. After its start nobody touched the platform; the log came in by `tds import`."
        ),
        "",
        *(f"- {line}" for line in describe_machine()),
        f"- Runs: {', '.join(f'{n} {name}' for name, n in sorted(counts.items()))}",
        "",
        "| after | | |",
        "| ---: | --- | --- |",
        *(f"| {(moment - began).total_seconds():.0f} s | {what} | {text} |" for moment, what, text in sorted(rows)),
        "",
        "| model | champion, or the last one | on its test split | baselines |",
        "| --- | --- | --- | --- |",
        *_models(DataPaths(settings.data_dir)),
    ]
    return "\n".join(lines)


def _models(paths: DataPaths) -> Iterator[str]:
    for name in MODELS:
        if not paths.models(name).is_dir():
            yield f"| {name} | none: the log has no such records | | |"
            continue
        model = find_model(paths, name)
        baselines = ", ".join(f"{each} {score.accuracy:.1%}" for each, score in model.metrics.baselines.items())
        state = "champion" if model.metrics.beats_baselines else "not promoted"
        yield (
            f"| {name} | {model.version}, {state} | {score_text(model.metrics.score)}, {model.metrics.rows} rows | "
            f"{baselines} |"
        )


if __name__ == "__main__":
    main()
