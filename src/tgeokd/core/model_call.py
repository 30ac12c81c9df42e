"""How a model is called: any inputs in, class logits out, without changing the model or the random state."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tgeokd.core.losses import to_class_logits
from tgeokd.utils.errors import InputError

RandomState = tuple[Tensor, Tensor | None, torch.device]
Modes = list[tuple[nn.Module, bool]]


def class_logits(model: Any, inputs: Any) -> Tensor:
    """Class logits of a model, shape (N, C).

    Args:
        model: a module or any callable. Its output may be a tensor, a tuple that begins with it, or a mapping or an object
            that holds it as ``logits``.
        inputs: a mapping is passed as keyword arguments, a tuple or list as positional ones, anything else as it is.

    Raises:
        InputError: where the output is not a tensor of shape (N, C), (N, 1) or (N,).
    """
    return as_logits(_output(model, inputs))


def class_probs(model: Any, inputs: Any) -> Tensor:
    """Class probabilities of a model that returns them, shape (N, C); one number ``p`` per sample means ``(1 - p, p)``."""
    output = _output(model, inputs)
    if output.ndim == 1 or output.shape[-1] == 1:
        p = output.reshape(-1)
        return torch.stack([1 - p, p], dim=-1)
    return as_logits(output)


def _output(model: Any, inputs: Any) -> Tensor:
    if isinstance(inputs, Mapping):
        output = model(**inputs)
    else:
        output = model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    elif isinstance(output, tuple | list) and not hasattr(output, "logits") and output:
        output = output[0]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise InputError(
            "a model must return logits as a tensor, first in a tuple, or as 'logits' of a mapping or an object, not "
            f"{type(output).__name__}"
        )
    return output


def as_logits(output: Tensor) -> Tensor:
    """Class logits, shape (N, C), from a model's output, in at least single precision: no loss is computed in half."""
    return to_class_logits(output.float() if output.dtype in (torch.float16, torch.bfloat16) else output)


def sliced(inputs: Any, rows: slice) -> Any:
    """Some rows of a batch of inputs: of every tensor in it."""
    if isinstance(inputs, Mapping):
        return {key: sliced(value, rows) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(sliced(value, rows) for value in inputs)
    return inputs[rows] if isinstance(inputs, Tensor) else inputs


def module_device(model: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU for a module with neither."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def in_modes(wanted: Modes) -> Iterator[None]:
    """Run a block with submodules in the given modes, then restore the mode of each."""
    changed = [(module, training) for module, training in wanted if module.training != training]
    for module, training in changed:
        module.training = training
    try:
        yield
    finally:
        for module, training in changed:
            module.training = not training


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Run a block with ``model`` in eval mode, then restore the mode of every submodule."""
    return in_modes([(module, False) for module in model.modules()])


def random_state(device: torch.device) -> RandomState:
    """The state of the generators that layers on ``device`` draw from."""
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device, device


def _set_random_state(state: RandomState) -> None:
    cpu, on_device, device = state
    torch.set_rng_state(cpu)
    if on_device is not None:
        torch.cuda.set_rng_state(on_device, device)


@contextmanager
def replayed(state: RandomState) -> Iterator[None]:
    """Run a block from an earlier random state (the same dropout masks), then restore the present one."""
    now = random_state(state[2])
    _set_random_state(state)
    try:
        yield
    finally:
        _set_random_state(now)
