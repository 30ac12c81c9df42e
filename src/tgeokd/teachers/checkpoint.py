"""Weights of a teacher whose classes may be in another order than those of the labels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from tgeokd.bilevel.estimators.last_layer import find_head
from tgeokd.bilevel.record import MicroBatch
from tgeokd.core.model_call import class_logits, eval_mode
from tgeokd.models.weights import load_weights
from tgeokd.teachers.names import order_by_name
from tgeokd.utils.documents import parse_json
from tgeokd.utils.errors import InputError, first_line

OF_RUNS = ("student.safetensors", "teacher.safetensors")  # beside the results.json of their run


def load_teacher_weights(network: nn.Module, path: Path, class_names: Sequence[str], inputs: Callable[[], Any]) -> None:
    """Load weights, see :func:`~tgeokd.models.weights.load_weights`, and put their classes in the order of the labels.

    Args:
        network: whose last layer gives the logits.
        path: file of weights. Names of its classes are looked for in :func:`class_names_of`.
        class_names: names of the classes in the order of the labels; empty where they have none.
        inputs: returns a few samples; called where classes must be moved.

    Raises:
        InputError: also for classes of other names, and a network without a last ``nn.Linear`` whose classes must be moved.
    """
    load_weights(network, path)
    order = order_by_name(class_names_of(path), class_names, f"the weights {path}")
    if order is not None and order != sorted(order):
        _reorder(network, order, inputs(), path)


def class_names_of(path: Path) -> tuple[str, ...]:
    """The names of the classes of a file of weights, in its order; empty where it has none.

    They are ``class_names``, a list of texts: in the metadata of a ``.safetensors`` file, as JSON; in a file of the same name
    that ends in ``.json``; or in ``results.json`` beside the weights of a finished run.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as archive:
                held = (archive.metadata() or {}).get("class_names")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read as safetensors: {first_line(error)}") from error
        if held is not None:
            return _names(held, f"the metadata of {path}", whole=True)
    for sidecar in (path.with_suffix(".json"), *([path.with_name("results.json")] if path.name in OF_RUNS else [])):
        if sidecar.is_file():
            try:
                return _names(sidecar.read_text(), str(sidecar))
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"cannot read the class names in {sidecar}: {first_line(error)}") from error
    return ()


def _names(text: str, source: str, *, whole: bool = False) -> tuple[str, ...]:
    """The list of names in a JSON text: the whole of it, or its entry ``class_names``, if any."""
    held = parse_json(text, f"what holds the class names, {source},")
    if not whole:
        held = held.get("class_names", []) if isinstance(held, dict) else []
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        raise InputError(f"class_names in {source} must be a list of texts")
    return tuple(held)


@torch.no_grad()
def _reorder(network: nn.Module, order: list[int], inputs: Any, path: Path) -> None:
    """Move the rows of the last layer, so that output ``i`` is the former output ``order[i]``."""
    with eval_mode(network):
        before = class_logits(network, inputs)
        try:
            head = find_head(network, MicroBatch.begin(network, inputs))
        except InputError as error:
            raise InputError(f"the classes of {path} are in another order, and cannot be moved: {error}") from error
        for parameter in (head.weight, head.bias):
            if parameter is not None:  # one logit is that of the second class of two
                parameter.copy_(-parameter if head.out_features == 1 else parameter[order])
        after = class_logits(network, inputs)
    expected = before[:, order]
    if head.out_features == 1:
        expected = expected - expected[:, :1]  # logits (0, z)
    if not torch.allclose(after, expected, rtol=1e-3, atol=1e-4):
        raise InputError(f"the classes of {path} are in another order, and moving its last layer does not move them")
