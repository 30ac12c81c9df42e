"""A module, or any callable, as a teacher."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tgeokd.core.compiling import compile_module, forward_of
from tgeokd.core.losses import logits_from_probs
from tgeokd.core.model_call import class_logits, class_probs
from tgeokd.data.batch import Batch
from tgeokd.teachers.base import Teacher
from tgeokd.teachers.cache.key import teacher_digest
from tgeokd.teachers.proba import ProbaTeacher
from tgeokd.utils.errors import InputError


class NetworkTeacher(Teacher):
    """A module in eval mode, or any callable from inputs to logits. It gets no gradient.

    Args:
        model: the module or callable.
        probs: the model returns class probabilities instead of logits. This is never guessed from the values.
        context: entered around every call, for example autocast.
        compile: compile a module with ``torch.compile``.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        probs: bool = False,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
        compile: bool = False,
    ) -> None:
        self.model, self.probs, self._context = model, probs, context
        compiles = compile and isinstance(model, nn.Module)
        self._run = forward_of(compile_module(model)) if compiles else model  # type: ignore[arg-type]

    def logits(self, batch: Batch) -> Tensor:
        """Logits of the model, or logarithms of its probabilities, shape (N, C)."""
        if isinstance(self.model, nn.Module) and self.model.training:
            self.model.eval()
        with torch.no_grad():
            with self._context():
                outputs = (class_probs if self.probs else class_logits)(self._run, batch.inputs)
            return logits_from_probs(outputs) if self.probs else outputs

    def fingerprint(self) -> str | None:
        """A hash of a module's structure and weights; None for any other callable."""
        digest = teacher_digest(self.model)
        return None if digest is None else digest + (" of probabilities" if self.probs else "")


def as_teacher(teacher: Any, **options: Any) -> Teacher:
    """A teacher from anything that can be one.

    Args:
        teacher: a :class:`~tgeokd.teachers.base.Teacher`, returned as it is; a module or callable from inputs to logits; or a
            fitted classifier with ``predict_proba`` that is not callable.
        **options: of :class:`NetworkTeacher`, for a module or callable.
    """
    if isinstance(teacher, Teacher):
        return teacher
    if callable(teacher):
        return NetworkTeacher(teacher, **options)
    if hasattr(teacher, "predict_proba"):
        return ProbaTeacher(teacher)
    what = "a Teacher, a module, a callable from inputs to logits, or a fitted classifier with predict_proba"
    raise InputError(f"a teacher must be {what}, not {type(teacher).__name__}")
