"""The scalar encoding against a sample by sample transcription in double precision, and the coarsened geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.core.geometry import scalar as scalar_geometry
from tgeokd.core.geometry import trilateral
from tgeokd.core.geometry.class_means import ClassMeans
from tgeokd.core.geometry.scalar import GeometryFeatures, SparseClassMeans, scalar_from_logits
from tgeokd.utils.errors import InputError


def literal(S, T, y, M):
    """The 16 numbers of one sample, from the docstring of `trilateral`."""
    G = np.zeros_like(S)
    G[y] = 1.0

    def length(a):
        return math.sqrt(math.fsum(a * a))

    def cosine(a, b):
        return 0.0 if length(a) == 0 or length(b) == 0 else math.fsum(a * b) / (length(a) * length(b))

    def share(p):
        return -math.fsum(v * math.log(v) for v in p if v > 0) / math.log(len(p))

    return [
        S[y], T[y], M[y], share(S), share(T),
        length(T - G), length(S - G), length(S - T), length(M - S), length(M - G),
        cosine(T - S, G - S), cosine(S - T, G - T), cosine(S - G, T - G),
        cosine(M - S, G - S), cosine(S - M, G - M), cosine(S - G, M - G),
    ]  # fmt: skip


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def case(seed, n, c, sharpness, nearness):
    """Logits and means; `nearness` below 1 moves the student that close to the teacher, above 1 both close to the label."""
    rng = np.random.default_rng(seed)
    student, teacher = sharpness * rng.normal(size=(n, c)), sharpness * rng.normal(size=(n, c))
    target, means = rng.integers(0, c, n), softmax(rng.normal(size=(c, c)))
    if nearness < 1:
        student = teacher + nearness * student
    elif nearness > 1:
        student[np.arange(n), target] += nearness
        teacher[np.arange(n), target] += nearness
    return student, teacher, target, means


CASES = st.tuples(
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.integers(2, 40),
    st.sampled_from([0.1, 1.0, 5.0]),
    st.sampled_from([1e-4, 1e-2, 1.0, 5.0, 9.0]),
)


@given(CASES)
def test_from_logits_in_double_precision_it_is_the_literal_encoding(given_case):
    student, teacher, target, means = case(*given_case)
    found = scalar_from_logits(*map(torch.from_numpy, (student, teacher, target, means)), GeometryFeatures()).numpy()
    rows = zip(softmax(student), softmax(teacher), target, strict=True)
    truth = np.array([literal(S, T, y, means[y]) for S, T, y in rows])
    # A cosine between S and T is one of a difference: rounding of the points is that much larger in it.
    noise = 1e-15 / np.minimum(truth[:, 5:10].min(axis=1, keepdims=True), 1.0)
    assert (np.abs(found - truth) <= 1e-12 + 10 * noise).all()


@given(CASES)
def test_in_single_precision_it_is_as_exact_as_the_points_allow(given_case):
    student, teacher, target, means = case(*given_case)
    single = [torch.from_numpy(a).float() if a.dtype.kind == "f" else torch.from_numpy(a) for a in (student, teacher)]
    table = torch.from_numpy(means).float()
    found = scalar_from_logits(*single, torch.from_numpy(target), table, GeometryFeatures()).numpy()
    # the truth of the very logits that were given, rounded as they are
    points = (softmax(z.double().numpy()) for z in single)
    rows = zip(*points, target, strict=True)
    truth = np.array([literal(S, T, y, table.double().numpy()[y]) for S, T, y in rows])
    noise = 2e-7 / np.minimum(truth[:, 5:10].min(axis=1, keepdims=True), 1.0)
    assert (np.abs(found - truth) <= 1e-5 + 10 * noise).all()


@pytest.mark.parametrize(
    "features", [GeometryFeatures(), GeometryFeatures(angles=False), GeometryFeatures(inter_sample=False, edges=False)]
)
@pytest.mark.parametrize("c", [2, 15, 16, 100])
def test_from_logits_and_from_probabilities_are_the_same(c, features):
    student, teacher, target, means = map(torch.from_numpy, case(0, 9, c, 2.0, 1.0))
    table = means if features.inter_sample else None
    found = scalar_from_logits(student, teacher, target, table, features)
    probs = (student.softmax(-1), teacher.softmax(-1), target, means)
    expected = trilateral(*probs, encoding="scalar", **features._asdict())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_edges_too_short_for_their_squares_have_no_direction():
    # S - T is 1e-30: its square is no float32 number
    S = torch.tensor([[0.5, 0.5, 1e-30, 0.0]])
    T = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    found = trilateral(S, T, torch.tensor([0]), torch.full((4, 4), 0.25), encoding="scalar")[0]
    assert found[7] == 0
    torch.testing.assert_close(found[10:12], torch.zeros(2), rtol=0, atol=1e-6)
    assert found[12] == pytest.approx(1.0)


# ---- the coarsened geometry


def sparse(seed, c, kept, n=200, dtype=torch.float64):
    """Class means with few entries, and the full table that has these and the rest spread evenly."""
    generator = torch.Generator().manual_seed(seed)
    means = ClassMeans(c, kept)
    means.update((2 * torch.randn(n, c, generator=generator, dtype=dtype)).softmax(-1), torch.arange(n) % c)
    return means.compute()


def batch(seed, n, c):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(c, (n,), generator=generator)


@given(st.integers(0, 2**31), st.integers(3, 40))
def test_where_only_one_class_is_left_over_it_is_the_full_encoding(seed, c):
    student, teacher, target = batch(seed, 5, c)
    table = sparse(seed, c, c - 2)
    spread = table.to_dense()
    spread[spread == 0] = 1 - spread.sum(dim=-1)  # each row lacks one entry, which must be the rest
    found = scalar_from_logits(student, teacher, target, SparseClassMeans.of(table), GeometryFeatures())
    truth = scalar_from_logits(student, teacher, target, spread, GeometryFeatures())
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


def spread_evenly(points, ids):
    """Points with what lies outside the classes of their row spread evenly over those outside, shape (N, C)."""
    inside = torch.zeros_like(points, dtype=torch.bool).scatter_(-1, ids, True)
    outside = (points * ~inside).sum(dim=-1, keepdim=True) / (~inside).sum(dim=-1, keepdim=True)
    return torch.where(inside, points, outside)


@given(st.integers(0, 2**31), st.integers(6, 40), st.integers(1, 4))
def test_it_is_the_full_encoding_of_points_spread_evenly_and_no_edge_grows(seed, c, kept):
    student, teacher, target = batch(seed, 5, c)
    table = sparse(seed, c, kept)
    few = SparseClassMeans.of(table)
    found = scalar_from_logits(student, teacher, target, few, GeometryFeatures())
    ids, _ = few.look_up(torch.arange(c))
    assert torch.equal(ids[:, 0], torch.arange(c))
    S, T = student.softmax(-1), teacher.softmax(-1)
    rest = (1 - table.to_dense().sum(dim=-1, keepdim=True)) / (c - kept - 1)
    means = torch.where(table.to_dense() > 0, table.to_dense(), rest)
    even = (spread_evenly(S, ids[target]), spread_evenly(T, ids[target]), target, means)
    torch.testing.assert_close(found, trilateral(*even, encoding="scalar"), rtol=1e-8, atol=1e-9)

    # and beside the points as they are, class means included
    generator = torch.Generator().manual_seed(seed)
    true_means = (2 * torch.randn(200, c, generator=generator, dtype=torch.float64)).softmax(-1)
    true_means = torch.stack([true_means[k::c].mean(dim=0) for k in range(c)])
    fine = trilateral(S, T, target, true_means, encoding="scalar")
    exact = 2 * kept >= c - 1  # nothing was dropped while the means were gathered
    edges = slice(5, 10 if exact else 8)
    assert (found[:, edges] <= fine[:, edges] + 1e-12).all()
    torch.testing.assert_close(found[:, :3], fine[:, :3])  # what each gives the label


@given(st.integers(0, 2**31))
def test_the_order_of_the_other_classes_does_not_matter(seed):
    c = 30
    student, teacher, target = batch(seed, 5, c)
    table = sparse(seed, c, 4)
    order = torch.randperm(c, generator=torch.Generator().manual_seed(seed + 1))
    renamed = order.argsort()
    dense = table.to_dense()[order][:, order].to_sparse()
    found = scalar_from_logits(
        student[:, order], teacher[:, order], renamed[target], SparseClassMeans.of(dense), GeometryFeatures()
    )
    torch.testing.assert_close(
        found,
        scalar_from_logits(student, teacher, target, SparseClassMeans.of(table), GeometryFeatures()),
        rtol=1e-9,
        atol=1e-9,
    )


def test_trilateral_takes_the_sparse_table_as_it_is():
    student, teacher, target = batch(0, 7, 40)
    table = sparse(0, 40, 5)
    found = trilateral(student.softmax(-1), teacher.softmax(-1), target, table, encoding="scalar")
    torch.testing.assert_close(
        found, scalar_from_logits(student, teacher, target, SparseClassMeans.of(table), GeometryFeatures())
    )
    with pytest.raises(InputError, match="encoding='scalar'"):
        trilateral(student.softmax(-1), teacher.softmax(-1), target, table)


def test_without_class_means_very_many_classes_are_seen_on_the_teachers_largest(monkeypatch):
    monkeypatch.setattr(scalar_geometry, "DENSE_CLASSES", 20)
    monkeypatch.setattr(scalar_geometry, "KEPT", 3)
    student, teacher, target = batch(0, 6, 25)
    found = scalar_from_logits(student, teacher, target, None, GeometryFeatures(inter_sample=False))
    for i, y in enumerate(target.tolist()):
        T, S = teacher[i].softmax(-1), student[i].softmax(-1)
        others = [k for k in T.argsort(descending=True).tolist() if k != y][:3]
        ids = torch.tensor([y, *others])
        S, T = (spread_evenly(p.unsqueeze(0), ids.unsqueeze(0))[0].numpy() for p in (S, T))
        truth = literal(S, T, y, T)
        kept = [truth[k] for k in (0, 1, 3, 4, 5, 6, 7, 10, 11, 12)]
        np.testing.assert_allclose(found[i].numpy(), kept, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "entries",
    [
        [(0, 0), (0, 1), (1, 1)],  # unequal rows
        [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (2, 2)],  # row 1 lacks itself
        [(0, 0), (0, 1), (1, 1)] * 2,
    ],
)
def test_another_sparse_table_is_refused(entries):
    rows, columns = zip(*entries, strict=True)
    table = torch.sparse_coo_tensor(
        [list(rows), list(columns)], torch.full((len(rows),), 0.3), (3, 3), check_invariants=True
    )
    with pytest.raises(InputError, match="class_means"):
        SparseClassMeans.of(table)


def test_class_means_are_not_read_without_the_triangle_across_samples():
    torch.manual_seed(0)
    S, T, y = torch.randn(6, 5), torch.randn(6, 5), torch.randint(5, (6,))
    features = GeometryFeatures(inter_sample=False)
    given = scalar_from_logits(S, T, y, torch.rand(5, 5).softmax(1), features)
    expected = trilateral(S.softmax(1), T.softmax(1), y, torch.empty(0), encoding="scalar", inter_sample=False)
    torch.testing.assert_close(given, expected)
