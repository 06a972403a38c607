"""Attacks the whole write path and proves its account: `python -m tests.chaos`, or `make chaos`.

Worker processes store records through the real client and note, outside of the store, which were accepted. Meanwhile
they, the writers, Redis, the clock and the disk are attacked at random instants. After each round everything is
drained and held against the notes: each accepted record is in the CSV files exactly once, and `tds status` adds up to
the record. Exit code 1, and the folder is kept, if anything was lost, doubled or wrong.

    python -m tests.chaos                               one minute, embedded and through Redis
    python -m tests.chaos --minutes 30                  the long form
    python -m tests.chaos --seed 7 --rounds 20          the same throws of the dice as last time
    python -m tests.chaos --mode redis --attacks flush-redis,kill-writer
    python -m tests.chaos --without marks               switch one protection off: the loss has to be seen
    python -m tests.chaos --controls                    all of them in turn
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from tests.chaos.attacks import ATTACKS, attack, possible
from tests.chaos.controls import CONTROLS
from tests.chaos.site import STEPS, Plan, Site
from tests.chaos.tools import Tools, find_tools
from tests.chaos.verify import Verdict, shown, verify
from tests.chaos.worker import KINDS

ROUNDS_PER_FOLDER = 5  # then a new folder: the check after a round reads all of it, so that old rows are held too
CONTROL_S = 120.0
LEFT_OUT = "left out, see above"
_NAMESPACE = "CHAOS_NAMESPACE"


class Totals(msgspec.Struct):
    """What all folders together came to."""

    rounds: int = 0
    kills: Counter[str] = msgspec.field(default_factory=Counter)
    faults: Counter[str] = msgspec.field(default_factory=Counter)
    counted: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, site: Site, verdict: Verdict) -> None:
        """Take in a folder at its end."""
        self.kills.update(site.kills)
        self.faults.update(site.faults)
        self.counted.update(figures(verdict))


def figures(verdict: Verdict) -> dict[str, int]:
    """A verdict in numbers."""
    values = msgspec.structs.asdict(verdict)
    return {name: len(value) if isinstance(value, list) else value for name, value in values.items()}


def main() -> None:
    """Do what the arguments ask for."""
    arguments = parse()
    if not sys.platform.startswith("linux"):
        sys.exit("the chaos harness needs Linux: /proc/locks, prctl, tmpfs")
    enter_namespace()
    with tempfile.TemporaryDirectory(prefix="chaos-tools-") as tools_folder:
        tools = find_tools(Path(tools_folder))
        for missing in tools.missing:
            print(f"left out: {missing}", flush=True)
        if arguments.controls:
            good = run_controls(list(CONTROLS), arguments, tools)
        elif arguments.without:
            good = run_controls([arguments.without], arguments, tools)
        else:
            if arguments.mode == "redis" and tools.redis_server is None:
                sys.exit("--mode redis: there is no redis-server")
            good = run_rounds(arguments, tools)
    sys.exit(0 if good else 1)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to begin new rounds (default 1)")
    parser.add_argument("--rounds", type=int, help="end after so many rounds instead")
    parser.add_argument("--seed", type=int, help="what the dice begin with (default: a new one, printed)")
    parser.add_argument("--mode", choices=["embedded", "redis", "both"], default="both", help="(default both)")
    parser.add_argument(
        "--attacks", type=names_of(ATTACKS), default=list(ATTACKS), metavar="NAMES",
        help=f"only these, separated by commas: {', '.join(ATTACKS)}",
    )  # fmt: skip
    parser.add_argument("--round-seconds", type=float, help="how long a round's attacks last (default 1 to 5)")
    parser.add_argument(
        "--without", choices=list(CONTROLS), metavar="PROTECTION",
        help="switch one protection off and end at the first loss, at the latest after two minutes; exit code 1 if "
        f"none is seen. One of: {'; '.join(f'{name} ({control.what})' for name, control in CONTROLS.items())}",
    )  # fmt: skip
    parser.add_argument("--controls", action="store_true", help="--without each protection in turn, and a table")
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1_000_000)
    return arguments


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A parser of names separated by commas."""

    def parse_names(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
        return names

    return parse_names


def enter_namespace() -> None:
    """Go on in a mount namespace of our own, so that no mount outlives us, whatever ends us."""
    if os.environ.get(_NAMESPACE) or shutil.which("unshare") is None:
        return
    way = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*way, "true"], capture_output=True, check=False, timeout=10).returncode == 0:
        os.environ[_NAMESPACE] = "1"
        sys.stdout.flush()
        os.execvp(way[0], [*way, sys.executable, "-m", "tests.chaos", *sys.argv[1:]])


