"""A fitted classifier with ``predict_proba`` as a teacher: scikit-learn, LightGBM, XGBoost, ..."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgeokd.core.losses import logits_from_probs
from tgeokd.core.model_call import class_logits
from tgeokd.data.base import InputSpec
from tgeokd.data.batch import Batch
from tgeokd.teachers.base import Teacher
from tgeokd.utils.errors import InputError


class ProbaTeacher(Teacher):
    """A fitted classifier as a teacher, and as a callable from the inputs of :func:`as_columns` to logits.

    Args:
        classifier: has ``predict_proba`` and ``classes_``, fitted on columns as :func:`as_columns` returns them.
        num_classes: C; by default the number of classes that it was fitted on. Classes without training samples get
            probability 0, whose logit is ``log(1.2e-38)``, about -87.
        classes: class index of each of its ``classes_``, in their order; None where it was fitted on class indices.
        class_names: names of the C classes.
    """

    num_classes: int

    def __init__(
        self,
        classifier: Any,
        *,
        num_classes: int | None = None,
        classes: Sequence[int] | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        name = type(classifier).__name__
        if not callable(getattr(classifier, "predict_proba", None)):
            raise InputError(f"the teacher {name} has no predict_proba")
        if not hasattr(classifier, "classes_"):
            raise InputError(f"the teacher {name} has no classes_; fit it first")
        fitted = np.asarray(classifier.classes_)
        if classes is not None and (len(classes) != len(fitted) or len(set(classes)) != len(classes)):
            raise InputError(f"classes must be {len(fitted)} distinct indices for {name}, not {list(classes)}")
        known = fitted if classes is None else np.asarray(classes)
        self.num_classes = len(known) if num_classes is None else num_classes
        self.class_names = tuple(class_names)
        numbers = known.ndim == 1 and known.dtype.kind in "iuf" and len(known) > 0
        if not numbers or not np.isin(known, np.arange(self.num_classes)).all():
            raise InputError(
                f"the classes of the teacher {name} must be class indices 0 to {self.num_classes - 1}, "
                f"not {', '.join(map(str, known.tolist()[:10]))}; see the argument classes"
            )
        self.classifier = classifier
        self.classes: NDArray[np.int64] = known.astype(np.int64)

    def logits(self, batch: Batch) -> Tensor:
        """Logs of the predicted probabilities of a batch, shape (N, C); see :meth:`__call__`."""
        return class_logits(self, batch.inputs)

    def __call__(self, inputs: Tensor, categorical: Tensor | None = None) -> Tensor:
        """Logs of the predicted probabilities, shape (N, C), float32, on the device of ``inputs``."""
        found = np.asarray(self.classifier.predict_proba(as_columns(inputs, categorical)))
        name, shape = type(self.classifier).__name__, (len(inputs), len(self.classes))
        if found.shape != shape:
            raise InputError(f"predict_proba of {name} returned shape {found.shape}, not {shape}")
        probs = torch.zeros(len(found), self.num_classes)
        probs[:, self.classes] = torch.from_numpy(found.astype(np.float32))
        try:
            return logits_from_probs(probs).to(inputs.device)
        except InputError as error:
            raise InputError(f"predict_proba of {name}: {error}") from None


def as_columns(inputs: Tensor, categorical: Tensor | None = None) -> NDArray[np.float32]:
    """Model inputs as the columns of one float32 array, shape (N, F): numeric columns first, then category codes.

    Args:
        inputs: shape (N, ...), flattened; for a table the numeric columns, shape (N, M).
        categorical: category codes of a table, shape (N, K), below 2^24, which float32 represents exactly.
    """
    tensors = [tensor.detach().cpu().flatten(1) for tensor in (inputs, categorical) if tensor is not None]
    return np.concatenate([tensor.numpy().astype(np.float32) for tensor in tensors], axis=1)


def categorical_columns(inputs: InputSpec, *, most: int | None = None) -> list[int]:
    """The indices of the columns of :func:`as_columns` that hold category codes, at most ``most`` different ones."""
    return [inputs.shape[0] + k for k, codes in enumerate(inputs.categories) if most is None or codes <= most]
