"""`hil`: attacks and natural events in a power system, from synchrophasor measurements."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from tgeokd.data.base import TaskData
from tgeokd.data.split import stratified_split
from tgeokd.data.tables.labels import Draws
from tgeokd.data.tables.reader import BadRows, Table, read_table
from tgeokd.data.tasks.attacks import attack_task, labelled, refuse_lacking
from tgeokd.data.tasks.registry import TASKS, existing_path, find_path, provides, row_reader
from tgeokd.utils.errors import InputError, check_names, one_line

Classes = Literal["binary", "triple", "multi"]

_LABEL = "marker"
_IGNORED = ("source_file",)  # the original file of a row in a merged file
_FILES = 15
# The folders of the archives. Scenario numbers determine the event, so `multiclass` serves all three values.
_FOLDERS: dict[Classes, tuple[str, ...]] = {
    "binary": ("binaryAllNaturalPlusNormalVsAttacks", "binary", "multiclass"),
    "triple": ("triple", "multiclass"),
    "multi": ("multiclass",),
}
_NATURAL, _QUIET = (*range(1, 7), 13, 14), (41,)
_ATTACKS = (*range(7, 13), *range(15, 31), *range(35, 41))
_CLASS_NAMES = {"binary": ("Natural", "Attack"), "triple": ("NoEvents", "Natural", "Attack")}


def _feature_names() -> Iterator[str]:
    """The published header: 29 measurements of the phasor measurement unit of each of 4 relays, then 12 logs."""
    for relay in ("R1", "R2", "R3", "R4"):
        for i, kind in enumerate("VVVIIIVVVIII", start=1):
            yield from (f"{relay}-PA{i}:{kind}H", f"{relay}-PM{i}:{kind}")
        yield from (f"{relay}:F", f"{relay}:DF", f"{relay}-PA:Z", f"{relay}-PA:ZH", f"{relay}:S")
    for log in ("control_panel_log{}", "relay{}_log", "snort_log{}"):
        yield from (log.format(i) for i in range(1, 5))


FEATURES = tuple(_feature_names())
"""The 128 columns of the published files."""


@TASKS.register("hil")
@provides(read_rows=row_reader(lambda path: _read(path, "error")))
def hil(
    *,
    data_dir: Path,
    seed: int = 0,
    classes: Classes = "triple",
    file: str | None = None,
    held_out: float = 0.15,
    test: float = 0.25,
    oversample: bool = False,
    noise: float = 0.0,
    bad_rows: BadRows = "error",
) -> TaskData:
    """Power System Attack Datasets: rows of 128 synchrophasor measurements and logs, labelled by the event.

    Source: Adhikari, Pan, Morris, Borges, Beaver, "Industrial Control System (ICS) Cyber Attack Datasets", Mississippi State
    University and Oak Ridge National Laboratory; Pan, Morris, Adhikari, "Developing a Hybrid Intrusion Detection System Using
    Data Mining for Power Systems", IEEE Transactions on Smart Grid, 2015.

    Reads the 15 files ``data1`` to ``data15`` (CSV, ARFF or Parquet) of one archive, unpacked to ``data_dir/hil/FOLDER`` or
    ``data_dir/FOLDER``, where FOLDER is ``binaryAllNaturalPlusNormalVsAttacks``, ``triple`` or ``multiclass``: the first
    existing one that fits ``classes``. ``multiclass`` fits all, because its scenario numbers determine the event: 1 to 6, 13
    and 14 are natural, 41 is no event, 7 to 12, 15 to 30 and 35 to 40 are attacks.

    Neighbouring rows of a file are neighbouring moments. A random split, as here and in the TGeo-KD paper, separates
    neighbours, which is easier than to detect attacks of another day: use it to compare methods, not to estimate the accuracy
    of a deployed detector.

    Infinite values (impedances without a current) and missing ones are both "missing" to the model, with an indicator; the
    notes count them. Sample ids are row numbers in the files one after another, skipped rows included. For the detection rate,
    natural events and no event are normal, and the score is the probability of an attack.

    Args:
        data_dir: the data folder.
        seed: seed of the split, the label noise and the oversampling.
        classes: ``binary``: Natural (including no event) or Attack. ``triple``: NoEvents, Natural or Attack. ``multi``: the
            scenarios, 37 in the full data.
        file: a single file in ``data_dir/hil`` or ``data_dir`` to read instead; it may have a part of the columns.
        held_out: share of the rows in the validation set, split by class.
        test: share of the rows in the test set, split by class.
        oversample: repeat training rows of the rarer classes until all classes are equally frequent.
        noise: share of the training labels replaced by a random class.
        bad_rows: ``error`` stops at a row with a value that is not a number, an unknown label, or a wrong number of values;
            ``skip`` leaves such rows out and counts them in the notes.
    """
    paths = _all_files(data_dir, classes) if file is None else [existing_path(data_dir, "hil", file)]
    tables = [_read(path, bad_rows) for path in paths]
    features = _features(tables, complete=file is None)
    classes_of = _class_by_label(classes)

    read = [labelled(t, numeric=features, label=_LABEL, classes=classes_of, bad_rows=bad_rows) for t in tables]
    target = np.concatenate([labels for _, labels in read])
    firsts = np.cumsum([0, *(table.total for table in tables)])
    ids = np.concatenate([first + good.rows for first, (good, _) in zip(firsts[:-1], read, strict=True)])
    skipped = {Path(good.source).name: good.total - len(labels) for good, labels in read if len(labels) < good.total}
    if not len(target):
        raise InputError(f"{_where(paths)} has no valid row; {sum(skipped.values())} were skipped")
    found_classes = np.unique(target)
    if classes == "multi":
        names = tuple(map(str, found_classes))
        attacks = np.flatnonzero(np.isin(found_classes, _ATTACKS)).tolist()
        target = np.searchsorted(found_classes, target)
    else:
        names = _CLASS_NAMES[classes]
        attacks = [names.index("Attack")]
        for c, name in enumerate(names):
            if c not in found_classes:
                raise InputError(f"{_where(paths)} has no row of class {name!r}, which classes={classes} needs")
    splits = stratified_split(target, held_out=held_out, test=test, seed=seed, class_names=names)
    return attack_task(
        pl.concat([good.frame.select(features) for good, _ in read]),
        target,
        ids,
        splits,
        numeric=features,
        class_names=names,
        attack_classes=attacks,
        draws=Draws(noise, oversample, seed),
        tables=tables,
        notes={"folder": paths[0].parent.name, "features": len(features), "skipped_rows": skipped},
    )


def _read(path: Path, bad_rows: BadRows) -> Table:
    """A CSV, Parquet or ARFF file. The data section of ARFF is CSV; the types in its header are not needed."""
    if path.suffix.lower() != ".arff":
        return read_table(path, bad_rows=bad_rows)
    names: list[str] = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                word, *rest = line.split(maxsplit=1)[:2] or [""]
                if word.lower() == "@data":
                    return read_table(path, bad_rows=bad_rows, header=names, skip_lines=number)
                if word.lower() == "@attribute" and rest:
                    quote = rest[0][0] if rest[0][0] in "'\"" else None
                    names.append(rest[0][1:].partition(quote)[0] if quote else rest[0].split()[0])
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from error
    raise InputError(f"{path} has no line @data; it is not an ARFF file")


def _all_files(data_dir: Path, classes: Classes) -> list[Path]:
    """``data1`` to ``data15``, in this order, from the first folder that fits the task."""
    folder = find_path(data_dir, ["hil"], _FOLDERS[classes])
    if folder is None:
        names = " or ".join(_FOLDERS[classes])
        raise InputError(f"no folder {names} in {data_dir / 'hil'} or {data_dir}; give one file by data.file=FILE")
    paths: dict[int, Path] = {}
    for path in sorted(folder.glob("*")):
        if match := re.fullmatch(r"data(\d+)(\.csv)?\.(csv|arff|parquet)", path.name):
            number = int(match[1])
            if number in paths:
                raise InputError(f"{folder} has data{number} twice: {paths[number].name} and {path.name}")
            paths[number] = path
    expected = range(1, _FILES + 1)
    if sorted(paths) != list(expected):
        lacking = ", ".join(f"data{i}" for i in expected if i not in paths) or "none"
        surplus = ", ".join(path.name for i, path in sorted(paths.items()) if i not in expected)
        found = f"missing: {lacking}" + (f"; unexpected: {surplus}" if surplus else "")
        raise InputError(f"{folder} must have data1 to data{_FILES} as .csv, .arff or .parquet; {found}")
    return [paths[i] for i in expected]


def _features(tables: list[Table], *, complete: bool) -> list[str]:
    """The feature columns, in the order of the first file; all files must have the same."""
    first: list[str] = []
    for table in tables:
        columns = table.frame.columns
        if _LABEL not in columns:
            last = f"the last column is {columns[-1]!r}"
            raise InputError(f"{table.source}: the label column {_LABEL!r} is missing; {last}")
        features = [name for name in columns if name != _LABEL and name not in _IGNORED]
        check_names(f"column of {table.source}", features, FEATURES)
        expected = FEATURES if complete else first
        refuse_lacking(table, expected)
        if not features:
            raise InputError(f"{table.source}: there is no column besides {_LABEL!r}")
        first = first or features
    return first


def _class_by_label(classes: Classes) -> dict[str, int]:
    """The class index of every label that may occur in a file; for ``multi`` the scenario number."""
    events = {"NoEvents": _QUIET, "Natural": _NATURAL, "Attack": _ATTACKS}
    if classes == "multi":
        return {str(scenario): scenario for scenario in sorted(sum(events.values(), ()))}
    index = {name: i for i, name in enumerate(_CLASS_NAMES[classes])}
    by_event = {event: index.get(event, index["Natural"]) for event in events}
    return by_event | {str(s): by_event[event] for event, scenarios in events.items() for s in scenarios}


def _where(paths: list[Path]) -> str:
    return str(paths[0] if len(paths) == 1 else paths[0].parent)
