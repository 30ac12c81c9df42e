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
        *(MethodSpec(method) for method in ("anl", "ada", "wls", "rw", "tgeo")),
        MethodSpec("tgeo", {"outer": "holdout"}),
        MethodSpec("tgeo", {"paper": True}),
        MethodSpec("ce", train_on="train+val"),
    ]
    assert [entry for entry in wanted if entry not in DEMO_ROWS] == []
    assert any(entry.method == "kd" and entry.train_on == "train+val" for entry in DEMO_ROWS)
    # label smoothing by the teacher and decoupled distillation are for comparisons on other tasks
    assert {entry.method for entry in DEMO_ROWS} == set(METHODS) - {"ls", "dkd"}


def test_no_two_rows_or_settings_share_a_name_or_a_folder():
    labels = [entry.label for entry in DEMO_ROWS]
    assert len(set(labels)) == len({slug(label) for label in labels}) == len(labels)
    assert len({slug(setting.name) for setting in DEMO_VARIANTS}) == len(DEMO_VARIANTS)


def test_the_demo_s_settings_are_clean_and_noisy_labels():
    assert [(setting.name, setting.data) for setting in DEMO_VARIANTS] == [
        ("clean", {"noise": 0.0}),
        ("noise 30 %", {"noise": 0.3}),
    ]


@pytest.mark.parametrize("entry", DEMO_ROWS, ids=lambda entry: entry.label)
def test_every_row_can_be_built_on_the_shipped_recipe(entry):
    config = entry.apply(preset("digits"))
    check(config)
    assert config.to_dict() != preset("digits").to_dict() or entry == MethodSpec("tgeo")


def test_the_whole_demo_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)
    config = short("student.epochs=1", "teacher.epochs=1")
    results = compare(config, DEMO_ROWS, [0], tmp_path / "demo", settings=DEMO_VARIANTS)
    assert len(results["runs"]) == len(results["summary"]) == 2 * len(DEMO_ROWS)
    nll = {(r["setting"], r["method"]): r["metrics"]["nll"] for r in results["runs"]}
    for setting in ("clean", "noise 30 %"):
        kd = [nll[setting, f"kd (alpha={alpha})"] for alpha in (0.1, 0.3, 0.5, 0.7, 0.9)]
        assert len(set(kd)) == 5  # the options reach the method
        assert nll[setting, "tgeo"] != nll[setting, "tgeo (outer=holdout)"]
        assert nll[setting, "ce"] != nll[setting, "ce (train+val)"]
