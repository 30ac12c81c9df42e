"""Where real data for the tests is, if it is anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def data_dir() -> Path:
    """The folder with real data; skips the test where there is none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TGEOKD_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real data: set TGEOKD_TEST_DATA to a folder that holds it")
    return folder
