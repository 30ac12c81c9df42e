"""``exact`` and ``auto``: estimators that choose another one."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from tgeokd.bilevel.estimators.base import ESTIMATORS, DirectionalEstimator, Estimator, OuterBatch
from tgeokd.bilevel.estimators.finite_difference import FiniteDifferenceEstimator
from tgeokd.bilevel.estimators.forward import ForwardEstimator
from tgeokd.bilevel.estimators.last_layer import LastLayerEstimator, NoHeadError
from tgeokd.bilevel.functional import Tensors
from tgeokd.bilevel.record import MicroBatch, StepRecord
from tgeokd.bilevel.step_vjp import optimizer_slots
from tgeokd.utils.errors import first_line

logger = logging.getLogger(__name__)


@ESTIMATORS.register("exact")
class ExactEstimator(DirectionalEstimator):
    """``forward``, or ``finite_difference`` where forward-mode AD does not support an operation of the student."""

    _chosen: DirectionalEstimator | None = None

    @property
    def math_attention(self) -> bool:  # type: ignore[override]
        """As the chosen estimator; before the choice, as ``forward``."""
        return self._chosen is None or self._chosen.math_attention

    def resolve(self, student: nn.Module, optimizer: Optimizer, microbatch: MicroBatch) -> Estimator:
        """This estimator; the choice is made anew for another student."""
        self._chosen = None
        return self

    def logit_derivatives(
        self, student: nn.Module, microbatches: Sequence[MicroBatch], params: Tensors, direction: Tensors
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits and their derivative by the chosen estimator; the first call chooses it."""
        if self._chosen is not None:
            return self._chosen.logit_derivatives(student, microbatches, params, direction)
        chosen: DirectionalEstimator = ForwardEstimator()
        try:
            found = chosen.logit_derivatives(student, microbatches, params, direction)
            logger.info("hypergradient: forward mode, which supports every operation of the student")
        except NotImplementedError as error:
            logger.warning("hypergradient: finite differences; %s", first_line(error).partition(";")[0])
            chosen = FiniteDifferenceEstimator()
            found = chosen.logit_derivatives(student, microbatches, params, direction)
        self._chosen = chosen
        return found


@ESTIMATORS.register("auto")
class AutoEstimator(Estimator):
    """``last_layer``, or ``exact`` where the student's logits are not the output of a trainable ``nn.Linear``."""

    def resolve(self, student: nn.Module, optimizer: Optimizer, microbatch: MicroBatch) -> Estimator:
        """One of the two, logged."""
        options: dict[str, Any] = {"direction": self.direction, "inner_samples": self.inner_samples}
        try:
            found = LastLayerEstimator(direction=self.direction).resolve(student, optimizer, microbatch)
            assert found.head is not None
            if optimizer_slots(optimizer, {"weight": found.head.weight}, assume_sgd=True):
                LastLayerEstimator(**options)  # refuses inner_samples
                logger.info("hypergradient: restricted to the classifier head, %s", found.head)
                return found
            reason = "the optimizer does not hold the student's classifier head"
        except NoHeadError as error:
            reason = f"this student's {error.reason}"
        logger.info("hypergradient: exact, because %s", reason)
        return ExactEstimator(**options)

    def estimate(self, record: StepRecord, outer_batch: OuterBatch) -> Tensor:
        """Not available before :meth:`resolve`."""
        raise RuntimeError("an 'auto' estimator has to be resolved first")
