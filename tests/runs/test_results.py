"""Results as typed records: written, read back, and refused where they are something else."""

from __future__ import annotations

import json

import pytest
from quick import a_run

from tgeokd.runs.plan import parse_method
from tgeokd.runs.results import (
    SCHEMA_VERSION,
    Claim,
    ComparisonResults,
    MethodSpec,
    RunResults,
    TeacherRecord,
    TuningRecord,
    default_rows,
    read,
)
from tgeokd.runs.statistics import paired_table, summarise
from tgeokd.utils.errors import InputError

RUN = RunResults(task="digits", run=a_run("default", "tgeo:hidden=[8, 4]"), class_names=["a", "b"], data={"rows": 3})


def comparison() -> ComparisonResults:
    rows = ("ce", "kd:alpha=0.5@train+val", "tgeo", "tgeo:outer=holdout")
    runs = [
        a_run("clean", row, seed, metrics={"accuracy": 0.5 + 0.1 * i + 0.01 * seed * i, "val_accuracy": float("nan")})
        for i, row in enumerate(rows)
        for seed in range(3)
    ]
    names = {"variant": "clean", "method": "ce", "options": {}, "train_on": "train"}
    return ComparisonResults(
        task="digits",
        primary_metric="accuracy",
        chosen_by="accuracy",
        runs=runs,
        summary=summarise(runs),
        pairs=paired_table(runs, "accuracy", [parse_method(row) for row in rows[2:]]),
        teachers=[TeacherRecord(variant="clean", seed=0, metrics={"accuracy": 1.0})],
        tuning=[TuningRecord(chosen={"options": {}}, trials=[{"value": 0.5, "seconds": 1.0}], **names)],
        claims=[Claim(row=MethodSpec("ce"), value=0.7, source="a paper", protocol="last epoch")],
        wall_seconds=3.0,
        machine={"cores": 2},
    )


@pytest.mark.parametrize("results", [RUN, comparison()], ids=["run", "comparison"])
def test_results_come_back_from_json_text_as_they_were(tmp_path, results):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.to_dict()))
    found = read(path)
    assert type(found) is type(results)
    assert json.dumps(found.to_dict()) == json.dumps(results.to_dict())  # as text: a NaN is not equal to itself
    assert type(results).read(path).to_dict().keys() == results.to_dict().keys()


def test_records_keep_the_types_of_their_fields():
    found = ComparisonResults.from_dict(json.loads(json.dumps(comparison().to_dict())))
    assert found.runs[3].spec == MethodSpec("kd", {"alpha": 0.5}, "train+val")
    assert found.pairs[0].reference == MethodSpec("tgeo")
    assert found.summary[0].metrics["accuracy"].mean == pytest.approx(0.5)
    assert found.claims[0].row == MethodSpec("ce")


def test_main_pairs_are_those_of_the_default_method_s_own_row():
    results = comparison()
    assert len(results.pairs) == 6
    assert [(pair.reference.label, pair.other.method) for pair in results.main_pairs] == [
        ("tgeo", "ce"),
        ("tgeo", "kd"),
        ("tgeo", "tgeo"),
    ]


def test_without_the_default_row_all_rows_of_the_method_are_main():
    rows = [parse_method(text) for text in ("ce", "tgeo:outer=holdout", "tgeo:paper=true")]
    assert default_rows(rows) == rows[1:]
    assert default_rows([*rows, MethodSpec("tgeo")]) == [MethodSpec("tgeo")]
    assert default_rows(rows[:1]) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema_version": 1}, "1"),
        ({"schema_version": SCHEMA_VERSION + 1}, str(SCHEMA_VERSION + 1)),
        ({"kind": "comparison"}, "comparison"),
        ({"run": {}}, "variant"),
        ({"run": RUN.to_dict()["run"] | {"seed": "zero"}}, r"run\.seed.*'zero'"),
        ({"run": RUN.to_dict()["run"] | {"train_on": "test"}}, r"run\.train_on.*'test'"),
        ({"tusk": "digits"}, "tusk"),
    ],
)
def test_other_results_are_refused_in_one_line(tmp_path, change, named):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RUN.to_dict() | change))
    with pytest.raises(InputError, match=rf"results\.json.*{named}") as caught:
        RunResults.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"a": 1}', "{", None])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    for reader in (read, RunResults.read, ComparisonResults.read):
        with pytest.raises(InputError, match=tmp_path.name):
            reader(path)
