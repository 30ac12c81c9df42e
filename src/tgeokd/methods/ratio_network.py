"""f_omega in few operations: omega is tiny, and what a step costs is the number of operations, not their size."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01  # of the leaky ReLU
WINDOW = 100  # steps that the running statistics average over
CLIP = 5.0  # deviations
EPS = 1e-4  # added to a variance, for features that are (almost) constant


class RatioNetwork(nn.Module):
    """f_omega: a small MLP from geometry to log odds of the fusion ratio, all its weights in one parameter, ``omega``.

    The last layer starts at zero, so the network changes nothing before it has learned something. The others start as
    ``nn.Linear`` does.

    Args:
        in_features: numbers a sample, F.
        hidden: widths of the hidden layers.
        standardise: give the features mean 0 and deviation 1 by running statistics (:meth:`observe`), and clip them at
            :data:`CLIP` deviations.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, in_features: int, hidden: tuple[int, ...] = (32, 16), *, standardise: bool = False) -> None:
        super().__init__()
        self.standardise = standardise
        if standardise:
            self.register_buffer("mean", torch.zeros(in_features))
            self.register_buffer("variance", torch.ones(in_features))
            self.register_buffer("batches", torch.zeros(()))
        linear = [nn.Linear(n_in, n_out) for n_in, n_out in pairwise((in_features, *hidden, 1))]
        nn.init.zeros_(linear[-1].weight)
        nn.init.zeros_(linear[-1].bias)
        self._weights = [tensor.detach() for layer in linear for tensor in (layer.weight, layer.bias)]
        self._shapes = [weight.shape for weight in self._weights]
        self.omega = nn.Parameter(torch.cat([weight.flatten() for weight in self._weights]))

    def forward(self, features: Tensor, *, learn: bool = True) -> Tensor:
        """Log odds, shape (N,), from features (N, F) without a gradient.

        With ``learn`` they are attached to omega's graph, in any gradient mode.
        """
        features = features.to(self.omega.dtype)
        if self.standardise:
            features = ((features - self.mean) / (self.variance + EPS).sqrt()).clamp_(-CLIP, CLIP)
        if not learn:
            return _values(features, self._cut())[-1].squeeze(-1)
        with torch.enable_grad():
            log_odds: Tensor = _LogOdds.apply(features, self.omega, self._cut())
        return log_odds

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Update the running statistics by the features (N, F) of all samples of a step."""
        if self.standardise:
            features = features.to(self.mean.dtype)
            self.batches += 1
            share = self.batches.clamp(max=WINDOW).reciprocal()
            self.mean.lerp_(features.mean(dim=0), share)
            self.variance.lerp_((features - self.mean).square().mean(dim=0), share)

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
    """What goes into each layer, and the output, shape (N, 1)."""
    values = [features]
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        values.append(F.leaky_relu_(F.linear(values[-1], weight, bias), SLOPE))
    values.append(F.linear(values[-1], weights[-2], weights[-1]))
    return values


class _LogOdds(torch.autograd.Function):
    """The output with its derivative by hand: half the time of autograd's own graph of the layers."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, omega: Tensor, weights: Sequence[Tensor]) -> Tensor:
        values = _values(features, weights)
        ctx.save_for_backward(*values[:-1], *weights)
        return values[-1].squeeze(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        saved = ctx.saved_tensors
        depth = len(saved) // 3  # of L layers: L inputs, 2L weights
        values, weights = saved[:depth], saved[depth:]
        below = gradient.unsqueeze(-1)
        grads: list[Tensor] = []
        for layer in reversed(range(depth)):
            grads += [below.sum(dim=0), below.t().mm(values[layer]).view(-1)]
            if layer:
                below = torch.ops.aten.leaky_relu_backward(below.mm(weights[2 * layer]), values[layer], SLOPE, True)
        return None, torch.cat(grads[::-1]), None
