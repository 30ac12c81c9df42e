"""Tables from files as tasks."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from realdata import data_dir
from refusals import refused

from tgeokd.data.tables.reader import read_table
from tgeokd.data.tasks.tabular import adult, tabular

N = 400


def _frame(n=N, classes=2, seed=0):
    draw = np.random.default_rng(seed)
    label = draw.integers(0, classes, n)
    return pl.DataFrame(
        {
            "x": draw.normal(size=n) + label,
            "town": draw.choice(["York", "Bath", "Hull"], n),
            "name": [f"person {i}" for i in range(n)],
            "member": draw.choice([True, False], n),
            "count": draw.integers(0, 3, n),
            "class": [f"class {c}" for c in label],
        }
    )


@pytest.fixture
def folder(tmp_path):
    _frame().write_csv(tmp_path / "table.csv")
    _frame().write_parquet(tmp_path / "table.parquet")
    return tmp_path


def _task(folder, file="table.csv", label="class", **options):
    return tabular(data_dir=folder, file=file, label=label, **options)


def _all_ids(task):
    return torch.cat([part.ids for part in (task.train, task.held_out, task.test)])


@pytest.mark.parametrize("file", ["table.csv", "table.parquet"])
def test_columns_are_found_and_summed_up(folder, file):
    task = _task(folder, file, drop=("count",))
    assert task.notes["numeric"] == ["x"]
    assert task.notes["categorical"] == {"town": 3, "member": 2}
    assert set(task.notes["columns left out"]) == {"name", "count"}
    assert task.notes["rows"] == {"train": 260, "held_out": 60, "test": 80, "left out": 0, "drawn again": 0}
    content = (folder / file).read_bytes()
    assert task.notes["files"] == {file: {"sha256": hashlib.sha256(content).hexdigest(), "rows": N}}
    json.dumps(task.notes)
    assert task.inputs == task.encoder.inputs
    assert task.inputs.categories == (5, 4)
    assert task.class_names == ("class 0", "class 1")
    assert task.metrics.names == ("accuracy", "nll", "auc", "calibration")


def test_rows_keep_their_values_labels_and_numbers(folder):
    frame, task = _frame(), _task(folder)
    assert sorted(_all_ids(task).tolist()) == list(range(N))
    for part in (task.train, task.held_out, task.test):
        rows = frame[part.ids.numpy()]
        numbers, codes = part.inputs
        column = task.encoder.numeric[0]
        expected = torch.tensor((rows["x"].to_numpy() - column.mean) / column.sd, dtype=torch.float32)
        torch.testing.assert_close(numbers[:, 0], expected)
        towns = task.encoder.categorical[0].values
        assert [towns[code - 2] for code in codes[:, 0]] == rows["town"].to_list()
        assert [task.class_names[y] for y in part.target] == rows["class"].to_list()
    (numbers, codes), target, ids = task.train[3]
    assert (numbers.shape, codes.shape, target.shape, ids.shape) == ((2,), (2,), (), ())


def test_csv_and_parquet_are_the_same_table(folder):
    one, other = _task(folder, "table.csv"), _task(folder, "table.parquet")
    assert one.encoder == other.encoder
    for a, b in zip((*one.train.inputs, one.train.target), (*other.train.inputs, other.train.target), strict=True):
        assert torch.equal(a, b)


def test_the_encoder_sees_training_rows_only(folder):
    task = _task(folder)
    train = np.isin(np.arange(N), task.train.ids.numpy())
    unlike = _frame().with_columns(
        x=pl.when(pl.Series(train)).then("x").otherwise(1e6),
        town=pl.when(pl.Series(train)).then("town").otherwise(pl.lit("elsewhere")),
        count=pl.when(pl.Series(train)).then("count").otherwise(None),
    )
    unlike.write_csv(folder / "table.csv")
    changed = _task(folder)
    assert changed.encoder == task.encoder
    assert torch.equal(changed.train.inputs[0], task.train.inputs[0])
    assert changed.test.inputs[0][:, 0].min() > 1e5  # and the change was there
    assert (changed.test.inputs[1][:, 0] == 1).all()
    assert changed.notes["test values without a code"] == {"town": 80}
    _frame().with_columns(x=pl.when(pl.Series(train)).then(pl.col("x") + 1).otherwise("x")).write_csv(
        folder / "table.csv"
    )
    assert _task(folder).encoder != task.encoder


def test_named_columns_have_the_kind_they_were_given(folder):
    task = _task(folder, categorical=("count", "name"), min_count=1)
    assert task.notes["categorical"] == {"town": 3, "name": 260, "member": 2, "count": 3}
    assert task.notes["numeric"] == ["x"]


def test_dates_are_left_out_and_ids_pointed_at(folder):
    frame = _frame().with_columns(day=pl.date(2020, 1, 1), key=pl.int_range(N) * 7)
    frame.write_parquet(folder / "table.parquet")
    task = _task(folder, "table.parquet")
    assert task.notes["columns left out"]["day"] == "of type Date"
    assert task.notes["look like ids"] == ["key"]


def test_an_id_column_names_the_samples(folder):
    _frame().with_columns(key=pl.int_range(N, 0, -1) * 7).write_csv(folder / "table.csv")
    plain, task = _task(folder, drop=("key",)), _task(folder, id_column="key")
    assert torch.equal(task.train.ids, 7 * (N - plain.train.ids))
    assert "key" not in task.notes["numeric"]


def test_a_test_file(folder):
    other = _frame(50, seed=1)
    other.write_csv(folder / "test.csv")
    task = _task(folder, test_file="test.csv")
    assert (len(task.train), len(task.held_out), len(task.test)) == (340, 60, 50)
    assert sorted(_all_ids(task).tolist()) == list(range(N + 50))
    assert task.test.ids.tolist() == list(range(N, N + 50))
    assert [task.class_names[y] for y in task.test.target] == other["class"].to_list()


def test_classes_are_in_order_of_value(folder):
    _frame(classes=12).with_columns(pl.col("class").str.strip_prefix("class ").cast(pl.Int64)).write_csv(
        folder / "t.csv"
    )
    task = _task(folder, "t.csv")
    assert task.class_names == tuple(str(c) for c in range(12))
    assert task.metrics.names == ("accuracy", "nll", "macro_f1", "macro_auc")
    assert _task(folder, positive="class 0").class_names == ("class 1", "class 0")


def test_noise_is_on_training_labels_only(folder):
    clean, noisy = _task(folder), _task(folder, noise=0.5)
    assert torch.equal(noisy.train.ids, clean.train.ids)
    assert torch.equal(noisy.train.target != clean.train.target, noisy.corrupted)
    assert 40 < noisy.corrupted.sum() < 90  # half of 260 replaced, half of these by the same class
    assert not clean.corrupted.any()
    for part in ("held_out", "test"):
        assert torch.equal(getattr(noisy, part).target, getattr(clean, part).target)


def test_oversampling_repeats_training_rows_with_their_noise(folder):
    _frame(classes=3).filter((pl.col("class") != "class 2") | (pl.col("count") == 0)).write_csv(folder / "t.csv")
    plain, task = (_task(folder, "t.csv", noise=0.2, oversample=oversample) for oversample in (False, True))
    counts = task.train.target.bincount()
    assert counts.tolist() == [plain.train.target.bincount().max()] * 3
    assert task.notes["rows"]["drawn again"] == len(task.train) - len(plain.train) > 0
    wrong = dict(zip(plain.train.ids.tolist(), plain.corrupted.tolist(), strict=True))
    labels = dict(zip(plain.train.ids.tolist(), plain.train.target.tolist(), strict=True))
    assert set(task.train.ids.tolist()) == set(wrong)
    assert [wrong[i] for i in task.train.ids.tolist()] == task.corrupted.tolist()
    assert [labels[i] for i in task.train.ids.tolist()] == task.train.target.tolist()
    assert torch.equal(task.test.ids, plain.test.ids)
    assert task.encoder == plain.encoder


def test_the_seed_decides(folder):
    one, again, other = (_task(folder, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.train.ids, again.train.ids)
    assert not torch.equal(one.train.ids, other.train.ids)


def _broken(folder, change):
    lines = (folder / "table.csv").read_text().splitlines()
    change(lines)  # lines[0] is the header, lines[i + 1] is row i
    (folder / "table.csv").write_text("\n".join(lines))


def test_ragged_rows_and_rows_without_a_label(folder):
    def change(lines):
        lines[6] = lines[6] + ",extra"
        lines[8] = "1.5,York"
        lines[11] = lines[11].rpartition(",")[0] + ", NA"

    _broken(folder, change)
    with refused("row 5", "table.csv"):
        _task(folder)
    task = _task(folder, bad_rows="skip")
    assert task.notes["rows"]["left out"] == 3
    assert sorted(_all_ids(task).tolist()) == [i for i in range(N) if i not in (5, 7, 10)]
    frame = _frame()
    assert [task.class_names[y] for y in task.test.target] == frame[task.test.ids.numpy()]["class"].to_list()


def test_rows_of_a_test_file_are_counted_on_after_all_rows_of_the_first(folder):
    _broken(folder, lambda lines: lines.__setitem__(2, "ragged"))
    lines = ["x,town,member,count,class", "0.5,York,true,1,class 0", "ragged", "0.5,York,true,1,class 1"]
    (folder / "test.csv").write_text("\n".join(lines))
    task = _task(folder, test_file="test.csv", drop=("name",), bad_rows="skip")
    assert task.test.ids.tolist() == [N, N + 2]
    assert task.train.ids.max() < N
    assert task.notes["rows"]["left out"] == 2


def test_a_missing_label(folder):
    _broken(folder, lambda lines: lines.__setitem__(11, lines[11].rpartition(",")[0] + ","))
    with refused("row 10", "table.csv", "column class"):
        _task(folder)


def test_a_mistake_among_numbers_has_its_row_even_after_skipped_rows(folder):
    def change(lines):
        lines[3] = "ragged"
        lines[18] = "abc," + lines[18].partition(",")[2]

    _broken(folder, change)
    mentioned = ("row 17", "table.csv", "column x", "'abc'")
    with refused(*mentioned):
        _task(folder, bad_rows="skip")
    with refused(*mentioned):
        _task(folder, bad_rows="skip", numeric=("x",))
    task = _task(folder, bad_rows="skip", categorical=("x",), min_count=1)
    assert "x" in task.notes["categorical"]


def _test_file(folder, change):
    change(_frame(20, seed=1)).write_csv(folder / "test.csv")
    return _task(folder, test_file="test.csv")


@pytest.mark.parametrize(
    ("call", "mentioned"),
    [
        (lambda f: tabular(data_dir=f), ("data.file", "data.label")),
        (lambda f: _task(f, "nothing.csv"), ("nothing.csv",)),
        (lambda f: _task(f, label="clas"), ("table.csv", "'clas'", "'class'")),
        (lambda f: _task(f, drop=("towm",)), ("table.csv", "'towm'", "'town'")),
        (lambda f: _task(f, drop=("x",), numeric=("x",)), ("'x'",)),
        (lambda f: _task(f, numeric=("class",)), ("'class'",)),
        (lambda f: _task(f, numeric=("town",)), ("table.csv", "column town")),
        (lambda f: _task(f, label="name"), ("400 classes", "(1)")),
        (lambda f: _task(f, positive="class 7"), ("'class 7'",)),
        (lambda f: _task(f, label="count", positive="1"), ("positive='1'", "table.csv", "3")),
        (lambda f: _task(f, id_column="count"), ("id_column", "'count'", "0")),
        (lambda f: _task(f, id_column="town"), ("id_column", "'town'", "table.csv")),
        (lambda f: _task(f, noise=2.0), ("noise", "2.0")),
        (lambda f: _task(f, drop=("x", "town", "member", "count")), ("column",)),
        (lambda f: _test_file(f, lambda t: t.drop("x")), ("test.csv", "'x'")),
        (
            lambda f: _test_file(f, lambda t: t.with_columns(pl.lit("new").alias("class"))),
            ("row 0", "test.csv", "column class", "'new'"),
        ),
        (
            lambda f: _test_file(f, lambda t: t.with_columns(x=pl.Series(["1"] * 4 + ["abc"] * 16))),
            ("row 4", "test.csv", "column x", "'abc'"),
        ),
    ],
)
def test_errors(folder, call, mentioned):
    with refused(*mentioned):
        call(folder)


def test_one_class_only(folder):
    _frame().with_columns(pl.lit("same").alias("class")).write_csv(folder / "table.csv")
    with refused("'class'", "table.csv", "'same'"):
        _task(folder)


# ---- files


def _read(folder, content, name="t.csv", **options):
    (folder / name).write_bytes(content)
    return read_table(folder / name, source=name, **options)


def test_types_blanks_and_missing_values_of_csv(tmp_path):
    text = b'\xef\xbb\xbfn, f,zip,t\n1, 2.5,007, a \n\n?,inf,12,"line\nbreak"\n-3,NA,,null\n'
    table = _read(tmp_path, text)
    assert table.frame.to_dict(as_series=False) == {
        "n": [1, None, -3],
        "f": [2.5, float("inf"), None],
        "zip": ["007", "12", None],
        "t": ["a", "line\nbreak", None],
    }
    assert table.rows.tolist() == [0, 1, 2]
    same = _read(tmp_path, gzip.compress(text), "t.csv.gz")
    assert same.frame.equals(table.frame)
    assert _read(tmp_path, b"a\tb\n1,5\tx\n", "t.tsv").frame.to_dict(as_series=False) == {"a": [1.5], "b": ["x"]}


def test_rows_are_numbered_across_blocks_of_a_large_file(tmp_path):
    lines = ["1,2"] * 300_000  # pyarrow reads blocks of 1 MB
    for row in (3, 299_990):
        lines[row] = "1"
    table = _read(tmp_path, ("a,b\n" + "\n".join(lines)).encode(), bad_rows="skip")
    assert table.total == 300_000
    assert np.setdiff1d(np.arange(300_000), table.rows).tolist() == [3, 299_990]


@pytest.mark.parametrize(
    ("content", "name", "mentioned"),
    [
        (b"", "t.csv", ("t.csv",)),
        (b"a,b\n", "t.csv", ("t.csv",)),
        (b"a,a\n1,2\n", "t.csv", ("t.csv", "'a'")),
        (b"a,b\n1,\xff\n", "t.csv", ("t.csv",)),
        (b"a,b\n1,2\n", "t.csv.gz", ("t.csv.gz",)),
        (b"a,b\n1,2\n", "t.parquet", ("t.parquet",)),
        (b"a,b\n1,2\n", "t.xlsx", ("t.xlsx",)),
        (b"a,b\n1,2\n3\n", "t.csv", ("row 1", "t.csv", "'3'")),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, name, mentioned):
    with refused(*mentioned):
        _read(tmp_path, content, name)


# ---- adult


@pytest.mark.realdata
def test_adult_on_the_real_file():
    task = adult(data_dir=data_dir(), train=3000)
    assert task.class_names == ("<=50K", ">50K")
    assert (len(task.train), len(task.held_out), len(task.test)) == (3000, 4884, 6512)
    for part in (task.train, task.held_out, task.test):
        assert abs(part.target.double().mean() - 7841 / 32561) < 0.001
    assert task.inputs.shape == (5,)
    assert len(task.inputs.categories) == 8
    assert "fnlwgt" not in task.notes["numeric"]
    frame = pl.read_parquet(data_dir() / "adult" / "adult.parquet")
    rows = frame[task.test.ids.numpy()]
    assert (rows["income-per-year"] == ">50K").to_list() == (task.test.target == 1).tolist()
    assert rows["workclass"].is_null().to_list() == (task.test.inputs[1][:, 0] == 0).tolist()


def test_adult_in_the_format_of_uci(tmp_path):
    def lines(n, end, seed):
        draw = np.random.default_rng(seed)
        for i in range(n):
            yield (
                f"{draw.integers(17, 90)}, {draw.choice(['Private', '?'])}, {draw.integers(10**5)}, HS-grad, 9, Divorced, "
                f"Sales, Unmarried, White, Male, 0, 0, {draw.integers(20, 60)}, Cuba, {['<=50K', '>50K'][i % 2]}{end}\n"
            )

    (tmp_path / "adult").mkdir()
    folder = Path(tmp_path / "adult")
    (folder / "adult.data").write_text("".join(lines(100, "", 0)) + "\n")
    task = adult(data_dir=tmp_path)
    assert (len(task.train), len(task.held_out), len(task.test)) == (65, 15, 20)
    with refused("train=99", "[2, 65]"):
        adult(data_dir=tmp_path, train=99)
    (folder / "adult.test").write_text("|1x3 Cross validator\n" + "".join(lines(40, ".", 1)) + "\n")
    task = adult(data_dir=tmp_path)
    assert (len(task.train), len(task.held_out), len(task.test)) == (85, 15, 40)
    assert task.test.ids.tolist() == list(range(100, 140))
    assert task.test.target.tolist() == [0, 1] * 20
    assert task.notes["missing"]["workclass"] > 0


def test_adult_that_is_not_there(tmp_path):
    with refused("adult.parquet", "adult.data"):
        adult(data_dir=tmp_path)
