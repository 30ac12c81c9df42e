"""Statistics of the fusion ratios that the package does not record: how they separate correct from wrong labels."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tgeokd import LossInputs, Method
from tgeokd.methods import SampleLoss

__all__ = ["Diagnosed"]


class Diagnosed(Method):
    """A method that keeps its ratios for a diagnosis.

    Attributes:
        wrong_ids: ids of the samples with a wrong label; None where these are unknown.
    """

    wrong_ids: Tensor | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._means: dict[int, list[float]] = {}
        self._last_epoch: list[tuple[Tensor, Tensor]] = []

    def wrong(self, inputs: LossInputs) -> Tensor:
        """Which samples have a wrong label, bool, shape (N,)."""
        assert self.wrong_ids is not None
        assert inputs.ids is not None
        return torch.isin(inputs.ids, self.wrong_ids.to(inputs.ids.device))

    def loss(self, inputs: LossInputs) -> SampleLoss:
        result = super().loss(inputs)
        assert result.alpha is not None
        alpha = result.alpha.detach()
        self._means.setdefault(inputs.epoch, []).append(float(alpha.mean()))
        if self.wrong_ids is not None and inputs.epoch == inputs.epochs - 1:
            self._last_epoch.append((alpha, self.wrong(inputs)))
        return result

    def diagnosis(self) -> dict[str, Any]:
        """The statistics.

        Returns:
            ``alpha``: mean ratio by epoch. Where wrong labels are known, of the last epoch: ``spread``, the standard
            deviation; ``alpha_right`` and ``alpha_wrong``, means by label; ``auc_wrong``, the AUC of alpha as a detector of
            wrong labels.
        """
        found: dict[str, Any] = {"alpha": [round(sum(m) / len(m), 3) for _, m in sorted(self._means.items())]}
        if self._last_epoch:
            alpha, wrong = (torch.cat(column) for column in zip(*self._last_epoch, strict=True))
            found["spread"] = round(float(alpha.std()), 3)
            if wrong.any():
                found["alpha_right"] = round(float(alpha[~wrong].mean()), 3)
                found["alpha_wrong"] = round(float(alpha[wrong].mean()), 3)
                found["auc_wrong"] = round(float(roc_auc_score(wrong.numpy(), alpha.numpy())), 3)
        return found
