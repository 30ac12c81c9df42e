"""A fitted classifier with ``predict_proba`` as a teacher: scikit-learn, LightGBM, XGBoost, ..."""

import logging
from collections.abc import Sequence
from importlib import import_module
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
from tgeokd.utils.errors import InputError, check_names, first_line, optional_import

logger = logging.getLogger(__name__)


class ProbaTeacher(Teacher):
    """A fitted classifier as a teacher, and as a callable from the inputs of :func:`as_columns` to logits.

    Args:
        classifier: has ``predict_proba`` and ``classes_``, fitted on columns as :func:`as_columns` returns them.
        num_classes: C; by default the number of classes that it was fitted on. Classes without training samples get
            probability 0, whose logit is ``log(1.2e-38)``, about -87.
        classes: class index of each of its ``classes_``, in their order; None where these are class indices, or names
            among ``class_names``.
        class_names: names of the C classes, in the order of the labels.
        feature_names: names of the columns of the inputs, for a classifier that was fitted on a table with named columns. It
            gets its own columns, in its order, by name.

    Raises:
        InputError: for a classifier that is not fitted, other classes, and columns by name without ``feature_names``.
    """

    num_classes: int

    def __init__(
        self,
        classifier: Any,
        *,
        num_classes: int | None = None,
        classes: Sequence[int] | None = None,
        class_names: Sequence[str] = (),
        feature_names: Sequence[str] = (),
    ) -> None:
        name = type(classifier).__name__
        if not callable(getattr(classifier, "predict_proba", None)):
            raise InputError(f"the teacher {name} has no predict_proba")
        if not hasattr(classifier, "classes_"):
            raise InputError(f"the teacher {name} has no classes_; fit it first")
        fitted = np.asarray(classifier.classes_)
        if classes is not None and (len(classes) != len(fitted) or len(set(classes)) != len(classes)):
            raise InputError(f"classes must be {len(fitted)} distinct indices for {name}, not {list(classes)}")
        known = _by_name(fitted, class_names, name) if classes is None else np.asarray(classes)
        self.num_classes = num_classes or len(class_names) or len(known)
        self.class_names = tuple(class_names)
        if class_names and len(class_names) != self.num_classes:
            raise InputError(f"{len(class_names)} class names for the {self.num_classes} classes of the teacher {name}")
        numbers = known.ndim == 1 and known.dtype.kind in "iuf" and len(known) > 0
        if not numbers or not np.isin(known, np.arange(self.num_classes)).all():
            raise InputError(
                f"the classes of the teacher {name} must be class indices 0 to {self.num_classes - 1}, "
                f"not {', '.join(map(str, known.tolist()[:10]))}; see the arguments class_names and classes"
            )
        self.feature_names = tuple(feature_names)
        self.columns = fitted_columns(classifier)
        if self.columns and not feature_names:
            raise InputError(
                f"the teacher {name} was fitted on columns by name ({_some(self.columns)}), and the inputs of a model have no "
                "names: give feature_names, or raw columns to StoredPredictions.from_classifier(classifier, frame, ids)"
            )
        for column in self.columns:
            if column not in self.feature_names:
                raise InputError(
                    f"the teacher {name} was fitted on a column {column!r}, not among {_some(self.feature_names)}"
                )
        self.classifier = classifier
        self.classes: NDArray[np.int64] = known.astype(np.int64)

    def logits(self, batch: Batch) -> Tensor:
        """Logs of the predicted probabilities of a batch, shape (N, C); see :meth:`__call__`."""
        return class_logits(self, batch.inputs)

    def __call__(self, inputs: Tensor, categorical: Tensor | None = None) -> Tensor:
        """Logs of the predicted probabilities, shape (N, C), float32, on the device of ``inputs``."""
        columns = as_columns(inputs, categorical)
        name, width = type(self.classifier).__name__, len(self.feature_names) or self._width or columns.shape[1]
        if columns.shape[1] != width:
            raise InputError(f"the teacher {name} takes {width} columns, and the inputs have {columns.shape[1]}")
        return self.of_columns(self._named(columns) if self.columns else columns).to(inputs.device)

    def of_columns(self, columns: Any) -> Tensor:
        """The same for columns as the classifier takes them, an array or a table of N rows."""
        name = type(self.classifier).__name__
        try:
            found = np.asarray(self.classifier.predict_proba(columns))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"the teacher {name} cannot predict: {first_line(error)}") from error
        shape = (len(columns), len(self.classes))
        if found.shape != shape:
            raise InputError(f"predict_proba of {name} returned shape {found.shape}, not {shape}")
        probs = torch.zeros(len(found), self.num_classes)
        probs[:, self.classes] = torch.from_numpy(found.astype(np.float32))
        try:
            return logits_from_probs(probs)
        except InputError as error:
            raise InputError(f"predict_proba of {name}: {error}") from None

    @property
    def _width(self) -> int:
        """Number of columns that the classifier was fitted on; 0 where unknown."""
        return int(getattr(self.classifier, "n_features_in_", 0))

    def _named(self, columns: NDArray[np.float32]) -> Any:
        """The classifier's columns as a table of the library at hand."""
        table = {name: columns[:, self.feature_names.index(name)] for name in self.columns}
        try:
            return import_module("pandas").DataFrame(table)
        except ImportError:
            return optional_import("polars", "a classifier fitted on columns by name").DataFrame(table)


def fitted_columns(classifier: Any) -> tuple[str, ...]:
    """Names of the columns that a classifier was fitted on; empty where it was fitted on arrays."""
    names = tuple(map(str, getattr(classifier, "feature_names_in_", ())))
    return () if names == tuple(f"Column_{i}" for i in range(len(names))) else names  # LightGBM names those of arrays


def _by_name(fitted: NDArray[Any], class_names: Sequence[str], what: str) -> NDArray[Any]:
    """Class indices of ``classes_`` that are names; ``classes_`` themselves where they are not."""
    given, names = list(map(str, fitted.tolist())), list(class_names)
    if fitted.ndim != 1 or not names or (fitted.dtype.kind in "iuf" and not set(given) <= set(names)):
        return fitted
    check_names(f"class of the teacher {what}", given, names)
    logger.info("the classes of the teacher %s by name: %s of %s", what, ", ".join(given), ", ".join(names))
    return np.array([names.index(name) for name in given])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


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
