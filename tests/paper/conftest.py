from __future__ import annotations

import pytest
from quick import InlinePool, short


@pytest.fixture
def inline(monkeypatch):
    """Jobs are done in this process."""
    monkeypatch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)


@pytest.fixture(scope="session")
def noisy():
    """Two epochs, 30 % of the training labels replaced, and an update of the ratio network in every step."""
    return short("data.noise=0.3", "student.batch_size=200", "teacher.batch_size=200", "options.every=1")
