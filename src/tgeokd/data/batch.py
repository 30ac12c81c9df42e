"""What a loader yields, and the only place that interprets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgeokd.data.digest import content_digest
from tgeokd.utils.errors import InputError

INTEGER_TYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
ACCEPTED = "(inputs, target), (inputs, target, ids) with integer ids, or a mapping with 'labels'"


@dataclass
class Batch:
    """N samples.

    Attributes:
        inputs: what the model takes; a mapping is passed as keyword arguments, a tuple or list as positional ones.
        target: class indices, int64, shape (N,).
        ids: what the samples are called, integers, shape (N,); None where they have no names.
    """

    inputs: Any
    target: Tensor
    ids: Tensor | None = None

    @classmethod
    def parse(cls, item: Any, where: str = "loader") -> Batch:
        """The batch that a loader yielded.

        Args:
            item: ``(inputs, target)``, ``(inputs, target, ids)`` with integer ids, or a mapping with ``labels`` (and integer
                ``ids``, if any), whose other entries are the model's keyword arguments.
            where: the loader's name in messages.

        Raises:
            InputError: for anything else. A third element of floats (sample weights elsewhere) is not taken for ids.
        """
        if isinstance(item, Batch):
            return item
        if isinstance(item, Mapping):
            if "labels" not in item:
                keys = ", ".join(map(str, item))
                raise InputError(f"the {where} must yield {ACCEPTED}, not a mapping with the keys {keys}")
            inputs = {key: value for key, value in item.items() if key not in ("labels", "ids")}
            return cls(inputs, _labels(item["labels"]), _integer_ids(item.get("ids"), where))
        if not isinstance(item, tuple | list) or len(item) not in (2, 3):
            length = f" of length {len(item)}" if isinstance(item, tuple | list) else ""
            raise InputError(f"the {where} must yield {ACCEPTED}, not {type(item).__name__}{length}")
        return cls(item[0], _labels(item[1]), _integer_ids(item[2] if len(item) == 3 else None, where))

    def __len__(self) -> int:
        return len(self.target)


def batch_digest(item: Any) -> str | None:
    """A digest of what a loader yielded, to recognise it; None where it holds no tensors."""
    return content_digest(vars(item) if isinstance(item, Batch) else item)


def _labels(target: Any) -> Any:
    """Whole numbers as int64, whatever integer type they have; the rest is left to the check of the labels."""
    return target.long() if isinstance(target, Tensor) and target.dtype in INTEGER_TYPES else target


def _integer_ids(ids: Any, where: str) -> Tensor | None:
    if ids is None:
        return None
    if not isinstance(ids, Tensor) or ids.ndim != 1 or ids.dtype not in INTEGER_TYPES:
        given = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        advice = "; number the samples" if _is_text(ids) else ""
        raise InputError(
            f"the third element of a batch of the {where} must hold integer sample ids, not {given}{advice}"
        )
    return ids


def _is_text(ids: Any) -> bool:
    return isinstance(ids, list | tuple) and any(isinstance(name, str) for name in ids)
