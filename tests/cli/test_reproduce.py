"""``tgeokd reproduce`` and ``tgeokd predict``; what they compute is tested with the analyses and with the runs."""

from __future__ import annotations

import json

import pytest
from command import assert_one_line, assert_refused
from quick import set_options

TINY = set_options("student.epochs=1", "teacher.epochs=1")


@pytest.mark.slow
def test_reproduce_writes_data_and_figure_and_prints_three_lines(tgeokd_, tmp_path):
    outcome = tgeokd_("reproduce", "alpha-over-epochs", "--seeds", 2, "--out", "out", *TINY)
    assert outcome.code == 0, outcome.err
    content = json.loads((tmp_path / "out" / "alpha-over-epochs.json").read_text())
    assert content["config"]["data"]["noise"] == 0.3  # the default of the analysis
    assert content["seeds"] == [0, 1]
    assert [line for line in content["lines"] if line not in outcome.out] == []
    (figure,) = (tmp_path / "out").glob("*.png")
    for name in ("out/alpha-over-epochs.json", f"out/{figure.name}"):
        assert name in outcome.out
    assert_one_line(tgeokd_("reproduce", "alpha-over-epochs", "--seeds", 2, "--out", "out", *TINY), 2, "out")


@pytest.mark.parametrize(
    ("argv", "mentioned"),
    [
        (["fig6"], ["'fig6'", "fig5"]),
        (["fig4", "digit"], ["'digit'", "'digits'"]),
        (["fig4", "--set", "data.nose=1"], ["'noise'"]),
        (["fig4", "--seeds", "0"], ["--seeds"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_reproduce_refuses_wrong_input(tgeokd_, tmp_path, argv, mentioned):
    assert_refused(tgeokd_("reproduce", *argv, "--out", "out"), *mentioned)
    assert not (tmp_path / "out").exists()


def test_predict_refuses_a_folder_without_a_run_and_other_formats(tgeokd_, tmp_path):
    assert_refused(tgeokd_("predict", "nowhere", "rows.csv"), "nowhere")
    assert_refused(tgeokd_("predict", "nowhere", "rows.csv", "--out", "out.xlsx"), "out.xlsx")
    assert not list(tmp_path.iterdir())
