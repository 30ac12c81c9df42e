"""Teachers: networks, stored predictions, classifiers with ``predict_proba``, and a cache around any of them."""

from tgeokd.teachers.base import Teacher
from tgeokd.teachers.cache.key import file_hashes, row_digests
from tgeokd.teachers.cache.store import TeacherCache, TeacherCacheOptions
from tgeokd.teachers.cached import CachedTeacher
from tgeokd.teachers.classifiers import fit_classifier
from tgeokd.teachers.network import NetworkTeacher, as_teacher
from tgeokd.teachers.proba import ProbaTeacher
from tgeokd.teachers.registry import CLASSIFIERS
from tgeokd.teachers.stored import StoredPredictions

__all__ = [
    "CLASSIFIERS",
    "CachedTeacher",
    "NetworkTeacher",
    "ProbaTeacher",
    "StoredPredictions",
    "Teacher",
    "TeacherCache",
    "TeacherCacheOptions",
    "as_teacher",
    "file_hashes",
    "fit_classifier",
    "row_digests",
]
