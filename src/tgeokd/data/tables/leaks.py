"""Columns that are no property of a sample: the index of a data frame, and what tells the label by itself."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from tgeokd.data.tables.encoder import FeatureEncoder, as_numbers, as_text

ROWS = 20_000  # looked at, at most
FEWEST = 40  # rows from which a leak can be told from chance
LEAVES = 64  # ranges of a numeric column
REST = 0.05  # share of the errors of the largest class that a leaking column leaves
UNNAMED = re.compile(r"(Unnamed: \d+)?")  # pandas' name for a column without one, when it reads what it has written


def index_columns(frame: pl.DataFrame) -> list[str]:
    """Columns without a name that number the rows, as ``DataFrame.to_csv`` writes them."""
    found = []
    for name in frame.columns:
        column = frame[name]
        if UNNAMED.fullmatch(name) and column.dtype.is_integer() and column.n_unique() == len(column):
            found.append(name)
    return found


def suspected_leaks(frame: pl.DataFrame, encoder: FeatureEncoder, target: NDArray[np.int64]) -> dict[str, float]:
    """Single columns that tell the label of training rows (nearly) perfectly, with the share of labels that they tell.

    The most frequent label of each category, or of each range of numbers, on one half of the rows is compared with the labels
    of the other half, and the other way round: a value that occurs once tells nothing. A column is suspected where it
    leaves less than 5 % of the errors that the most frequent label alone makes.
    """
    rows = np.random.default_rng(0).permutation(len(target))[:ROWS]
    frame, target = frame[rows], target[rows]
    baseline = 1 - np.bincount(target).max() / max(len(target), 1)
    if len(target) < FEWEST or baseline == 0:
        return {}
    told: dict[str, tuple[Callable[..., int], NDArray[Any]]]
    told = {c.name: (_told_by_range, as_numbers(frame, c.name).to_numpy()) for c in encoder.numeric}
    told |= {c.name: (_told_by_value, _values(as_text(frame, c.name))) for c in encoder.categorical}
    halves = slice(len(target) // 2), slice(len(target) // 2, None)
    found = {}
    for name, (count, values) in told.items():
        share = sum(count(values, target, *pair) for pair in (halves, halves[::-1])) / len(target)
        if 1 - share < REST * baseline:
            found[name] = round(share, 4)
    return found


def _values(text: pl.Series) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.unique(text.fill_null("").to_numpy(), return_inverse=True)[1]
    return found


def _told_by_value(codes: NDArray[np.int64], target: NDArray[np.int64], known: Any, judged: Any) -> int:
    """How many labels the most frequent label of each value tells."""
    counts = np.zeros((codes.max() + 1, target.max() + 1), dtype=np.int64)
    np.add.at(counts, (codes[known], target[known]), 1)
    usual = np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), counts.sum(axis=0).argmax())
    return int((usual[codes[judged]] == target[judged]).sum())


def _told_by_range(numbers: NDArray[np.float64], target: NDArray[np.int64], known: Any, judged: Any) -> int:
    """The same by ranges that a small decision tree finds."""
    column = np.where(np.isfinite(numbers), numbers, np.nan).reshape(-1, 1).astype(np.float32)
    tree = DecisionTreeClassifier(max_leaf_nodes=LEAVES, min_samples_leaf=3, random_state=0)
    return int((tree.fit(column[known], target[known]).predict(column[judged]) == target[judged]).sum())
