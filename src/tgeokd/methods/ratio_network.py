"""f_omega and its Adam in few operations: omega is tiny, and what a step costs is the number of operations, not their size."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01  # of the leaky ReLU


class RatioNetwork(nn.Module):
    """f_omega: a small MLP from geometry to the fusion ratio, all its weights in one parameter, ``omega``.

    The last layer starts at zero, so every ratio starts at 0.5 and training starts as plain distillation. The others start
    as ``nn.Linear`` does.

    Args:
        in_features: numbers a sample, F.
        hidden: widths of the hidden layers.
    """

    def __init__(self, in_features: int, hidden: tuple[int, ...] = (32, 16)) -> None:
        super().__init__()
        linear = [nn.Linear(n_in, n_out) for n_in, n_out in pairwise((in_features, *hidden, 1))]
        nn.init.zeros_(linear[-1].weight)
        nn.init.zeros_(linear[-1].bias)
        self._weights = [tensor.detach() for layer in linear for tensor in (layer.weight, layer.bias)]
        self._shapes = [weight.shape for weight in self._weights]
        self.omega = nn.Parameter(torch.cat([weight.flatten() for weight in self._weights]))

    def forward(self, features: Tensor, *, learn: bool = True) -> Tensor:
        """Fusion ratios, shape (N,), from features (N, F) without a gradient.

        With ``learn`` they are attached to omega's graph, in any gradient mode.
        """
        features = features.to(self.omega.dtype)
        if not learn:
            return _values(features, self._cut())[-1].squeeze(-1)
        with torch.enable_grad():
            ratios: Tensor = _Ratios.apply(features, self.omega, self._cut())
        return ratios

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight (out, in) and bias (out,) of each layer: views of omega without a gradient."""
        weights = self._cut()
        return list(zip(weights[::2], weights[1::2], strict=True))

    def _cut(self) -> list[Tensor]:
        if self._weights[0].data_ptr() != self.omega.data_ptr():  # new, moved to another device, or a copy
            pieces = self.omega.detach().split([shape.numel() for shape in self._shapes])
            self._weights = [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        return self._weights


def _values(features: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """What goes into each layer, and the ratios, shape (N, 1)."""
    values = [features]
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        values.append(F.leaky_relu_(F.linear(values[-1], weight, bias), SLOPE))
    values.append(F.linear(values[-1], weights[-2], weights[-1]).sigmoid_())
    return values


class _Ratios(torch.autograd.Function):
    """The ratios with their derivative by hand: half the time of autograd's own graph of the layers."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, omega: Tensor, weights: Sequence[Tensor]) -> Tensor:
        values = _values(features, weights)
        ctx.save_for_backward(*values, *weights)
        return values[-1].squeeze(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        saved = ctx.saved_tensors
        depth = len(saved) // 3  # of L layers: L inputs, the ratios, 2L weights
        values, ratios, weights = saved[:depth], saved[depth], saved[depth + 1 :]
        below = torch.ops.aten.sigmoid_backward(gradient.unsqueeze(-1), ratios)
        grads: list[Tensor] = []
        for layer in reversed(range(depth)):
            grads += [below.sum(dim=0), below.t().mm(values[layer]).view(-1)]
            if layer:
                below = torch.ops.aten.leaky_relu_backward(below.mm(weights[2 * layer]), values[layer], SLOPE, True)
        return None, torch.cat(grads[::-1]), None


class Adam:
    """Adam of one parameter, with the numbers of ``torch.optim.Adam``, on any device and without waiting for it.

    Reference:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, with its constants.
    """

    MEAN_DECAY, SQUARE_DECAY, EPS = 0.9, 0.999, 1e-8

    def __init__(self, parameter: nn.Parameter, lr: float, weight_decay: float = 0.0) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self.steps = 0
        self._parameter = parameter
        self._mean, self._square = torch.zeros_like(parameter.detach()), torch.zeros_like(parameter.detach())

    def step(self, gradient: Tensor) -> None:
        """Move the parameter down the gradient."""
        values = self._parameter.detach()  # the same memory, without a graph
        if self.weight_decay:
            gradient = gradient.add(values, alpha=self.weight_decay)
        self.steps += 1
        self._mean.lerp_(gradient, 1 - self.MEAN_DECAY)
        self._square.mul_(self.SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - self.SQUARE_DECAY)
        # lr / (1 - b1^t) * mean / (sqrt(square) / scale + eps), both sides of the fraction multiplied by the scale
        scale = (1 - self.SQUARE_DECAY**self.steps) ** 0.5
        rate = self.lr * scale / (1 - self.MEAN_DECAY**self.steps)
        values.addcdiv_(self._mean, self._square.sqrt().add_(self.EPS * scale), value=-rate)

    def state_dict(self) -> dict[str, Any]:
        """Steps taken and the two averages."""
        return {"steps": self.steps, "mean": self._mean, "square": self._square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.steps = state["steps"]
        self._mean.copy_(state["mean"])
        self._square.copy_(state["square"])
