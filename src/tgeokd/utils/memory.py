"""Peak memory of a piece of work."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

MIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory of this process during a ``with`` block.

    On Linux the kernel's high-water mark is set back to the present use when the block begins; blocks must not be nested.
    Elsewhere the reading is the largest since the process started, and NaN on Windows.

    Args:
        device: where the work is done; on CUDA its peak is read too.

    Attributes:
        resident_mib: peak resident memory in MiB, what the process held before the block included; known after the block.
        cuda_mib: peak of the memory PyTorch had allocated on the device, in MiB; None for other devices.
        exact: whether ``resident_mib`` belongs to the block alone.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self.exact = False
        self.resident_mib = 0.0
        self.cuda_mib: float | None = None

    def __enter__(self) -> PeakMemory:
        self.exact = _reset()
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        self.resident_mib = _marked() if self.exact else _largest_so_far()
        if self._device is not None:
            self.cuda_mib = torch.cuda.max_memory_allocated(self._device) / MIB


def _reset() -> bool:
    """Set the high-water mark back; False where the kernel offers none."""
    try:
        _CLEAR.write_text("5")
        _marked()
    except (OSError, StopIteration):  # no /proc, or one without the mark (some sandboxes)
        return False
    return True


def _marked() -> float:
    """The high-water mark in MiB."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def _largest_so_far() -> float:
    """The largest resident memory since the process started in MiB, NaN where it cannot be read."""
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024  # macOS counts bytes, Linux KiB
