"""Parameter groups, the kinds of inputs and outputs a model can have, and mixed precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from students import WIDTH, C, N, brute_force, clip_bound, make_case, mlp, relative_error
from torch import nn
from torch.optim import SGD, AdamW

from tgeokd.bilevel import Lookahead, ratio_gradient
from tgeokd.core.losses import fuse, gt_loss, kd_loss

METHODS = ("forward", "finite_difference", "unrolled")


# ---- parameter groups


def two_groups(params):
    first, second, *rest = params
    return AdamW(
        [{"params": [first, second], "lr": 0.2, "betas": (0.5, 0.9)}, {"params": rest}], lr=0.01, weight_decay=0.3
    )


def half_held(params):
    """The other half of the student is trainable, but another optimizer's business."""
    return SGD(list(params)[::2], lr=0.3, momentum=0.8)


@pytest.mark.parametrize("clip", ["none", "bites"])
@pytest.mark.parametrize("optimizer", [two_groups, half_held])
@pytest.mark.parametrize("method", METHODS)
def test_groups_with_rates_of_their_own_and_parameters_outside(method, optimizer, clip):
    case = make_case("mlp", optimizer, steps=3)
    bound = clip_bound(case, clip)
    found = ratio_gradient(case.student, case.optimizer, **case.data, method=method, clip_norm=bound)
    assert relative_error(found, brute_force(case, clip_norm=bound)) <= 1e-6


# ---- inputs and outputs


class TwoInputs(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.left, self.right, self.head, self.wrap = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, C), wrap

    def forward(self, left, right):
        logits = self.head(torch.tanh(self.left(left) + self.right(right)))
        return SimpleNamespace(logits=logits, loss=None) if self.wrap else logits


def pairs(n):
    return torch.randn(n, 3, dtype=torch.float64), torch.randn(n, 2, dtype=torch.float64)


def mappings(n):
    left, right = pairs(n)
    return {"right": right, "left": left}


@pytest.mark.parametrize("method", [*METHODS, "last_layer"])
@pytest.mark.parametrize("wrap", [False, True], ids=["tensor", "object_with_logits"])
@pytest.mark.parametrize("make_inputs", [pairs, mappings])
def test_tuples_mappings_and_outputs_with_logits(make_inputs, wrap, method):
    case = make_case(TwoInputs(wrap).double(), "momentum", steps=2, make_inputs=make_inputs)
    if method == "last_layer":
        case.student.left.requires_grad_(False)
        case.student.right.requires_grad_(False)
    found = ratio_gradient(case.student, case.optimizer, **case.data, method=method, accumulate=2)
    assert relative_error(found, brute_force(case, accumulate=2)) <= 1e-6


@pytest.mark.parametrize("squeeze", [False, True])
def test_one_logit_is_the_second_of_two(squeeze):
    body = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 1), *([nn.Flatten(0)] if squeeze else []))
    case = make_case(body.double(), "adam", steps=2, classes=2)
    found = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=3)
    assert relative_error(found, brute_force(case, accumulate=3)) <= 1e-6


# ---- autocast


def in_float32(seed=0):
    case = make_case("mlp", "sgd", seed=seed)
    single = {k: v.float() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.data.items()}
    torch.manual_seed(seed)
    case.student = mlp()
    case.optimizer = SGD(case.student.parameters(), lr=0.3, momentum=0.5)
    return case.with_(**single)


def autocast_step(case, lookahead):
    """The forward pass and the loss under autocast, backward and step outside, as torch recommends."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = lookahead.forward(case.inputs, case.target, case.teacher_logits)
        kd, gt = kd_loss(logits, case.teacher_logits, case.temperature), gt_loss(logits, case.target)
        loss = fuse(kd, gt, case.alpha).mean()
    loss.backward()
    lookahead.step()


@pytest.mark.parametrize("method", ["forward", "unrolled", "last_layer"])
def test_autocast_is_close_to_full_precision_and_really_used(method):
    case = in_float32()
    expected = ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    lookahead = Lookahead(case.student, case.optimizer, temperature=case.temperature, method=method)
    autocast_step(case, lookahead)
    dtypes = []
    handle = case.student[2].register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    found = lookahead.ratio_gradient(case.val_inputs, case.val_target, case.alpha)  # outside of autocast
    handle.remove()
    assert dtypes, "no extra pass was seen"
    assert set(dtypes) == {torch.bfloat16}
    assert not torch.equal(found, expected)
    assert F.cosine_similarity(found.float(), expected, dim=0) > 0.99


@pytest.mark.parametrize("method", ["forward", "last_layer"])
def test_the_pure_function_under_autocast(method):
    case = in_float32()
    expected = ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    assert not torch.equal(found, expected)
    assert F.cosine_similarity(found.float(), expected, dim=0) > 0.99


def test_finite_differences_under_autocast():
    for seed in range(5):
        case = in_float32(seed)
        expected = ratio_gradient(case.student, case.optimizer, **case.data)
        lookahead = Lookahead(case.student, case.optimizer, temperature=case.temperature, method="finite_difference")
        autocast_step(case, lookahead)
        found = lookahead.ratio_gradient(case.val_inputs, case.val_target, case.alpha)
        assert F.cosine_similarity(found.float(), expected, dim=0) > 0.99


def _everything_inside_one_autocast_block(method):
    case = in_float32()
    case.optimizer.param_groups[0]["lr"] = 3.0  # a step that is far beyond bfloat16's rounding
    outside = Lookahead(case.student, case.optimizer, temperature=case.temperature, method=method)
    copied = case.copied()
    inside = Lookahead(copied.student, copied.optimizer, temperature=case.temperature, method=method)
    autocast_step(case, outside)
    expected = outside.ratio_gradient(case.val_inputs, case.val_target, case.alpha)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast_step(copied, inside)
        found = inside.ratio_gradient(case.val_inputs, case.val_target, case.alpha)
    return F.cosine_similarity(found.float(), expected.float(), dim=0)


@pytest.mark.parametrize("method", ["forward", "unrolled"])
def test_a_whole_loop_inside_autocast(method):
    assert _everything_inside_one_autocast_block(method) > 0.99


def test_a_whole_loop_inside_autocast_for_the_last_layer():
    assert _everything_inside_one_autocast_block("last_layer") > 0.99


def test_float32_end_to_end():
    case = in_float32()
    found = ratio_gradient(case.student, case.optimizer, **case.data)
    assert found.dtype == torch.float32
    assert found.shape == (N,)
    unrolled = ratio_gradient(case.student, case.optimizer, **case.data, method="unrolled")
    assert relative_error(found, unrolled) <= 1e-5
