"""``tgeokd compare`` and ``tgeokd demo``, with two epochs of everything."""

from __future__ import annotations

import dataclasses

import pytest
from command import assert_one_line, assert_refused, results
from quick import set_options, short

from tgeokd.methods import METHODS
from tgeokd.runs.demo import DEMO_ROWS
from tgeokd.utils.errors import DivergenceError

TINY = set_options("student.epochs=1", "teacher.epochs=1")


def test_compare_prints_the_table_of_its_results(tgeokd_, tmp_path):
    out = tmp_path / "out"
    rows = "ce,kd:alpha=0.5, tgeo:outer=union ,ce@train+val"
    outcome = tgeokd_(
        "compare", "digits", "--methods", rows, "--seeds", 2, "--out", out, *set_options("data.noise=0.3")
    )
    assert outcome.code == 0, outcome.err
    found = results(out)
    labels = [row.label for row in found.summary]
    assert labels == ["ce", "kd (alpha=0.5)", "tgeo (outer=union)", "ce (train+val)"]
    assert {record.seed for record in found.runs} == {0, 1}
    for row in found.summary:
        accuracy = row.metrics["accuracy"]
        shown = f"{100 * accuracy.mean:.2f} ± {100 * accuracy.sd:.2f}"
        assert any(row.label in line and shown in line for line in outcome.out.splitlines()), row.label
    teachers = [record.metrics["accuracy"] for record in found.teachers]
    assert f"{100 * sum(teachers) / 2:.2f}" in outcome.out
    assert "tgeo (outer=union) - ce" in outcome.out  # without a plain row of it, the differences are of this one
    assert (out / "report.html").exists()


def test_the_differences_printed_are_of_the_default_method_and_all_are_in_the_report(tgeokd_, tmp_path):
    argv = ("--methods", "ce,tgeo:outer=union,tgeo", "--seeds", 2, "--out", tmp_path / "out")
    outcome = tgeokd_("compare", "digits", *argv, *TINY)
    pairs = [(pair.reference.label, pair.other.label) for pair in results(tmp_path / "out").pairs]
    assert len(pairs) > 2
    page = (tmp_path / "out" / "report.html").read_text()
    for reference, method in pairs:
        assert (f"{reference} - {method}" in outcome.out) == (reference == "tgeo")
        assert f"{reference} - {method}" in page


def test_compare_resumes(tgeokd_, tmp_path):
    argv = ("compare", "digits", "--methods", "ce,kd", "--seeds", 1, "--out", tmp_path / "out", *TINY)
    assert tgeokd_(*argv).code == 0
    before = results(tmp_path / "out")
    assert_refused(tgeokd_(*argv), tmp_path / "out")
    assert tgeokd_(*argv, "--resume").code == 0
    before = dataclasses.replace(before, wall_seconds=results(tmp_path / "out").wall_seconds)
    assert results(tmp_path / "out") == before
    assert_refused(tgeokd_(*argv, "--resume", "--seeds", 2), "comparison.yaml")
    assert results(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("argv", "mentioned"),
    [
        (["digits", "--methods", "ce,tgoe"], ["'tgoe'", "'tgeo'"]),
        (["digits", "--methods", "ce,ce"], ["ce, ce"]),
        (["digits", "--methods", " , "], ["method"]),
        (["digits", "--methods", "kd:alpha=2"], ["alpha", "not 2"]),
        (["digits", "--methods", "kd:alpha"], ["kd:alpha"]),
        (["digits", "--methods", "ce@all"], ["ce@all", "@train+val"]),
        (["digits", "--methods", "ce", "--set", "seeds=3"], ["'seeds'", "'seed'"]),
        (["digit", "--methods", "ce"], ["'digit'", "'digits'"]),
    ],
    ids=lambda value: " ".join(value[1:3]),
)
def test_compare_refuses_wrong_input(tgeokd_, tmp_path, argv, mentioned):
    assert_refused(tgeokd_("compare", *argv, "--out", tmp_path / "out"), *mentioned)
    assert not (tmp_path / "out").exists()


def test_compare_takes_lists_as_options(tgeokd_, tmp_path):
    argv = ("--methods", "ce,tgeo:hidden=[8,4]", "--seeds", 1, "--out", tmp_path / "out")
    assert tgeokd_("compare", "digits", *argv, *TINY).code == 0
    assert [row.label for row in results(tmp_path / "out").summary] == ["ce", "tgeo (hidden=[8, 4])"]


def test_without_methods_all_are_compared(tgeokd_, tmp_path, monkeypatch):
    asked = []

    def stop(config, entries, *_, **__):
        asked.extend(entry.label for entry in entries)
        raise DivergenceError("far enough")

    monkeypatch.setattr("tgeokd.runs.compare.compare", stop)
    assert_one_line(tgeokd_("compare", "digits", "--out", tmp_path / "out"), 3, "far enough")
    assert sorted(asked) == sorted(METHODS)
    assert asked[-1] == "tgeo"


@pytest.mark.slow
def test_compare_tunes(tgeokd_, tmp_path):
    out = tmp_path / "out"
    argv = ("compare", "digits", "--methods", "kd,tgeo", "--seeds", 2, "--tune", 2, "--out", out)
    outcome = tgeokd_(*argv, *TINY)
    assert outcome.code == 0, outcome.err
    assert [(row.label, len(row.trials)) for row in results(out).tuning] == [("kd", 2), ("tgeo", 2)]
    assert "tgeo - kd" in outcome.out
    assert "runs to tune" in (out / "report.html").read_text()


@pytest.mark.parametrize(("tune", "mentioned"), [(-1, "--tune"), (99, "99")])
def test_an_impossible_number_of_trials_is_refused(tgeokd_, tmp_path, tune, mentioned):
    argv = ("--methods", "kd", "--tune", tune, "--out", tmp_path / "other")
    assert_refused(tgeokd_("compare", "digits", *argv), mentioned)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_demo_compares_on_two_variants_and_resumes(tgeokd_, tmp_path, monkeypatch):
    shown = ("ce", "tgeo", "tgeo (outer=holdout)", "ce (train+val)")  # all rows: tests/runs/test_demo.py
    rows = [entry for entry in DEMO_ROWS if entry.label in shown]
    monkeypatch.setattr("tgeokd.runs.demo.DEMO_ROWS", rows)
    monkeypatch.setattr(
        "tgeokd.runs.config.preset", lambda task, name="lite": short("student.epochs=1", "teacher.epochs=1")
    )
    outcome = tgeokd_("demo", "--seeds", 1, "--out", "here")
    assert outcome.code == 0, outcome.err
    found = results(tmp_path / "here")
    assert {record.variant for record in found.runs} == {"clean", "noise 30 %"}
    assert len(found.runs) == 2 * len(rows)
    for text in ("clean", "noise 30 %", *shown, "here/report.html"):
        assert text in outcome.out
    page = (tmp_path / "here" / "report.html").read_text()
    for entry in rows:
        assert f"<td>{entry.label}</td>" in page
    assert_refused(tgeokd_("demo", "--seeds", 1, "--out", "here"), "here")
    assert tgeokd_("demo", "--seeds", 1, "--out", "here", "--resume").code == 0
