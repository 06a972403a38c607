"""Turns `tds erase` into one erasure, and shows what went and what was built again."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ingest.errors import PlatformUnavailable
from ingest.records import KINDS
from tds_dagster.cli.arguments import JsonOption, KindsArgument, checked_kinds
from tds_dagster.cli.output import print_json, print_table, print_warning, progress

if TYPE_CHECKING:
    from dagster import AssetObservation

    from ingest.pipeline.partitions import DataPaths
    from ingest.settings import Settings
    from tds_dagster.erasure import Found, Receipt
    from tds_dagster.erasure.derived import Observe
    from tds_dagster.erasure.journal import ErasedDataset, TaintedModel

EXAMPLE = "tds erase --text mia_li_3668 --whole-sessions --dry-run"


class ErasedKind(msgspec.Struct, frozen=True):
    records: int  # rows of the day files
    rejects: int  # lines that were in quarantine
    days: list[str]  # that lost something


class Erased(msgspec.Struct, frozen=True):
    """What `tds erase --json` prints."""

    dry_run: bool  # nothing was erased: these are the figures that would be
    searched: list[str]  # kinds: a predicate is asked of those only that have its columns
    kinds: dict[str, ErasedKind]
    synapse_records: int  # records in Redis
    synapse_files: str | None  # what became of the files of Redis; null where nothing was erased
    exports: list[str]  # files of ranges and selections that were removed or changed, below the data folder
    datasets: dict[str, str | None]  # <model>/<version> that were removed: the version built again; null: not (yet)
    models: list[str]  # <model>/<version> that were trained on these
    not_built: dict[str, str]  # what could not be built again, each with its reason
    not_erased: dict[str, str]  # damaged day files that were left as they are, each with its reason
    unjudged: dict[str, int]  # lines in quarantine, by kind, that the predicate could not judge
    receipts: list[str]  # files; more than one if an erasure that was cut off was finished as well


def erase_records(
    kinds: KindsArgument = None,
    *,
    agent_id: Annotated[list[str] | None, typer.Option(metavar="ID", help="All records of this agent.")] = None,
    session_id: Annotated[list[str] | None, typer.Option(metavar="ID", help="All records of this session.")] = None,
    record_id: Annotated[list[str] | None, typer.Option(metavar="ID", help="This record.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Records in which this stands, in any column.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Records for which this predicate is true, as in `tds export --where`."),
    ] = None,
    whole_sessions: Annotated[
        bool, typer.Option("--whole-sessions", help="Also everything of the sessions that these records belong to.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before it happens.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase records for good, everywhere they went.

    A record that matches any of the options goes, and feedback on what is gone. Day files, exports, datasets,
    quarantine, ledgers, spool and Redis are rewritten without them, every other row stays as it is; models that were
    trained on them are marked. Running writers let go for a moment and go on. A receipt without the data is left in
    state/erasures. Killed on the way, run it again: it finishes what it began. Copies elsewhere (`--out`, backups,
    agents' hosts with a spool of their own) are not reached.
    """
    names = checked_kinds(kinds) if kinds else []
    if not (agent_id or session_id or record_id or text or where):
        raise typer.BadParameter("expected --agent-id, --session-id, --record-id, --text or --where: what is to go")
    if any(not value.strip() for value in [*(agent_id or ()), *(session_id or ()), *(record_id or ()), *(text or ())]):
        raise typer.BadParameter("an empty id or text matches every record; expected one that is somebody's")
    if not (dry_run or yes) and not sys.stdin.isatty():
        raise typer.BadParameter("nobody can be asked here: expected --yes, or --dry-run to look first")
    from ingest.pipeline.partitions import DataPaths
    from ingest.settings import read_settings
    from tds_dagster.cli.leftovers import write_leftovers
    from tds_dagster.erasure import Selector, erase, find_doomed

    settings = read_settings()
    paths = DataPaths(settings.data_dir)
    selector = Selector(
        agent_ids=tuple(agent_id or ()), session_ids=tuple(session_id or ()), record_ids=tuple(record_id or ()),
        texts=tuple(text or ()), where=where, kinds=tuple(names), whole_sessions=whole_sessions,
    )  # fmt: skip
    if dry_run or not yes:
        write_leftovers(settings, KINDS)
        with progress() as advance:
            found = find_doomed(paths, selector, advance)
        if dry_run:
            _show(_preview(paths, found), as_json=as_json)
            return
        _ask(_preview(paths, found))
    with progress() as advance:
        receipts, found_now = erase(settings, selector, observe=_observer(settings), progress=advance)
    result = _result(settings, receipts, found_now)
    _show(result, as_json=as_json)
    for folder in (paths.root / "migration", paths.root / "quarantine" / "migration"):
        if folder.is_dir():
            print_warning(f"{folder} has rows of old tables as they were, and is not looked into: delete it")
    if result.not_erased:
        raise SystemExit(1)


def _ask(preview: Erased) -> None:
    _print_kinds(preview.kinds)
    _print_artifacts(preview)
    if preview.kinds:
        typer.confirm("Erase these for good?", err=True, abort=True)


def _preview(paths: "DataPaths", found: "Found") -> Erased:
    from tds_dagster.erasure.preview import affected_datasets, affected_exports

    kinds = {
        kind: ErasedKind(
            sum(map(len, doomed.records.values())),
            sum(map(len, doomed.lines.values())),
            sorted({*doomed.records, *doomed.lines}),
        )
        for kind, doomed in found.doomed.items()
    }
    return Erased(
        dry_run=True,
        searched=found.searched,
        kinds=kinds,
        synapse_records=0,
        synapse_files=None,
        exports=affected_exports(paths, found.doomed),
        datasets=dict.fromkeys(affected_datasets(paths, found.doomed)),
        models=[],
        not_built={},
        not_erased={},
        unjudged=found.unjudged,
        receipts=[],
    )


