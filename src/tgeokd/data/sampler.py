"""Orders of samples."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from tgeokd.utils.errors import InputError


def own_generator(generator: torch.Generator | None) -> torch.Generator:
    """A generator, by default one that is seeded from torch's global generator."""
    if generator is None:
        generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
    return generator


class BlockShuffle(Sampler[int]):
    """A shuffled order whose reads stay local, for data sets on disk that are larger than memory.

    Blocks of consecutive rows come in random order; the rows of ``window`` blocks at a time are shuffled together. Memory is
    that of one window, whatever the size of the data set.

    Args:
        size: rows of the data set.
        block_size: rows of a block.
        generator: of the order; by default seeded from torch's global generator on every pass.
        window: blocks shuffled together.
    """

    def __init__(self, size: int, block_size: int, generator: torch.Generator | None, window: int = 16) -> None:
        if block_size < 1:
            raise InputError(f"block_size must be >= 1, not {block_size}")
        self.size, self.block_size, self.generator, self.window = size, block_size, generator, window

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        for rows in self.windows():
            yield from rows.tolist()

    def windows(self) -> Iterator[Tensor]:
        """The order of a pass, window by window, int64."""
        generator = own_generator(self.generator)
        starts = torch.randperm(-(-self.size // self.block_size), generator=generator) * self.block_size
        for blocks in starts.split(self.window) if self.size else ():
            rows = torch.cat([torch.arange(s, min(s + self.block_size, self.size)) for s in blocks.tolist()])
            yield rows[torch.randperm(len(rows), generator=generator)]
