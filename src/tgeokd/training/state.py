"""Everything that a resumed run needs, in one object."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import numpy as np
import torch as th
from torch import Tensor

from tgeokd.core.model_call import random_state
from tgeokd.utils.errors import InputError

logger = logging.getLogger(__name__)

SCHEMA = 2
"""Version of the content of a checkpoint; version 1 was a file ``last.ckpt/state.pt``."""


@dataclass
class RandomStates:
    """States of the generators of Python, NumPy and torch, as plain values and tensors."""

    python: list[Any] | None  # None in a checkpoint that has none; the generator is then left as it is
    numpy: list[Any] | None
    torch: Tensor
    device: Tensor | None

    @classmethod
    def capture(cls, device: th.device) -> RandomStates:
        """The present states; of torch on the CPU and on ``device``."""
        version, words, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        cpu, on_device, _ = random_state(device)
        numpy_state = [
            str(kind),
            th.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ]
        return cls([version, list(words), gauss], numpy_state, cpu, on_device)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> RandomStates:
        """The states in a checkpoint, which may lack those of Python and NumPy."""
        return cls(**{"python": None, "numpy": None, "device": None, **content})

    def unsaved(self) -> list[str]:
        """The generators whose states are missing."""
        return [name for name, state in (("Python", self.python), ("NumPy", self.numpy)) if state is None]

    def restore(self, device: th.device) -> None:
        """Set the generators to these states."""
        if self.python is not None:
            version, words, gauss = self.python
            random.setstate((version, tuple(words), gauss))
        if self.numpy is not None:
            kind, keys, *rest = self.numpy
            np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        th.set_rng_state(self.torch)
        if self.device is not None:
            th.cuda.set_rng_state(self.device, device)


@dataclass
class TrainState:
    """State of a training run between two optimizer steps."""

    epoch: int  # finished epochs
    batch: int  # batches read in the running epoch
    student: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    step: dict[str, Any]  # of the DistillationStep: steps taken, method, outer batches, statistics
    survey: dict[str, Any]  # number of classes and class means, so that the data need not be read again
    callbacks: list[list[Any]]  # class name and state of each callback that has one
    history: list[dict[str, Any]]
    should_stop: bool
    random: RandomStates
    random_at_epoch: RandomStates  # at the start of the running epoch: from there the order of its batches is repeated
    order: Tensor | None  # state of the training loader's own generator
    order_at_epoch: Tensor | None
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)  # of configuration, data and teacher
    parameters: list[list[str]] | None = None  # names in each group of the optimizer; None in older checkpoints
    trainable: list[str] | None = None  # names of the parameters that are not frozen
    loader: dict[str, Any] | None = None  # state of a training loader that has one
    last_batch: str | None = None  # digest of the batch before the position, to recognise it
    divergence: list[int] = field(default_factory=lambda: [0, 0])  # steps skipped, returns to a checkpoint
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors, which ``torch.load(weights_only=True)`` reads."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        return content | {name: vars(content[name]) for name in ("random", "random_at_epoch")}

    @classmethod
    def from_dict(cls, content: Any, source: str) -> TrainState:
        """The state from what :meth:`to_dict` returned, read from the file ``source``; InputError for anything else."""
        schema = content.get("schema") if isinstance(content, Mapping) else None
        if schema != SCHEMA:
            raise InputError(f"{source} has checkpoint version {schema}, and this version of tgeokd reads {SCHEMA}")
        required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        missing = [name for name in required if name not in content]
        if missing:
            raise InputError(f"{source} is not a complete checkpoint: it lacks {', '.join(missing)}")
        states = {name: RandomStates.read(content[name]) for name in ("random", "random_at_epoch")}
        unsaved = states["random"].unsaved()
        if unsaved:
            logger.warning("%s holds no random state of %s, which go on from the seed", source, " and ".join(unsaved))
        return cls(**{**content, **states})
