"""`nsl_kdd`: network connections, normal or one of 39 kinds of attack, 17 of which occur in the test set only."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tgeokd.data.base import TaskData
from tgeokd.data.split import stratified_split
from tgeokd.data.tables.encoder import as_numbers, place
from tgeokd.data.tables.labels import Draws
from tgeokd.data.tables.reader import Table, read_table
from tgeokd.data.tasks.attacks import attack_task, labelled, refuse_lacking
from tgeokd.data.tasks.registry import TASKS, find_path, provides, row_reader
from tgeokd.utils.errors import InputError, check_names

_FOLDERS = ("nsl-kdd", "NSL-KDD", "nsl_kdd")
_FILES = {
    "full": ("KDDTrain+.txt", "KDDTrain+.csv", "train.parquet", "train_full.parquet"),
    "20percent": ("KDDTrain+_20Percent.txt", "KDDTrain+_20Percent.csv", "train_20percent.parquet"),
    "test": ("KDDTest+.txt", "KDDTest+.csv", "test.parquet"),
}
_CATEGORICAL = ("protocol_type", "service", "flag")
_HEAVY_TAILED = ("duration", "src_bytes", "dst_bytes")
_COLUMNS = (
    *("duration", "protocol_type", "service", "flag", "src_bytes", "dst_bytes", "land", "wrong_fragment", "urgent"),
    *("hot", "num_failed_logins", "logged_in", "num_compromised", "root_shell", "su_attempted", "num_root"),
    *("num_file_creations", "num_shells", "num_access_files", "num_outbound_cmds", "is_host_login", "is_guest_login"),
    *("count", "srv_count", "serror_rate", "srv_serror_rate", "rerror_rate", "srv_rerror_rate", "same_srv_rate"),
    *("diff_srv_rate", "srv_diff_host_rate", "dst_host_count", "dst_host_srv_count", "dst_host_same_srv_rate"),
    *("dst_host_diff_srv_rate", "dst_host_same_src_port_rate", "dst_host_srv_diff_host_rate", "dst_host_serror_rate"),
    *("dst_host_srv_serror_rate", "dst_host_rerror_rate", "dst_host_srv_rerror_rate", "attack", "difficulty"),
)
_NUMERIC = tuple(name for name in _COLUMNS[:-2] if name not in _CATEGORICAL)

CATEGORIES: dict[str, tuple[str, ...]] = {
    "normal": ("normal",),
    "DoS": (
        *("apache2", "back", "land", "mailbomb", "neptune", "pod", "processtable", "smurf", "teardrop", "udpstorm"),
    ),
    "Probe": ("ipsweep", "mscan", "nmap", "portsweep", "saint", "satan"),
    "R2L": (
        *("ftp_write", "guess_passwd", "imap", "multihop", "named", "phf", "sendmail", "snmpgetattack", "snmpguess"),
        *("spy", "warezclient", "warezmaster", "worm", "xlock", "xsnoop"),
    ),
    "U2R": ("buffer_overflow", "httptunnel", "loadmodule", "perl", "ps", "rootkit", "sqlattack", "xterm"),
}
"""The kinds of connection of each class."""


def read_features(path: Path) -> Table:
    """The features of a file as the encoder takes them. Kinds and difficulty may be missing, and kinds may be unknown."""
    table = read_table(path, header=_COLUMNS if path.suffix == ".txt" else None)
    check_names(f"column of {path}", (*_NUMERIC, *_CATEGORICAL), table.frame.columns)
    numbers = [as_numbers(table.frame, name, source=table.source, rows=table.rows) for name in _HEAVY_TAILED]
    table = dataclasses.replace(table, frame=table.frame.with_columns(numbers))
    return _with_logs(table, (*_NUMERIC, *_CATEGORICAL))


@TASKS.register("nsl_kdd")
@provides(read_rows=row_reader(read_features))
def nsl_kdd(
    *,
    data_dir: Path,
    seed: int = 0,
    classes: Literal["binary", "five"] = "five",
    part: Literal["full", "20percent"] = "full",
    held_out: float = 0.15,
    train: int | None = None,
    oversample: bool = False,
    noise: float = 0.0,
) -> TaskData:
    """NSL-KDD: connections described by 38 numbers and 3 categories, with the published training and test file.

    Source: Tavallaee, Bagheri, Lu, Ghorbani, "A Detailed Analysis of the KDD CUP 99 Data Set", CISDA 2009. Files, in
    ``data_dir/nsl-kdd``, ``data_dir/NSL-KDD`` or ``data_dir``: ``KDDTrain+.txt`` or ``KDDTrain+_20Percent.txt``, and
    ``KDDTest+.txt``, as published (CSV without a header, 41 features, kind, difficulty); or Parquet with named columns:
    ``train.parquet`` (or ``train_full.parquet``), ``train_20percent.parquet``, ``test.parquet``.

    The test file has kinds of attack that the training file does not have, so ``test_groups`` divides it into ``normal``,
    ``seen attack`` and ``unseen attack``; a kind is seen if a row of the training or validation set has it. The validation set
    comes from the training file and does not show that shift.

    Publications differ in the classes of ``httptunnel`` and ``worm``. Here they are U2R and R2L, which gives the usual counts
    of the test file: 7,458 DoS, 2,421 Probe, 2,754 R2L, 200 U2R. ``difficulty`` is not a feature. ``duration``, ``src_bytes``
    and ``dst_bytes``, which span nine orders of magnitude, become ``log(1 + x)``. Sample ids are row numbers of the training
    file, followed by those of the test file.

    Args:
        data_dir: the data folder.
        seed: seed of the split, the label noise and the oversampling.
        classes: ``five``: normal, DoS, Probe, R2L, U2R. ``binary``: normal or attack.
        part: the training file: ``full``, or the published 20 %.
        held_out: share of the training file in the validation set, split by class.
        train: number of the other training rows to use, chosen by class; null for all.
        oversample: repeat training rows of the rarer classes until all classes are equally frequent.
        noise: share of the training labels replaced by a random class.
    """
    names = tuple(CATEGORIES) if classes == "five" else ("normal", "attack")
    index = {kind: min(c, len(names) - 1) for c, kinds in enumerate(CATEGORIES.values()) for kind in kinds}
    paths = [_file(data_dir, which) for which in (part, "test")]
    (fitted, y_fit), (tested, y_test) = (_read(path, index) for path in paths)
    fit, test = fitted.frame, tested.frame

    rest, held, _ = stratified_split(y_fit, held_out=held_out, test=None, seed=seed, class_names=names)
    if train is not None:
        if not 0 < train < len(rest):
            raise InputError(f"train must lie in [1, {len(rest) - 1}], the other rows of {paths[0].name}, not {train}")
        _, chosen, _ = stratified_split(y_fit[rest], held_out=train, test=None, seed=seed, class_names=names)
        rest = rest[chosen]
    kinds, seen = test["attack"], set(fit["attack"][np.concatenate([rest, held])].unique())
    known, normal = kinds.is_in(list(seen)).to_numpy(), (kinds == "normal").to_numpy()
    groups = {"normal": normal, "seen attack": known & ~normal, "unseen attack": ~known & ~normal}
    frame = pl.concat([fit, test])
    return attack_task(
        frame,
        np.concatenate([y_fit, y_test]),
        np.arange(len(frame), dtype=np.int64),
        (rest, held, np.arange(len(fit), len(frame))),
        numeric=[_log(name) if name in _HEAVY_TAILED else name for name in _NUMERIC],
        categorical=_CATEGORICAL,
        class_names=names,
        attack_classes=range(1, len(names)),
        draws=Draws(noise, oversample, seed),
        tables=[fitted, tested],
        notes={"unseen_attacks": sorted(set(kinds.unique()) - seen)},
        choose_by="nll",  # a validation set has a few rows of U2R, so macro F1 would depend on single rows
        test_groups=groups,
    )


def _file(data_dir: Path, which: str) -> Path:
    path = find_path(data_dir, _FOLDERS, _FILES[which])
    if path is None:
        published, *_, parquet = _FILES[which]
        raise InputError(f"neither {published} nor {parquet} is in {data_dir / _FOLDERS[0]} or {data_dir}")
    return path


def _read(path: Path, index: dict[str, int]) -> tuple[Table, NDArray[np.int64]]:
    """Features, with their logarithms, and kinds of a file, and its class indices."""
    table = read_table(path, header=None if path.suffix == ".parquet" else _COLUMNS)
    refuse_lacking(table, _COLUMNS[:-1])
    table, target = labelled(table, numeric=_NUMERIC, label="attack", classes=index)
    return _with_logs(table, _COLUMNS[:-1]), target


def _with_logs(table: Table, columns: Sequence[str]) -> Table:
    """Some columns, those with heavy tails transformed by ``log(1 + x)``."""
    for name in _HEAVY_TAILED:
        negative = (table.frame[name] < 0).arg_true()
        if len(negative):
            row = int(table.rows[negative[0]])
            raise InputError(f"{place(row, table.source, name)}: {table.frame[name][negative[0]]:g} is below 0")
    logs = [pl.col(name).log1p().alias(_log(name)) for name in _HEAVY_TAILED]
    frame = table.frame.select(*logs, *(name for name in columns if name not in _HEAVY_TAILED))
    return dataclasses.replace(table, frame=frame)


def _log(name: str) -> str:
    return f"log1p({name})"
