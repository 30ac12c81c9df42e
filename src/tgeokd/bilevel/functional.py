"""Running a student with other parameters and buffers in place of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from tgeokd.core.model_call import Modes, class_logits

__all__ = ["Tensors", "current_buffers", "functional_logits", "modes", "trainable"]

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


@dataclass(frozen=True)
class _Layout:
    """What walking a module finds.

    Attributes:
        modules: it and all its submodules, with the children each had.
        slots: every place that holds one of its tensors.
    """

    modules: list[tuple[nn.Module, list[nn.Module | None]]]
    slots: list[_Slot]

    @property
    def valid(self) -> bool:
        """Whether the module is still built of the same parts."""
        return all(list(m._modules.values()) == children for m, children in self.modules) and all(
            slot.holder.get(slot.attribute) is slot.param for slot in self.slots if slot.param is not None
        )


# Walking a module costs more than running a small one, so what was found is kept as long as the module lives.
_known: WeakKeyDictionary[nn.Module, _Layout] = WeakKeyDictionary()


def functional_logits(student: nn.Module, params: Tensors, buffers: Tensors, inputs: Any) -> Tensor:
    """Class logits of the student with other tensors in place of some of its own.

    Args:
        student: the module; it holds its own tensors again afterwards.
        params: parameters by name. A tied one is given once, under its first name.
        buffers: likewise; brought up to date with what the forward pass makes of them.
        inputs: as :func:`~tgeokd.core.model_call.class_logits` takes them.
    """
    # torch.func.functional_call walks the module on every call, and with tied tensors leaves a module that is reachable
    # under two names with the wrong ones for good.
    slots = [slot for slot in _layout(student).slots if slot.name in params or slot.name in buffers]
    with _swapped(slots, {**params, **buffers}):
        logits = class_logits(student, inputs)
        for slot in slots:
            value = slot.holder[slot.attribute]
            if slot.name in buffers and value is not None:
                buffers[slot.name] = value  # it may have been assigned anew
    return logits


def trainable(student: nn.Module) -> Tensors:
    """The parameters that training moves, by name; a tied one has one name."""
    found = {slot.name: slot.param for slot in _layout(student).slots if slot.param is not None}
    return {name: param for name, param in found.items() if param.requires_grad}


def current_buffers(student: nn.Module) -> Tensors:
    """Copies of the student's buffers, by name."""
    found: Tensors = {}
    for slot in _layout(student).slots:
        value = slot.holder.get(slot.attribute)
        if slot.param is None and value is not None and slot.name not in found:
            found[slot.name] = value.clone()
    return found


def modes(student: nn.Module) -> Modes:
    """Which of its modules are in training mode and which are not."""
    return [(module, module.training) for module, _ in _layout(student).modules]


def _layout(student: nn.Module) -> _Layout:
    layout = _known.get(student)
    if layout is None or not layout.valid:
        layout = _known[student] = _found(student)
    return layout


def _found(student: nn.Module) -> _Layout:
    params = {id(tensor): name for name, tensor in student.named_parameters()}
    buffers = {id(tensor): name for name, tensor in student.named_buffers()}
    slots = []
    for module in student.modules():
        holder: dict[str, Any] = module._parameters
        slots += [_Slot(holder, a, params[id(p)], p) for a, p in holder.items() if p is not None]
        slots += [_Slot(module._buffers, a, buffers[id(b)], None) for a, b in module._buffers.items() if b is not None]
    return _Layout([(m, list(m._modules.values())) for m in student.modules()], slots)


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
