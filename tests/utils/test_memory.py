"""Peak memory against allocations of known size."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from tgeokd.utils import memory
from tgeokd.utils.memory import PeakMemory

MIB = 2**20
needs_mark = pytest.mark.skipif(not memory._reset(), reason="this kernel has no high-water mark to set back")


def touch(mib: int) -> int:
    """Allocate, write to every page, and let go again."""
    return int(np.ones(mib * MIB, dtype=np.uint8)[:: MIB // 2].sum())


def peak_of(mib: int) -> PeakMemory:
    with PeakMemory() as peak:
        touch(mib)
    return peak


PROGRAM = """
import json
import numpy as np
from tgeokd.utils.memory import PeakMemory

def peak_of(mib):
    with PeakMemory() as peak:
        np.ones(mib << 20, dtype=np.uint8)[:: 1 << 19].sum()
    return peak.resident_mib if peak.exact else None

peak_of(0)
found = {"bare": peak_of(0), "inside": peak_of(200), "after": peak_of(0)}
held = np.ones(100 << 20, dtype=np.uint8)
print(json.dumps(found | {"held": peak_of(0)}))
"""


@pytest.fixture(scope="module")
def peaks():
    """Readings of a process of their own: this one may reuse memory that earlier tests have freed."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@needs_mark
@pytest.mark.process
def test_an_allocation_inside_raises_the_peak_by_its_size(peaks):
    assert 190 < peaks["inside"] - peaks["bare"] < 230


@needs_mark
@pytest.mark.process
def test_a_second_block_does_not_inherit_the_peak_of_the_first(peaks):
    assert peaks["after"] < peaks["inside"] - 150


@needs_mark
@pytest.mark.process
def test_what_was_held_before_counts(peaks):
    assert 90 < peaks["held"] - peaks["after"] < 130


@needs_mark
def test_the_reading_is_there_after_an_error_too():
    peak = PeakMemory()
    with pytest.raises(ZeroDivisionError), peak:
        raise ZeroDivisionError
    assert peak.resident_mib > 10


def test_without_the_module_resource_the_reading_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    peak = peak_of(0)
    assert not peak.exact
    assert math.isnan(peak.resident_mib)


@pytest.mark.process
def test_the_command_line_imports_without_the_modules_that_windows_lacks():
    code = "import sys; sys.modules |= dict.fromkeys(['resource', 'fcntl']); import tgeokd.cli.main, tgeokd.runs.single"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_mark_the_largest_so_far_is_read_and_reported_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    earlier, later = peak_of(200), peak_of(0)
    assert not earlier.exact
    assert not later.exact
    assert later.resident_mib == earlier.resident_mib > 200  # cannot fall


def test_a_status_without_the_mark_counts_as_none(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmRSS:\t1024 kB\n")
    monkeypatch.setattr(memory, "_STATUS", status)
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "clear_refs")
    assert not peak_of(0).exact


def test_the_mark_is_read_in_mib(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t1024 kB\n")
    monkeypatch.setattr(memory, "_STATUS", status)
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "clear_refs")
    peak = peak_of(0)
    assert peak.exact
    assert peak.resident_mib == 2.0
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_other_devices_have_no_cuda_peak():
    with PeakMemory(torch.device("cpu")) as peak:
        pass
    assert peak.cuda_mib is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_allocation_on_the_gpu_raises_its_peak_and_is_forgotten_by_the_next_block():
    device = torch.device("cuda")
    with PeakMemory(device) as first:
        torch.ones(100 * MIB, dtype=torch.uint8, device=device)
    with PeakMemory(device) as second:
        pass
    assert first.cuda_mib is not None
    assert second.cuda_mib is not None
    assert first.cuda_mib - second.cuda_mib == pytest.approx(100, abs=2)
