"""Statistics of the fusion ratios against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.core.ratio_statistics import GROUPS, RatioStatistics, agreement

CPU = torch.device("cpu")


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def loop(alpha, student, teacher, target):
    found = {name: {"count": 0, "sum": 0.0, "histogram": [0] * 10} for name in GROUPS}
    for a, zs, zt, y in zip(alpha, student, teacher, target, strict=True):
        right = "right" if int(np.argmax(zt)) == y else "wrong"
        agree = "agree" if np.minimum(softmax(zs), softmax(zt)).sum() >= 0.5 else "disagree"
        entry = found[f"teacher_{right}_{agree}"]
        entry["count"] += 1
        entry["sum"] += float(a)
        entry["histogram"][min(int(a * 10), 9)] += 1
    return found


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 5), st.integers(1, 4))
def test_statistics_equal_a_plain_loop_however_the_samples_are_cut(seed, n, c, pieces):
    rng = np.random.default_rng(seed)
    alpha = rng.random(n)
    student, teacher = 2 * rng.normal(size=(n, c)), 2 * rng.normal(size=(n, c))
    target = rng.integers(0, c, n)
    statistics = RatioStatistics(CPU)
    for rows in np.array_split(np.arange(n), pieces):
        statistics.add(*(torch.from_numpy(array[rows]) for array in (alpha, student, teacher, target)))
    summary = statistics.summary()
    for name, expected in loop(alpha, student, teacher, target).items():
        assert summary[name]["count"] == expected["count"]
        assert summary[name]["histogram"] == expected["histogram"]
        if expected["count"]:
            assert summary[name]["mean"] == pytest.approx(expected["sum"] / expected["count"])
        else:
            assert summary[name]["mean"] is None
    assert statistics.mean() == pytest.approx(alpha.mean())
    assert sum(sum(entry["histogram"]) for entry in summary.values()) == n


def test_the_four_groups_by_hand():
    teacher = torch.tensor([[5.0, 0.0], [5.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    student = torch.tensor([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0], [0.0, 5.0]])
    target = torch.tensor([0, 0, 1, 1])
    statistics = RatioStatistics(CPU)
    statistics.add(torch.tensor([0.05, 0.25, 0.45, 0.95]), student, teacher, target)
    summary = statistics.summary()
    assert list(summary) == [
        "teacher_right_agree",
        "teacher_right_disagree",
        "teacher_wrong_agree",
        "teacher_wrong_disagree",
    ]
    for name, bin_, mean in zip(summary, (0, 2, 4, 9), (0.05, 0.25, 0.45, 0.95), strict=True):
        assert summary[name]["histogram"] == [int(k == bin_) for k in range(10)]
        assert summary[name]["mean"] == pytest.approx(mean)


def test_the_ends_of_the_unit_interval_are_in_the_outer_bins():
    statistics = RatioStatistics(CPU)
    logits = torch.tensor([[1.0, 0.0]] * 3)
    statistics.add(torch.tensor([0.0, 1.0, 1.0]), logits, logits, torch.tensor([0, 0, 0]))
    assert statistics.summary()["teacher_right_agree"]["histogram"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]


def test_an_overlap_of_exactly_one_half_is_agreement():
    # (1, 0, 0) in float32 against (1/2, 1/2, 0) overlaps by exactly 1/2
    sure, torn = torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([[200.0, 200.0, 0.0]])
    assert agreement(sure.softmax(-1), torn.softmax(-1)).item() == 0.5
    statistics = RatioStatistics(CPU)
    statistics.add(torch.tensor([0.5]), sure, torn, torch.tensor([0]))
    assert statistics.summary()["teacher_right_agree"]["count"] == 1


def test_without_samples_there_are_no_statistics():
    assert RatioStatistics(CPU).summary() is None
    assert RatioStatistics(CPU).mean() is None


def test_no_graph_is_kept():
    statistics = RatioStatistics(CPU)
    alpha, logits = torch.tensor([0.5], requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    statistics.add(alpha, logits, logits, torch.tensor([0]))
    assert not any(value.requires_grad for value in statistics.state_dict().values())


def test_agreement_by_hand():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    q = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.3, 0.2]])
    assert agreement(p, q).tolist() == pytest.approx([1.0, 0.0, 0.7])


def some(seed, n):
    generator = torch.Generator().manual_seed(seed)
    logits = [2 * torch.randn(n, 3, generator=generator) for _ in range(2)]
    return torch.rand(n, generator=generator), *logits, torch.randint(3, (n,), generator=generator)


def test_state_dict_restores_what_was_gathered():
    whole, first, second = (RatioStatistics(CPU) for _ in range(3))
    for statistics in (whole, first):
        statistics.add(*some(0, 7))
    second.load_state_dict(first.state_dict())
    for statistics in (whole, second):
        statistics.add(*some(1, 5))
    assert second.summary() == whole.summary()
    assert first.summary() != whole.summary()


def test_reduce_sums_over_processes():
    whole, here, there = (RatioStatistics(CPU) for _ in range(3))
    for seed, statistics in ((0, here), (1, there)):
        for each in (statistics, whole):
            each.add(*some(seed, 6))
    elsewhere = []
    there.reduce(lambda values: elsewhere.append(values) or values)
    here.reduce(lambda values: values + elsewhere.pop(0))
    assert here.summary() == whole.summary()
    assert here.mean() == pytest.approx(whole.mean())
