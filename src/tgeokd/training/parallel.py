"""The processes of a run, as everything that counts or averages over samples sees them."""

from typing import Any

import torch.distributed as dist
from torch import Tensor


class ParallelContext:
    """One process: every reduction returns its argument.

    Attributes:
        rank: index of this process.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over the processes, the same on all of them."""
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks."""
        return [value]

    def barrier(self) -> None:
        """Wait until all processes have arrived."""


class DistributedContext(ParallelContext):
    """The default process group of ``torch.distributed``, which must be initialised."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over the processes."""
        device = "cuda" if dist.get_backend() == "nccl" else value.device  # NCCL reduces on the GPU alone
        total = value.to(device, copy=True)
        dist.all_reduce(total)
        return total.to(value.device)

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes; they are pickled."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all processes have arrived."""
        dist.barrier()


def current_context() -> ParallelContext:
    """The context of the default process group, or of one process where there is none."""
    return DistributedContext() if dist.is_available() and dist.is_initialized() else ParallelContext()
