"""Teachers that are not networks (stored predictions, anything with ``predict_proba``), and networks that are asked once."""

from __future__ import annotations

from tgeokd.teachers.cache.store import TeacherCache, TeacherCacheOptions
from tgeokd.teachers.cached import CachedTeacher
from tgeokd.teachers.classifiers import CLASSIFIERS, fit_classifier
from tgeokd.teachers.proba import ProbaTeacher
from tgeokd.teachers.stored import StoredPredictions

__all__ = [
    "CLASSIFIERS",
    "CachedTeacher",
    "ProbaTeacher",
    "StoredPredictions",
    "TeacherCache",
    "TeacherCacheOptions",
    "fit_classifier",
]
