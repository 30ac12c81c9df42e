"""Callbacks of a training run, one file each."""

from tgeokd.training.callbacks.base import Callback
from tgeokd.training.callbacks.early_stopping import EarlyStopping
from tgeokd.training.callbacks.progress import ProgressBar

__all__ = ["Callback", "EarlyStopping", "ProgressBar"]
