from __future__ import annotations

import pytest
from quick import InlinePool, short

from tgeokd.methods import METHODS
from tgeokd.runs.compare import compare
from tgeokd.runs.config import preset
from tgeokd.runs.demo import DEMO_ROWS, DEMO_VARIANTS
from tgeokd.runs.plan import MethodSpec
from tgeokd.runs.single import check
from tgeokd.utils.files import slug


def test_the_demo_has_every_method_and_every_control():
    wanted = [
        MethodSpec("ce"),
        *(MethodSpec("kd", {"alpha": alpha}) for alpha in (0.1, 0.3, 0.5, 0.7, 0.9)),
        *(MethodSpec(method) for method in ("anl", "ada", "wls", "rw", "gce", "posterior", "tgeo")),
        MethodSpec("tgeo", {"outer": "holdout"}),
        MethodSpec("tgeo", {"paper": True}),
        MethodSpec("ce", train_on="train+val"),
    ]
    assert [row for row in wanted if row not in DEMO_ROWS] == []
    assert any(row.method == "kd" and row.train_on == "train+val" for row in DEMO_ROWS)
    # the others are for comparisons on other tasks
    assert {row.method for row in DEMO_ROWS} == set(METHODS) - {"lskd", "dkd", "rld", "eakd", "mwnet"}


def test_no_two_rows_or_variants_share_a_name_or_a_folder():
    labels = [row.label for row in DEMO_ROWS]
    assert len(set(labels)) == len({slug(label) for label in labels}) == len(labels)
    assert len({slug(variant.name) for variant in DEMO_VARIANTS}) == len(DEMO_VARIANTS)


def test_the_demo_s_variants_are_clean_and_noisy_labels():
    assert [(variant.name, variant.data) for variant in DEMO_VARIANTS] == [
        ("clean", {"noise": 0.0}),
        ("noise 30 %", {"noise": 0.3}),
    ]


@pytest.mark.parametrize("row", DEMO_ROWS, ids=lambda row: row.label)
def test_every_row_can_be_built_on_the_shipped_recipe(row):
    config = row.apply(preset("digits"))
    check(config)
    assert config.to_dict() != preset("digits").to_dict() or row == MethodSpec("tgeo")


def test_the_whole_demo_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)
    config = short("student.epochs=1", "teacher.epochs=1")
    results = compare(config, DEMO_ROWS, [0], tmp_path / "demo", variants=DEMO_VARIANTS)
    assert len(results.runs) == len(results.summary) == 2 * len(DEMO_ROWS)
    assert {pair.reference for pair in results.main_pairs} == {MethodSpec("tgeo")}
    assert len(results.main_pairs) == 2 * (len(DEMO_ROWS) - 1)
    nll = {(run.variant, run.label): run.metrics["nll"] for run in results.runs}
    for variant in ("clean", "noise 30 %"):
        kd = [nll[variant, f"kd (alpha={alpha})"] for alpha in (0.1, 0.3, 0.5, 0.7, 0.9)]
        assert len(set(kd)) == 5  # the options reach the method
        assert nll[variant, "tgeo"] != nll[variant, "tgeo (outer=holdout)"]
        assert nll[variant, "ce"] != nll[variant, "ce (train+val)"]
