"""Columns that are no property of a sample, labels that are none, and values of another meaning than in training."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from refusals import refused

from tgeokd.cli.main import main
from tgeokd.data.tasks.tabular import tabular
from tgeokd.runs.build import load_data
from tgeokd.runs.config import override, preset
from tgeokd.runs.inspect import inspect_data
from tgeokd.runs.predict import predict
from tgeokd.runs.single import run
from tgeokd.runs.teacher import build_teacher
from tgeokd.utils.run_folder import RunFolder

N = 300


def rows(n=N, seed=0, **columns):
    """Two weak features and a label of two classes in random order."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, n)
    given = {
        "x": (generator.normal(size=n) + label).round(3),
        "job": np.array(["clerk", "cook", "pilot"])[generator.integers(0, 3, n)],
        "label": np.array(["no", "yes"])[label],
    }
    return given | {name: make(label, generator) for name, make in columns.items()}


def written(tmp_path, columns, name="t.csv"):
    pl.DataFrame(columns).write_csv(tmp_path / name)
    return tmp_path


def load(folder, label="label", **options):
    return tabular(data_dir=folder, file="t.csv", label=label, **options)


# ---- the index of a data frame


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_an_index_that_is_sorted_by_the_label_is_no_feature(tmp_path, name):
    columns = rows()
    order = np.argsort(columns["label"], kind="stable")
    columns = {name: np.arange(N)} | {key: values[order] for key, values in columns.items()}
    notes = load(written(tmp_path, columns)).notes
    assert notes["numeric"] == ["x"]
    assert name in notes["columns left out"]
    assert notes["suspected leaks"] == {}
    assert load(tmp_path, numeric=(name,)).notes["numeric"] == [name, "x"]  # whoever asks for it gets it


def test_a_nameless_column_that_does_not_number_the_rows_is_a_feature(tmp_path):
    columns = {"": np.arange(N) % 7} | rows()
    assert load(written(tmp_path, columns)).notes["numeric"] == ["", "x"]


# ---- leaks


LEAKS = {
    "the label in words": lambda label, _: np.array(["stays", "leaves"])[label],
    "a number with the label": lambda label, g: label * 10 + g.normal(size=len(label)).round(3),
    "the label nearly always": lambda label, g: np.where(g.random(len(label)) < 0.01, 1 - label, label),
    "a row number of a sorted table": lambda label, g: np.argsort(np.argsort(label + g.random(len(label)) * 0.5)),
}
NO_LEAKS = {
    "a good feature": lambda label, g: (label * 2 + g.normal(size=len(label))).round(3),
    "a constant": lambda label, _: np.ones(len(label)),
    "an own value on every row": lambda label, g: g.permutation(len(label)) + 0.5,
    "two rows per value": lambda label, g: np.array([f"v{i // 2}" for i in g.permutation(len(label))]),
}


@pytest.mark.parametrize("make", LEAKS.values(), ids=LEAKS)
def test_a_column_that_tells_the_label_is_reported(tmp_path, make, caplog):
    notes = load(written(tmp_path, rows(leak=make)), min_count=1).notes
    assert list(notes["suspected leaks"]) == ["leak"]
    assert notes["suspected leaks"]["leak"] > 0.95
    assert [record.args[0] for record in caplog.records if record.levelname == "WARNING"] == ["leak"]
    assert load(tmp_path, drop=("leak",)).notes["suspected leaks"] == {}


@pytest.mark.parametrize("make", NO_LEAKS.values(), ids=NO_LEAKS)
def test_other_columns_are_not(tmp_path, make):
    assert load(written(tmp_path, rows(column=make)), min_count=1).notes["suspected leaks"] == {}


def test_the_largest_class_alone_is_no_leak(tmp_path):
    columns = rows()
    columns["label"] = np.where(np.arange(N) % 50 == 0, "rare", "usual")
    assert load(written(tmp_path, columns), held_out=0.3, test=0.3).notes["suspected leaks"] == {}


# ---- labels


@pytest.mark.parametrize(
    "make",
    [lambda g: g.normal(size=N).round(2), lambda g: g.integers(0, 100_000, N), lambda g: (g.random(N) * 60).round(1)],
    ids=["decimals", "whole numbers", "few decimals"],
)
def test_a_quantity_is_called_a_regression_target(tmp_path, make):
    columns = rows() | {"label": make(np.random.default_rng(1))}
    with refused("'label'", "regression target"):
        load(written(tmp_path, columns))


