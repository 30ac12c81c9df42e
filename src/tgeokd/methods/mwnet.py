"""`mwnet`: Meta-Weight-Net, a learned weight of each sample in plain training."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tgeokd.bilevel import Estimator, LossTerms, build_estimator
from tgeokd.core.losses import gt_grad, gt_loss
from tgeokd.core.validation import check_at_least, check_count
from tgeokd.methods.base import METHODS, LossInputs, Method, Outer, SampleLoss
from tgeokd.methods.ratio_network import RatioNetwork


@dataclass(frozen=True)
class WeightedLabelTerms(LossTerms):
    """``w_i gt_i``; the weight is ``w_i``."""

    target: Tensor  # class indices, shape (n,)

    def loss(self, logits: Tensor, weight: Tensor) -> Tensor:
        """The weighted loss, shape (n,)."""
        return weight * gt_loss(logits, self.target, check=False)

    def weight_grad(self, logits: Tensor) -> Tensor:
        """Gradient of ``gt_i``, shape (n, C)."""
        return gt_grad(logits, self.target, check=False)


@METHODS.register("mwnet")
class MetaWeightNet(Method):
    """Meta-Weight-Net: ``w_i gt_i``, where the weight is learned as a function of the sample's own loss; no teacher.

    ``v_i = V(gt_i) = sigmoid(MLP(gt_i))`` with one hidden layer, and ``w_i = v_i / mean_j v_j`` over the batch (over each
    batch, where several are accumulated into a step). V is trained so that the student's step lowers the validation loss:
    ``d L_val / d Theta = sum_i (d L_val / d w_i) (d w_i / d Theta)``, through the mean too. No gradient flows through ``w_i``
    to the student. There is no fusion ratio.

    Differences from the paper:

    - The training step itself is the step that is differentiated, with its momentum and weight decay. The authors take a
      virtual step of plain SGD before it, update V, and compute the weights of the real step with the new V.
    - The validation loss is computed in eval mode, and by default (``hypergradient="auto"``) the derivative is restricted to
      the classifier head, both as in ``tgeo``. ``"exact"`` differentiates through all layers, as the authors do.
    - The hidden layer has a leaky ReLU in place of a ReLU, and the last layer starts at zero: all samples weigh the same
      before anything is learned.

    Args:
        normalise: divide by the mean weight of the batch, so that a step does not become smaller only because all weights do.
            The appendix of the paper and the script of its experiments do so. ``False`` is the equation in the text
            and the authors' later script, ``w_i = v_i``; the weights then start at 1/2.
        hidden: width of the hidden layer; 100 in the paper.
        outer: where validation batches come from: ``"holdout"`` (the paper's), ``"union"``, where the student trains on the
            validation samples too, or ``"train"``.
        outer_batch_size: samples in a validation batch; by default the batch size of the validation loader, at most 128.
        hypergradient: estimator of ``d L_val / d w``: a name (:mod:`tgeokd.bilevel.estimators`) or an estimator.
        update_interval: update V in every k-th step.
        lr: learning rate of V's Adam; 1e-3 as in the authors' later script.
        weight_decay: weight decay of V's Adam; 1e-4 as there.

    Raises:
        InputError: for an unknown source or estimator, or an option out of range.

    Reference:
        Shu, Xie, Yi, Zhao, Zhou, Xu and Meng, "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", NeurIPS
        2019, and the code of the authors (github.com/xjtushujun/meta-weight-net: train_WRN-28-10_Meta_PGC.py, later
        MW-Net.py).
    """

    needs_teacher = False
    outer_batch_limit = 128
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"lr": (1e-3, 3e-3, 1e-2)}

    def __init__(
        self,
        *,
        normalise: bool = True,
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
        check_count(1, hidden=hidden, update_interval=update_interval)
        self.normalise, self.hidden, self.update_interval = normalise, hidden, update_interval
        self.lr, self.weight_decay = lr, weight_decay
        self.estimator: Estimator = build_estimator(hypergradient)
        self.network: RatioNetwork | None = None
        self.optimizer: torch.optim.Adam | None = None

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        """Build V."""
        self.network = RatioNetwork(1, (self.hidden,)).to(device)
        self.optimizer = torch.optim.Adam([self.network.omega], self.lr, weight_decay=self.weight_decay)

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The weighted label term, shape (N,), and the weights."""
        network, _ = self._built()
        gt = inputs.gt  # with the gradient to the student, which does not depend on ``learn``
        with torch.set_grad_enabled(inputs.learn):
            weight = network(gt.detach().unsqueeze(-1), learn=inputs.learn).sigmoid()
            if self.normalise:
                weight = weight / weight.mean().clamp_min(torch.finfo(weight.dtype).tiny)
        return SampleLoss(weight.detach().to(gt.dtype) * gt, None, weight)

    def loss_terms(self, inputs: LossInputs) -> LossTerms:
        """The weighted label term as a function of the weights."""
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
            raise RuntimeError("MetaWeightNet needs prepare(num_classes, None) before its first batch")
        return self.network, self.optimizer

    def state_dict(self) -> dict[str, Any]:
        """V, its optimizer and the state of the estimator."""
        network, optimizer = self._built()
        return {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "estimator": self.estimator.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, after :meth:`prepare`."""
        network, optimizer = self._built()
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        self.estimator.load_state_dict(state["estimator"])
