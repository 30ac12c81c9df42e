"""Generated rows in the raw format of the Criteo challenge with known click probabilities.

The real rows may not be redistributed, so the pipeline is tested on generated ones. They have the exact format of the real
file, and roughly its numbers of values per column (at most 200,000) with power-law frequencies, its shares of missing values,
which are missing together in groups of columns, heavy-tailed integers, and about a quarter of clicks.

The model: a click has the probability ``sigmoid(b + first + pairs + numbers)`` where

- ``first`` is the sum of one effect per category, drawn from ``N(0, 1)`` and divided by
  ``log(values of the column) sqrt(1 + rank / 10)``, because large effects of rare values could not be learned;
- ``pairs`` is the sum of ``<v_i, v_j>`` over all pairs of four columns with few values, with one vector ``v`` of dimension 2
  per value (a factorisation machine, Rendle 2010), which a sum of single effects cannot express;
- ``numbers`` is the sum, over the integer columns, of a linear and a quadratic function of ``log(v + 4)``.

The three terms are scaled to fixed standard deviations, and ``b`` is set for a quarter of clicks. A missing cell adds 0.

Rows are drawn in chunks of 65,536, each from its own random stream: a longer file starts with the rows of a shorter one.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute  # type: ignore[import-untyped]
import pyarrow.csv  # type: ignore[import-untyped]
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from tgeokd.data.tasks.criteo.reader import CATEGORIES, INTEGERS
from tgeokd.utils.files import replace_file

GENERATOR_VERSION = 1  # of the rows generated from a seed
CHUNK = 1 << 16
CLICKS = 0.25
DEVIATIONS = {"first": 0.85, "pairs": 0.9, "numbers": 0.6}  # standard deviations of the terms of the logit

# Approximate numbers of distinct values of C1..C26 in the challenge's train.txt, at most 200,000.
SIZES = (
    *(1460, 583, 200_000, 200_000, 305, 24, 12517, 633, 3, 93145, 5683, 200_000, 3194),
    *(27, 14992, 200_000, 10, 5652, 2173, 4, 200_000, 18, 15, 200_000, 105, 142572),
)
EXPONENT = 1.1
PAIRED = ("C6", "C14", "C17", "C23")
LATENT = 2
FREQUENT = 10  # rank above which effects decrease

# Log-mean and log-deviation of I1..I13, and the shift below zero (of I2 only).
INTEGER_LOG_MEAN = (0.9, 1.6, 1.9, 1.5, 8.0, 3.5, 1.4, 2.0, 3.7, 0.4, 0.8, 0.3, 1.5)
INTEGER_LOG_SD = (1.5, 2.0, 1.2, 1.0, 2.0, 1.7, 1.5, 1.1, 1.6, 0.4, 0.8, 0.6, 1.1)
SHIFTS = tuple(3 if name == "I2" else 0 for name in INTEGERS)

# Shares of the rows in which some columns are missing together; the order determines the random draws.
MISSING = (
    *((0.453, ("I1", "I10")), (0.215, ("I3", "I4", "I13")), (0.026, ("I5",)), (0.224, ("I6",))),
    *((0.043, ("I7", "I9", "I11")), (0.001, ("I8",)), (0.765, ("I12",))),
    *((0.034, ("C3", "C4", "C12", "C16", "C21", "C24")), (0.121, ("C6",)), (0.440, ("C19", "C20", "C25", "C26"))),
    (0.762, ("C22",)),
)

Floats = NDArray[np.float64]
Cells = NDArray[np.int64]


class ClickModel:
    """Draws rows and computes their click probabilities; the seed is that of the effects and of the rows."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        effects, vectors, curves, sample = (np.random.default_rng([seed, stream]) for stream in (2, 3, 4, 5))
        decay = [np.sqrt(1 + np.arange(size) / FREQUENT) for size in SIZES]
        self._effects = [effects.standard_normal(len(d)) / d / np.log(len(d)) for d in decay]
        self._vectors = {name: vectors.standard_normal((SIZES[CATEGORIES.index(name)], LATENT)) for name in PAIRED}
        self._curves = curves.standard_normal((len(INTEGERS), 2)) * [1.0, 0.5]  # linear and quadratic coefficients
        cells = _cells(sample)
        self._scales = {name: DEVIATIONS[name] / float(term.std()) for name, term in self._terms(*cells).items()}
        score = self._score(*cells)
        self.bias = float(brentq(lambda b: expit(b + score).mean() - CLICKS, -20, 20))  # ``b``

    def chunks(self, rows: int) -> Iterator[tuple[pa.Table, Floats]]:
        """Chunks of rows: a table of ``label``, ``I1``..``C26``, and the click probabilities, shape (n,)."""
        for chunk, start in enumerate(range(0, rows, CHUNK)):
            size = min(CHUNK, rows - start)
            random = np.random.default_rng([self.seed, 1, chunk])
            integers, ranks, missing = _cells(random)
            probability = expit(self.bias + self._score(integers, ranks, missing))
            label = (random.random(CHUNK) < probability).astype(np.int8)
            columns = {"label": pa.array(label[:size])}
            for i, name in enumerate(INTEGERS):
                columns[name] = pa.array(integers[:size, i], mask=missing[name][:size])
            for i, name in enumerate(CATEGORIES):
                columns[name] = _hexadecimal(_token(i, ranks[:size, i]), missing[name][:size])
            yield pa.table(columns), probability[:size]

    def _score(self, integers: Cells, ranks: Cells, missing: dict[str, NDArray[np.bool_]]) -> Floats:
        score = np.zeros(len(ranks))
        for name, term in self._terms(integers, ranks, missing).items():
            score += self._scales[name] * term
        return score

    def _terms(self, integers: Cells, ranks: Cells, missing: dict[str, NDArray[np.bool_]]) -> dict[str, Floats]:
        """The three unscaled terms of the logit, each of shape (n,)."""
        first, squares, numbers = np.zeros((3, len(ranks)))
        total = np.zeros((len(ranks), LATENT))
        for i, name in enumerate(CATEGORIES):
            present = ~missing[name]
            first += present * self._effects[i][ranks[:, i]]
            if name in self._vectors:
                vectors = self._vectors[name][ranks[:, i]] * present[:, None]
                total += vectors
                squares += np.square(vectors).sum(axis=1)
        for i, name in enumerate(INTEGERS):
            x = (np.log(integers[:, i] + 4) - max(INTEGER_LOG_MEAN[i], 1.5)) / INTEGER_LOG_SD[i]
            linear, quadratic = self._curves[i]
            numbers += ~missing[name] * (linear * x + quadratic * (np.minimum(x * x, 9) - 1))
        # sum over pairs <v_i, v_j> = (|sum v|^2 - sum |v|^2) / 2
        return {"first": first, "pairs": (np.square(total).sum(axis=1) - squares) / 2, "numbers": numbers}