def run_rounds(arguments: argparse.Namespace, tools: Tools) -> bool:
    """Attack round after round; True if nothing was lost, doubled or wrong."""
    print(f"seed {arguments.seed}", flush=True)
    rng, totals, began, number = random.Random(arguments.seed), Totals(), time.monotonic(), 0
    while True:
        redis = arguments.mode == "redis" or (
            arguments.mode == "both" and number % 2 == 1 and tools.redis_server is not None
        )
        plan = throw_plan(rng, tools, redis=redis)
        folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=arguments.folder))
        site = Site(folder, plan, random.Random(rng.randrange(1 << 30)), tools)
        verdict, is_over = Verdict(), False
        try:
            for _ in range(ROUNDS_PER_FOLDER):
                verdict = run_round(site, arguments, totals, verdict)
                is_over = is_time_over(arguments, totals, began)
                if is_over or not verdict.is_good or site.is_grown:
                    break
        finally:
            is_kept = not verdict.is_good or sys.exc_info()[0] is not None
            kept = Path(f"{folder}-kept") if is_kept else None
            site.leave(keep=kept)
            if kept is not None:
                print(f"the folder is kept: {kept}", flush=True)
        totals.add(site, verdict)
        number += 1
        if is_over or not verdict.is_good:
            print_totals(totals, time.monotonic() - began, arguments.seed)
            return verdict.is_good


def is_time_over(arguments: argparse.Namespace, totals: Totals, began: float) -> bool:
    """Whether the last round was the last one."""
    if arguments.rounds is not None:
        return totals.rounds >= int(arguments.rounds)
    return bool(time.monotonic() - began >= arguments.minutes * 60)


def throw_plan(rng: random.Random, tools: Tools, *, redis: bool) -> Plan:
    """What the dice say about one folder."""
    return Plan(
        redis=redis,
        small_disks=tools.can_mount and rng.random() < 0.5,
        without=None,
        kinds=rng.sample(list(KINDS), rng.choice([1, 2, 5])),
        workers=rng.choice([2, 2, 3]),
        rate=rng.choice([500, 2000]),
        stepped_clock=rng.random() < 0.4,
        # Through Redis the workers have none: there it is `tds writer` alone that dies at a step.
        failpoint_share=rng.choice([0.5, 0.7, 0.9] if redis else [0.2, 0.5, 0.8]),
        steps=STEPS,
        patience_s=60.0,
    )


def run_round(site: Site, arguments: argparse.Namespace, totals: Totals, before: Verdict) -> Verdict:
    """One round: attack, drain, verify, and a line about it."""
    began, kills, faults = time.monotonic(), site.kills.copy(), site.faults.copy()
    totals.rounds += 1
    names = [name for name in possible(site) if name in arguments.attacks]
    progress(f"round {totals.rounds}: attacking")
    attack(site, names, arguments.round_seconds or site.rng.uniform(1.0, 5.0), gap_s=site.rng.choice([0.15, 0.4, 1.0]))
    progress(f"round {totals.rounds}: draining")
    site.drain()
    progress(f"round {totals.rounds}: verifying")
    verdict = verify(site)
    progress("")
    of_round = {**(site.kills - kills), **(site.faults - faults)}
    print(
        f"round {totals.rounds:>3}  {'redis' if site.plan.redis else 'embedded':8} {time.monotonic() - began:5.1f} s  "
        f"{verdict.accepted - before.accepted:>7,} accepted  {verdict.dropped - before.dropped:>5,} dropped  "
        f"lost {len(verdict.lost)}  doubled {len(verdict.doubled)}  wrong {len(verdict.wrong)}  "
        f"| {', '.join(f'{name} {n}' for name, n in sorted(of_round.items())) or 'no attack'}",
        flush=True,
    )
    for line in shown(verdict):
        print(line, flush=True)
    return verdict


