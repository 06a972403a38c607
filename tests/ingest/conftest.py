"""Real runs are no part of the project: their tests are there only where the file is."""

from tests.parts import PROJECT

AIRLINE_RUNS = PROJECT.parent / "shared" / "data" / "airline_runs.jsonl.gz"
collect_ignore = [] if AIRLINE_RUNS.exists() else ["test_redaction_of_airline_runs.py"]