def test_classes_that_are_numbers_are_classes(tmp_path):
    columns = rows() | {"label": np.arange(N) % 12 * 1000}
    assert load(written(tmp_path, columns)).num_classes == 12


@pytest.fixture
def rare(tmp_path):
    columns = rows()
    columns["label"] = np.array(["a", "b"] * (N // 2 - 2) + ["c", "d", "d", "d"])
    return written(tmp_path, columns)


def test_rare_classes_are_named_dropped_or_merged(rare):
    with refused("'c' (1)", "rare=drop", "rare=merge"):
        load(rare)
    with refused("'c' (1), 'd' (3)"):
        load(rare, rare_rows=4)
    dropped = load(rare, rare="drop", rare_rows=4)
    assert dropped.class_names == ("a", "b")
    assert sum(dropped.notes["rows"][part] for part in ("train", "held_out", "test")) == N - 4
    assert dropped.notes["rare classes"] == {"c": 1, "d": 3}
    merged = load(rare, rare="merge", rare_rows=4)
    assert merged.class_names == ("(rare)", "a", "b")
    assert sum(merged.notes["rows"][part] for part in ("train", "held_out", "test")) == N


# ---- values of another meaning at prediction


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    written(folder, rows())

    config = override(
        preset("adult"),
        [
            "task=tabular", "data={file: t.csv, label: label}", f"data_dir={folder}", "teacher.epochs=1", "student.epochs=1",
            "teacher.patience=null", "allow_bad_teacher=true", "method=kd",
        ],
    )  # fmt: skip
    out = folder / "run"
    with RunFolder(out) as made:
        made.write_yaml("config.yaml", config.to_dict())
        build_teacher(config, load_data(config), out / "teacher.safetensors")
        run(config, out / "teacher.safetensors", out)
    return out


def new_rows(tmp_path, **changes):
    columns = {key: values for key, values in rows(40, seed=5).items() if key != "label"} | changes
    return written(tmp_path, columns, "new.csv") / "new.csv"


def test_values_that_training_never_saw_stop_a_prediction(trained, tmp_path, caplog):
    file = new_rows(tmp_path, job=["Clerk"] * 30 + ["cook"] * 10)
    with refused("'job'", "75.0 %", "--allow-unseen"):
        predict(trained, file, tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()
    assert predict(trained, file, tmp_path / "p.csv", allow_unseen=True) == 40


def test_a_few_of_them_are_said(trained, tmp_path, caplog):
    file = new_rows(tmp_path, job=["Clerk"] * 4 + ["cook"] * 36)
    assert predict(trained, file, tmp_path / "p.csv") == 40
    assert any("10.0 %" in r.getMessage() and "'job'" in r.getMessage() for r in caplog.records)


def test_a_column_without_values_stops_a_prediction(trained, tmp_path):
    with refused("'x'", "missing"):
        predict(trained, new_rows(tmp_path, x=[None] * 40), tmp_path / "p.csv")


# ---- the report


def test_the_report_has_the_facts_of_a_run(tmp_path, trained, capsys, monkeypatch):
    folder = written(tmp_path, rows(leak=LEAKS["the label in words"]))
    found = inspect_data(folder / "t.csv", label="label")
    assert found == load(folder).notes
    assert json.loads((trained / "results.json").read_text())["data"]["suspected leaks"] == {}
    monkeypatch.setattr("sys.argv", ["tgeokd", "inspect", str(folder / "t.csv"), "--label", "label", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["suspected leaks"] == {"leak": 1.0}
    monkeypatch.setattr(
        "sys.argv", ["tgeokd", "inspect", str(folder / "t.csv"), "--label", "label", "--set", "drop=[leak]"]
    )
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "excluded" in shown
    assert "suspected leaks" in shown


@pytest.mark.parametrize(
    ("label", "options", "named"),
    [(None, {}, "--label"), ("lable", {}, "'label'"), ("label", {"dorp": []}, "drop")],
)
def test_reports_of_nothing_are_refused(tmp_path, label, options, named):
    folder = written(tmp_path, rows())
    with refused(named):
        inspect_data(folder / "t.csv", label=label, options=options)
    with refused("nothing.csv"):
        inspect_data(folder / "nothing.csv", label="label")


def test_a_folder_of_images_is_inspected(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 3)).save(tmp_path / name / "0.png")
    assert inspect_data(tmp_path)["images"] == {"a": 1, "b": 1}
