"""`posterior`: labels corrected in closed form by a calibrated teacher; no learned ratio."""

import torch
from torch import Tensor

from tgeokd.core.label_noise import LabelNoise
from tgeokd.methods.base import METHODS, LossInputs, Method, Outer, SampleLoss
from tgeokd.methods.corrected import corrected_labels, soft_label_loss
from tgeokd.utils.errors import InputError


@METHODS.register("posterior")
class PosteriorKD(Method):
    """Train on the class probabilities given the teacher's prediction and the label, ``q_i ~ p(c | x_i) P(y_i | c)``.

    The loss is the cross-entropy of the student with ``q_i``. The teacher is calibrated on the validation labels, which are
    taken to be correct, and the rates of confusion follow from its predictions on the training samples
    (:mod:`tgeokd.core.label_noise`). The student trains on the validation samples too, with their labels as they are.

    Args:
        outer: ``"union"`` trains on the validation samples too; ``"holdout"`` uses them for the calibration alone.

    Reference:
        Bayes' rule with estimated rates of confusion: one step of Dawid and Skene, "Maximum Likelihood Estimation of Observer
        Error-Rates Using the EM Algorithm", Applied Statistics 28 (1979).
    """

    needs_label_noise = True

    def __init__(self, *, outer: Outer = "union") -> None:
        if outer == "train":
            raise InputError(
                "outer must be 'union' or 'holdout' for posterior, which calibrates the teacher, not 'train'"
            )
        self.set_outer(outer, None)
        self.label_noise: LabelNoise | None = None

    def prepare(
        self,
        num_classes: int,
        class_means: Tensor | None,
        device: torch.device | None = None,
        *,
        label_noise: LabelNoise | None = None,
    ) -> None:
        """Take the model of wrong labels."""
        assert label_noise is not None
        self.label_noise = label_noise.to(device)

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """Cross-entropy with ``q_i``; the ratio is ``1 - q_i[y_i]``, what is taken from the label."""
        probs = self._probs(inputs)
        return SampleLoss(soft_label_loss(inputs.student_logits, probs), self._ratio(probs, inputs))

    def alpha(self, inputs: LossInputs) -> Tensor:
        """``1 - q_i[y_i]``, shape (N,)."""
        return self._ratio(self._probs(inputs), inputs)

    def _probs(self, inputs: LossInputs) -> Tensor:
        if self.label_noise is None:
            raise RuntimeError("posterior needs prepare(...) before its first batch")
        return corrected_labels(self.label_noise, inputs).exp()

    @staticmethod
    def _ratio(probs: Tensor, inputs: LossInputs) -> Tensor:
        return (1 - probs.gather(-1, inputs.target.unsqueeze(-1)).squeeze(-1)).clamp(0, 1)
