from __future__ import annotations

import pytest
from quick import short

from tgeokd.runs.executors import InProcess, LocalProcesses


@pytest.fixture
def inline(monkeypatch):
    """Jobs are done in this process."""
    monkeypatch.setattr(LocalProcesses, "open", InProcess.open)


@pytest.fixture(scope="session")
def noisy():
    """Two epochs, 30 % of the training labels replaced, and an update of the ratio network in every step."""
    return short("data.noise=0.3", "student.batch_size=200", "teacher.batch_size=200", "options.update_interval=1")