def progress(text: str) -> None:
    """One line that is written over, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def print_totals(totals: Totals, seconds: float, seed: int) -> None:
    """The table at the end."""
    counted = totals.counted
    lines = [
        ("rounds", totals.rounds),
        ("kills", totals.kills.total() - totals.kills["at the end"]),
        *((f"  {name}", n) for name, n in sorted(totals.kills.items()) if name != "at the end"),
        ("faults", totals.faults.total()),
        *((f"  {name}", n) for name, n in sorted(totals.faults.items())),
        *((name, counted[name]) for name in ("accepted", "rows", "duplicates", "quarantined", "strange", "dropped")),
        *((name, counted[name]) for name in ("lost", "doubled", "wrong")),
    ]
    print(f"\nseed {seed}, {seconds / 60:.1f} minutes")
    for name, n in lines:
        print(f"{name:44}{n:>12,}")


def run_controls(names: list[str], arguments: argparse.Namespace, tools: Tools) -> bool:
    """Switch protections off in turn; True if each absence was seen within two minutes."""
    results = []
    print(f"{'without':16}{'seconds':>7}  {'that':68}  seen", flush=True)
    for name in names:
        progress(f"without {name}")
        seconds, seen = run_control(name, arguments, tools)
        progress("")
        results.append(seen is not None)
        verdict = "nothing: the harness is blind to it" if seen is None else seen
        print(f"{name:16}{seconds:7.1f}  {CONTROLS[name].what:68}  {verdict}", flush=True)
    return all(results)


def run_control(name: str, arguments: argparse.Namespace, tools: Tools) -> tuple[float, str | None]:
    """Attack without one protection until its absence shows; gives the seconds and what was seen, None if nothing."""
    control, began = CONTROLS[name], time.monotonic()
    if (control.small_disks and not tools.can_mount) or (control.redis and tools.redis_server is None):
        return 0.0, LEFT_OUT
    rng = random.Random(arguments.seed)
    seen: str | None = None
    while seen is None and time.monotonic() - began < CONTROL_S:
        plan = Plan(
            redis=control.redis,
            small_disks=control.small_disks,
            without=name,
            kinds=["events"],
            workers=2,
            rate=2000,
            stepped_clock=False,
            failpoint_share=1.0 if control.steps else 0.0,
            steps=control.steps,
            patience_s=8.0,
            forks_share=0.5,
        )
        folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=arguments.folder))
        site = Site(folder, plan, random.Random(rng.randrange(1 << 30)), tools)
        try:
            attack(site, control.attacks, control.attack_s, control.gap_s)
            site.drain()
            seen = what_was_seen(verify(site), control.seen)
        finally:
            site.leave()
    return time.monotonic() - began, seen


def what_was_seen(verdict: Verdict, expected: str) -> str | None:
    """The first finding of the expected sort, and how many there are; None if there is none.

    Others do not count: on a busy machine a flush may take longer than a control has patience.
    """
    for sort, findings in (("doubled", verdict.doubled), ("lost", verdict.lost), ("wrong", verdict.wrong)):
        found = [finding for finding in findings if re.search(expected, f"{sort}: {finding}")]
        if found:
            return f"{len(found):,} {sort}: {found[0]}"
    return None


if __name__ == "__main__":
    main()
