"""Raw day files as the writer leaves them: rows by `Kind.csv_row`, committed in the ledger."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from ingest.pipeline.ledger import Commit, CommittedFile, Reject, chained_version, open_ledger
from ingest.pipeline.partitions import DataPaths, make_folder
from ingest.records import KINDS, kind_named, new_record_id

DAY = "2024-05-15"


class RawStore:
    """Appends records and lines to raw day files and commits them."""

    def __init__(self, root: Path) -> None:
        self.paths = DataPaths(root)

    def record(self, kind: str, **fields: object) -> dict[str, object]:
        """A record with what is required; the rest is null unless given."""
        required = dict.fromkeys(kind_named(kind).required, "x")
        return {"record_id": new_record_id(), "timestamp": f"{DAY}T08:30:00.000000Z", **required, **fields}

    def row(self, kind: str, record: Mapping[str, object]) -> bytes:
        """The record's CSV row, made as the writer makes it."""
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
        decoded = kind_named(kind).decoder.decode(line)
        return kind_named(kind).csv_rows([decoded], escaped=b"\\" in line)[0].encode()

    def store(self, kind: str, *records: Mapping[str, object], day: str = DAY) -> None:
        """Commit records to a day."""
        self.commit(kind, [self.row(kind, record) for record in records], day=day)

    def commit(
        self,
        kind: str,
        rows: Iterable[bytes],
        *,
        day: str = DAY,
        header: bytes | None = None,
        rejects: Iterable[Reject] = (),
        **counts: int,
    ) -> None:
        """Commit rows as they are, whatever they hold; `counts` are added to the day's counters."""
        lines = list(rows)
        data = b"".join(lines)
        path = self.paths.training(kind, day)
        make_folder(path.parent)
        with open_ledger(self.paths, kind) as ledger:
            before = ledger.file(day) or CommittedFile(0, 0, "", 0)
            if not before.size:
                data = (kind_named(kind).header if header is None else header) + data
            with path.open("ab") as file:
                file.write(data)
            change = Commit(rejects=list(rejects))
            if lines or header is not None:
                change.files[day] = CommittedFile(
                    before.size + len(data),
                    before.rows + len(lines),
                    chained_version(before.version, [data]),
                    path.stat().st_mtime_ns,
                )
            for name, n in counts.items():
                change.count(day, name, n)
            ledger.commit(change)

    def overwrite(self, kind: str, old: bytes, new: bytes, day: str = DAY) -> None:
        """Edit a day file in place, as somebody with an editor would, and to the same length."""
        path = self.paths.training(kind, day)
        content = path.read_bytes()
        assert len(old) == len(new)
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        stamp = path.stat().st_mtime_ns + 1_000_000
        os.utime(path, ns=(stamp, stamp))


@pytest.fixture
def raw_store(tmp_path: Path) -> RawStore:
    return RawStore(tmp_path / "data")


@pytest.fixture
def read_jsonl() -> Callable[[Path], list[dict[str, object]]]:
    def read(path: Path) -> list[dict[str, object]]:
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    return read


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
