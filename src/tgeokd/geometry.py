"""Trilateral geometry: the public import path of :mod:`tgeokd.core.geometry`."""

from tgeokd.core.geometry import ClassMeans, Encoding, class_means, num_features, trilateral

__all__ = ["ClassMeans", "Encoding", "class_means", "num_features", "trilateral"]
