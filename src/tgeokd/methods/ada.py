"""`ada`: the teacher's margin on the label decides."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tgeokd.core.validation import check_choice
from tgeokd.methods.base import METHODS, LossInputs, Method

Level = Literal["sample", "class"]


@METHODS.register("ada")
class AdaptiveKD(Method):
    """Adaptive KD: trust the teacher where it puts the label above the other classes.

    The margin of a prediction ``p`` with label ``y`` is ``p_y`` minus the mean of the other classes' probabilities, clipped
    at 0 from below. With ``level="sample"`` alpha is the margin of the teacher's prediction for the sample; with
    ``level="class"`` it is the clipped average of the margins over the training samples of the label's class.

    Args:
        level: ``"sample"`` or ``"class"``.

    Reference:
        Lukasik, Bhojanapalli, Menon and Kumar, "Teacher's pet: understanding and mitigating biases in distillation",
        2021; the sample-wise form as the TGeo-KD paper compares with it.
    """

    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {"level": ("sample", "class")}

    def __init__(self, *, level: Level = "sample") -> None:
        check_choice("level", level, Level)
        self.level = level
        self.needs_class_means = level == "class"
        self._of_class: Tensor | None = None

    def prepare(self, num_classes: int, class_means: Tensor | None, device: torch.device | None = None) -> None:
        """Take each class's average margin from the class means (the margin is linear in the prediction)."""
        if class_means is not None:
            if class_means.is_sparse:  # a sparse table holds every class's own entry
                rows, columns = class_means.indices()
                own = class_means.values()[rows == columns]
            else:
                own = class_means.diagonal()
            self._of_class = _margin(own, num_classes).to(device)

    def alpha(self, inputs: LossInputs) -> Tensor:
        """The clipped margin."""
        if self.level == "sample":
            probs = inputs.teacher.softmax(dim=-1)
            return _margin(probs.gather(-1, inputs.target.unsqueeze(-1)).squeeze(-1), probs.shape[-1])
        if self._of_class is None:
            raise RuntimeError("AdaptiveKD(level='class') needs prepare(...) with the teacher's class means first")
        return self._of_class[inputs.target]


def _margin(of_label: Tensor, num_classes: int) -> Tensor:
    return (of_label - (1 - of_label) / (num_classes - 1)).clamp(min=0.0)
