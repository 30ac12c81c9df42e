"""The task `criteo`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tgeokd.core.metrics import Metrics
from tgeokd.data.base import TaskData
from tgeokd.data.tasks.criteo.generator import GENERATOR_VERSION, generate, probability_file
from tgeokd.data.tasks.criteo.reader import BadRows
from tgeokd.data.tasks.criteo.rows import StoredRows, StoredSplit
from tgeokd.data.tasks.criteo.store import Store, StoreSettings, open_store
from tgeokd.utils.errors import InputError

__all__ = ["criteo"]

METRICS = Metrics(names=("auc", "nll", "accuracy", "calibration"), primary="auc", class_names=("no click", "click"))
GENERATOR_SEED = 0  # not the run's: all runs see the same file

logger = logging.getLogger(__name__)


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
    """Click prediction: 13 integer and 26 categorical columns, all 39 as categories, streamed in bounded memory.

    The text is encoded once a file and setting into a store on disk (about 170 bytes a row), which later runs use again.
    Delete the store to have the space back. Its ``report.json`` tells column by column what the notes sum up.

    Args:
        data_dir: where the file is, directly or in a folder ``criteo``.
        seed: of the split and of the noise.
        file: in any of the raw formats, see :mod:`tgeokd.data.tasks.criteo.reader`.
        rows: take the first so many rows; None takes all.
        held_out: share of the rows, drawn at random by row number.
        test: share of the rows, likewise.
        min_count: training rows a value needs for a code of its own; rarer ones share the code 1.
        max_tracked: distinct values of a column that are counted at a time, at roughly 100 bytes each; this, not the number
            of rows, bounds the memory. With more values counts may be a little too low, by at most what the notes say.
        noise: probability that the label of a training row is flipped; held-out and test labels stay clean.
        bad_rows: ``error``, or ``skip`` to leave them out and count them in the notes.
        generated: instead of a file of your own, make and read one with so many rows whose click probabilities are known
            (:mod:`tgeokd.data.tasks.criteo.generator`). The notes hold the best AUC and log loss that a model could reach.
        cache: folder for stores and generated files. By default ``.tgeokd-cache`` beside the file, and for generated files
            the user's cache folder.

    Raises:
        InputError: for a missing file, a wrong format, a bad row (with file and line), or an impossible option.
    """
    settings = StoreSettings(seed, held_out, test, min_count, max_tracked, rows, bad_rows)
    if generated is not None:
        folder = Path(cache) if cache else _user_cache()
        path = _generated(folder, generated)
    else:
        path = _found(data_dir, file)
        folder = Path(cache) if cache else path.parent / ".tgeokd-cache"
    store = open_store(path, settings, folder)
    train = StoredSplit(store, "train", noise, seed)
    notes: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size, **_totals(store.report)}
    if generated is not None:
        notes["best_possible"] = _best(store, np.load(probability_file(path), mmap_mode="r"))
    return TaskData(
        train=StoredRows([train]),
        held_out=StoredRows([StoredSplit(store, "held_out")]),
        test=StoredRows([StoredSplit(store, "test")]),
        num_classes=2,
        inputs=store.encoder.inputs,
        corrupted=train.all_flipped(),
        class_names=METRICS.class_names,
        metrics=METRICS,
        notes=notes,
        encoder=store.encoder,
    )


def _found(data_dir: Path | None, file: str) -> Path:
    if data_dir is None:
        raise InputError("criteo needs the data folder with your file, or generated=N for made-up rows")
    places = [Path(data_dir) / "criteo" / file, Path(data_dir) / file]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"found neither {places[0]} nor {places[1]}; the task criteo reads your own copy of the click logs"
    )


def _generated(folder: Path, rows: int) -> Path:
    """The generated file, made where it is not there yet."""
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


def _totals(report: dict[str, Any]) -> dict[str, Any]:
    """The report of a store without what it says column by column."""
    sums = {key: sum(report[key].values()) for key in ("codes", "missing_values")}
    unknown = {split: sum(columns.values()) for split, columns in report["values_without_a_code"].items()}
    return report | sums | {"values_without_a_code": unknown}


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tgeokd" / "criteo"


def _best(store: Store, probability: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """AUC and log loss of the true click probabilities on the test rows."""
    p = torch.from_numpy(probability[store.array("test", "row")])
    logits = torch.stack([torch.log1p(-p), p.log()], dim=1)
    best = METRICS(logits, torch.from_numpy(store.array("test", "label").astype(np.int64)))
    return {name: best[name] for name in ("auc", "nll", "calibration")}
