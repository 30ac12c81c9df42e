"""The differences and lines of each analysis, from made-up data with known effects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.core.ratio_statistics import GROUPS
from tgeokd.paper.ablation import FULL, KINDS, STEPS, VECTOR, Ablation
from tgeokd.paper.alpha_over_epochs import AlphaOverEpochs
from tgeokd.paper.comparison import group_gap, group_mean
from tgeokd.paper.cost import COSTS, VARIANTS, Cost
from tgeokd.paper.fig1 import ALPHAS, Fig1, accuracies, quantile_groups
from tgeokd.paper.fig3 import CONTRASTS, Fig3
from tgeokd.paper.fig4 import Fig4, groups_of_the_test_set
from tgeokd.paper.fig5 import PAIRS, Fig5
from tgeokd.paper.formatting import difference
from tgeokd.paper.oversampling import CASES, Oversampling, explanation

UP, DOWN, EITHER = (0.30, 0.32, 0.31), (-0.30, -0.32, -0.31), (0.30, -0.30, 0.01)


def means(analysis, data):
    """The means of the differences. Lines must exist for all data, with each side of a conclusion in its own words."""
    found = analysis().differences(data)
    lines = analysis().lines(data, found)
    assert len(lines) == 3
    assert all(line.endswith(".") and "None" not in line and "nan" not in line for line in lines)
    return {name: d if d is None else pytest.approx(d.mean, abs=1e-9) for name, d in found.items()}


# ---- fig1


def test_quantile_groups_of_a_worked_example():
    values = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.2])
    assert quantile_groups(values, 3).tolist() == [2, 0, 1, 1, 2, 0, 0]  # ranks 6 0 4 3 5 1 2, times 3 over 7


@given(st.lists(st.floats(0, 2), max_size=40), st.integers(1, 7))
def test_quantile_groups_are_ordered_and_of_equal_size(values, groups):
    found = quantile_groups(torch.tensor(values, dtype=torch.float64), groups)
    sizes = found.bincount(minlength=groups)
    assert sizes.max() - sizes.min() <= 1
    assert len(sizes) == groups
    by_value = sorted(zip(values, found.tolist(), strict=True))
    assert [g for _, g in by_value] == sorted(found.tolist())


def fixed_alpha(right, wrong):
    """Accuracy changes by so much from alpha 0.1 to 0.9: 500 samples with a right teacher and 100 with a wrong one."""

    def correct(start, change, n):
        return [[round(n * (start + change * step))] * 5 for step in (0, 0.25, 0.5, 0.75, 1)]

    seeds = []
    for r, w in zip(right, wrong, strict=True):
        rows = zip(correct(0.5, r, 100), correct(0.5, w, 20), strict=True)
        seeds.append({"count": [[100] * 5, [20] * 5], "correct": [list(row) for row in rows]})
    return {"alphas": list(ALPHAS), "seeds": seeds}


def test_fig1_compares_the_largest_with_the_smallest_alpha():
    rounded = pytest.approx  # 20 samples of a group move in steps of 0.05
    found = Fig1().differences(fixed_alpha(UP, DOWN))
    assert found["teacher right"].mean == rounded(0.31)
    assert found["teacher wrong"].mean == rounded(-0.31, abs=0.025)
    assert found["right less wrong"].mean == rounded(0.62, abs=0.025)
    lines = [Fig1().lines(data, Fig1().differences(data)) for data in (fixed_alpha(UP, DOWN), fixed_alpha(DOWN, UP))]
    assert "(n = 1500) 0.9, 0.9, 0.9, 0.9, 0.9" in lines[0][0]
    assert "(n = 300) 0.1, 0.1, 0.1, 0.1, 0.1" in lines[0][0]
    assert "(n = 1500) 0.1, 0.1, 0.1, 0.1, 0.1" in lines[1][0]


def test_fig1_judges_an_alpha_by_group_on_seeds_that_it_was_not_chosen_on():
    # chosen on the other seeds, right takes 0.9 and wrong 0.1; one for all takes 0.9, which costs 0.3 of the wrong 100 of 600
    assert means(Fig1, fixed_alpha(UP, DOWN))["by group"] == pytest.approx(30 / 600, abs=3 / 600)
    # the best of one seed is not the best of the other: choosing by group can only lose there
    assert Fig1().differences(fixed_alpha((0.3, -0.3), (-0.3, 0.3)))["by group"].mean < 0
    assert means(Fig1, fixed_alpha(UP[:1], DOWN[:1]))["by group"] is None


def test_fig1_leaves_out_groups_without_samples():
    data = fixed_alpha(UP, DOWN)
    for seed in data["seeds"]:
        seed["count"][1] = [0] * 5
        for alpha in seed["correct"]:
            alpha[1] = [0] * 5
    found = means(Fig1, data)
    assert found["teacher right"] is not None
    assert found["teacher wrong"] is found["right less wrong"] is None


def test_accuracies_pool_the_seeds():
    table = accuracies(fixed_alpha(UP, DOWN)["seeds"])
    assert table.shape == (5, 2, 5)
    assert table[4, 0] == pytest.approx(np.full(5, 0.81))


# ---- alpha by group: fig3, alpha-over-epochs


def groups(right, wrong, agree=0.0):
    """Group means; ``agree`` is added where student and teacher agree. 60, 20, 10 and 10 samples."""
    of = (right + agree, right, wrong + agree, wrong)
    return {
        name: {"mean": m, "count": n, "histogram": [n] + [0] * 9}
        for name, m, n in zip(GROUPS, of, (60, 20, 10, 10), strict=True)
    }


def test_group_means_are_weighted_by_their_samples():
    found = groups(0.2, 0.8, agree=0.1)
    right = (60 * 0.3 + 20 * 0.2) / 80
    assert group_mean(found, GROUPS[:2]) == pytest.approx(right)
    assert group_gap([found], GROUPS[:2], GROUPS[2:]) == [pytest.approx(right - (0.9 + 0.8) / 2)]


def edges(with_, without, gain):
    alpha = {
        edge: [groups(0.5, 0.5 + gap, agree=gap) for gap in gaps]
        for edge, gaps in (("with", with_), ("without", without))
    }
    values = {"with": [0.5 + g for g in gain], "without": [0.5] * 3}
    return {"alpha": alpha, "primary_metric": "accuracy", "values": values}


def test_fig3_measures_what_the_edge_changes():
    found = means(Fig3, edges(UP, DOWN, UP))
    for name in list(CONTRASTS)[1:]:  # disagreeing less agreeing
        assert (found[f"{name}, with"], found[f"{name}, without"]) == (-0.31, 0.31)
        assert found[f"{name}, larger with"] == 0.0  # of the same size
    assert found["gain"] == 0.31
    near = (0.1, 0.11, 0.1)
    name = "teacher wrong less right"  # 0.5 + gap + gap / 2 less 0.5 + 3 gap / 4
    assert means(Fig3, edges(UP, near, UP))[f"{name}, larger with"] == 0.75 * (0.31 - 0.31 / 3)
    assert means(Fig3, edges(near, UP, DOWN))[f"{name}, larger with"] == -0.75 * (0.31 - 0.31 / 3)


def test_fig3_does_without_empty_groups():
    data = edges(UP, UP, UP)
    for seed in itertools.chain(*data["alpha"].values()):
        for name in (GROUPS[1], GROUPS[3]):
            seed[name] = {"mean": None, "count": 0, "histogram": [0] * 10}
    found = means(Fig3, data)
    first, *others = CONTRASTS
    assert found[f"{first}, with"] is not None
    assert all(found[f"{name}, {key}"] is None for name in others for key in ("with", "without", "larger with"))


def test_alpha_over_epochs_compares_epochs_and_groups():
    def data(moves, gaps, agree):
        seeds = zip(moves, gaps, agree, strict=True)
        start = {"all": 0.5, "groups": groups(0.5, 0.5)}
        return {"seeds": [[start, {"all": 0.5 + m, "groups": groups(0.5, 0.5 - gap, a)}] for m, gap, a in seeds]}

    found = means(AlphaOverEpochs, data(UP, DOWN, [0.0] * 3))
    assert found["last epoch"] == 0.31
    assert found["teacher and label agree"] == -0.31
    assert means(AlphaOverEpochs, data(UP, [0.0] * 3, DOWN))["student and teacher agree"] == -0.31


# ---- fig4, fig5


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ({"normal": [1, 1, 0, 0], "unseen": [0, 0, 0, 1]}, {"unseen": (0.9, 0.15, "test group, normal")}),
        ({"seen": [0, 0, 1, 0], "all": [1, 1, 1, 1], "none": [0] * 4}, {"seen": (0.5, 0.4, "other test samples")}),
    ],
)
def test_groups_of_the_test_set_are_compared_with_its_normal_samples(masks, expected):
    # rows 9, 1, 2, 3 of the test set; the others are not evaluated
    alpha, rows = torch.tensor([0.1, 0.2, 0.5, 0.9]), [9, 1, 2, 3]
    members = {name: torch.zeros(10, dtype=torch.bool) for name in masks}
    for name, mask in masks.items():
        members[name][rows] = torch.tensor(mask, dtype=torch.bool)
    found = groups_of_the_test_set(members, rows, alpha)
    compared = {name: group for name, group in found.items() if group["against"] is not None}
    assert set(compared) == {f"test group, {name}" for name in expected}
    for name, (own, other, against) in expected.items():
        group = compared[f"test group, {name}"]
        assert (group["n"], group["against"]) == (1, against)
        assert (group["mean"], group["mean_against"]) == pytest.approx((own, other))


def outliers(gaps):
    def group(gap, against):
        return {"n": 9, "mean": 0.5 + gap, "mean_against": 0.5, "auroc_low": 0.5 - gap, "against": against}

    return {
        "seeds": [
            {
                "normal": {"n": 9, "mean": 0.5, "against": None},
                "Gaussian noise": group(gap, "normal"),
                "wrong label, symmetric": group(-gap, "normal"),
                "test group, unseen attack": group(gap, "other test samples"),
            }
            for gap in gaps
        ]
    }


def test_fig4_compares_each_kind_of_outlier_with_normal_samples():
    data = outliers(UP)
    assert means(Fig4, data) == {
        "Gaussian noise": 0.31,
        "wrong label, symmetric": -0.31,
        "test group, unseen attack": 0.31,
    }
    lines = Fig4().lines(data, Fig4().differences(data))
    for line, name in zip(lines, means(Fig4, data), strict=True):
        assert name in line
    del data["seeds"][0]["Gaussian noise"]  # a seed without the group
    assert means(Fig4, data)["Gaussian noise"] == 0.315


def test_fig4_has_lines_for_a_task_without_outliers():
    assert means(Fig4, {"seeds": [{"normal": {"n": 9, "mean": 0.5, "against": None}}] * 2}) == {}


def curves(kd, tgeo, without=()):
    def of(gap):
        found = {}
        for normal, outlier in PAIRS.values():
            found |= {normal: [0.9, 0.4], outlier: [0.2, 0.4 + gap]}
        return {name: curve for name, curve in found.items() if name not in without}

    return {"seeds": [{"kd": of(a), "tgeo": of(b)} for a, b in zip(kd, tgeo, strict=True)]}


def test_fig5_compares_the_last_epoch():
    found = means(Fig5, curves(DOWN, UP))
    assert found == {f"{s}, {k}": v for s in PAIRS for k, v in (("kd", -0.31), ("tgeo", 0.31), ("tgeo less kd", 0.62))}
    assert means(Fig5, curves(UP, UP, without=[PAIRS["train"][1]]))["train, kd"] is None


# ---- ablation, cost, oversampling


def test_ablation_compares_each_step_with_the_one_before_and_each_kind_with_the_full_set():
    order = ("kd", *STEPS)
    values = {name: [0.5 + k * s for s in UP] for k, name in enumerate(order)}
    values |= {name: [f + s for f, s in zip(values[FULL], DOWN, strict=True)] for name in (*KINDS, VECTOR)}
    found = means(Ablation, {"primary_metric": "accuracy", "values": values})
    assert set(values) == set(Ablation.rows)
    for over, name in itertools.pairwise(order):
        assert found.pop(f"{name} over {over}") == 0.31
    assert found.pop(f"{FULL} over kd") == 0.93
    assert found == {f"{name} over {FULL}": -0.31 for name in (*KINDS, VECTOR)}


def test_a_lower_loss_is_a_gain():
    values = {name: [0.5] * 3 for name in Ablation.rows} | {"SG + TG": [0.5 + s for s in DOWN]}
    assert means(Ablation, {"primary_metric": "nll", "values": values})["SG + TG over kd"] == 0.31


@pytest.mark.parametrize("processes", [1, 2])
def test_cost_compares_the_variants_with_the_default(processes):
    values = {name: [0.5] * 3 for name in Cost.rows} | {key: [0.5 + s for s in UP] for key in VARIANTS}
    ratios = {name: {key: [1.5, 1.6, 1.7] for key in COSTS} for name in Cost.rows}
    data = {"primary_metric": "accuracy", "values": values, "ratios": ratios, "processes": processes}
    assert means(Cost, data) == {f"{name} over tgeo": 0.31 for name in VARIANTS}
    for line in Cost().lines(data, Cost().differences(data))[:2]:
        assert line.count("1.60 x (95 % interval 1.35 to 1.85)") == len(Cost.rows) - 1  # 4.303 * 0.1 / sqrt(3)


def sampled(neither, both, teacher, student):
    """Gains of tgeo over kd with neither and both oversampled; the effect of oversampling teacher or student alone."""
    effects = {CASES[0]: [0.0] * len(both), CASES[1]: student, CASES[2]: teacher, CASES[3]: [0.0] * len(both)}
    gains = {CASES[0]: neither, CASES[3]: both}
    seeds = []
    for i in range(len(both)):
        rows = []
        for case, method in itertools.product(CASES, ("kd", "tgeo")):
            gain = gains[case][i] if method == "tgeo" and case in gains else 0.0
            metrics = {"accuracy": 0.5 + effects[case][i] + gain, "recall/rare": 0.2 + gain}
            rows.append({"method": method, "teacher": case[0], "student": case[1], "metrics": metrics})
        seeds.append({"rarest": "rare", "rows": rows})
    return {"primary_metric": "accuracy", "seeds": seeds}


def test_oversampling_compares_the_cases():
    found = means(Oversampling, sampled(DOWN, UP, UP, DOWN))
    assert (found["tgeo over kd, neither"], found["tgeo over kd, both"]) == (-0.31, 0.31)
    assert (found["teacher alone, kd"], found["student alone, kd"]) == (0.31, -0.31)
    assert (found["rarest class, kd"], found["rarest class, tgeo"]) == (0.0, 0.62)


def test_oversampling_does_without_recall():
    data = sampled(UP, UP, UP, UP)
    for seed in data["seeds"]:
        for row in seed["rows"]:
            del row["metrics"]["recall/rare"]
    assert means(Oversampling, data)["rarest class, tgeo"] is None


def test_oversampling_explains_a_gain_that_is_clear_only_with_it():
    up, either, one = difference(UP), difference(EITHER), difference(UP[:1])
    four = {explanation(up, either), explanation(either, up), explanation(either, either), explanation(one, one)}
    assert len(four) == 4
    assert explanation(up, up) == explanation(up, either)
    assert explanation(None, up) == explanation(one, one)
