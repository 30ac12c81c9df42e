"""Which sample, and what of it, is NaN or infinite: the message that ends a run on the CPU."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tgeokd.methods.base import LossInputs
from tgeokd.utils.errors import DivergenceError, InputError

ADVICE = "a lower learning rate or clip_norm may help"


def blame(inputs: Any, given: LossInputs, loss: Tensor, where: str) -> None:
    """Raise the error for a batch whose loss (N,) is not finite: of the inputs, the teacher, the student or a term.

    ``inputs`` are the student's, ``given`` what the method was given.
    """
    blame_inputs(inputs, given.ids, where)
    if given.teacher_logits is not None:
        blame_logits("teacher", given.teacher_logits, given.ids, where)
    blame_logits("student", given.student_logits, given.ids, where)
    _blame_loss(given, loss, where)


def blame_inputs(inputs: Any, ids: Tensor | None, where: str) -> None:
    """Raise an InputError that names the first sample with a NaN or an infinite value among its inputs, if there is one.

    Args:
        inputs: of a batch: a tensor, or a tuple, list or mapping of tensors, with the samples in the first dimension.
        ids: sample ids, shape (N,), or None.
        where: the loader, and the step where there is one, for the message.
    """
    for name, tensor in _tensors(inputs):
        row = _first_bad(tensor)
        if row is not None:
            entries = tensor[row].flatten()
            place = int((~torch.isfinite(entries)).nonzero()[0])
            of = f" of {name!r}" if name else ""
            raise InputError(
                f"the inputs of {_sample(ids, row)} ({where}) hold {entries[place].item()}: entry {place}{of}. "
                "Leave the sample out or fill in the value"
            )


def blame_logits(side: str, logits: Tensor, ids: Tensor | None, where: str) -> None:
    """Raise :func:`not_finite` for logits (N, C) that are not."""
    row = _first_bad(logits)
    if row is not None:
        raise not_finite(side, _sample(ids, row), where)


def not_finite(side: str, sample: str, where: str) -> Exception:
    """The error for the logits of a sample: an InputError for the teacher, else a DivergenceError."""
    message = f"the {side}'s logits of {sample} are NaN or infinite ({where})"
    return InputError(message) if side == "teacher" else DivergenceError(f"{message}; {ADVICE}")


def _blame_loss(given: LossInputs, loss: Tensor, where: str) -> None:
    row = _first_bad(loss)
    if row is None:
        raise DivergenceError(f"the sum of the losses is infinite ({where}); {ADVICE}")
    terms = {"label term": given.gt}
    if given.teacher_logits is not None:
        terms["teacher term"] = given.kd
    bad = [name for name, values in terms.items() if not bool(values[row].isfinite())]
    what = " and the ".join(bad) or "loss"
    raise DivergenceError(
        f"the {what} of {_sample(given.ids, row)} is NaN or infinite, and the logits are not ({where}); {ADVICE}"
    )


def sample_name(row: int, sample: int | None) -> str:
    """What a sample is called in a message: by its id, or where it has none by its row in the batch."""
    return f"row {row}" if sample is None else f"sample {sample}"


def _sample(ids: Tensor | None, row: int) -> str:
    return sample_name(row, None if ids is None else int(ids[row]))


def _first_bad(values: Tensor) -> int | None:
    if not values.is_floating_point():
        return None
    bad = ~torch.isfinite(values.detach().flatten(1) if values.ndim > 1 else values.detach().unsqueeze(1)).all(dim=1)
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


def _tensors(inputs: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(inputs, Tensor):
        yield name, inputs
    elif isinstance(inputs, Mapping):
        for key, value in inputs.items():
            yield from _tensors(value, str(key))
    elif isinstance(inputs, tuple | list):
        for value in inputs:
            yield from _tensors(value, name)
