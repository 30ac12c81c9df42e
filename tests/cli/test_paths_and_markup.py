"""What a user types as a path: ``~``, brackets, and folders that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quick import short
from torch import nn

from tgeokd.cli.compare import _table
from tgeokd.cli.main import main
from tgeokd.cli.output import console
from tgeokd.models.weights import load_weights
from tgeokd.runs.config import load_config
from tgeokd.teachers import StoredPredictions
from tgeokd.utils.errors import InputError
from tgeokd.utils.run_folder import RunFolder

QUICK = ["teacher.epochs=2", "teacher.patience=null", "student.epochs=1", "allow_bad_teacher=true"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def command(*words):
    settings = [part for setting in QUICK for part in ("--set", setting)]
    return main, ["tgeokd", *words, *settings]


def run(monkeypatch, *words):
    call, words = command(*words)
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as caught:
        call()
    return caught.value.code or 0


def test_the_home_folder_in_every_setting_that_is_a_path(home):
    config = short(
        "teacher.weights=~/w.safetensors",
        "data_dir=~/data",
        "teacher_cache.folder=~/cache",
        "teacher.data.file=~/t.csv",
    )
    assert config.teacher.weights == str(home / "w.safetensors")
    assert config.data_dir == str(home / "data")
    assert config.teacher.data["file"] == str(home / "t.csv")
    assert short("method=kd", "teacher={predictions: ~/p.npz}").teacher.predictions == str(home / "p.npz")
    (home / "c.yaml").write_text(
        "task: digits\nteacher: {model: {name: mlp}, epochs: 1}\nstudent: {model: {name: mlp}, epochs: 1}\n"
    )
    assert load_config(Path("~/c.yaml")).task == "digits"


def test_the_home_folder_in_python(home):
    model = nn.Linear(2, 2)
    torch.save(model.state_dict(), home / "w.pt")
    load_weights(nn.Linear(2, 2), Path("~/w.pt"))
    StoredPredictions(torch.zeros(3, 2), torch.arange(3)).save("~/p.npz")
    assert len(StoredPredictions.from_file("~/p.npz")) == 3
    with RunFolder("~/run") as folder:
        assert folder.path == home / "run"
    assert not Path("~").exists()


def test_the_home_folder_on_the_command_line(home, monkeypatch):
    assert run(monkeypatch, "distill", "digits", "--out", "~/mine") == 0
    assert (home / "mine" / "results.json").exists()


def test_brackets_are_no_markup(home, monkeypatch, capsys):
    out = str(home / "o[" / "b]ut")  # '[/b]' in the middle of a path
    assert run(monkeypatch, "distill", "digits", "--out", out) == 0
    assert (Path(out) / "results.json").exists()
    with console().capture() as shown:
        console().print(_table("noise [/b]", ["row [/i]"], [["kd:name=[/x]"]]))
    assert all(text in shown.get() for text in ("noise [/b]", "row [/i]", "kd:name=[/x]"))
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("what", ["fig4", "cost"])
def test_an_analysis_checks_its_folder_before_it_trains(tmp_path, monkeypatch, what):
    from tgeokd.paper import ANALYSES
    from tgeokd.paper.base import run_analysis

    def trained(*_):
        raise AssertionError("it trained first")

    monkeypatch.setattr(ANALYSES[what], "measure", trained)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        run_analysis(what, short(), [0], tmp_path / "file" / "out")
