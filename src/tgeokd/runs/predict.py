"""Predictions of a finished run's student for new rows of a table."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

from tgeokd.core.model_call import class_logits
from tgeokd.data import TASKS
from tgeokd.data.tables import encoder_from_dict
from tgeokd.runs.build import build_network
from tgeokd.runs.config import load_config
from tgeokd.runs.results import RunResults, load_json
from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.files import replace_file

ROWS = 65_536  # in one pass through the student


def predict(folder: Path, file: Path, out: Path) -> int:
    """Class probabilities of a run's student for the rows of a file, through the encoder that was saved with it.

    The file is in the format the task reads: for ``criteo`` the raw logs, for ``nsl_kdd`` the published text or Parquet, for
    other tables ``.csv``, ``.tsv`` or ``.parquet`` with the columns the run was trained on. Labels are not needed. Values that
    training did not see, and missing ones, have codes of their own.

    Args:
        folder: of a finished run on a table task.
        file: the rows.
        out: ``.parquet`` or ``.csv`` to write: ``id`` (the row number in the file), ``prob_0``, ``prob_1``, ... and
            ``prediction``, the name of the most probable class. ``teacher.predictions`` accepts this file.

    Returns:
        Number of predicted rows.
    """
    if out.suffix not in (".parquet", ".csv"):
        raise InputError(f"predictions are written as .parquet or .csv, not {out.name}")
    config = load_config(folder / "config.yaml")
    results = RunResults.read(folder / "results.json")
    names = results.class_names
    read_rows = getattr(TASKS[config.task], "read_rows", None)
    if read_rows is None or not (folder / "encoder.json").exists():
        raise InputError(f"the run in {folder} is of task {config.task!r}; predict takes runs on tables")
    encoder = encoder_from_dict(load_json(folder / "encoder.json"))
    takes_options = "options" in inspect.signature(read_rows).parameters
    more = {"options": {**config.data, "notes": results.data}} if takes_options else {}
    student = build_network(config.student, encoder.inputs, len(names), seed=config.seed)
    try:
        load_model(student, str(folder / "student.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load the student of {folder}: {one_line(error)}") from error
    student.eval()
    import polars as pl

    def table(rows: Any, frame: pl.DataFrame) -> pl.DataFrame:
        numeric, categorical = encoder.transform(frame, source=str(file))
        with torch.no_grad():
            batches = zip(numeric.split(ROWS), categorical.split(ROWS), strict=True)
            probs = torch.cat([class_logits(student, batch).softmax(dim=-1) for batch in batches]).numpy()
        best = np.array(names)[probs.argmax(axis=1)]
        columns = {f"prob_{c}": probs[:, c] for c in range(len(names))}
        return pl.DataFrame({"id": np.asarray(rows, dtype=np.int64), **columns, "prediction": best})

    predicted = pl.concat([table(rows, frame) for rows, frame in read_rows(file, **more)])
    write = predicted.write_parquet if out.suffix == ".parquet" else predicted.write_csv
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, lambda path: write(path))
    return len(predicted)
