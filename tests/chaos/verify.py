"""Turns the workers' logs, the day files and `tds status` into a verdict: what was lost, doubled or made up.

Nothing is taken from the store's own account that can be counted without it: accepted comes from the workers' logs,
stored from the CSV files, read with Python's csv module up to the committed size. Then the store's account has to say
the same, to the record. What one call may leave open is known too: a worker that was killed between the call and its
log line has at most the next number of that thread in the files, once.
"""

import csv
import io
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from ingest.pipeline.accounting import account
from ingest.pipeline.ledger import Ledger
from ingest.records import KINDS as COLUMNS
from tests.chaos.site import Site
from tests.chaos.worker import KINDS, document
from tests.parts import PROJECT, environment

csv.field_size_limit(1 << 20)
STRANGE = "somebody else's row"  # begins each line that an attack appends to a day file
_RECORD_ID = re.compile(rb'"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"')  # in JSON or in a CSV row
_SHOWN = 5  # examples of each sort of finding


class Verdict(msgspec.Struct):
    """What was found in one folder, from its first round on."""

    accepted: int = 0  # calls that gave an id
    dropped: int = 0  # calls that gave None
    rows: int = 0
    duplicates: int = 0  # of idempotency keys
    quarantined: int = 0  # records that the harness destroyed in the spool, and the store gave up by name
    strange: int = 0  # lines appended by the harness that the store set aside
    lost: list[str] = []
    doubled: list[str] = []
    wrong: list[str] = []  # rows that nobody stored, contents that changed, accounts that do not add up, crashes

    @property
    def is_good(self) -> bool:
        """Nothing lost, doubled or wrong."""
        return not (self.lost or self.doubled or self.wrong)


class Logged(NamedTuple):
    """What the workers said."""

    ids: dict[str, str]  # of each accepted record's name
    accepted: Counter[str]  # by kind
    dropped: Counter[str]
    last: dict[str, int]  # the last number of each `<worker>.<thread>`
    ended: set[str]  # workers that came to their own end
    # Dropped by workers that ended so, and that found room for one record at least: one that never did has no place
    # to leave its counters in.
    least_dropped: Counter[str]


def read_logs(site: Site) -> Logged:
    """Read every worker's log."""
    logged = Logged({}, Counter(), Counter(), defaultdict(int), set(), Counter())
    for path in sorted(site.log.glob("*.log")):
        dropped, accepted = Counter[str](), Counter[str]()
        for line in path.read_text().splitlines():
            sign, *fields = line.split(" ")
            if sign == "=":
                logged.ended.add(path.stem)
                logged.least_dropped.update({kind: n for kind, n in dropped.items() if accepted[kind]})
                continue
            kind, name = fields[0], fields[-1]
            who, _, number = name.rpartition(".")
            logged.last[who] = int(number)
            if sign == "+":
                logged.ids[name] = fields[1]
                accepted[kind] += 1
            else:
                dropped[kind] += 1
        logged.dropped.update(dropped)
        logged.accepted.update(accepted)
    return logged


def verify(site: Site) -> Verdict:
    """Hold the day files and the store's account against the workers' logs. Everything has to be at rest."""
    logged, verdict = read_logs(site), Verdict()
    verdict.accepted, verdict.dropped = logged.accepted.total(), logged.dropped.total()
    verdict.wrong += site.findings
    status = read_status(site, verdict)
    destroyable = destroyable_records(content for _, content in site.damaged)
    found: Counter[str] = Counter()
    open_calls: dict[str, str] = {}  # names in rows of calls that were not logged any more, with their kind
    for kind in KINDS:
        verdict.rows += read_rows(site, kind, logged, found, open_calls, verdict)
    missing = [(name, record_id) for name, record_id in logged.ids.items() if not found[record_id]]
    gone = {record_id for _, record_id in missing if record_id in destroyable}
    verdict.lost = [f"{name} {record_id}" for name, record_id in missing if record_id not in destroyable]
    verdict.doubled += [f"{record_id} is there {n} times" for record_id, n in found.items() if n > 1]
    compare(status, logged, Counter(open_calls.values()), site, verdict)
    # Only what was destroyed may be missing, and each of it has to be named in the account.
    if not len(gone) <= verdict.quarantined <= destroyable.total():
        verdict.wrong.append(
            f"{verdict.quarantined} quarantined: expected {len(gone)} that are missing, to {destroyable.total()} "
            "destroyed"
        )
    if verdict.strange > site.strange_lines:
        verdict.wrong.append(f"{verdict.strange} strange lines in quarantine: only {site.strange_lines} were put in")
    return verdict


def destroyable_records(damaged: Iterable[bytes]) -> Counter[str]:
    """How many records of each id the damaged parts of the spool may have held: of one idempotency key all have one."""
    return Counter(record_id.decode() for content in damaged for record_id in _RECORD_ID.findall(content))


