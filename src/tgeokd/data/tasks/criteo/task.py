"""The task `criteo`."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tgeokd.core.metrics import Metrics
from tgeokd.data.base import TaskData
from tgeokd.data.tables.reader import BadRows
from tgeokd.data.tasks.criteo.generator import GENERATOR_VERSION, generate, probability_file
from tgeokd.data.tasks.criteo.reader import RawFile
from tgeokd.data.tasks.criteo.store import Store, StoredRows, StoredSplit, StoreSettings, open_store
from tgeokd.data.tasks.registry import TASKS, existing_path, provides
from tgeokd.utils.errors import InputError

METRICS = Metrics(names=("auc", "nll", "accuracy", "calibration"), primary="auc", class_names=("no click", "click"))
GENERATOR_SEED = 0  # independent of the run, so that all runs use the same file

logger = logging.getLogger(__name__)


def _rows(path: Path) -> Iterator[tuple[NDArray[np.int64], pl.DataFrame]]:
    for block in RawFile(path, labels=False):
        yield block.rows, block.frame


@TASKS.register("criteo")
@provides(read_rows=_rows)
def criteo(
    *,
    data_dir: Path | None = None,
    seed: int = 0,
    file: str = "train.txt",
    rows: int | None = None,
    held_out: float = 0.1,
    test: float = 0.1,
    min_count: int = 10,
    max_tracked: int = 2_000_000,
    noise: float = 0.0,
    bad_rows: BadRows = "error",
    generated: int | None = None,
    cache: str | None = None,
) -> TaskData:
    """Click prediction: 13 integer and 26 categorical columns, all encoded as categories, streamed in bounded memory.

    The text is encoded once per file and setting into a store on disk (about 170 bytes per row), which later runs use again.
    The store can be deleted at any time. Its ``report.json`` has the figures of the notes column by column.

    Args:
        data_dir: contains the file, directly or in a folder ``criteo``.
        seed: seed of the split and of the label noise.
        file: in any of the raw formats, see :mod:`tgeokd.data.tasks.criteo.reader`.
        rows: number of rows to read from the start; null for all.
        held_out: share of the rows in the validation set, drawn at random by row number.
        test: share of the rows in the test set, drawn in the same way.
        min_count: training rows on which a value must occur to get a code of its own; rarer ones share the code 1.
        max_tracked: distinct values per column that are counted at a time, at roughly 100 bytes each. This bounds the memory,
            not the number of rows. With more values, counts may be too low by at most the amount in the notes.
        noise: probability that the label of a training row is flipped; validation and test labels stay clean.
        bad_rows: ``error``, or ``skip`` to leave them out and count them in the notes.
        generated: generate a file with so many rows whose click probabilities are known, and read that one
            (:mod:`tgeokd.data.tasks.criteo.generator`). The notes have the best possible AUC and log loss.
        cache: folder for stores and generated files. By default ``.tgeokd-cache`` beside the file, and for generated files
            the user's cache folder.
    """
    settings = StoreSettings(seed, held_out, test, min_count, max_tracked, rows, bad_rows)
    if generated is not None:
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tgeokd" / "criteo"
        folder = Path(cache) if cache else user_cache
        path = _generated(folder, generated)
    elif data_dir is None:
        raise InputError("task 'criteo' needs data_dir, the folder of your file, or generated=N for generated rows")
    else:
        path = existing_path(data_dir, "criteo", file, "criteo needs your own copy")
        folder = Path(cache) if cache else path.parent / ".tgeokd-cache"
    store = open_store(path, settings, folder)
    train = StoredSplit(store, "train", noise, seed)
    notes: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size, **store.report}
    notes |= {key: sum(notes[key].values()) for key in ("codes", "missing_values")}  # over the columns
    unknown = notes["values_without_a_code"]
    notes["values_without_a_code"] = {split: sum(counts.values()) for split, counts in unknown.items()}
    if generated is not None:
        notes["best_possible"] = _best(store, np.load(probability_file(path), mmap_mode="r"))
    held_out_set, test_set = (StoredRows([StoredSplit(store, name)]) for name in ("held_out", "test"))
    splits, flipped, encoder = (StoredRows([train]), held_out_set, test_set), train.all_flipped(), store.encoder
    return TaskData(*splits, 2, encoder.inputs, flipped, METRICS.class_names, METRICS, notes, encoder=encoder)


def _generated(folder: Path, rows: int) -> Path:
    """The generated file, written if it does not exist."""
    if rows < 1:
        raise InputError(f"generated must be >= 1 or null, not {rows}")
    path = folder / f"generated-{rows}-v{GENERATOR_VERSION}.txt"
    if not path.is_file():
        logger.info("generating %d rows into %s", rows, path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            generate(path, rows, GENERATOR_SEED)
        except OSError as error:
            raise InputError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
    return path


def _best(store: Store, probability: NDArray[np.float64]) -> dict[str, float]:
    """AUC and log loss of the true click probabilities on the test rows."""
    p = torch.from_numpy(probability[store.array("test", "row")])
    logits = torch.stack([torch.log1p(-p), p.log()], dim=1)
    best = METRICS(logits, torch.from_numpy(store.array("test", "label").astype(np.int64)))
    return {name: best[name] for name in ("auc", "nll", "calibration")}
