"""Peak memory of a piece of work."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["PeakMemory"]

MIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory of this process during a ``with`` block.

    On Linux the kernel's high-water mark is set back to the present use when the block begins, so the reading belongs to the
    block alone; a block inside another therefore spoils the outer one's. Elsewhere the reading is the largest since the
    process started, and ``exact`` is False. Windows offers no such reading: it is NaN there.

    Args:
        device: where the work is done; on CUDA its peak is read too.

    Attributes:
        resident_mib: peak resident memory in MiB, what the process held before the block included; known after the block.
        cuda_mib: peak of the memory PyTorch had allocated on the device, in MiB; None for other devices.
        exact: whether ``resident_mib`` belongs to the block alone.

    Example:
        >>> with PeakMemory() as peak:
        ...     numbers = list(range(1000))
        >>> peak.resident_mib > 0
        True
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.exact = False
        self.resident_mib = 0.0
        self.cuda_mib: float | None = None

    def __enter__(self) -> PeakMemory:
        self.exact = _reset()
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resident_mib = _marked() if self.exact else _largest_so_far()
        if self._on_cuda:
            self.cuda_mib = torch.cuda.max_memory_allocated(self.device) / MIB

    @property
    def _on_cuda(self) -> bool:
        return self.device is not None and self.device.type == "cuda"


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
