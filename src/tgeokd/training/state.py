"""Everything that a resumed run needs, in one object."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch as th
from torch import Tensor

from tgeokd.core.model_call import random_state
from tgeokd.utils.errors import InputError

SCHEMA = 2
"""Version of the content of a checkpoint; version 1 was a file ``last.ckpt/state.pt``."""


@dataclass
class RandomStates:
    """States of the generators of Python, NumPy and torch, as plain values and tensors."""

    python: list[Any]
    numpy: list[Any]
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

    def restore(self, device: th.device) -> None:
        """Set the generators to these states."""
        version, words, gauss = self.python
        random.setstate((version, tuple(words), gauss))
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
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors, which ``torch.load(weights_only=True)`` reads."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        return content | {name: asdict(content[name]) for name in ("random", "random_at_epoch")}

    @classmethod
    def from_dict(cls, content: Any, source: str) -> TrainState:
        """The state from what :meth:`to_dict` returned, read from the file ``source``; InputError for anything else."""
        schema = content.get("schema") if isinstance(content, Mapping) else None
        if schema != SCHEMA:
            raise InputError(f"{source} has checkpoint version {schema}, and this version of tgeokd reads {SCHEMA}")
        missing = [f.name for f in fields(cls) if f.name not in content]
        if missing:
            raise InputError(f"{source} is not a complete checkpoint: it lacks {', '.join(missing)}")
        states = {name: RandomStates(**content[name]) for name in ("random", "random_at_epoch")}
        return cls(**{**content, **states})

    def check_fingerprints(self, now: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse to resume with another configuration, data or teacher, by the names of what differs."""
        different = differences(self.fingerprints, now)
        if different:
            raise InputError(f"the run to resume was started with other settings: {'; '.join(different)}")


def differences(saved: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What differs between two sets of fingerprints, one ``group.key: saved, not now`` each; unknown (None) is equal."""
    return [
        f"{group}.{key}: {saved[group][key]!r} in the checkpoint, {value!r} now"
        for group, values in now.items()
        for key, value in values.items()
        if value is not None and saved.get(group, {}).get(key) is not None and saved[group][key] != value
    ]