def _result(settings: "Settings", receipts: Sequence["Receipt"], found: "Found") -> Erased:
    from ingest.pipeline.partitions import DataPaths
    from tds_dagster.erasure.journal import receipt_file

    kinds: dict[str, ErasedKind] = {}
    for receipt in receipts:
        for kind in dict.fromkeys([*receipt.records, *receipt.rejects]):
            before = kinds.get(kind, ErasedKind(0, 0, []))
            records, rejects = receipt.records.get(kind, {}), receipt.rejects.get(kind, {})
            kinds[kind] = ErasedKind(
                before.records + sum(records.values()),
                before.rejects + sum(rejects.values()),
                sorted({*before.days, *records, *rejects}),
            )
    paths = DataPaths(settings.data_dir)
    return Erased(
        dry_run=False,
        searched=found.searched,
        kinds=kinds,
        synapse_records=sum(receipt.synapse_records for receipt in receipts),
        synapse_files=receipts[-1].synapse_files if receipts else None,
        exports=sorted({path for receipt in receipts for path in _changed_exports(receipt)}),
        datasets={
            f"{each.model}/{each.version}": each.built_again_as for receipt in receipts for each in receipt.datasets
        },
        models=[f"{each.model}/{each.version}" for receipt in receipts for each in receipt.models],
        not_built={name: reason for receipt in receipts for name, reason in receipt.not_built.items()},
        not_erased={name: reason for receipt in receipts for name, reason in receipt.not_erased.items()},
        unjudged=found.unjudged,
        receipts=[str(receipt_file(paths, receipt.id)) for receipt in receipts],
    )


def _changed_exports(receipt: "Receipt") -> "Iterator[str]":
    for change in receipt.files:
        # Without a former hash it was built again and not removed before: the latest one, to be the latest again.
        if change.path.startswith("exports/") and "/ranges/" in change.path and change.old_sha256:
            yield change.path


def _show(erased: Erased, *, as_json: bool) -> None:
    for kind, lines in erased.unjudged.items():
        print_warning(
            f"{kind}: no predicate can judge {lines:,} lines in quarantine; look through them, or name what stands in "
            "them by --text"
        )
    for name, reason in erased.not_built.items():
        print_warning(f"{name} is gone and was not built again: {reason}")
    for name, reason in erased.not_erased.items():
        print_warning(f"{name}: {reason}")
    if as_json:
        print_json(erased)
        return
    _print_kinds(erased.kinds, has_receipt=bool(erased.receipts))
    if len(erased.searched) < len(KINDS):
        typer.echo(f"looked for in {', '.join(erased.searched)}")
    if erased.synapse_files is not None:
        typer.echo(f"Redis: {erased.synapse_records:,} records; {erased.synapse_files}")
    _print_artifacts(erased)
    for name in erased.models:
        typer.echo(f"model {name} was trained on what is gone: it is marked as tainted")
    for receipt in erased.receipts:
        typer.echo(receipt)


def _print_artifacts(erased: Erased) -> None:
    """Print what becomes, or became, of exports and datasets."""
    becomes = "would be removed and built again" if erased.dry_run else "was removed or built again"
    for path in erased.exports:
        typer.echo(f"export {path} {becomes}")
    for name, again in erased.datasets.items():
        typer.echo(f"dataset {name} {becomes}" if erased.dry_run else _dataset_text(name, again))


def _dataset_text(name: str, again: str | None) -> str:
    """What became of a dataset."""
    if again is None:
        return f"dataset {name} is gone"
    if name.endswith(f"/{again}"):
        return f"dataset {name} was built again as it was: nothing of the erased was in it"
    return f"dataset {name} is gone; built again as {again}"


def _print_kinds(kinds: dict[str, ErasedKind], *, has_receipt: bool = False) -> None:
    if not kinds:
        found = "found are only lines of others in quarantine" if has_receipt else "nothing found"
        typer.echo(f"{found}: 0 records")
        return
    print_table(
        ["kind", "records", "in quarantine", "days"],
        [[kind, n.records, n.rejects, len(n.days)] for kind, n in kinds.items()],
    )


def _observer(settings: "Settings") -> "Observe":
    """What tells Dagster of datasets and models that are concerned, if there is a Dagster here."""
    from ingest.settings import dagster_home

    home = dagster_home(settings)

    def observe(erasure: str, datasets: list["ErasedDataset"], models: list["TaintedModel"]) -> None:
        if not (home / "dagster.yaml").exists() or not (datasets or models):
            return
        from dagster import DagsterError, DagsterInstance
        from dagster_postgres.utils import DagsterPostgresException

        try:
            with DagsterInstance.from_config(str(home)) as instance:
                for observation in _observations(erasure, datasets, models):
                    instance.report_runless_asset_event(observation)
        except (DagsterError, DagsterPostgresException) as err:
            raise PlatformUnavailable(
                f"{home}: Dagster takes no events ({err}): expected its storage to answer; the records are erased, run "
                "this again to have the models marked there too"
            ) from err

    return observe


def _observations(
    erasure: str, datasets: Sequence["ErasedDataset"], models: Sequence["TaintedModel"]
) -> "Iterator[AssetObservation]":
    from dagster import AssetObservation

    for dataset in datasets:
        again = dataset.built_again_as or "not built"
        yield AssetObservation(
            ["datasets", dataset.model],
            metadata={"erased_version": dataset.version, "built_again_as": again, "erasure": erasure},
        )
    for model in models:
        trained = {"model_version": model.version, "dataset_version": model.dataset}
        yield AssetObservation(["models", model.model], metadata={"tainted": True, "erasure": erasure, **trained})
