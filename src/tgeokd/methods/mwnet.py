"""`mwnet`: Meta-Weight-Net, a learned weight of each sample in plain training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tgeokd.bilevel import Estimator, LossTerms, build_estimator
from tgeokd.core.losses import gt_grad, gt_loss
from tgeokd.core.validation import check_at_least, check_positive
from tgeokd.methods.base import METHODS, LossInputs, Method, Outer, SampleLoss
from tgeokd.methods.ratio_network import RatioNetwork


@dataclass(frozen=True)
class WeightedLabelTerms(LossTerms):
    """``w_i gt_i``."""

    target: Tensor  # class indices, shape (n,)

    def loss(self, logits: Tensor, weight: Tensor) -> Tensor:
        """The weighted loss, shape (n,)."""
        return weight * gt_loss(logits, self.target)

    def weight_grad(self, logits: Tensor) -> Tensor:
        """Gradient of ``gt_i``, shape (n, C)."""
        return gt_grad(logits, self.target)


@METHODS.register("mwnet")
class MetaWeightNet(Method):
    """``w_i gt_i`` with ``w_i = V(gt_i)``, where V is trained so that the student's step lowers the validation loss.

    ``V`` has one hidden layer with a leaky ReLU and a sigmoid. It learns from the derivative of the validation loss after the
    student's own step; the authors take a virtual step of plain SGD. They divide the weights by their sum in the batch; here
    they are divided by their running mean, without a gradient, for the same reason: a step must not become smaller only
    because all weights do. No teacher.

    Args:
        hidden: width of the hidden layer; 100 in the paper.
        outer: where the validation batches come from: ``"holdout"`` (the paper's) or ``"union"``, where the student trains on
            the validation samples too.
        outer_batch_size: samples in a validation batch; by default the batch size of the validation loader, at most 128.
        hypergradient: estimator: a name (:mod:`tgeokd.bilevel.estimators`) or an estimator.
        update_interval: update V in every k-th step.
        lr: learning rate of V's Adam; 1e-3 in the authors' code.
        weight_decay: of V's Adam; 1e-4 in the authors' code.

    Reference:
        Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", NeurIPS 2019, equations 2 to 5.
    """

    needs_teacher = False
    outer_batch_limit = 128
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"lr": (1e-3, 3e-3, 1e-2)}

    def __init__(
        self,
        *,
        hidden: int = 100,
        outer: Outer = "holdout",
        outer_batch_size: int | None = None,
        hypergradient: str | Estimator = "auto",
        update_interval: int = 1,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
    ) -> None:
        self.set_outer(outer, outer_batch_size)
        check_at_least(0, lr=lr, weight_decay=weight_decay)
        check_positive("hidden", hidden)
        check_positive("update_interval", update_interval)
        self.hidden, self.update_interval, self.lr, self.weight_decay = hidden, update_interval, lr, weight_decay
        self.estimator: Estimator = build_estimator(hypergradient)
        self.network: RatioNetwork | None = None
        self.optimizer: torch.optim.Adam | None = None
        self._mean = torch.full((), 0.5)

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        """Build V. All weights start at 0.5."""
        self.network = RatioNetwork(1, (self.hidden,)).to(device)
        self.optimizer = torch.optim.Adam([self.network.omega], self.lr, weight_decay=self.weight_decay)
        self._mean = torch.full((), 0.5, device=device)

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The weighted cross-entropy."""
        network, _ = self._built()
        with torch.set_grad_enabled(inputs.learn):
            raw = network(inputs.gt.detach().unsqueeze(-1), learn=inputs.learn).sigmoid()
            if inputs.learn:
                self._mean.lerp_(raw.detach().mean().to(self._mean.dtype), 0.01)
            weight = raw / self._mean.clone()
        return SampleLoss(weight.detach() * inputs.gt, None, weight)

    def loss_terms(self, inputs: LossInputs) -> LossTerms:
        """The weighted label term."""
        return WeightedLabelTerms(inputs.target)

    def needs_hypergradient(self, step: int) -> bool:
        """In every k-th step, k = ``update_interval``."""
        return bool(step % self.update_interval == 0)

    def learn(self, alpha: Tensor, gradient: Tensor) -> None:
        """Take one step of V down the validation loss."""
        network, optimizer = self._built()
        (network.omega.grad,) = torch.autograd.grad(alpha, network.omega, gradient.to(alpha.dtype))
        optimizer.step()

    def _built(self) -> tuple[RatioNetwork, torch.optim.Adam]:
        if self.network is None or self.optimizer is None:
            raise RuntimeError("MetaWeightNet needs prepare(...) before its first batch")
        return self.network, self.optimizer

    def state_dict(self) -> dict[str, Any]:
        """V, its optimizer, the mean weight and the state of the estimator."""
        network, optimizer = self._built()
        return {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "mean": self._mean,
            "estimator": self.estimator.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, after :meth:`prepare`."""
        network, optimizer = self._built()
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        self.estimator.load_state_dict(state["estimator"])
        self._mean.copy_(state["mean"])
