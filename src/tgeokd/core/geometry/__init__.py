"""Trilateral geometry of student, teacher, label and the teacher's class average."""

from tgeokd.core.geometry.class_means import ClassMeans, class_means
from tgeokd.core.geometry.vector import Encoding, num_features, trilateral

__all__ = ["ClassMeans", "Encoding", "class_means", "num_features", "trilateral"]
