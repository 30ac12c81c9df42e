"""`anl`: annealing from the teacher to the label over training."""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tgeokd.core.losses import regression_loss
from tgeokd.core.validation import check_choice, check_count
from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss
from tgeokd.utils.errors import InputError

Form = Literal["ratio", "regression"]


@METHODS.register("anl")
class AnnealingKD(Method):
    """Annealing-KD, in two forms.

    ``ratio``, the form the TGeo-KD paper compares with: alpha falls from 1 to 0 over training in ``steps`` equal steps.

    ``regression``, the authors' two phases: for the first ``phase_one`` of the epochs the student's logits regress the
    teacher's times ``c / steps``, where ``c`` counts 1, 2, ..., ``steps`` (an annealed temperature); then plain training on
    the labels with a fresh optimizer state, from the weights of the first phase that were best on the validation set (the last
    ones without a validation set).

    Args:
        form: ``"ratio"`` or ``"regression"``.
        steps: number of annealing steps (``tau_max`` in the paper).
        phase_one: share of the epochs spent on regression; the authors' CIFAR script has 200 of 300.

    Reference:
        Jafari, Rezagholizadeh, Sharma and Ghodsi, "Annealing Knowledge Distillation", EACL 2021.
    """

    needs_epochs = True
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"form": ("ratio", "regression"), "steps": (5, 10, 20)}

    def __init__(self, *, form: Form = "ratio", steps: int = 10, phase_one: float = 2 / 3) -> None:
        check_choice("form", form, Form)
        check_count(1, steps=steps)
        if not 0 < phase_one < 1:
            raise InputError(f"phase_one must lie between 0 and 1, not {phase_one}")
        self.form, self.steps, self.phase_one = form, steps, phase_one
        self._best_accuracy = -1.0
        self._best_weights: dict[str, Tensor] = {}

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        """Discard the best weights of an earlier run."""
        self._best_accuracy, self._best_weights = -1.0, {}

    def alpha(self, inputs: LossInputs) -> Tensor:
        """``1 - k / steps`` in the k-th of ``steps + 1`` equal parts of training, k from 0."""
        k = inputs.epoch * (self.steps + 1) // inputs.epochs
        return torch.full_like(inputs.target, 1.0 - k / self.steps, dtype=inputs.student_logits.dtype)

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """The fused loss, or in the regression form the loss of the running phase."""
        if self.form == "ratio":
            return super().loss(inputs)
        first = self._first_epochs(inputs.epochs)
        if inputs.epoch >= first:
            return SampleLoss(inputs.gt, torch.zeros_like(inputs.gt))
        c = math.ceil((inputs.epoch + 1) * self.steps / first)
        loss = regression_loss(inputs.student_logits, c / self.steps * inputs.teacher)
        return SampleLoss(loss, torch.ones_like(loss))

    def after_epoch(
        self, epoch: int, epochs: int, student: nn.Module, optimizer: Optimizer, metrics: dict[str, float]
    ) -> None:
        """In the first phase keep the best weights; at its end restore them."""
        first = self._first_epochs(epochs)
        if self.form == "ratio" or epoch >= first:
            return
        accuracy = metrics.get("accuracy", float(epoch))  # without a validation set the last epoch is the best
        if accuracy > self._best_accuracy:
            self._best_accuracy = accuracy
            self._best_weights = {name: value.detach().clone() for name, value in student.state_dict().items()}
        if epoch == first - 1:
            student.load_state_dict(self._best_weights)
            optimizer.state.clear()
            self._best_weights = {}

    def state_dict(self) -> dict[str, Any]:
        """The best weights so far."""
        return {"best_accuracy": self._best_accuracy, "best_weights": self._best_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best weights so far."""
        self._best_accuracy, self._best_weights = state["best_accuracy"], state["best_weights"]

    def _first_epochs(self, epochs: int) -> int:
        return max(1, min(epochs - 1, round(epochs * self.phase_one)))
