"""Predictions of a finished run's student for new rows of a table."""

import inspect
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

from tgeokd.core.model_call import class_logits
from tgeokd.data import TASKS
from tgeokd.data.tables import encoder_from_dict
from tgeokd.data.tables.encoder import FeatureEncoder
from tgeokd.runs.build import build_network
from tgeokd.runs.config import load_config
from tgeokd.runs.results import RunResults, load_json
from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.files import replace_file
from tgeokd.utils.integrity import verify_checksum
from tgeokd.utils.spreadsheet import safe_cell

logger = logging.getLogger(__name__)

MOST, FEW = 0.5, 10  # share of strange values in a column that stops a prediction, and rows from which it does
ROWS = 65_536  # in one pass through the student


def predict(folder: Path, file: Path, out: Path, *, allow_unseen: bool = False) -> int:
    """Class probabilities of a run's student for the rows of a file, through the encoder that was saved with it.

    The file is in the format the task reads: for ``criteo`` the raw logs, for ``nsl_kdd`` the published text or Parquet, for
    other tables ``.csv``, ``.tsv`` or ``.parquet`` with the columns the run was trained on. Labels are not needed. Values that
    training did not see, and missing ones, have codes of their own.

    Args:
        folder: of a finished run on a table task.
        file: the rows.
        allow_unseen: predict even where most values of a column are missing or were never seen in training.
        out: ``.parquet`` or ``.csv`` to write: ``id`` (the row number in the file), ``prob_0``, ``prob_1``, ... and
            ``prediction``, the name of the most probable class; in a csv file with an apostrophe before a name that a
            spreadsheet would execute. ``teacher.predictions`` accepts the Parquet file.

    Returns:
        Number of predicted rows.

    Raises:
        InputError: also where most values of a column are missing or were never seen in training: a column of another meaning.
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
    verify_checksum(folder / "student.safetensors", "the student")
    try:
        load_model(student, str(folder / "student.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load the student of {folder}: {one_line(error)}") from error
    student.eval()
    import polars as pl

    shown = [safe_cell(name) for name in names] if out.suffix == ".csv" else names
    strange = _Strange(encoder, str(file), allow_unseen)

    def table(rows: Any, frame: pl.DataFrame) -> pl.DataFrame:
        strange.add(frame)
        numeric, categorical = encoder.transform(frame, source=str(file))
        with torch.no_grad():
            batches = zip(numeric.split(ROWS), categorical.split(ROWS), strict=True)
            probs = torch.cat([class_logits(student, batch).softmax(dim=-1) for batch in batches]).numpy()
        best = np.array(shown)[probs.argmax(axis=1)]
        columns = {f"prob_{c}": probs[:, c] for c in range(len(names))}
        return pl.DataFrame({"id": np.asarray(rows, dtype=np.int64), **columns, "prediction": best})

    predicted = pl.concat([table(rows, frame) for rows, frame in read_rows(file, **more)])
    strange.say()
    write = predicted.write_parquet if out.suffix == ".parquet" else predicted.write_csv
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, lambda path: write(path))
    return len(predicted)


class _Strange:
    """Counts the values that training did not see, by column, and stops at an absurd share of them."""

    def __init__(self, encoder: Any, file: str, allowed: bool) -> None:
        self.encoder, self.file, self.allowed = encoder, file, allowed
        self.rows = 0
        self.counts: dict[str, Counter[str]] = {"never seen in training": Counter(), "missing": Counter()}

    def add(self, frame: Any) -> None:
        """Count the values of some rows."""
        if isinstance(self.encoder, FeatureEncoder):
            self.rows += len(frame)
            self.counts["never seen in training"].update(self.encoder.unseen(frame))
            self.counts["missing"].update(self.encoder.missing(frame))

    def say(self) -> None:
        """Log the shares by column; an InputError for more than :data:`MOST` of at least :data:`FEW` rows."""
        usual = {c.name for c in getattr(self.encoder, "numeric", ()) if c.indicator}
        for what, counts in self.counts.items():
            for name, count in counts.most_common():
                share = count / self.rows
                text = f"{self.file}: {100 * share:.1f} % of the values of column {name!r} are {what}"
                if share > MOST and self.rows >= FEW and not self.allowed and not (what == "missing" and name in usual):
                    raise InputError(
                        f"{text}: does it mean the same as in training? --allow-unseen predicts all the same"
                    )
                logger.warning("%s", text) if what != "missing" else logger.info("%s", text)
