"""Results of schema version 1 become results of the present version with the same values."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from tgeokd.runs.results import ComparisonResults, MethodSpec
from tgeokd.utils.errors import InputError

TOOL = Path(__file__).parents[2] / "tools" / "migrate_results.py"
spec = importlib.util.spec_from_file_location("migrate_results", TOOL)
assert spec is not None
assert spec.loader is not None
tool = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = tool
spec.loader.exec_module(tool)

PLAIN = {"outer": "union", "every": 1, "average": 0.0}
ROWS = [
    MethodSpec("ls"),
    MethodSpec("kd", {"alpha": 0.5}),
    MethodSpec("ce", train_on="train+val"),
    MethodSpec("tgeo", PLAIN),
]
LABELS = ["ls", "kd (alpha=0.5)", "ce (train+val)", "tgeo (plain, outer=union)"]


def old_results():
    """A small comparison as version 0.1 wrote it."""
    runs = [
        {
            "setting": "noise=0.3",
            "method": label,
            "seed": seed,
            "metrics": {"accuracy": 0.5 + 0.01 * i + 0.1 * seed, "val_accuracy": 0.5},
            "seconds": 1.5 + i,
            "epochs": 3,
            "best_epoch": 2,
            "peak_memory_mb": 900.5,
            "trains_on_held_out": i > 1,
        }
        for i, label in enumerate(LABELS)
        for seed in range(2)
    ]
    pair = {"setting": "noise=0.3", "metric": "accuracy", "reference": LABELS[3], "method": LABELS[1]}
    trial = {"options": {"every": 4}, "settings": {}, "value": 0.5, "seconds": 2.0}
    return {
        "task": "digits",
        "runs": runs,
        "summary": [],
        "paired": [pair | {"gain": 0.02, "low": None, "high": None, "p": None, "p_holm": None, "n": 2}],
        "primary_metric": "accuracy",
        "teachers": [{"setting": "noise=0.3", "seed": 0, "metrics": {"accuracy": 0.9}}],
        "tuning": [
            {
                "setting": "noise=0.3",
                "method": LABELS[3],
                "chosen": {"options": {"every": 4}, "settings": {}},
                "trials": [trial],
            }
        ],
        "claimed": {LABELS[1]: {"task": "digits", "value": 0.7, "source": "a paper", "protocol": "last epoch"}},
        "data": {"rows": 3},
        "wall_seconds": 12.5,
        "machine": {"cores": 2},
    }


def old_description():
    return {
        "config": {"task": "digits", "data_dir": None, "method": "tgeo", "options": {"every": 2}},
        "entries": [{"method": r.method, "options": r.options, "train_on": r.train_on} for r in ROWS],
        "seeds": [0, 1],
        "settings": [{"name": "noise=0.3", "data": {}}],
        "tune": 1,
    }


def check_values(found: ComparisonResults):
    old = old_results()
    tgeo = MethodSpec("tgeo", {"outer": "union", "update_interval": 1, "ema_decay": 0.0})
    rows = [MethodSpec("lskd"), *ROWS[1:3], tgeo]
    assert [(run.spec, run.seed) for run in found.runs] == [(row, seed) for row in rows for seed in range(2)]
    assert [run.metrics for run in found.runs] == [run["metrics"] for run in old["runs"]]
    assert [run.seconds for run in found.runs] == [run["seconds"] for run in old["runs"]]
    assert [run.trains_on_validation for run in found.runs] == [False] * 4 + [True] * 4
    assert {run.variant for run in found.runs} == {"noise=0.3"}
    assert found.summary[1].metrics["accuracy"].mean == pytest.approx(0.56)
    assert found.summary[3].seconds_vs_kd == pytest.approx(4.5 / 2.5)
    (pair,) = found.pairs
    assert (pair.reference, pair.other, pair.gain, pair.n) == (tgeo, rows[1], 0.02, 2)
    assert found.tuning[0].spec == tgeo
    assert found.tuning[0].chosen["options"] == found.tuning[0].trials[0]["options"] == {"update_interval": 4}
    assert (found.claims[0].row, found.claims[0].value) == (rows[1], 0.7)
    assert found.teachers[0].metrics == {"accuracy": 0.9}
    assert (found.chosen_by, found.wall_seconds, found.data) == ("accuracy", 12.5, {"rows": 3})


def test_the_results_of_a_comparison_are_converted_once(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(old_results()))
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(old_description()))
    monkeypatch.setattr(sys, "argv", ["migrate_results.py", str(path)])
    tool.main()
    check_values(ComparisonResults.read(path))
    text = path.read_text()
    tool.main()
    assert path.read_text() == text
    assert capsys.readouterr().out.count(str(path)) == 2


def test_a_filed_comparison_keeps_its_command_with_present_names(tmp_path):
    path = tmp_path / "digits.json"
    filed = {
        "command": "tgeokd compare digits --methods ls,kd,tgeo --seeds 2",
        "description": old_description(),
        "alpha": {LABELS[3]: [{"seed": 0, "mean": 0.5}]},
    }
    path.write_text(json.dumps(old_results() | filed))
    assert tool.convert(path)
    content = json.loads(path.read_text())
    check_values(ComparisonResults.from_dict(content["results"]))
    assert content["command"].split()[4] == (
        "lskd,kd:alpha=0.5,ce@train+val,tgeo:outer=union:update_interval=1:ema_decay=0.0"
    )
    assert content["description"]["config"]["options"] == {"update_interval": 2}
    assert content["description"]["variants"] == [{"name": "noise=0.3", "data": {}}]
    assert content["alpha"][0]["runs"] == [{"seed": 0, "mean": 0.5}]
    assert content["alpha"][0]["method"] == "tgeo"


@pytest.mark.parametrize("change", [{"runs": []}, None])
def test_what_cannot_be_converted_is_refused(tmp_path, change):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"task": "digits"} if change is None else old_results() | change))
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(old_description()))
    with pytest.raises(InputError):
        tool.convert(path)
    path.write_text(json.dumps(old_results()))
    (tmp_path / "comparison.yaml").unlink()
    with pytest.raises(InputError, match=r"comparison\.yaml"):
        tool.convert(path)
