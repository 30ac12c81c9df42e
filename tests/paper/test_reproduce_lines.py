"""The sentences of the analyses: made-up findings with opposite effects must give opposite sentences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tgeokd.core.ratio_statistics import GROUPS
from tgeokd.paper import ablation, alpha_over_epochs, cost, fig1, fig3, fig4, fig5, oversampling
from tgeokd.paper.wording import difference, gained, interval, mean, verdict
from tgeokd.runs.statistics import PairedTest

UNSURE = "not seen: the interval covers zero"
UP, DOWN, EITHER = (0.30, 0.32, 0.31), (-0.30, -0.32, -0.31), (0.30, -0.30, 0.01)


# ---- words for one difference


def test_an_interval_is_written_with_its_ends():
    # t quantile 4.303 for n = 3, deviation 0.01, so +- 0.0248
    assert interval(difference(UP)) == "+0.31 (95 % interval +0.29 to +0.33)"
    assert gained(difference(UP), "accuracy") == "+31.00 points (95 % interval +28.52 to +33.48)"
    assert gained(difference([0.1]), "nll") == "+0.1000 (one seed, no interval)"
    assert interval(difference([0.5, 0.5])) == "+0.50 (the same in all 2 seeds, no interval)"
    assert interval(difference([None, None])) == "nothing to compare"


def test_missing_seeds_are_left_out():
    assert difference([None, 1.0, 2.0]) == difference([1.0, 2.0])
    assert mean([None, 1.0, 2.0]) == 1.5
    assert mean([None]) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (UP, "above"),
        (DOWN, "below"),
        (EITHER, UNSURE),
        ((0.3,), "not to be judged without an interval"),
        ((0.3, 0.3), "not to be judged without an interval"),
        ((0.0, 0.0), "no difference in any seed"),
        ((), "nothing to say"),
    ],
)
def test_a_verdict_follows_the_interval(values, said):
    assert verdict(difference(values), "above", "below") == said


def test_an_interval_that_ends_at_zero_covers_it():
    assert verdict(PairedTest(0.1, 0.0, 0.2, 0.05, 3), "above", "below") == UNSURE


# ---- fig1


def fixed_alpha(right, wrong):
    """Seeds in which accuracy changes by so much from alpha 0.1 to 0.9: 500 samples with a right teacher, 100 with a wrong."""

    def correct(start, change, n):
        return [[round(n * (start + change * step))] * 5 for step in (0, 0.25, 0.5, 0.75, 1)]

    seeds = []
    for r, w in zip(right, wrong, strict=True):
        rows = zip(correct(0.5, r, 100), correct(0.5, w, 20), strict=True)
        seeds.append({"count": [[100] * 5, [20] * 5], "correct": [list(row) for row in rows]})
    return {"alphas": list(fig1.ALPHAS), "seeds": seeds}


def test_fig1_says_which_alpha_suits_which_samples():
    expected, opposite, neither = (
        fig1.lines(fixed_alpha(*effects)) for effects in ((UP, DOWN), (DOWN, UP), (EITHER, EITHER[1:] + EITHER[:1]))
    )
    assert "where the teacher is right (n = 1500) 0.9, 0.9, 0.9, 0.9, 0.9" in expected[0]
    assert "where the teacher is wrong (n = 300) 0.1, 0.1, 0.1, 0.1, 0.1" in expected[0]
    assert "where the teacher is right (n = 1500) 0.1, 0.1, 0.1, 0.1, 0.1" in opposite[0]
    assert "+31.00 points" in expected[1]
    assert expected[1].endswith("a larger alpha suits samples with a right teacher better.")
    assert opposite[1].endswith("with a wrong teacher better, the opposite of what is expected.")
    assert neither[1].endswith(f"{UNSURE}.")
    assert all(len(lines) == 3 for lines in (expected, opposite, neither))


def test_fig1_judges_an_alpha_by_group_on_seeds_it_was_not_chosen_on():
    # chosen on the other seeds, right takes 0.9 and wrong 0.1; one for all takes 0.9, which costs 0.3 of the wrong 100 of 600
    data = fixed_alpha(UP, DOWN)
    values = [fig1._chosen_by_group(data["seeds"], i) for i in range(3)]
    assert values == pytest.approx([30 / 600, 30 / 600, 30 / 600], abs=3 / 600)
    # the best of one seed is not the best of the other: choosing by group can only lose there
    data = fixed_alpha((0.3, -0.3), (-0.3, 0.3))
    assert all(fig1._chosen_by_group(data["seeds"], i) < 0 for i in range(2))
    assert "takes two seeds" in fig1.lines(fixed_alpha(UP[:1], DOWN[:1]))[2]


def test_fig1_leaves_out_groups_without_a_sample():
    data = fixed_alpha(UP, DOWN)
    for seed in data["seeds"]:
        seed["count"][1] = [0] * 5
        for alpha in seed["correct"]:
            alpha[1] = [0] * 5
    lines = fig1.lines(data)
    assert "where the teacher is wrong (n = 0) -, -, -, -, -" in lines[0]
    assert "difference nothing to compare: nothing to say" in lines[1]


# ---- alpha by group: fig3, alpha-over-epochs


def groups(right, wrong, agree=0.0):
    """Group means; ``agree`` is what agreeing adds to them. 60, 20, 10 and 10 samples."""
    means = (right + agree, right, wrong + agree, wrong)
    return {
        name: {"mean": m, "count": n, "histogram": [n] + [0] * 9}
        for name, m, n in zip(GROUPS, means, (60, 20, 10, 10), strict=True)
    }


def runs_of(values):
    """Runs of a comparison: accuracy by row, one a seed."""
    runs = [
        {"method": label, "seed": seed, "metrics": {"accuracy": value}, "seconds": 1.0, "peak_memory_mb": 1.0}
        for label, row in values.items()
        for seed, value in enumerate(row)
    ]
    return {"primary_metric": "accuracy", "runs": runs}


def edges(with_, without, gain):
    labels = [fig3.ROWS[edge].label for edge in ("with", "without")]
    seeds = {
        edge: [groups(0.5, 0.5 + gap, agree=gap) for gap in gaps]
        for edge, gaps in (("with", with_), ("without", without))
    }
    return {"alpha": seeds, **runs_of({labels[0]: [0.5 + g for g in gain], labels[1]: [0.5] * 3})}


def test_fig3_says_what_the_edge_changes():
    near = (0.1, 0.11, 0.1)
    wider, closer = fig3.lines(edges(UP, near, UP)), fig3.lines(edges(near, UP, DOWN))
    assert "the edge sets them further apart" in wider[0]
    assert "the edge brings them closer together" in closer[0]
    assert wider[1].count("the edge sets them further apart") == 2
    assert wider[2].endswith("the edge helps.")
    assert closer[2].endswith("the edge hurts.")
    assert "+31.00 points" in wider[2]
    assert UNSURE in fig3.lines(edges(UP, UP[1:] + UP[:1], EITHER))[2]


def test_fig3_does_without_empty_groups():
    data = edges(UP, UP, UP)
    for seed in itertools.chain(*data["alpha"].values()):
        for name in (GROUPS[1], GROUPS[3]):
            seed[name] = {"mean": None, "count": 0, "histogram": [0] * 10}
    assert fig3.lines(data)[1].count("nothing to compare without the edge S-T, a group being empty") == 2


def test_group_means_are_weighted_by_their_samples():
    from tgeokd.paper.rows import group_gap, group_mean

    found = groups(0.2, 0.8, agree=0.1)
    assert group_mean(found, GROUPS[:2]) == pytest.approx((60 * 0.3 + 20 * 0.2) / 80)
    assert group_gap(found, GROUPS[:2], GROUPS[2:]) == pytest.approx((60 * 0.3 + 20 * 0.2) / 80 - (0.9 + 0.8) / 2)


def test_alpha_over_epochs_says_where_it_goes():
    def lines(moves, gaps, agree):
        seeds = []
        for move, gap, a in zip(moves, gaps, agree, strict=True):
            seeds.append(
                [{"all": 0.5, "groups": groups(0.5, 0.5)}, {"all": 0.5 + move, "groups": groups(0.5, 0.5 - gap, a)}]
            )
        return alpha_over_epochs.lines({"seeds": seeds})

    up, down, either = lines(UP, UP, UP), lines(DOWN, DOWN, DOWN), lines(EITHER, EITHER, EITHER)
    assert "from 0.50 in the first epoch to 0.81 in the last" in up[0]
    assert up[0].endswith("leans more on the teacher at the end.")
    assert down[0].endswith("leans more on the label at the end.")
    assert up[1].endswith("higher where teacher and label agree.")
    assert down[1].endswith("higher where they do not.")
    assert up[2].endswith("higher where student and teacher agree.")
    assert down[2].endswith("higher where they do not.")
    assert [UNSURE in line for line in either] == [True, True, True]


# ---- fig4, fig5


def outliers(gaps):
    def group(gap, against):
        return {"n": 9, "mean": 0.5 + gap, "mean_against": 0.5, "auroc_low": 0.5 - gap, "against": against}

    return {
        "seeds": [
            {
                "normal": {"n": 9, "mean": 0.5},
                "Gaussian noise": group(gap, "normal"),
                "wrong label, symmetric": group(-gap, "normal"),
                "wrong label, human": group(gap, "normal"),
                "test group, unseen attack": group(gap, "other test samples"),
            }
            for gap in gaps
        ]
    }


def test_fig4_says_on_which_side_each_kind_of_outlier_lies():
    high, low, either = (fig4.lines(outliers(gaps)) for gaps in (UP, DOWN, EITHER))
    assert "mean alpha 0.81 against 0.50 (normal)" in high[0]
    assert "higher on these; AUROC of a low alpha 0.19" in high[0]
    assert "lower on these; AUROC of a low alpha 0.81" in low[0]
    assert high[1].index("symmetric") < high[1].index("lower on these") < high[1].index("human")
    assert low[1].index("higher on these") < low[1].index("human") < low[1].index("lower on these")
    assert "(other test samples)" in high[2]
    assert UNSURE in either[0]


def test_fig4_says_what_a_task_has_not():
    data = {"seeds": [{"normal": {"n": 9, "mean": 0.5}}] * 2}
    assert all(line.endswith("the task has none.") for line in fig4.lines(data))


def curves(kd, tgeo, without=()):
    def of(gap):
        found = {}
        for normal, outlier in fig5.PAIRS.values():
            found |= {normal: [0.9, 0.4], outlier: [0.2, 0.4 + gap]}
        return {name: curve for name, curve in found.items() if name not in without}

    return {"seeds": [{"kd": of(a), "tgeo": of(b)} for a, b in zip(kd, tgeo, strict=True)]}


def test_fig5_compares_the_last_epoch():
    more, less, either = (fig5.lines(curves(*pair)) for pair in (((0.0, 0.01, 0.0), UP), (UP, DOWN), (EITHER, EITHER)))
    assert "tgeo 0.71 against 0.40" in more[0]
    assert more[1].endswith("farther from the teacher on the outliers.")
    assert less[1].endswith("nearer to the teacher on the outliers.")
    assert more[2].count("tgeo tells outliers apart more than kd") == 2
    assert less[2].count("tgeo tells outliers apart less than kd") == 2
    assert UNSURE in either[1]


def test_fig5_does_without_corrupted_labels():
    lines = fig5.lines(curves(UP, UP, without=[fig5.PAIRS["train"][1]]))
    assert "kd none against 0.40, difference nothing to compare" in lines[0]


# ---- ablation, cost, oversampling


def ablated(step, features):
    """What adding ST, and adding inter-sample, brings; and what leaving features out costs."""
    order = ("kd", "SG + TG", "SG + TG + ST", ablation.FULL)
    rows = {ablation.ROWS[n].label: [0.5 + k * s for s in step] for k, n in enumerate(order)}
    full = rows[ablation.ROWS[ablation.FULL].label]
    others = (entry.label for name, entry in ablation.ROWS.items() if name not in order)
    rows |= {label: [f - c for f, c in zip(full, features, strict=True)] for label in others}
    return runs_of(rows)


def test_ablation_says_of_each_step_whether_it_helps():
    up, down, either = (
        ablation.lines(ablated(s, s)) for s in ((0.03, 0.032, 0.031), (-0.03, -0.032, -0.031), (0.03, -0.03, 0.001))
    )
    assert "kd 50.00, SG + TG 53.10, SG + TG + ST 56.20" in up[0]
    assert "adding ST +3.10 points" in up[0]
    assert (up[0].count("better"), up[0].count("worse")) == (3, 0)
    assert (down[0].count("better"), down[0].count("worse")) == (0, 3)
    assert (up[1].count("better"), up[1].count("worse")) == (0, 4)
    assert (down[1].count("better"), down[1].count("worse")) == (4, 0)
    assert either[0].count(UNSURE) == 3
    assert up[2].endswith("better.")
    assert down[2].endswith("worse.")


def test_ablation_rows_are_different_rows():
    assert len({entry.label for entry in ablation.ROWS.values()}) == len(ablation.ROWS)


def test_cost_is_relative_to_kd_of_the_same_seed():
    base = {entry.label: [0.5, 0.5, 0.5] for entry in cost.ROWS.values()}
    base[cost.ROWS["tgeo, last layer"].label] = [0.5 - u for u in UP]
    data = {"rows": {n: e.label for n, e in cost.ROWS.items()}, "processes": 1, **runs_of(base)}
    for run in data["runs"]:
        run["seconds"] = (1 + run["seed"]) * (3.0 if run["method"].startswith("tgeo") else 1.0)
        run["peak_memory_mb"] = 100.0 + 50.0 * (run["method"] == "rw") * (1 + run["seed"])
    data["ratios"] = {n: {key: cost.ratios(data, n, key) for key in ("seconds", "peak_memory_mb")} for n in cost.ROWS}
    assert data["ratios"]["tgeo"]["seconds"] == [3.0, 3.0, 3.0]
    assert data["ratios"]["rw"]["peak_memory_mb"] == [1.5, 2.0, 2.5]
    time, memory, accuracy = cost.lines(data)
    assert "one run at a time" in time
    assert "tgeo 3.00 x" in time
    assert "rw 2.00 x (95 % interval 0.76 to 3.24)" in memory  # 2 +- 4.303 * 0.5 / sqrt(3)
    assert "tgeo, last layer -31.00 points" in accuracy
    assert "worse" in accuracy
    assert "tgeo, forward +0.00 points (the same in all 3 seeds, no interval), no difference in any seed" in accuracy
    assert "which disturb each other's times" in cost.lines(data | {"processes": 2})[0]


def sampled(plain_gain, over_gain, teacher, student):
    """Gains of tgeo over kd without and with oversampling; what oversampling the teacher or the student alone changes."""
    seeds = []
    for p, o, t, s in zip(plain_gain, over_gain, teacher, student, strict=True):
        value = {("plain", "plain"): 0.0, ("oversampled", "plain"): t, ("plain", "oversampled"): s}
        rows = []
        for case in itertools.product(("plain", "oversampled"), repeat=2):
            for method in ("kd", "tgeo"):
                gain = {("plain", "plain"): p, ("oversampled", "oversampled"): o}.get(case, 0.0) * (method == "tgeo")
                metrics = {"accuracy": 0.5 + value.get(case, 0.0) + gain, "recall/rare": 0.2 + gain}
                rows.append({"method": method, "teacher": case[0], "student": case[1], "metrics": metrics})
        seeds.append({"rarest": "rare", "rows": rows})
    return {"primary_metric": "accuracy", "seeds": seeds}


@pytest.mark.parametrize(
    ("plain", "over", "said"),
    [
        (UP, EITHER, "so oversampling does not explain it"),
        (EITHER, UP, "a clear gain only with oversampling"),
        (DOWN, EITHER, "nothing to explain"),
        (UP[:1], UP[:1], "not to be judged without intervals"),
    ],
)
def test_oversampling_says_whether_it_explains_the_gain(plain, over, said):
    n = len(plain)
    assert said in oversampling.lines(sampled(plain, over, UP[:n], UP[:n]))[0]


def test_oversampling_says_what_teacher_and_student_do_each():
    lines = oversampling.lines(sampled(EITHER, EITHER, UP, DOWN))
    teacher, student = lines[1].split("oversampling the student alone")
    assert "kd by +31.00 points" in teacher
    assert "better" in teacher
    assert "worse" not in teacher
    assert "kd by -31.00 points" in student
    assert "worse" in student
    rare = oversampling.lines(sampled(DOWN, UP, UP, UP))[2]
    assert "class (rare)" in rare
    assert "tgeo -11.00 to 51.00 %, +62.00 points" in rare  # made up, as all of this
    assert rare.endswith("higher.")


def test_oversampling_without_recall_has_nothing_to_compare():
    data = sampled(UP, UP, UP, UP)
    for seed in data["seeds"]:
        for row in seed["rows"]:
            del row["metrics"]["recall/rare"]
    assert "kd - to - %, nothing to compare" in oversampling.lines(data)[2]


def test_accuracies_pool_the_seeds():
    seeds = fixed_alpha(UP, DOWN)["seeds"]
    table = fig1.accuracies(seeds)
    assert table.shape == (5, 2, 5)
    assert table[4, 0] == pytest.approx(np.full(5, 0.81))
