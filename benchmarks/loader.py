"""Time to fetch a batch beside a training step, and to read tables.

Run: python benchmarks/bench.py --only loader
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from harness import Figure, interleaved, ratios, seconds_of, threads
from pyarrow import csv as arrow_csv
from workloads import MLP, handwritten

from tgeokd.data import InputSpec, TaskData
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.augment import TrainTransform
from tgeokd.data.tables.reader import MISSING_TEXT, read_table
from tgeokd.data.tasks.tabular import tabular
from tgeokd.utils.integrity import sha256

SAMPLES = 20_000
ROWS = 1_000_000
TEXT_ROWS = 200_000


def fetching(dataset: ArrayDataset, batch_size: int) -> Callable[[], float]:
    """A measurement of a task's training loader: seconds per batch, with the shuffling of the pass."""
    data = TaskData(dataset, dataset, dataset, 3, InputSpec("array", (1,)))

    def measure() -> float:
        loader = data.training_loader(batch_size)
        started = time.perf_counter()
        count = sum(1 for _ in loader)
        return (time.perf_counter() - started) / count

    return measure


def table() -> ArrayDataset:
    inputs = MLP.inputs(SAMPLES)
    return ArrayDataset(inputs, torch.randint(MLP.num_classes, (SAMPLES,)), torch.arange(SAMPLES))


def images() -> ArrayDataset:
    pixels = torch.randint(256, (SAMPLES, 3, 32, 32), dtype=torch.uint8)
    transform = TrainTransform((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), padding=4)
    return ArrayDataset(pixels, torch.randint(100, (SAMPLES,)), torch.arange(SAMPLES), transform)


def write_table(path: Path, rows: int) -> None:
    """20 columns: 10 of floats, 4 of integers, 5 of text and the label; ``.parquet`` or ``.csv``."""
    draw = np.random.default_rng(0)
    words = np.array([f"value{i}" for i in range(50)])
    columns = {f"float{i}": draw.normal(size=rows) for i in range(10)}
    columns |= {f"integer{i}": draw.integers(0, 1000, rows) for i in range(4)}
    columns |= {f"text{i}": words[draw.integers(0, 50, rows)] for i in range(5)}
    frame = pl.DataFrame(columns | {"label": words[draw.integers(0, 3, rows)]})
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)


def read_plainly(path: Path) -> pl.DataFrame:
    """What :func:`~tgeokd.data.tables.reader.read_table` returns for a comma-separated table of plain numbers and words, with
    nothing found out and nothing checked: the least that reading such a table costs.
    """
    names = path.open().readline().rstrip("\n").split(",")
    read = arrow_csv.ReadOptions(use_threads=False, column_names=names, skip_rows=1)
    parse = arrow_csv.ParseOptions(newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    frame = pl.from_arrow(arrow_csv.read_csv(path, read, parse, convert))
    assert isinstance(frame, pl.DataFrame)
    sha256(path)
    return frame.select(_typed(column) for column in frame)


def _typed(text: pl.Series) -> pl.Series:
    text = text.str.strip_chars()
    text = text.set(text.is_in(MISSING_TEXT), None)
    if text.str.contains(r"^[+-]?0\d").any():
        return text
    for dtype in (pl.Int64, pl.Float64):
        numbers = text.cast(dtype, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
    return text


def reading_text(folder: Path, rows: int, runs: int) -> list[Figure]:
    """The cost of finding out how a text table is written, and of the checks."""
    file = folder / "table.csv"
    write_table(file, rows)
    assert read_table(file).frame.equals(read_plainly(file))
    found = interleaved(
        {"read": lambda: seconds_of(lambda: read_table(file)), "plain": lambda: seconds_of(lambda: read_plainly(file))},
        runs,
    )
    per_second = [rows / seconds for seconds in found["read"]]
    return [
        Figure.of(
            "reading a csv file / the same with nothing found out or checked",
            ratios(found, "read", "plain"),
            limit=1.1,
            note=f"{rows} rows, 20 columns, to typed columns; both with pyarrow on one thread and the threads of polars",
        ),
        Figure.of("rows per second from a csv file to a table", per_second, note=f"{rows} rows, 20 columns"),
    ]


def figures(runs: int) -> list[Figure]:
    """The figures of the data path; only that of reading text has a limit."""
    torch.manual_seed(0)
    with threads(MLP.threads), tempfile.TemporaryDirectory() as folder:
        pictures = images()
        measures = {
            "table": fetching(table(), MLP.batch_size),
            "step": handwritten(MLP),
            "fresh": fetching(pictures, MLP.batch_size),
            "views": fetching(pictures.with_views(4), MLP.batch_size),
        }
        values = interleaved(measures, runs)
        file = Path(folder) / "table.parquet"
        write_table(file, ROWS)
        read = lambda: tabular(data_dir=file.parent, file=file.name, label="label")  # noqa: E731
        reading = interleaved({"read": lambda: seconds_of(read)}, runs, warmup=0)["read"]
        text = reading_text(Path(folder), min(ROWS, TEXT_ROWS), runs)
    microseconds = {name: [1e6 * value for value in found] for name, found in values.items()}
    step = Figure.of("", microseconds["step"]).value
    return [
        Figure.of(
            "fetching a batch of a table / one kd step of the MLP student",
            ratios(values, "table", "step"),
            note=f"batch {MLP.batch_size}; hand-written step with its teacher, {step:.0f} µs",
        ),
        Figure.of("µs to fetch a batch of a table", microseconds["table"], note=f"128 numbers, batch {MLP.batch_size}"),
        Figure.of(
            "µs to fetch and augment a batch of images", microseconds["fresh"], note="64 of 3x32x32, fresh draws"
        ),
        Figure.of(
            "µs to fetch and augment a batch of images, by view", microseconds["views"], note="the same, drawn by id"
        ),
        Figure.of(
            "rows per second from a parquet file to a task",
            [ROWS / seconds for seconds in reading],
            note=f"{ROWS} rows, 20 columns: read, split, encode; with the threads of polars",
        ),
        *text,
    ]
