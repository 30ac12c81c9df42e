"""Data sets whose samples can be told apart."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from tgeokd.data.arrays import ArrayDataset


def tensors(n, start=0):
    """Samples that can be told apart: row i holds start + i."""
    index = torch.arange(start, start + n)
    return index.float().unsqueeze(1).repeat(1, 2), index % 3


def arrays(n, start=0):
    return ArrayDataset(*tensors(n, start))


def ids(batches):
    return [int(row[0]) for x, _ in batches for row in x]


class Rows(Dataset):
    """A map-style data set of the user's, of dictionaries."""

    def __init__(self, n, start=0):
        self.n, self.start = n, start

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return {"x": torch.tensor([float(self.start + i)])}, (self.start + i) % 3


class Pairs(ArrayDataset):
    """Samples of two tensors with ids, kept in blocks; row i holds start + i in both, and its id is 100 + start + i."""

    def __init__(self, n, start=0, transform=None, block_size=None):
        x, y = tensors(n, start)
        super().__init__((x, (x[:, :1] * 10).long()), y, torch.arange(start, start + n) + 100, transform)
        if block_size is not None:
            self.block_size = block_size


def found_ids(batches):
    """Ids of batches of ``Pairs``, each checked to belong to its inputs and label."""
    found = []
    for (a, b), y, names in batches:
        assert names.dtype == torch.int64
        assert torch.equal(a[:, 0].long() + 100, names)
        assert torch.equal(b[:, 0], 10 * (names - 100))
        assert torch.equal(y, (names - 100) % 3)
        found += (names - 100).tolist()
    return found
