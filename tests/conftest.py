"""Settings that all tests share."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings
from quick import InlinePool, Outcome

from tgeokd.cli.main import main

settings.register_profile(
    "tgeokd", max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tgeokd")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The models are tiny: threads would only cost time, and one thread makes sums reproducible."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_level():
    """The command line sets the level of the package's logger, which no other test may depend on."""
    logger = logging.getLogger("tgeokd")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def tgeokd_(monkeypatch, capsys, tmp_path):
    """The command, run in this process from an empty folder."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["tgeokd", *map(str, argv)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return Outcome(code or 0, *capsys.readouterr())

    return run
