"""Fixtures for tests of training: a data folder with sessions, and with the datasets made of them."""

import shutil
from pathlib import Path

import pytest

from tests.training.training_parts import MODELS, build, store_sessions

SESSIONS = 60


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty sessions on one day and the four datasets made of them. Read it; to change it, take `training_data`."""
    root = tmp_path_factory.mktemp("prepared") / "data"
    store_sessions(root, range(SESSIONS))
    for model in MODELS:
        build(root, model)
    return root


@pytest.fixture
def training_data(prepared_data: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(prepared_data, tmp_path / "data"))
