"""The step of an optimizer on one parameter, and its derivative with respect to the gradient.

For ``theta' = theta - update(g, state)`` the hypergradient needs ``D = d update / d g``, which is diagonal here: a number for
SGD, a tensor of the parameter's shape for Adam and AdamW. Each rule is a pair of pure functions of (parameter, gradient,
optimizer state *before* the step, parameter group).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from tgeokd.utils.errors import InputError

State = Mapping[str, Any]
Group = Mapping[str, Any]
Diagonal = Tensor | float


@dataclass(frozen=True)
class UpdateRule:
    """One optimizer's step on one parameter.

    ``new_value`` is the parameter after the step, differentiable with respect to the gradient. ``diagonal`` is ``D``, element
    by element. ``moments`` is what it reads of the state with the parameter's shape; none where it is one number.
    """

    new_value: Callable[[Tensor, Tensor, State, Group], Tensor]
    diagonal: Callable[[Tensor, Tensor, State, Group], Diagonal]
    moments: tuple[str, ...] = ()


def rule_of(optimizer: Optimizer, *, assume_sgd: bool = False) -> UpdateRule:
    """The update rule of ``torch.optim.SGD``, ``Adam`` or ``AdamW``.

    Any other optimizer is an InputError, or with ``assume_sgd`` treated as plain SGD with its learning rate, ``D = lr``: an
    approximation.
    """
    optimizer = unwrapped(optimizer)
    if type(optimizer) in _RULES:  # exactly these: a subclass may step differently
        return _RULES[type(optimizer)]
    if assume_sgd:
        return UpdateRule(lambda p, g, _, group: p - float(group["lr"]) * g, lambda p, g, _, group: float(group["lr"]))
    raise InputError(
        f"no derivative is known for the step of {type(optimizer).__name__}; use SGD, Adam or AdamW of torch.optim, "
        "or pass assume_sgd=True to treat it as plain SGD with its learning rate (an approximation)"
    )


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside a wrapper such as Lightning Fabric's."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if isinstance(inner, Optimizer) else optimizer


def _sgd_value(param: Tensor, grad: Tensor, state: State, group: Group) -> Tensor:
    grad = _effective_gradient(param, grad, group, decay=float(group["weight_decay"]))
    momentum = group["momentum"]
    if momentum:
        buffer = state.get("momentum_buffer")
        # torch starts the buffer with the first gradient itself, undamped
        buffer = grad if buffer is None else momentum * buffer + (1 - float(group["dampening"])) * grad
        grad = grad + momentum * buffer if group["nesterov"] else buffer
    return param - float(group["lr"]) * grad


def _sgd_diagonal(param: Tensor, grad: Tensor, state: State, group: Group) -> float:
    diagonal = 1.0
    momentum = float(group["momentum"])
    if momentum:
        into_buffer = 1.0 if state.get("momentum_buffer") is None else 1.0 - float(group["dampening"])
        diagonal = 1.0 + momentum * into_buffer if group["nesterov"] else into_buffer
    return (-1.0 if group["maximize"] else 1.0) * float(group["lr"]) * diagonal


class _Moments(NamedTuple):
    """Adam's moments after the step's gradient has entered them."""

    grad: Tensor  # after the sign of `maximize` and a coupled weight decay
    first: Tensor
    root: Tensor  # square root of the second moment (its maximum with amsgrad), bias-corrected
    moving: Tensor | None  # with amsgrad: where the second moment of this step is the maximum
    correction1: Diagonal
    correction2: Diagonal


def _moments(param: Tensor, grad: Tensor, state: State, group: Group) -> _Moments:
    decay = 0.0 if _decoupled(group) else float(group["weight_decay"])
    grad = _effective_gradient(param, grad, group, decay=decay)
    beta1, beta2 = (float(beta) for beta in group["betas"])
    step = state.get("step", 0.0) + 1.0
    if isinstance(step, Tensor) and step.device.type == "cpu":
        step = float(step)  # a number on another device stays there: reading it would wait for the device
    first = state["exp_avg"].lerp(grad, 1 - beta1) if state else (1 - beta1) * grad
    second = (1 - beta2) * grad.square()
    if state:
        second = torch.add(second, state["exp_avg_sq"], alpha=beta2)
    moving = None
    if group["amsgrad"] and state:
        moving = second >= state["max_exp_avg_sq"]
        second = torch.where(moving, second, state["max_exp_avg_sq"])
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    # The root has no derivative at 0, and autograd would return nan there; the gradient has always been zero then.
    positive = second > 0
    root = torch.where(positive, torch.where(positive, second, 1.0).sqrt(), 0.0) / correction2**0.5
    return _Moments(grad, first, root, moving, correction1, correction2)


def _adam_value(param: Tensor, grad: Tensor, state: State, group: Group) -> Tensor:
    moments = _moments(param, grad, state, group)
    lr = float(group["lr"])
    if _decoupled(group):
        param = param * (1 - lr * float(group["weight_decay"]))
    return param - lr / moments.correction1 * moments.first / (moments.root + float(group["eps"]))


def _adam_diagonal(param: Tensor, grad: Tensor, state: State, group: Group) -> Tensor:
    moments = _moments(param, grad, state, group)
    beta1, beta2 = (float(beta) for beta in group["betas"])
    denominator = moments.root + float(group["eps"])
    root_grad = (1 - beta2) * moments.grad / (moments.root * moments.correction2)
    root_grad = torch.where(moments.root > 0, root_grad, 0.0)
    if moments.moving is not None:
        root_grad = torch.where(moments.moving, root_grad, 0.0)
    diagonal = (1 - beta1) / denominator - moments.first * root_grad / denominator.square()
    return (-1.0 if group["maximize"] else 1.0) * float(group["lr"]) / moments.correction1 * diagonal


def _effective_gradient(param: Tensor, grad: Tensor, group: Group, *, decay: float) -> Tensor:
    grad = -grad if group["maximize"] else grad
    return grad + decay * param if decay else grad


def _decoupled(group: Group) -> bool:
    return bool(group.get("decoupled_weight_decay", False))


_ADAM = UpdateRule(_adam_value, _adam_diagonal, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
_RULES: dict[type[Optimizer], UpdateRule] = {SGD: UpdateRule(_sgd_value, _sgd_diagonal), Adam: _ADAM, AdamW: _ADAM}
