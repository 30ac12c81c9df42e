"""Predicting new rows with a finished run: the same numbers as the run's own, through the encoder saved with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_model

from tgeokd.runs.build import build_student, load_data
from tgeokd.runs.config import RunConfig, override, preset
from tgeokd.runs.predict import predict
from tgeokd.runs.results import RunResults
from tgeokd.runs.single import run
from tgeokd.runs.teacher import build_teacher
from tgeokd.teachers import StoredPredictions
from tgeokd.utils.errors import InputError
from tgeokd.utils.run_folder import RunFolder

pl = pytest.importorskip("polars")
SHORT = ["teacher.epochs=1", "teacher.patience=null", "student.epochs=1", "method=kd", "options={}"]


def finished(config: RunConfig, folder):
    """A short run with its folder, as `tgeokd distill` leaves it."""
    RunFolder(folder).write_yaml("config.yaml", config.to_dict())
    build_teacher(config, load_data(config), folder / "teacher.safetensors")
    run(config, folder / "teacher.safetensors", folder)
    return folder


def rows(n: int, seed: int = 0):
    """A table with numbers, text and gaps, whose label follows from both."""
    generator = np.random.default_rng(seed)
    x, color = generator.normal(size=n), generator.choice(["red", "green", "blue"], size=n)
    label = np.where(x + (color == "red") > 0.3, "yes", "no")
    return pl.DataFrame({"x": x, "color": color, "label": label}).with_columns(
        x=pl.when(pl.col("x") > 2).then(None).otherwise(pl.col("x"))
    )


@pytest.fixture(scope="module")
def table_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rows(600).write_csv(folder / "rows.csv")
    config = override(preset("tabular"), [*SHORT, "data.file=rows.csv", "data.label=label", f"data_dir={folder}"])
    return config, finished(config, folder / "run")


def test_a_file_is_read_as_the_training_file_was(tmp_path):
    lines = [f"{i % 40},5;K\xf6ln;{i % 3 * 1.5 + 1:.3f};{'yn'[i % 2]}".replace(".", ",") for i in range(200)]
    (tmp_path / "rows.csv").write_text("\n".join(["x;stadt;z;label", *lines]), encoding="latin-1")
    settings = ["data.file=rows.csv", "data.label=label", "data.encoding=latin-1", f"data_dir={tmp_path}"]
    config = override(preset("tabular"), [*SHORT, *settings])
    folder = finished(config, tmp_path / "run")
    for name, text in (("new.csv", "x;stadt;z\n3;K\xf6ln;2,125\n"), ("same.csv", "x;stadt;z\n3,0;K\xf6ln;2,1250\n")):
        (tmp_path / name).write_text(text, encoding="latin-1")  # 2,125 alone can be 2125
        assert predict(folder, tmp_path / name, tmp_path / f"{name}.parquet") == 1
    same, found = (pl.read_parquet(tmp_path / f"{name}.csv.parquet") for name in ("same", "new"))
    assert found.equals(same)


def test_the_rows_it_was_made_from_get_the_students_own_probabilities(table_run, tmp_path):
    config, folder = table_run
    data = load_data(config)
    student = build_student(config, data)
    load_model(student, str(folder / "student.safetensors"))
    with torch.no_grad():
        expected = student.eval()(*data.test.inputs).softmax(dim=-1)
    file = folder.parent / "rows.csv"
    pl.read_csv(file).drop("label").write_csv(tmp_path / "new.csv")  # labels are not needed
    assert predict(folder, tmp_path / "new.csv", tmp_path / "out.parquet") == 600
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found["id"].to_list() == list(range(600))
    probs = found.select("prob_0", "prob_1").to_numpy()
    np.testing.assert_allclose(probs[data.test.ids], expected, atol=1e-6)
    names = np.array(["no", "yes"])[probs.argmax(axis=1)]
    assert found["prediction"].to_list() == names.tolist()


def test_new_values_and_gaps_are_predicted_too(table_run, tmp_path):
    _, folder = table_run
    new = pl.DataFrame({"color": ["purple", None], "x": [None, 0.1]})
    new.write_csv(tmp_path / "new.csv")
    predict(folder, tmp_path / "new.csv", tmp_path / "out.csv")
    found = pl.read_csv(tmp_path / "out.csv")
    assert len(found) == 2
    assert found["prob_0"].is_finite().all()


def test_predictions_can_teach(table_run, tmp_path):
    config, folder = table_run
    predict(folder, folder.parent / "rows.csv", tmp_path / "teacher.parquet")
    config = override(config, ["teacher.model={}", f"teacher.predictions={tmp_path / 'teacher.parquet'}"])
    metrics = build_teacher(config, load_data(config), tmp_path / "teacher.safetensors")
    assert metrics["accuracy"] == pytest.approx(RunResults.read(folder / "results.json").run.metrics["accuracy"])
    assert len(StoredPredictions.from_file(tmp_path / "teacher.safetensors")) == 600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop("color"), "color"),
        (lambda t: t.with_columns(x=pl.lit("heavy")), "'heavy' is not a number"),
    ],
)
def test_rows_that_do_not_fit_are_named(table_run, tmp_path, change, message):
    _, folder = table_run
    change(rows(5)).write_csv(tmp_path / "bad.csv")
    with pytest.raises(InputError, match=message):
        predict(folder, tmp_path / "bad.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_click_logs_are_read_in_their_raw_format_with_and_without_labels(tmp_path):
    settings = [*SHORT, "data.generated=3000", f"data.cache={tmp_path}"]
    folder = finished(override(preset("criteo"), settings), tmp_path / "run")
    (raw,) = tmp_path.glob("generated-3000*.txt")
    assert predict(folder, raw, tmp_path / "labelled.csv") == 3000
    lines = raw.read_text().splitlines()
    (tmp_path / "test.txt").write_text("".join(line.partition("\t")[2] + "\n" for line in lines))
    predict(folder, tmp_path / "test.txt", tmp_path / "bare.csv")
    assert (tmp_path / "bare.csv").read_text() == (tmp_path / "labelled.csv").read_text()


def test_a_task_brings_the_reader_of_its_rows(table_run, tmp_path, monkeypatch):
    def task():
        pytest.fail("the data of the run are not needed")

    task.read_rows = lambda path: iter([([7, 9], rows(2)), ([11], rows(1))])
    monkeypatch.setattr("tgeokd.runs.predict.TASKS", {"tabular": task})
    assert predict(table_run[1], tmp_path / "any", tmp_path / "out.csv") == 3
    assert pl.read_csv(tmp_path / "out.csv")["id"].to_list() == [7, 9, 11]


@pytest.mark.parametrize("out", ["out.txt", "out"])
def test_only_tables_are_written(table_run, tmp_path, out):
    _, folder = table_run
    with pytest.raises(InputError, match=r"\.parquet.*\.csv"):
        predict(folder, folder.parent / "rows.csv", tmp_path / out)


def test_a_run_that_is_none_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="config"):
        predict(tmp_path, tmp_path / "rows.csv", tmp_path / "out.csv")
    settings = ["teacher.epochs=1", "teacher.patience=null", "student.epochs=1", "method=kd", "options={}"]
    folder = finished(override(preset("digits"), settings), tmp_path / "digits")
    with pytest.raises(InputError, match="'digits'"):
        predict(folder, tmp_path / "rows.csv", tmp_path / "out.csv")
