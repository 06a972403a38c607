"""The stage from exports to datasets: examples for one model, split without leakage, one folder a version."""
