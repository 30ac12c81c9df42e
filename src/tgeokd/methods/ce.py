"""`ce`: plain training on the labels."""

from tgeokd.methods.base import METHODS, LossInputs, Method, SampleLoss


@METHODS.register("ce")
class CrossEntropy(Method):
    """Plain training: cross-entropy with the label, the teacher ignored (alpha = 0)."""

    needs_teacher = False

    def loss(self, inputs: LossInputs) -> SampleLoss:
        """``gt_i``."""
        return SampleLoss(inputs.gt, None)
