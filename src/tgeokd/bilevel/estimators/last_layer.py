"""``last_layer``: the part of the hypergradient that goes through the classifier head, in closed form.

For logits ``z = W h + b`` the gradients of ``kd_i`` and ``gt_i`` with respect to (W, b) are outer products of a residual and
the features, so the inner product with any direction needs no further pass.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tgeokd.bilevel.estimators.base import ESTIMATORS, Estimator, OuterBatch
from tgeokd.bilevel.functional import Tensors, trainable
from tgeokd.bilevel.record import MicroBatch, StepRecord
from tgeokd.core.losses import gt_grad
from tgeokd.utils.errors import InputError


class NoHeadError(InputError):
    """The student has no classifier head to restrict the hypergradient to; ``reason`` is a predicate of the student."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            "hypergradient='last_layer' needs a trainable classifier head, an nn.Linear whose outputs are the logits; "
            f"this student's {reason}: use 'forward' or 'exact'"
        )

    def __reduce__(self) -> tuple[type[InputError], tuple[str]]:
        return InputError, (str(self),)  # from another process


@ESTIMATORS.register("last_layer")
class LastLayerEstimator(Estimator):
    """The hypergradient restricted to the classifier head: one more forward pass, on the validation batch."""

    replays = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.inner_samples is not None:
            raise InputError("inner_samples is for estimators that run the student again, which 'last_layer' does not")

    def resolve(self, student: nn.Module, optimizer: Optimizer, microbatch: MicroBatch) -> Estimator:
        """This estimator with the student's head; a NoHeadError without an ``nn.Linear`` that is trained and used once."""
        self.head = find_head(student, microbatch)
        return self

    def parameters(self, student: nn.Module) -> Tensors:
        """The head's."""
        assert self.head is not None
        of_head = set(self.head.parameters())
        return {name: param for name, param in trainable(student).items() if param in of_head}

    def outer_residual(self, logits: Tensor, target: Tensor) -> Tensor:
        """Gradient of each validation sample's loss with respect to its logits, shape (M, C); for subclasses to change."""
        return gt_grad(logits, target, check=False)

    def estimate(self, record: StepRecord, outer_batch: OuterBatch) -> Tensor:
        """The head's part of the hypergradient, shape (N,)."""
        head = self.head
        assert head is not None
        val_inputs, val_target = outer_batch
        names = {id(param): name for name, param in trainable(record.student).items()}
        weight_name, bias_name = names.get(id(head.weight)), names.get(id(head.bias))
        if weight_name is None:
            raise InputError(
                "hypergradient='last_layer' needs a trainable classifier head, and this student's has been frozen since"
            )
        with torch.no_grad():
            with capture(head) as captured:
                val_logits = record.outer_logits(val_inputs)
            (val_features,) = captured
            dtype = head.weight.dtype
            residual = _of_head(self.outer_residual(val_logits, val_target), head).to(dtype) / len(val_target)
            v = {weight_name: residual.T @ val_features.to(dtype)}
            if bias_name is not None:
                v[bias_name] = residual.sum(dim=0)
            along = record.direction(v, self.direction)

            products = []
            for microbatch in record.microbatches:
                assert microbatch.features is not None
                grad = microbatch.terms.weight_grad(microbatch.student_logits)
                difference = _of_head(grad, head).to(dtype)
                # A parameter that the optimizer does not hold has no direction: it does not move, whatever alpha is.
                moved = torch.zeros_like(difference)
                if weight_name in along:
                    moved += microbatch.features.to(dtype) @ along[weight_name].T
                if bias_name in along:
                    moved += along[bias_name]
                products.append((difference * moved).sum(dim=-1))
            return record.per_sample(products)


@contextmanager
def capture(head: nn.Linear) -> Iterator[list[Tensor]]:
    """Collect the head's inputs, one tensor of shape (n, H) per forward pass."""
    features: list[Tensor] = []
    with head.register_forward_pre_hook(lambda _, args: features.append(args[0].detach())):
        yield features


def find_head(student: nn.Module, microbatch: MicroBatch) -> nn.Linear:
    """The linear layer whose outputs are the student's logits, found by running one microbatch."""
    outputs: list[tuple[nn.Linear, Tensor]] = []
    with ExitStack() as hooks, torch.no_grad():
        for layer in student.modules():
            if isinstance(layer, nn.Linear):
                hooks.enter_context(layer.register_forward_hook(lambda m, _, output: outputs.append((m, output))))
        logits = microbatch.replay(student, {})
    for module, output in reversed(outputs):
        own = _of_head(logits, module)
        if output.shape == own.shape and torch.equal(output.to(own.dtype), own):
            if not module.weight.requires_grad:
                raise NoHeadError("is frozen")
            if sum(each is module for each, _ in outputs) > 1:
                raise NoHeadError("is used more than once in a forward pass")
            return module
    raise NoHeadError("logits are the output of none")


def _of_head(logits: Tensor, head: nn.Linear) -> Tensor:
    """Logits, or gradients by them, as the head's own outputs: a one-logit head gives the second of ``(0, z)``."""
    return logits[:, 1:] if head.out_features == 1 else logits
