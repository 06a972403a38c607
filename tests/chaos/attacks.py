"""Turns throws of dice into attacks on a site: kills, pauses, faults of Redis, of the clock and of the disk.

An attack gives the name under which it is counted, or None where there was nothing to attack. One that lasts (a pause,
a full disk) is undone later by the site, so that further attacks fall into it.
"""

import contextlib
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import redis

from ingest.pipeline import spool
from ingest.pipeline.ledger import Ledger
from tests.chaos.site import Child, Site
from tests.chaos.verify import STRANGE
from tests.chaos.worker import KINDS

_LINE_START = re.compile(rb"\n(?=.)")
_PAGE = 4096
_RECOVERY_S = 30.0


class Attack(NamedTuple):
    """One sort of attack and how often it is chosen."""

    weight: int
    run: Callable[[Site], str | None]
    needs: str  # embedded, redis, small disks, clock, or nothing


def kill_worker(site: Site) -> str | None:
    """Kill -9 for a worker; what it forked goes on."""
    workers = site.alive("worker")
    if workers:
        site.kill(site.rng.choice(workers), "worker")
    return None


def kill_holder(site: Site) -> str | None:
    """Kill -9 for the worker that writes a kind at this moment (embedded)."""
    holder = site.holder(site.rng.choice(site.plan.kinds))
    if holder is not None:
        site.kill(holder, "holder")
    return None


def kill_writer(site: Site) -> str | None:
    """Kill -9 for `tds writer`; one that stands by takes over."""
    writers = site.alive("writer")
    if writers:
        site.kill(site.rng.choice(writers), "writer")
    return None


def add_writer(site: Site) -> str | None:
    """A second `tds writer` beside whoever writes."""
    if len(site.alive("writer")) >= 2:
        return None
    site.start_writer()
    return "second writer"


def pause_writer(site: Site) -> str | None:
    """SIGSTOP for whoever writes a kind, its lock in hand."""
    holder = site.holder(site.rng.choice(site.plan.kinds))
    if holder is None:
        return None
    pause(site, holder)
    return "writer paused"


def pause(site: Site, child: Child) -> None:
    """Stop a process for a moment."""
    child.signal(signal.SIGSTOP)
    site.later(site.rng.uniform(0.1, 1.5), lambda: child.signal(signal.SIGCONT))


def restart_redis(site: Site) -> str | None:
    """Kill Redis; it comes back with what its append-only file holds, up to a second less than it had."""
    return end_redis(site, keep_data=True)


def empty_redis(site: Site) -> str | None:
    """Kill Redis; it comes back without anything."""
    return end_redis(site, keep_data=False)


def end_redis(site: Site, *, keep_data: bool) -> str | None:
    """Kill Redis and have it come back later."""
    server = site.redis
    if server is None or site.redis_is_away:
        return None
    server.kill()
    site.redis_is_away = True

    def come_back() -> None:
        server.start(keep_data=keep_data)
        site.redis_is_away = False

    site.later(site.rng.uniform(0.0, 1.5), come_back)
    return "redis restarted" if keep_data else "redis restarted empty"


def flush_redis(site: Site) -> str | None:
    """FLUSHALL: everything in Redis is gone, connections stay."""
    if site.redis is None or site.redis_is_away:
        return None
    with redis.Redis.from_url(site.redis.url) as client:
        client.flushall()
    return "redis flushed"


def pause_redis(site: Site) -> str | None:
    """SIGSTOP for Redis: connections stand, nothing is answered."""
    server = site.redis
    if server is None or site.redis_is_away:
        return None
    server.pause()
    site.redis_is_away = True

    def come_back() -> None:
        server.resume()
        site.redis_is_away = False

    site.later(site.rng.uniform(0.2, 4.0), come_back)
    return "redis paused"


def step_clock(site: Site) -> str | None:
    """The wall clock of all processes jumps by a day, or back."""
    site.step_clock(site.rng.choice([-1, 0, 1]))
    return "clock stepped"


def fill_disk(site: Site) -> str | None:
    """Not a byte is left on the disk of the data, of the spool, or on both; then there is room again.

    The workers go on meanwhile, and one that was there all the time has to accept again afterwards.
    """
    folders = site.rng.choice([["data"], ["spool"], ["data", "spool"]])
    balloons = [site.folder / folder / "balloon" for folder in folders]
    if any(balloon.exists() for balloon in balloons):
        return None
    for balloon in balloons:
        blow_up(balloon)

    def make_room() -> None:
        for balloon in balloons:
            balloon.unlink()
        if "spool" in folders:
            require_recovery(site)

    site.later(site.rng.uniform(0.3, 2.0), make_room)
    return "disk full"


def blow_up(balloon: Path) -> None:
    """Write zeros until nothing more fits in."""
    with balloon.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(_PAGE))


def require_recovery(site: Site) -> None:
    """Wait until a worker accepts a record; a finding if all of them have stopped accepting for good."""
    site.undo_due(everything=True)  # a worker that waits for room waits for a writer, and that may be paused
    watched = {site.log / f"{child.name}.log": child for child in site.alive("worker")}
    ends = {path: path.stat().st_size for path in watched if path.exists()}
    deadline = time.monotonic() + _RECOVERY_S
    while ends and any(child.process.poll() is None for child in watched.values()):
        for path, end in ends.items():
            with path.open("rb") as log:
                log.seek(end)
                if b"+ " in log.read():
                    return
        if time.monotonic() > deadline:
            site.findings.append(f"stuck: nothing was accepted for {_RECOVERY_S} s after the disk had room again")
            return
        time.sleep(0.02)


