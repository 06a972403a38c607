"""Stores what AI agents do as training data: `get_training_data_store()` and the calls of what it returns."""

from ingest.errors import FlushTimeout, InvalidRecord, NotAccepted, TdsError
from ingest.settings import Settings, read_settings
from ingest.store import TrainingDataStore, get_training_data_store

__all__ = [
    "FlushTimeout",
    "InvalidRecord",
    "NotAccepted",
    "Settings",
    "TdsError",
    "TrainingDataStore",
    "get_training_data_store",
    "read_settings",
]
