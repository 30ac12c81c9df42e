"""A student's predictions and fusion ratios on a loader, in eval mode."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tgeokd.core.model_call import class_logits, eval_mode, random_state, replayed
from tgeokd.core.validation import validate_labels
from tgeokd.teachers.base import Teacher
from tgeokd.training.batches import BatchReader
from tgeokd.training.blame import blame_inputs, blame_logits
from tgeokd.training.step import DistillationStep
from tgeokd.utils.errors import InputError


def predict_logits(student: nn.Module, loader: Iterable[Any], reader: BatchReader) -> tuple[Tensor, Tensor]:
    """Logits, shape (N, C), and labels, shape (N,), in the loader's order, on the CPU."""
    logits, targets = [], []
    with _inference(student, reader):
        for batch in reader.read_all(loader, "evaluation loader"):
            with reader.autocast():
                logits.append(class_logits(student, batch.inputs))
            if logits[-1].device.type == "cpu" and not bool(torch.isfinite(logits[-1]).all()):
                blame_inputs(batch.inputs, batch.ids, "evaluation loader")
                blame_logits("student", logits[-1], batch.ids, "evaluation loader")
            if reader.num_classes is None and batch.target.device.type == "cpu":
                validate_labels(batch.target, logits[-1].shape[-1], "evaluation loader")
            targets.append(batch.target)
    if not targets:
        raise InputError("the loader to evaluate on is empty")
    every = torch.cat(logits).cpu()
    blame_logits("student", every, None, "evaluation loader")
    return every, torch.cat(targets).cpu()


def predict_ratios(step: DistillationStep, loader: Iterable[Any], teacher: Teacher | None) -> Tensor:
    """Fusion ratio of each sample by the step's method, shape (N,), in the loader's order, on the CPU.

    Raises:
        NotImplementedError: for a method whose ratios are not a function of student, teacher and label.
    """
    ratios = []
    with _inference(step.student, step.reader):
        for batch in step.reader.read_all(loader, "loader"):
            with step.reader.autocast():
                logits = class_logits(step.student, batch.inputs)
            teacher_logits = None if teacher is None else teacher.logits(batch)
            inputs = step.loss_inputs(logits, teacher_logits, batch.target, batch.ids)
            ratios.append(step.method.alpha(inputs).detach().cpu())
    if not ratios:
        raise InputError("the loader is empty")
    return torch.cat(ratios)


@contextmanager
def _inference(student: nn.Module, reader: BatchReader) -> Iterator[None]:
    with replayed(random_state(reader.device)), torch.no_grad(), eval_mode(student):
        yield