def pull_the_plug(site: Site) -> str | None:
    """Everything dies at once, in the middle of work; then the ends of files are not what they were."""
    holder = site.holder(site.rng.choice(site.plan.kinds))
    if holder is not None:
        holder.signal(signal.SIGSTOP)  # so that something waits in the spool
        time.sleep(site.rng.uniform(0.05, 0.4))
    site.kill_all("all at once")
    site.undo_due(everything=True)  # on a full disk nothing can be appended, nor a ledger be opened to look at
    for damage in (append_strange_rows, append_zeros, tear_spool):
        if site.rng.random() < 0.5:
            sort = damage(site)
            if sort is not None:
                site.faults[sort] += 1
    return "everything killed"


def append_strange_rows(site: Site) -> str | None:
    """Rows that nobody of ours wrote, behind what is committed of a day file; the last one may be torn."""
    path = a_day_file(site)
    if path is None:
        return None
    lines = site.rng.randrange(1, 5)
    text = "".join(f'"{STRANGE} {n}","x"\n' for n in range(lines))
    with path.open("ab") as file:
        file.write(text.encode()[: -1 if site.rng.random() < 0.5 else None])
    site.strange_lines += lines
    return "day file with a strange tail"


def append_zeros(site: Site) -> str | None:
    """A file that grew and whose pages never came: zeros behind what is committed."""
    path = a_day_file(site)
    if path is None:
        return None
    with path.open("ab") as file:
        file.write(bytes(site.rng.randrange(1, _PAGE)))
    site.strange_lines += 1
    return "day file with a zero-filled tail"


def a_day_file(site: Site) -> Path | None:
    """A day file with committed rows."""
    kind = site.rng.choice(site.plan.kinds)
    if not site.paths.ledger(kind).exists():
        return None
    ledger = Ledger(site.paths.ledger(kind))
    days = sorted(ledger.files())
    ledger.close()
    return site.paths.training(kind, site.rng.choice(days)) if days else None


def tear_spool(site: Site) -> str | None:
    """A segment's last pages never came: zeros where its newest record or its end was, or a file that ends there."""
    segments = [path for kind in KINDS for path in (site.settings.spool / kind).glob("*/*.seg")]
    site.rng.shuffle(segments)
    for path in segments:
        content = path.read_bytes()
        start, stop = text_of(path)
        if start >= stop:
            continue
        site.damaged.append((path, content[start:stop]))
        starts = [match.end() for match in _LINE_START.finditer(content, start - 1, stop)]
        newest, last = starts[-1] // _PAGE * _PAGE, (len(content) - 1) // _PAGE * _PAGE
        sort = site.rng.choice(["cut short", "with its newest page zeroed", "with its last page zeroed"])
        with path.open("r+b") as file:
            if sort == "cut short":
                file.truncate(newest)
            else:
                page = newest if "newest" in sort else last
                file.seek(page)
                file.write(bytes(min(_PAGE, len(content) - page)))
        return f"spool segment {sort}"
    return None


def text_of(path: Path) -> tuple[int, int]:
    """Where a segment's records begin, and where the last whole one ends. What lies behind it is of a former use."""
    first_seq = int(path.stem)
    segment = spool._SegmentReader(path, first_seq)
    try:
        return segment.text(segment.last_whole(first_seq - 1))
    finally:
        segment.close()


ATTACKS = {
    "kill-worker": Attack(4, kill_worker, ""),
    "kill-holder": Attack(4, kill_holder, "embedded"),
    "kill-writer": Attack(3, kill_writer, "redis"),
    "add-writer": Attack(2, add_writer, ""),
    "pause-writer": Attack(2, pause_writer, ""),
    "restart-redis": Attack(2, restart_redis, "redis"),
    "empty-redis": Attack(2, empty_redis, "redis"),
    "flush-redis": Attack(2, flush_redis, "redis"),
    "pause-redis": Attack(2, pause_redis, "redis"),
    "step-clock": Attack(2, step_clock, "clock"),
    "fill-disk": Attack(3, fill_disk, "small disks"),
    "pull-the-plug": Attack(2, pull_the_plug, ""),
}


def possible(site: Site) -> list[str]:
    """The attacks that this site can be put under."""
    there = {
        "": True,
        "embedded": not site.plan.redis,
        "redis": site.plan.redis,
        "small disks": site.plan.small_disks,
        "clock": site.has_clock,
    }
    return [name for name, attack in ATTACKS.items() if there[attack.needs]]


def attack(site: Site, names: list[str], duration_s: float, gap_s: float) -> None:
    """Attack for a while, at random instants about `gap_s` apart; killed processes are started again in between."""
    writers = 1 if site.plan.redis else 0
    site.keep_up(writers)
    weights = [ATTACKS[name].weight for name in names]
    end = time.monotonic() + duration_s
    while time.monotonic() < end:
        wait_for_next(site, site.rng.expovariate(1 / gap_s), end)
        for name in site.rng.choices(names, weights) if names else ():  # one, or failpoints alone
            sort = ATTACKS[name].run(site)
            if sort is not None:
                site.faults[sort] += 1
        site.keep_up(writers)


def wait_for_next(site: Site, delay_s: float, end: float) -> None:
    """Wait for the next instant, undoing what is due."""
    until = min(time.monotonic() + delay_s, end)
    while (left := until - time.monotonic()) > 0:
        site.undo_due()
        time.sleep(min(left, 0.02))
