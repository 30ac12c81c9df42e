"""Teachers that are not networks: stored predictions, and anything with ``predict_proba``."""

from __future__ import annotations

from tgeokd.teachers.classifiers import CLASSIFIERS, fit_classifier
from tgeokd.teachers.proba import ProbaTeacher
from tgeokd.teachers.stored import StoredPredictions

__all__ = ["CLASSIFIERS", "ProbaTeacher", "StoredPredictions", "fit_classifier"]
