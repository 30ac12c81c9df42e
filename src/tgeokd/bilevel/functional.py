"""Running a student with other parameters and buffers in place of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from tgeokd.modules import class_logits

__all__ = ["Tensors", "functional_logits", "trainable"]

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class _Slot:
    """A place that holds a tensor: an entry of some submodule's dictionary of parameters or buffers.

    Attributes:
        holder: that dictionary.
        attribute: the entry's key.
        name: the tensor's one name in the whole module, under whatever names it is shared.
        param: the parameter that was found there; None for a buffer.
    """

    holder: dict[str, Tensor | None]
    attribute: str
    name: str
    param: Tensor | None


# Walking a module costs more than running a small one, so what was found is kept as long as the module lives.
_known: WeakKeyDictionary[nn.Module, list[_Slot]] = WeakKeyDictionary()


def functional_logits(student: nn.Module, params: Tensors, buffers: Tensors, inputs: Any) -> Tensor:
    """Class logits of the student with other tensors in place of some of its own.

    Args:
        student: the module; it holds its own tensors again afterwards.
        params: parameters by name. A tied one is given once, under its first name.
        buffers: likewise; brought up to date with what the forward pass makes of them.
        inputs: as :func:`~tgeokd.modules.class_logits` takes them.
    """
    # torch.func.functional_call walks the module on every call, and with tied tensors leaves a module that is reachable
    # under two names with the wrong ones for good.
    slots = [slot for slot in _slots(student) if slot.name in params or slot.name in buffers]
    with _swapped(slots, {**params, **buffers}):
        logits = class_logits(student, inputs)
        for slot in slots:
            value = slot.holder[slot.attribute]
            if slot.name in buffers and value is not None:
                buffers[slot.name] = value  # it may have been assigned anew
    return logits


def trainable(student: nn.Module) -> Tensors:
    """The parameters that training moves, by name; a tied one has one name."""
    found = {slot.name: slot.param for slot in _slots(student) if slot.param is not None}
    return {name: param for name, param in found.items() if param.requires_grad}


def _slots(student: nn.Module) -> list[_Slot]:
    slots = _known.get(student)
    if slots is None or any(s.param is not None and s.holder.get(s.attribute) is not s.param for s in slots):
        slots = _known[student] = _found(student)
    return slots


def _found(student: nn.Module) -> list[_Slot]:
    params = {id(tensor): name for name, tensor in student.named_parameters()}
    buffers = {id(tensor): name for name, tensor in student.named_buffers()}
    slots = []
    for module in student.modules():
        holder: dict[str, Any] = module._parameters
        slots += [_Slot(holder, a, params[id(p)], p) for a, p in holder.items() if p is not None]
        slots += [_Slot(module._buffers, a, buffers[id(b)], None) for a, b in module._buffers.items() if b is not None]
    return slots


@contextmanager
def _swapped(slots: list[_Slot], tensors: Tensors) -> Iterator[None]:
    own = [slot.holder[slot.attribute] for slot in slots]
    for slot in slots:
        slot.holder[slot.attribute] = tensors[slot.name]
    try:
        yield
    finally:
        for slot, tensor in zip(slots, own, strict=True):
            slot.holder[slot.attribute] = tensor
