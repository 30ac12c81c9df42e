"""A module, or any callable, as a teacher."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
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

    def uncompiled(self) -> NetworkTeacher:
        """The same teacher without compiling, for batches of a size that would be compiled for them alone."""
        return NetworkTeacher(self.model, probs=self.probs, context=self._context)

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


def teacher_of(student: nn.Module, teacher: Any, fabric: Fabric, **options: Any) -> Teacher:
    """The teacher of a student, see :func:`as_teacher`, its network on the device and in the precision of ``fabric``."""
    if isinstance(teacher, Teacher) and options["probs"]:
        raise InputError("teacher_probs is for modules and callables, not for a Teacher")
    check_independent(student, teacher)
    network = teacher.model if isinstance(teacher, NetworkTeacher) else teacher
    if isinstance(network, nn.Module):
        fabric.setup_module(network)
    return as_teacher(teacher, **options)


def check_independent(student: nn.Module, teacher: Any) -> None:
    """Raise :class:`InputError` where a teacher's network is the student, or shares parameters with it that are trained."""
    model = teacher.model if isinstance(teacher, NetworkTeacher) else teacher
    if not isinstance(model, nn.Module):
        return
    trained = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    shared = [name for name, parameter in model.named_parameters() if id(parameter) in trained]
    if model is student or shared:
        what = (
            "is the student itself" if model is student else f"shares {len(shared)} trained parameters with the student"
        )
        first = f" ({shared[0]})" if shared and model is not student else ""
        raise InputError(f"the teacher {what}{first}, so it would change with every step: use copy.deepcopy(teacher)")
