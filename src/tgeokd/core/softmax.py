"""Softmax over the classes, fast for few classes too."""

from torch import Tensor

FEW_CLASSES, MANY_ROWS = 16, 256


def softmax(logits: Tensor) -> Tensor:
    """Probabilities over the last dimension, shape (..., N, C)."""
    return logits.mT.softmax(-2).mT if _short(logits) else logits.softmax(-1)


def log_softmax(logits: Tensor) -> Tensor:
    """The same in logs."""
    return logits.mT.log_softmax(-2).mT if _short(logits) else logits.log_softmax(-1)


def _short(logits: Tensor) -> bool:
    """Whether rows are too short to be vectorised on the CPU, and many: then torch is several times faster along the other."""
    classes = logits.shape[-1]
    many = logits.ndim > 1 and logits.numel() >= MANY_ROWS * classes
    return many and classes < FEW_CLASSES and logits.device.type == "cpu"
