"""Running an analysis: refusals, stored results, processes; what is registered."""

from __future__ import annotations

import itertools
import json
from typing import ClassVar

import pytest
from quick import contents, short

from tgeokd.methods import build_method
from tgeokd.paper import ANALYSES
from tgeokd.paper.base import SeedAnalysis, run_analysis
from tgeokd.paper.cost import Cost
from tgeokd.runs import compare as compare_module
from tgeokd.runs.config import override, preset, replace
from tgeokd.utils.errors import InputError


class Seeds(SeedAnalysis):
    """The seed itself; seed 4 is refused."""

    rows: ClassVar = {}

    def __init__(self):
        self.measured = []

    def measure_seed(self, config):
        self.measured.append(config.seed)
        if config.seed == 4:
            raise InputError("seed 4")
        return {"value": [config.seed, None]}

    def differences(self, data):
        return {}

    def lines(self, data, differences):
        return []


def test_every_analysis_has_a_default_task_and_rows():
    assert set(ANALYSES) >= {"fig1", "fig3", "fig4", "fig5", "ablation", "alpha-over-epochs", "oversampling", "cost"}
    for analysis in ANALYSES.values():
        assert override(preset(analysis.task), analysis.settings.get(analysis.task, ()))
        assert analysis.rows


def test_a_seed_is_measured_once(tmp_path, inline):
    analysis = Seeds()
    expected = {"seeds": [{"value": [3, None]}, {"value": [1, None]}]}
    assert analysis.measure(short(), [3, 1], tmp_path, 1) == expected
    assert analysis.measure(short(), [3, 1], tmp_path, 1) == expected
    assert analysis.measured == [3, 1]
    with pytest.raises(InputError, match=r"seed-3\.json"):
        analysis.measure(replace(short(), temperature=3.0), [3], tmp_path, 1)
    with pytest.raises(InputError, match="seed 4"):
        analysis.measure(short(), [4], tmp_path, 1)
    assert not (tmp_path / "runs" / "seed-4.json").exists()


@pytest.mark.parametrize(
    ("name", "settings", "seeds", "message"),
    [
        ("figg1", [], [0], "figg1.*fig1"),
        ("fig1", [], [], r"\[\]"),
        ("fig1", [], [1, 1], r"\[1, 1\]"),
        ("fig1", ["student.model.hiden=3"], [0], "hiden"),
        ("fig3", ["student.model.hiden=3"], [0], "hiden"),
        ("fig5", ["data.nois=0.1"], [0], "nois"),
        ("oversampling", [], [0], r"data\.oversample"),
        ("fig4", ["teacher.model={}", "teacher.predictions=p.npz"], [0], "network"),
        ("fig5", ["teacher.model={name: random_forest}"], [0], "network"),
    ],
)
def test_invalid_input_is_refused_before_anything_is_written(name, settings, seeds, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run_analysis(name, override(short(), settings), seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_finished_analysis_is_kept_and_an_unfinished_one_is_continued(noisy, inline, tmp_path, monkeypatch):
    name, result = "alpha-over-epochs", tmp_path / "alpha-over-epochs.json"
    run_analysis(name, noisy, [0], tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"alpha-over-epochs\.json"):
        run_analysis(name, noisy, [0], tmp_path)
    assert contents(tmp_path) == before
    content = json.loads(result.read_text())
    result.unlink()
    monkeypatch.setattr(compare_module, "run", None)  # nothing is trained again
    run_analysis(name, noisy, [0], tmp_path)
    assert json.loads(result.read_text()) == content
    result.unlink()
    with pytest.raises(InputError, match=r"comparison\.yaml"):
        run_analysis(name, replace(noisy, temperature=3.0), [0], tmp_path)


def resolved(entry):
    """The settings that a method trains with, for a student that ends in a linear layer."""
    method = build_method(entry.method, **entry.options)
    plain = {key: value for key, value in vars(method).items() if value is None or type(value).__module__ == "builtins"}
    chosen = getattr(method, "hypergradient", None)
    return type(method), plain | {"hypergradient": {"auto": "last_layer", "exact": "forward"}.get(chosen, chosen)}


def test_no_two_rows_of_cost_are_the_same_run():
    for (first, one), (second, other) in itertools.combinations(Cost.rows.items(), 2):
        assert resolved(one) != resolved(other), (first, second)
