"""A student's predictions and fusion ratios on a loader, in eval mode."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tgeokd.core.metrics import Metrics
from tgeokd.core.model_call import class_logits, eval_mode, random_state, replayed
from tgeokd.core.validation import all_finite, validate_labels
from tgeokd.teachers.base import Teacher
from tgeokd.training.batches import BatchReader
from tgeokd.training.blame import blame_inputs, blame_logits, not_finite
from tgeokd.training.step import DistillationStep
from tgeokd.utils.errors import InputError

WHERE, EMPTY = "evaluation loader", "the loader to evaluate on is empty"


def predict_logits(student: nn.Module, loader: Iterable[Any], reader: BatchReader) -> tuple[Tensor, Tensor]:
    """Logits, shape (N, C), and labels, shape (N,), in the loader's order, on the CPU."""
    with _inference(student, reader):
        outputs = list(_outputs(student, loader, reader))
    if not outputs:
        raise InputError(EMPTY)
    logits, target = (torch.cat(each).cpu() for each in zip(*outputs, strict=True))
    blame_logits("student", logits, None, WHERE)
    return logits, target


def evaluate(student: nn.Module, loader: Iterable[Any], reader: BatchReader, metrics: Metrics) -> dict[str, float]:
    """Metrics of a student, without keeping the logits of more than a batch; on an accelerator only the end waits for it.

    Raises:
        InputError: for an empty loader, labels out of range, inputs that are not finite, and where a metric is not defined.
        DivergenceError: for logits that are not finite.
    """
    running = metrics.accumulator()
    with _inference(student, reader):
        for logits, target in _outputs(student, loader, reader):
            running.update(logits, target)
    if not running.samples:
        raise InputError(EMPTY)
    bad = running.first_bad_row()
    if bad is not None:
        raise not_finite("student", f"row {bad}", WHERE)
    return running.compute()


def _outputs(student: nn.Module, loader: Iterable[Any], reader: BatchReader) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels of each batch. On the CPU they are checked; reading them on an accelerator would stall every batch."""
    for batch in reader.read_all(loader, WHERE):
        with reader.autocast():
            logits = class_logits(student, batch.inputs)
        if logits.device.type == "cpu" and not all_finite(logits):
            blame_inputs(batch.inputs, batch.ids, WHERE)
            blame_logits("student", logits, batch.ids, WHERE)
        if reader.num_classes is None and batch.target.device.type == "cpu":
            validate_labels(batch.target, logits.shape[-1], WHERE)
        yield logits, batch.target


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
