"""Settings that all tests share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tgeokd", max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tgeokd")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The models are tiny: threads would only cost time, and one thread makes sums reproducible."""
    torch.set_num_threads(1)
