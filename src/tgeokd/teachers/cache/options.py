"""How stored logits of a teacher are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tgeokd.utils.errors import InputError

__all__ = ["StoredDtype", "TeacherCacheOptions"]

StoredDtype = Literal["fp16", "bf16", "fp32"]


@dataclass(frozen=True)
class TeacherCacheOptions:
    """How stored logits of a teacher are kept. None takes the value of a cache that exists already.

    Attributes:
        views: augmented views of each sample, one per epoch in turn. The default is the smaller of 4 and the number of epochs
            where the training inputs are augmented at random, and 1 otherwise.
        dtype: ``fp16`` (the default), ``bf16`` or ``fp32``.
        top_k: keep this many logits of a sample, the largest, and the total probability of the others. The default is all.
        folder: the default is ``teacher-cache`` in the folder of the run, and a temporary folder for a run without one.
    """

    views: int | None = None
    dtype: StoredDtype | None = None
    top_k: int | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("views", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} of the teacher cache must be >= 1, not {value}")
        if self.dtype is not None and self.dtype not in get_args(StoredDtype):
            expected = ", ".join(get_args(StoredDtype))
            raise InputError(f"dtype of the teacher cache must be one of {expected}, not {self.dtype!r}")
