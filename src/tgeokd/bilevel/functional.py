"""Running a student with other parameters and buffers in place of its own."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from tgeokd.core.model_call import Modes, class_logits

Tensors = dict[str, Tensor]


class _Place(NamedTuple):
    """An entry of some submodule's dictionary of parameters or buffers."""

    holder: dict[str, Tensor | None]
    key: str
    name: str  # the tensor's one name in the whole module, under whatever names it is shared
    param: Tensor | None  # the parameter that was found there; None for a buffer


class _Layout(NamedTuple):
    """The children of a module and of its submodules, and every place that holds a tensor; not the module itself."""

    children: list[nn.Module | None]
    submodules: list[tuple[nn.Module, list[nn.Module | None]]]
    places: list[_Place]

    def fits(self, module: nn.Module) -> bool:
        """Whether the module is still built of the same submodules and parameters."""
        built = [(module, self.children), *self.submodules]
        return all(list(m._modules.values()) == children for m, children in built) and all(
            place.holder.get(place.key) is place.param for place in self.places if place.param is not None
        )


# Walking a module costs more than running a small one, so what was found is kept as long as the module lives. A value must
# not refer to its key, which would then never be freed.
_known: WeakKeyDictionary[nn.Module, _Layout] = WeakKeyDictionary()


def functional_logits(student: nn.Module, params: Tensors, buffers: Tensors, inputs: Any) -> Tensor:
    """Class logits of the student with other tensors in place of some of its own, which it holds again afterwards.

    ``params`` are given by name, a tied one once, under its first name. ``buffers`` likewise; the forward pass updates them.
    """
    # torch.func.functional_call walks the module on every call, and with tied tensors leaves a module that is reachable
    # under two names with the wrong ones for good.
    places = [place for place in _layout(student).places if place.name in params or place.name in buffers]
    tensors = {**params, **buffers}
    own = [place.holder[place.key] for place in places]
    try:
        for holder, key, name, _ in places:
            holder[key] = tensors[name]
        logits = class_logits(student, inputs)
        for holder, key, name, _ in places:
            value = holder[key]
            if name in buffers and value is not None:
                buffers[name] = value  # it may have been assigned anew
        return logits
    finally:
        for place, tensor in zip(places, own, strict=True):
            place.holder[place.key] = tensor


def trainable(student: nn.Module) -> Tensors:
    """The parameters that training moves, by name; a tied one has one name."""
    found = {place.name: place.param for place in _layout(student).places if place.param is not None}
    return {name: param for name, param in found.items() if param.requires_grad}


def current_buffers(student: nn.Module) -> Tensors:
    """Copies of the student's buffers, by name."""
    found: Tensors = {}
    for holder, key, name, param in _layout(student).places:
        value = holder.get(key)
        if param is None and value is not None and name not in found:
            found[name] = value.clone()
    return found


def modes(student: nn.Module) -> Modes:
    """Which of its modules are in training mode and which are not."""
    return [(module, module.training) for module in (student, *(m for m, _ in _layout(student).submodules))]


def _layout(student: nn.Module) -> _Layout:
    layout = _known.get(student)
    if layout is not None and layout.fits(student):
        return layout
    params = {id(tensor): name for name, tensor in student.named_parameters()}
    buffers = {id(tensor): name for name, tensor in student.named_buffers()}
    places = []
    for module in student.modules():
        holder: dict[str, Any] = module._parameters
        places += [_Place(holder, k, params[id(p)], p) for k, p in holder.items() if p is not None]
        places += [
            _Place(module._buffers, k, buffers[id(b)], None) for k, b in module._buffers.items() if b is not None
        ]
    built = [(m, list(m._modules.values())) for m in student.modules()]
    layout = _known[student] = _Layout(built[0][1], built[1:], places)
    return layout