def read_rows(
    site: Site, kind: str, logged: Logged, found: Counter[str], open_calls: dict[str, str], verdict: Verdict
) -> int:
    """Check every committed row of a kind; gives how many there are."""
    path = site.paths.ledger(kind)
    if not path.exists():
        return 0
    ledger = Ledger(path)
    files = ledger.files()
    ledger.close()
    rows, header = 0, [column.name for column in COLUMNS[kind].columns]
    at_id, at_name = header.index("record_id"), header.index(KINDS[kind].name)
    at_document = header.index(KINDS[kind].document)
    for day, file in files.items():
        with site.paths.training(kind, day).open("rb") as source:
            content = source.read(file.size)
        table = list(csv.reader(io.StringIO(content.decode(), newline="")))
        if len(content) < file.size or table[0] != header or len(table) - 1 != file.rows:
            verdict.wrong.append(f"{kind} {day}: {len(table) - 1} rows in {len(content)} bytes, committed {file}")
        for row in table[1:]:
            rows += 1
            if len(row) != len(header):
                verdict.wrong.append(f"{kind} {day}: a row of {len(row)} columns: {row[:2]}")
                continue
            found[row[at_id]] += 1
            name = row[at_name]
            if logged.ids.get(name) != row[at_id]:
                if name in open_calls or not is_open_call(name, logged):
                    verdict.wrong.append(f"{kind} {day}: row {row[at_id]} {name}: nobody stored that")
                open_calls[name] = kind
            if json.loads(row[at_document]) != document(name):
                verdict.wrong.append(f"{kind} {day}: {name}: its content changed")
    return rows


def is_open_call(name: str, logged: Logged) -> bool:
    """Whether that is the one record of a killed thread that may be there without its line in the log."""
    who, _, number = name.rpartition(".")
    is_next = number == str(logged.last.get(who, 0) + 1)
    return is_next and who.split(".")[0] not in logged.ended


def read_status(site: Site, verdict: Verdict) -> dict[str, dict[str, int]]:
    """What `tds status --json` says of each kind; an exit code other than 0 is a finding."""
    tds = "import sys; from tds_dagster.cli import main; sys.argv = ['tds', 'status', '--json']; main()"
    done = subprocess.run(
        [sys.executable, "-c", tds],
        env=environment(site.settings),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    try:
        status = json.loads(done.stdout)
    except json.JSONDecodeError:
        verdict.wrong.append(f"tds status --json: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        return {}
    if done.returncode:
        verdict.wrong.append(f"tds status --json: {status['verdict']}")
    kinds: dict[str, dict[str, int]] = status["kinds"]
    return kinds


def compare(
    status: dict[str, dict[str, int]], logged: Logged, open_calls: Counter[str], site: Site, verdict: Verdict
) -> None:
    """The store's account against what was counted without it."""
    killed = len([who for who in logged.last if who.split(".")[0] not in logged.ended]) + site.kills.total()
    for kind, said in status.items():
        # In `tds status` they are pending until their day is curated; the writer counts them when it gives them up.
        verdict.quarantined += account(site.settings, kind).quarantined
        verdict.duplicates += said["duplicates"]
        verdict.strange += said["foreign"]
        equations = {
            "offered = accepted + dropped": said["offered"] - said["accepted"] - said["dropped"],
            "accepted + imported = stored + waiting": said["accepted"]
            + said["imported"]
            - said["stored"]
            - said["waiting"],
            "stored = pending + duplicates + quarantined": said["stored"]
            - sum(said[name] for name in ("exported", "pending", "duplicates", "quarantined")),
            "waiting = 0": said["waiting"],
            "imported = 0": said["imported"],
        }
        verdict.wrong += [f"{kind}: {equation} is off by {off}" for equation, off in equations.items() if off]
        # A call that a kill cut short was accepted, or not: one for each thread that was killed.
        least, most = logged.accepted[kind] + open_calls[kind], logged.accepted[kind] + killed
        if not least <= said["accepted"] <= max(least, most):
            verdict.wrong.append(f"{kind}: accepted {said['accepted']}: the workers logged {least}, at most {most}")
        if not logged.least_dropped[kind] <= said["dropped"] <= logged.dropped[kind] + killed:
            verdict.wrong.append(
                f"{kind}: dropped {said['dropped']}: workers that ended by themselves logged "
                f"{logged.least_dropped[kind]}, all {logged.dropped[kind]}"
            )


def shown(verdict: Verdict) -> list[str]:
    """The first few of each sort of finding, a line each."""
    lines = []
    for sort, findings in (("LOST", verdict.lost), ("DOUBLED", verdict.doubled), ("WRONG", verdict.wrong)):
        lines += [f"  {sort} {finding}" for finding in findings[:_SHOWN]]
        if len(findings) > _SHOWN:
            lines.append(f"  {sort} and {len(findings) - _SHOWN:,} more")
    return lines
