"""Turns two versions of a dataset into the rows that one has and the other has not, each with the reason.

Rows are matched by the record that they are about (`rows.jsonl` of both), in DuckDB, so that memory does not grow
with them. A record may have several rows: these are matched in their order.

The reason is read from the two manifests: the record's day came or went; the row moved to another split; its day, the
recipe, the redaction, the code or another day of the sources is another one. Of these, all that hold are told: nothing
says which of them it was.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tds_dagster.curate.engine import engine_errors
from tds_dagster.curate.sql import glob_escaped, literal
from tds_dagster.datasets.manifest import ROWS, Dataset
from tds_dagster.datasets.recipe import PRIMARY

ADDED, REMOVED, CHANGED = "added", "removed", "changed"


class RowChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row that differs; lines count from 1."""

    record_id: str
    change: str  # added, removed or changed
    reason: str
    split: str | None = None  # in the first version
    line: int | None = None
    new_split: str | None = None  # in the second version
    new_line: int | None = None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What distinguishes two versions of a model's dataset."""

    model: str
    old: str  # version
    new: str
    unchanged: int  # rows that are the same, in the same split
    changes: dict[str, dict[str, int]]  # added, removed, changed: number of rows by reason
    recipe: dict[str, list[object]]  # fields that differ: [old, new]
    days: dict[str, str]  # `<kind> <day>` of the sources that differ: added, removed or changed
    redaction: list[str]  # [old, new] level and version, empty if the same
    code: list[str]  # [old, new] version of the code, empty if the same
    rows: list[RowChange]  # the first ones that differ, up to the limit


def compare_datasets(old: Dataset, new: Dataset, *, limit: int = 20) -> Difference:
    """Compare two versions; `limit` is how many rows are named, the others are counted."""
    recipes = msgspec.to_builtins(old.recipe), msgspec.to_builtins(new.recipe)
    recipe = {name: [recipes[0][name], recipes[1][name]] for name in recipes[1] if recipes[0][name] != recipes[1][name]}
    days = _days(old, new)
    reasons = _Reasons(old, new, set(recipe), days)
    counts: dict[str, Counter[str]] = {name: Counter() for name in (ADDED, REMOVED, CHANGED)}
    unchanged, rows = 0, list[RowChange]()
    for pair in _pairs(old.folder / ROWS, new.folder / ROWS):
        if pair.is_same:
            unchanged += 1
            continue
        change = reasons.change(pair)
        counts[change.change][change.reason] += 1
        if len(rows) < limit:
            rows.append(change)
    return Difference(
        model=new.model,
        old=old.version,
        new=new.version,
        unchanged=unchanged,
        changes={name: dict(found.most_common()) for name, found in counts.items()},
        recipe=recipe,
        days=days,
        redaction=_both(f"{old.redaction} {old.redaction_version}", f"{new.redaction} {new.redaction_version}"),
        code=_both(old.code_version, new.code_version),
        rows=rows,
    )


class _Pair(msgspec.Struct, frozen=True):
    """A row of the first version and the row of the second that is about the same; one of them may be missing."""

    record_id: str
    timestamp: str
    split: str | None
    line: int | None
    row_hash: str | None
    new_split: str | None
    new_line: int | None
    new_row_hash: str | None

    @property
    def is_same(self) -> bool:
        return (self.split, self.row_hash) == (self.new_split, self.new_row_hash)


class _Reasons:
    """Finds why a row differs."""

    def __init__(self, old: Dataset, new: Dataset, recipe: set[str], days: dict[str, str]) -> None:
        self._days, self._kind = days, PRIMARY[new.model]
        others = []
        if recipe:
            others.append(f"another recipe ({', '.join(sorted(recipe))})")
        if old.redaction_version != new.redaction_version:
            others.append("another redaction")
        if old.code_version != new.code_version:
            others.append("other code")
        self._others = others

    def change(self, pair: _Pair) -> RowChange:
        name = ADDED if pair.split is None else REMOVED if pair.new_split is None else CHANGED
        return RowChange(
            record_id=pair.record_id, change=name, reason=self._reason(pair, name),
            split=pair.split, line=pair.line, new_split=pair.new_split, new_line=pair.new_line,
        )  # fmt: skip

    def _reason(self, pair: _Pair, change: str) -> str:
        own = f"{self._kind} {pair.timestamp[:10]}"
        of_day = self._days.get(own)
        if of_day == change and change != CHANGED:
            return f"its day was {of_day}"
        is_moved = change == CHANGED and pair.row_hash == pair.new_row_hash
        may_be = ["its day changed"] if of_day is not None and not is_moved else []
        may_be += self._others
        if self._days.keys() - {own} or (is_moved and self._days):
            may_be.append("other days of the sources changed")
        told = " or ".join(may_be) or "unknown: same recipe, sources, redaction and code"
        return f"moved from {pair.split} to {pair.new_split}: {told}" if is_moved else told


def _days(old: Dataset, new: Dataset) -> dict[str, str]:
    before = {f"{day.kind} {day.day}": day.sha256 for day in old.sources}
    after = {f"{day.kind} {day.day}": day.sha256 for day in new.sources}
    return {
        day: ADDED if day not in before else REMOVED if day not in after else CHANGED
        for day in sorted(before | after)
        if before.get(day) != after.get(day)
    }


def _both(old: str, new: str) -> list[str]:
    return [] if old == new else [old, new]


def _pairs(old: Path, new: Path) -> Iterator[_Pair]:
    """The rows of both, matched, in the order of time."""
    import duckdb

    columns = "{record_id: 'VARCHAR', timestamp: 'VARCHAR', split: 'VARCHAR', line: 'BIGINT', row: 'VARCHAR'}"
    sides = [
        '(SELECT record_id, timestamp, split, line, "row" AS row_hash, row_number() OVER '
        f"(PARTITION BY record_id ORDER BY split, line) AS turn FROM read_json({literal(glob_escaped(path))}, "
        f"format = 'newline_delimited', columns = {columns}))"
        for path in (old, new)
    ]
    query = (
        "SELECT record_id, coalesce(old.timestamp, new.timestamp) AS moment, old.split, old.line, old.row_hash, "
        f"new.split, new.line, new.row_hash FROM {sides[0]} AS old FULL JOIN {sides[1]} AS new "
        "USING (record_id, turn) ORDER BY moment, record_id, turn"
    )
    with engine_errors(f"{old} and {new}"), duckdb.connect(config={"memory_limit": "512MiB"}) as connection:
        for batch in connection.sql(query).to_arrow_reader(4096):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield _Pair(*values)
