"""The registry of tasks: every task in its own file, and what a task provides besides its data."""

from __future__ import annotations

import inspect
import json
import typing
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from criteo_rows import make_rows, write
from refusals import refused

from tgeokd.data import TASKS, TaskData
from tgeokd.data.tables import encoder_from_dict
from tgeokd.data.tasks.criteo import criteo
from tgeokd.data.tasks.registry import same_options
from tgeokd.data.tasks.tabular import tabular

NAMES = [
    *("adult", "cifar10", "cifar100", "cifar10n", "criteo", "digits", "hil", "imagenet", "nsl_kdd", "tabular", "text"),
]


def test_the_tasks_of_the_package():
    assert list(TASKS) == NAMES
    with refused("'digit'", "'digits'"):
        TASKS["digit"]


@pytest.mark.parametrize("name", NAMES)
def test_options_are_keywords_with_types(name):
    parameters = inspect.signature(TASKS[name]).parameters
    hints = typing.get_type_hints(TASKS[name])
    assert "seed" in parameters
    assert all(p.kind is p.KEYWORD_ONLY and option in hints for option, p in parameters.items())
    assert all(p.default is not p.empty for option, p in parameters.items() if option != "data_dir")
    assert hints["return"] is TaskData


def shared(value: int, *, fixed: str, size: int = 3, share: float = 0.5) -> tuple:
    return value, fixed, size, share


def test_shared_options_are_listed_with_their_types_and_checked():
    @same_options(shared)
    def task(*, share: float = 0.25, **options: int) -> tuple:
        return shared(1, fixed="yes", share=share, **options)

    assert {name: p.default for name, p in inspect.signature(task).parameters.items()} == {"share": 0.25, "size": 3}
    assert typing.get_type_hints(task)["size"] is int
    assert task(size=7) == (1, "yes", 7, 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_no_other_tasks_read_rows(name):
    reads = getattr(TASKS[name], "read_rows", None) is not None
    assert reads == (name in ("adult", "criteo", "hil", "nsl_kdd", "tabular"))


def test_rows_of_a_table_fit_the_stored_encoder(tmp_path: Path):
    frame = pl.DataFrame({"x": np.arange(60) * 0.5, "town": ["York", "Bath"] * 30, "class": ["a", "b", "b"] * 20})
    frame.write_csv(tmp_path / "table.csv")
    data = tabular(data_dir=tmp_path, file="table.csv", label="class")
    encoder = encoder_from_dict(json.loads(json.dumps(data.encoder.to_dict())))
    ((rows, read),) = TASKS["tabular"].read_rows(tmp_path / "table.csv")
    assert rows.tolist() == list(range(60))
    numbers, codes = encoder.transform(read)
    assert numbers[data.test.ids].tolist() == data.test.inputs[0].tolist()
    assert codes[data.test.ids].tolist() == data.test.inputs[1].tolist()


def test_rows_of_click_logs_fit_the_stored_encoder(tmp_path: Path):
    path = write(tmp_path / "train.txt", make_rows(900, seed=2))
    data = criteo(data_dir=tmp_path, min_count=2)
    encoder = encoder_from_dict(json.loads(json.dumps(data.encoder.to_dict())))
    assert encoder == data.encoder
    rows, codes = [], []
    for numbers, frame in TASKS["criteo"].read_rows(path):
        rows += numbers.tolist()
        codes += encoder.transform(frame)[1].tolist()
    assert rows == list(range(900))
    (_, expected), _, ids = data.test.fetch(range(len(data.test)))
    assert [codes[i] for i in ids] == expected.tolist()


def test_rows_of_connections_and_measurements_need_no_labels(tmp_path: Path):
    from tgeokd.data.tasks.hil import FEATURES
    from tgeokd.data.tasks.nsl_kdd import _COLUMNS

    arff = "\n".join(["@relation power", *(f"@attribute {name} numeric" for name in FEATURES[:3]), "@data", "1,2,3"])
    (tmp_path / "power.arff").write_text(arff)
    ((rows, frame),) = TASKS["hil"].read_rows(tmp_path / "power.arff")
    assert rows.tolist() == [0]
    assert frame.row(0) == (1, 2, 3)
    connection = {name: ["tcp" if name in ("protocol_type", "service", "flag") else 1] for name in _COLUMNS[:41]}
    pl.DataFrame(connection).write_parquet(tmp_path / "new.parquet")
    ((rows, frame),) = TASKS["nsl_kdd"].read_rows(tmp_path / "new.parquet")
    assert rows.tolist() == [0]
    assert frame["log1p(src_bytes)"][0] == pytest.approx(np.log(2))
