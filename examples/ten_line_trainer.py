"""A trainer of your own: counts which event comes after which, and answers with what came most often.

    export TDS_TRAINER="python /path/to/ten_line_trainer.py"      # a full path: Dagster runs it in a folder of its own
    tds dataset event_prediction
    tds train event_prediction

The two functions are all that a trainer is; what it learns with is up to it. docs/training.md has the contract.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tds_dagster.training.contract import Answer, Report, run_trainer


def train(dataset: Path, output: Path, report: Report) -> None:
    """Count the pairs of train."""
    follows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in (dataset / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        follows[row["history"][-1]["event_type"]][row["event_type"]] += 1
    (output / "follows.json").write_text(json.dumps(follows), encoding="utf-8")
    report("counted", {"event types": len(follows), "rows": sum(map(Counter.total, follows.values()))})


def predict(output: Path) -> Answer:
    """Answer with what followed most often, and with how often that was."""
    follows = json.loads((output / "follows.json").read_text(encoding="utf-8"))

    def answer(question: Mapping[str, Any]) -> tuple[str, float | None]:
        counts = follows.get(question["history"][-1]["event_type"], {"unknown": 1})
        best = max(sorted(counts), key=counts.__getitem__)
        return best, counts[best] / sum(counts.values())

    return answer


if __name__ == "__main__":
    run_trainer(train, predict)
