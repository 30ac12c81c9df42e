"""Trilateral geometry against a plain numpy version of the docstring, and the laws of geometry."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.core.geometry import num_features, trilateral
from tgeokd.utils.errors import InputError

SWITCHES = ("vertices", "edges", "angles", "student_teacher_edge", "inter_sample")
EDGES = {"T-G": ("T", "G"), "S-G": ("S", "G"), "S-T": ("S", "T"), "M-S": ("M", "S"), "M-G": ("M", "G")}
ANGLES = {  # vertex and the far ends of its two edges
    "S(T,G)": ("S", "T", "G"),
    "T(S,G)": ("T", "S", "G"),
    "G(S,T)": ("G", "S", "T"),
    "S(M,G)": ("S", "M", "G"),
    "M(S,G)": ("M", "S", "G"),
    "G(S,M)": ("G", "S", "M"),
}
OF_INTER = {"M", "M_y", "M-S", "M-G", "S(M,G)", "M(S,G)", "G(S,M)"}
OF_S_T = {"S-T", "S(T,G)", "T(S,G)", "G(S,T)"}


def simplex(rng, *shape, sharpness=1.0):
    logits = sharpness * rng.normal(size=shape)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sample(seed=0, n=6, c=4, sharpness=1.0):
    rng = np.random.default_rng(seed)
    return (
        simplex(rng, n, c, sharpness=sharpness),
        simplex(rng, n, c, sharpness=sharpness),
        rng.integers(0, c, n),
        simplex(rng, c, c),
    )


def encode(S, T, target, means, **switches):
    tensors = (torch.from_numpy(S), torch.from_numpy(T), torch.from_numpy(target), torch.from_numpy(means))
    return trilateral(*tensors, **switches).numpy()


def named_columns(S, T, target, means, encoding):
    """Every column there can be, as (name, array of shape (N, ...)), sample by sample in plain numpy."""
    vertices: dict[str, list] = {}
    edges: dict[str, list] = {}
    angles: dict[str, list] = {}
    n, c = S.shape
    for i in range(n):
        y = target[i]
        point = {"S": S[i], "T": T[i], "G": np.eye(c)[y], "M": means[y]}
        if encoding == "vector":
            found = {name: point[name] for name in "STGM"}
        else:
            found = {f"{name}_y": point[name][y : y + 1] for name in "STM"}
            for name in "ST":
                p = point[name][point[name] > 0]
                found[f"H({name})"] = np.array([-(p * np.log(p)).sum() / np.log(c)])
        for name, value in found.items():
            vertices.setdefault(name, []).append(value)
        for name, (a, b) in EDGES.items():
            edge = point[a] - point[b]
            value = edge**2 if encoding == "vector" else np.array([np.sqrt((edge**2).sum())])
            edges.setdefault(name, []).append(value)
        for name, (at, a, b) in ANGLES.items():
            u, v = point[a] - point[at], point[b] - point[at]
            value = u * v if encoding == "vector" else np.array([u @ v / (np.linalg.norm(u) * np.linalg.norm(v))])
            angles.setdefault(name, []).append(value)
    return [{name: np.array(rows) for name, rows in group.items()} for group in (vertices, edges, angles)]


def expected(S, T, target, means, *, encoding, vertices, edges, angles, student_teacher_edge, inter_sample):
    groups = named_columns(S, T, target, means, encoding)
    gone = (set() if student_teacher_edge else OF_S_T) | (set() if inter_sample else OF_INTER)
    kept = [
        column
        for group, on in zip(groups, (vertices, edges, angles), strict=True)
        if on
        for name, column in group.items()
        if name not in gone
    ]
    return np.concatenate(kept, axis=1) if kept else None


# ---- the encodings


@pytest.mark.parametrize("encoding", ["vector", "scalar"])
@pytest.mark.parametrize("on", list(itertools.product([True, False], repeat=len(SWITCHES))))
def test_every_combination_of_switches_leaves_exactly_its_columns(encoding, on):
    switches = dict(zip(SWITCHES, on, strict=True), encoding=encoding)
    data = sample()
    truth = expected(*data, **switches)
    if truth is None or truth.shape[1] == 0:
        with pytest.raises(InputError, match="vertices, edges and angles"):
            encode(*data, **switches)
        return
    found = encode(*data, **switches)
    np.testing.assert_allclose(found, truth, rtol=1e-10, atol=1e-12)
    assert num_features(4, **switches) == truth.shape[1]


@pytest.mark.parametrize(
    ("switches", "count"),
    [
        ({}, 9 * 7),
        ({"vertices": False}, 5 * 7),
        ({"edges": False}, 4 * 7),
        ({"student_teacher_edge": False}, 8 * 7),
        ({"inter_sample": False}, 6 * 7),
        ({"angles": True}, 15 * 7),
        ({"angles": True, "student_teacher_edge": False}, (8 + 3) * 7),
        ({"angles": True, "inter_sample": False}, (6 + 3) * 7),
        ({"encoding": "scalar"}, 16),
        ({"encoding": "scalar", "vertices": False}, 11),
        ({"encoding": "scalar", "edges": False}, 11),
        ({"encoding": "scalar", "angles": False}, 10),
        ({"encoding": "scalar", "student_teacher_edge": False}, 12),
        ({"encoding": "scalar", "inter_sample": False}, 10),
        ({"encoding": "scalar", "student_teacher_edge": False, "inter_sample": False}, 6),
    ],
)
def test_feature_counts_by_hand(switches, count):
    assert num_features(7, **switches) == count
    assert encode(*sample(c=7), **switches).shape == (6, count)


@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from(["vector", "scalar"]))
def test_any_sample_agrees_with_numpy(seed, c, encoding):
    data = sample(seed, n=4, c=c)
    switches = {"vertices": True, "edges": True, "angles": True, "student_teacher_edge": True, "inter_sample": True}
    np.testing.assert_allclose(
        encode(*data, encoding=encoding, **switches),
        expected(*data, encoding=encoding, **switches),
        rtol=1e-7,
        atol=1e-9,
    )


def test_by_hand():
    # C = 2, label 0: S = (1/2, 1/2), T = (1, 0) = G, Tbar_0 = (3/4, 1/4)
    S, T, means = np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]]), np.array([[0.75, 0.25], [0.1, 0.9]])
    found = encode(S, T, np.array([0]), means, encoding="scalar")[0]
    h = np.sqrt(0.5)
    # S_y, T_y, Tbar_y, H(S)/ln 2, H(T)/ln 2
    np.testing.assert_allclose(found[:5], [0.5, 1.0, 0.75, 1.0, 0.0])
    # |T-G|, |S-G|, |S-T|, |Tbar-S|, |Tbar-G|
    np.testing.assert_allclose(found[5:10], [0.0, h, h, h / 2, h / 2])
    # all on one line: seen from S, T and G have one direction; at T the edge to G has no length; from Tbar they are opposite
    np.testing.assert_allclose(found[10:], [1.0, 0.0, 0.0, 1.0, -1.0, 1.0])


def test_an_unknown_encoding_is_refused():
    with pytest.raises(InputError, match=r"encoding.*'polar'"):
        encode(*sample(), encoding="polar")


def test_class_means_are_not_read_without_inter_sample():
    S, T, target, means = sample()
    found = encode(S, T, target, np.full_like(means, np.nan), encoding="scalar", inter_sample=False)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("encoding", ["vector", "scalar"])
def test_the_result_is_detached(encoding):
    S, T, target, means = map(torch.from_numpy, sample())
    for tensor in (S, T, means):
        tensor.requires_grad_()
    assert not trilateral(S, T, target, means, encoding=encoding, angles=True).requires_grad


@pytest.mark.parametrize("encoding", ["vector", "scalar"])
def test_the_inputs_stay_as_they_are(encoding):
    tensors = [torch.from_numpy(array) for array in sample()]
    before = [tensor.clone() for tensor in tensors]
    trilateral(*tensors, encoding=encoding, angles=True)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


# ---- the ablation without S-T


def moved_off_label(P, target, rng):
    """Each row with the classes other than its label permuted: P_y, |P - G| and the entropy stay."""
    P = P.copy()
    for i, y in enumerate(target):
        others = [c for c in range(P.shape[1]) if c != y]
        P[i, others] = P[i, np.roll(others, 1 + rng.integers(0, len(others) - 1))]
    return P


@given(st.integers(0, 2**31), st.integers(3, 6))
def test_without_the_edge_the_position_of_the_student_relative_to_the_teacher_is_unknown(seed, c):
    S, T, target, means = sample(seed, c=c)
    other = moved_off_label(T, target, np.random.default_rng(seed))
    off = {"encoding": "scalar", "student_teacher_edge": False}
    np.testing.assert_allclose(encode(S, other, target, means, **off), encode(S, T, target, means, **off), atol=1e-12)
    with_edge = encode(S, other, target, means, encoding="scalar") - encode(S, T, target, means, encoding="scalar")
    assert np.abs(with_edge).max(axis=1).min() > 1e-9  # with the edge every sample shows it


@pytest.mark.parametrize("encoding", ["vector", "scalar"])
def test_without_the_edge_every_column_depends_on_the_student_or_on_the_teacher_alone(encoding):
    S, T, target, means = sample()
    S2, T2, _, _ = sample(seed=99)
    off = {"encoding": encoding, "angles": True, "student_teacher_edge": False}
    here = encode(S, T, target, means, **off)
    of_student = (encode(S2, T, target, means, **off) != here).any(axis=0)
    of_teacher = (encode(S, T2, target, means, **off) != here).any(axis=0)
    assert of_student.any()
    assert of_teacher.any()
    assert not (of_student & of_teacher).any()


def test_without_inter_sample_the_class_means_do_not_matter():
    S, T, target, means = sample()
    for encoding in ("vector", "scalar"):
        off = {"encoding": encoding, "angles": True, "inter_sample": False}
        other = np.roll(means, 1, axis=0)
        assert (encode(S, T, target, means, **off) == encode(S, T, target, other, **off)).all()
        on = {"encoding": encoding, "angles": True}
        assert (encode(S, T, target, means, **on) != encode(S, T, target, other, **on)).any()


# ---- geometry


@given(st.integers(0, 2**31), st.integers(2, 7))
def test_scalar_encoding_does_not_depend_on_the_order_of_the_classes(seed, c):
    S, T, target, means = sample(seed, c=c)
    order = np.random.default_rng(seed + 1).permutation(c)
    new_name = np.argsort(order)  # class `order[j]` is now called j
    permuted = (S[:, order], T[:, order], new_name[target], means[np.ix_(order, order)])
    np.testing.assert_allclose(
        encode(*permuted, encoding="scalar"), encode(S, T, target, means, encoding="scalar"), atol=1e-9
    )


@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from([0.01, 1.0, 30.0, 1000.0]))
def test_cosines_and_entropies_stay_in_their_ranges(seed, c, sharpness):
    data = sample(seed, c=c, sharpness=sharpness)
    for dtype in (np.float64, np.float32):
        S, T, target, means = data
        found = encode(S.astype(dtype), T.astype(dtype), target, means.astype(dtype), encoding="scalar")
        assert np.isfinite(found).all()
        assert (np.abs(found[:, 10:]) <= 1).all()
        assert (found[:, :5] >= 0).all()
        assert (found[:, :5] <= 1 + 1e-6).all()
        assert (found[:, 5:10] <= np.sqrt(2) + 1e-6).all()  # the diameter of the simplex


@given(st.integers(0, 2**31), st.integers(2, 6))
def test_lengths_and_cosines_obey_the_law_of_cosines(seed, c):
    found = encode(*sample(seed, c=c), encoding="scalar")
    length = dict(zip(EDGES, found[:, 5:10].T, strict=True))
    cosine = dict(zip(ANGLES, found[:, 10:].T, strict=True))
    triangles = [("S-T", "S-G", "T-G", ("S", "T", "G")), ("M-S", "S-G", "M-G", ("S", "M", "G"))]
    for a_b, a_g, b_g, (a, b, g) in triangles:
        ab, ag, bg = length[a_b], length[a_g], length[b_g]
        np.testing.assert_allclose(bg**2, ab**2 + ag**2 - 2 * ab * ag * cosine[f"{a}({b},{g})"], atol=1e-9)
        np.testing.assert_allclose(ag**2, ab**2 + bg**2 - 2 * ab * bg * cosine[f"{b}({a},{g})"], atol=1e-9)
        np.testing.assert_allclose(ab**2, ag**2 + bg**2 - 2 * ag * bg * cosine[f"{g}({a},{b})"], atol=1e-9)


def test_vector_angles_sum_to_the_inner_products():
    S, T, target, means = sample()
    c = S.shape[1]
    found = encode(S, T, target, means, vertices=False, edges=False, angles=True).reshape(len(S), 6, c).sum(-1)
    G, M = np.eye(c)[target], means[target]
    inner = [
        ((T - S), (G - S)),
        ((S - T), (G - T)),
        ((S - G), (T - G)),
        ((M - S), (G - S)),
        ((S - M), (G - M)),
        ((S - G), (M - G)),
    ]
    np.testing.assert_allclose(found, np.stack([(a * b).sum(-1) for a, b in inner], axis=1), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_student_and_teacher_have_no_angle_between_them(dtype):
    S, _, target, means = sample()
    S, means = S.astype(dtype), means.astype(dtype)
    found = encode(S, S.copy(), target, means, encoding="scalar")
    names = list(ANGLES)
    cosine = dict(zip(names, found[:, 10:].T, strict=True))
    assert np.isfinite(found).all()
    assert (found[:, 7] == 0).all()  # |S-T|
    assert (cosine["S(T,G)"] == 0).all()
    assert (cosine["T(S,G)"] == 0).all()
    np.testing.assert_allclose(cosine["G(S,T)"], 1.0, atol=1e-6)


def test_all_four_points_in_one_place_give_zeros_and_never_nan():
    c = 3
    G, target = np.eye(c), np.arange(c)
    found = encode(G, G.copy(), target, G.copy(), encoding="scalar")
    np.testing.assert_array_equal(found, [[1, 1, 1, 0, 0] + [0] * 11] * c)