def generate(path: Path, rows: int, seed: int = 0) -> None:
    """Write a file in the format of ``train.txt``, complete once it exists, and beside it the click probabilities."""
    kinds = {"label": pa.int8(), **dict.fromkeys(INTEGERS, pa.int64()), **dict.fromkeys(CATEGORIES, pa.string())}
    options = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")

    def write(file: Path) -> None:
        probabilities: list[Floats] = []
        with pa.csv.CSVWriter(str(file), pa.schema(kinds), write_options=options) as writer:
            for table, probability in ClickModel(seed).chunks(rows):
                writer.write_table(table)
                probabilities.append(probability)

        def save(temporary: Path) -> None:
            with temporary.open("wb") as stream:  # np.save changes the suffix of a path
                np.save(stream, np.concatenate(probabilities))

        replace_file(probability_file(path), save)

    replace_file(path, write)


def probability_file(path: Path) -> Path:
    """Path of the click probabilities of a generated file: float64, one per row."""
    return path.with_name(path.name + ".probability.npy")


def _cells(random: np.random.Generator) -> tuple[Cells, Cells, dict[str, NDArray[np.bool_]]]:
    """One chunk: integers (n, 13), ranks of the categories (n, 26), and which cells are missing."""
    normal = random.standard_normal((CHUNK, len(INTEGERS)))
    uniform = random.random((CHUNK, len(CATEGORIES)))
    together = random.random((CHUNK, len(MISSING)))
    integers = np.floor(np.exp(INTEGER_LOG_MEAN + np.asarray(INTEGER_LOG_SD) * np.clip(normal, -4, 4)))
    # A power law P(rank) ~ rank^-EXPONENT on 1..size, by inversion of its continuous form.
    power = 1 - EXPONENT
    ends = (np.asarray(SIZES, dtype=np.float64) + 1) ** power - 1
    ranks = np.floor((1 + ends * uniform) ** (1 / power)).astype(np.int64) - 1
    ranks = np.clip(ranks, 0, np.asarray(SIZES) - 1)
    missing = {name: np.zeros(CHUNK, dtype=bool) for name in (*INTEGERS, *CATEGORIES)}
    for i, (share, names) in enumerate(MISSING):
        missing |= dict.fromkeys(names, together[:, i] < share)
    return integers.astype(np.int64) - SHIFTS, ranks, missing


def _token(column: int, ranks: Cells) -> NDArray[np.uint32]:
    """A 32-bit name for each value; the map is invertible, so the ranks of a column have distinct names."""
    x = (ranks + (column << 24)).astype(np.uint32)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):  # the finaliser of MurmurHash3
        x = (x ^ (x >> np.uint32(15))) * np.uint32(multiplier)
    return x ^ (x >> np.uint32(16))


_DIGITS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype="S2")


def _hexadecimal(values: NDArray[np.uint32], missing: NDArray[np.bool_]) -> pa.Array:
    """Eight lower-case hexadecimal digits each, null where missing."""
    text = _DIGITS[values.astype(">u4").view(np.uint8)]
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), len(values), [None, pa.py_buffer(text.tobytes())])
    return pa.compute.if_else(pa.array(missing), None, fixed.cast(pa.binary()).cast(pa.string()))
