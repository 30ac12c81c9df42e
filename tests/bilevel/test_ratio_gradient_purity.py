"""`ratio_gradient` leaves student, optimizer and random state bit for bit as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from students import DropoutMLP, make_case
from torch import nn

from tgeokd.bilevel import ratio_gradient


@pytest.fixture(autouse=True)
def _fast_attention():
    """A setting that an earlier test has left changed would hide a change here."""
    torch.backends.mha.set_fastpath_enabled(True)
    yield
    assert torch.backends.mha.get_fastpath_enabled()


METHODS = ("forward", "finite_difference", "last_layer", "unrolled")


def everything(case):
    """All that must not change, as a nested structure of copies."""
    student, optimizer = case.student, case.optimizer
    hook_kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return copy.deepcopy(
        {
            "parameters": {name: p.data for name, p in student.named_parameters()},
            "identities": {name: id(p) for name, p in student.named_parameters(remove_duplicate=False)},
            "requires_grad": {name: p.requires_grad for name, p in student.named_parameters()},
            "gradients": {name: p.grad for name, p in student.named_parameters()},
            "buffers": dict(student.named_buffers()),
            "buffer_identities": {name: id(b) for name, b in student.named_buffers(remove_duplicate=False)},
            "modes": {name: module.training for name, module in student.named_modules()},
            "hooks": {
                (name, kind): len(getattr(module, kind))
                for name, module in student.named_modules()
                for kind in hook_kinds
            },
            "attributes": {name: sorted(vars(module)) for name, module in student.named_modules()},
            "optimizer": optimizer.state_dict(),
            "state_entries": len(optimizer.state),
            "random_state": torch.get_rng_state(),
            "grad_mode": torch.is_grad_enabled(),
            "attention": (
                torch.backends.mha.get_fastpath_enabled(),
                torch.backends.cuda.flash_sdp_enabled(),
                torch.backends.cuda.mem_efficient_sdp_enabled(),
                torch.backends.cuda.math_sdp_enabled(),
            ),
            "data": case.data,
        }
    )


def same(a, b):
    """Equality to the last bit of two nested structures."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_untouched(case, before):
    after = everything(case)
    for key in before:
        assert same(before[key], after[key]), f"{key} changed"


def test_the_comparison_notices_a_change():
    case = make_case("mixed", "adam", steps=1)
    before = everything(case)
    assert same(before, everything(case))
    torch.rand(1)
    assert not same(before, everything(case))
    before = everything(case)
    case.optimizer.state[case.student.frozen[0].weight]  # a defaultdict: reading makes an entry
    assert not same(before["state_entries"], everything(case)["state_entries"])
    before = everything(case)
    case.student.norm.running_mean.add_(1e-12)
    assert not same(before, everything(case))


@pytest.mark.parametrize(("optimizer", "steps"), [("momentum", 0), ("amsgrad", 2)], ids=["no_state", "state"])
@pytest.mark.parametrize("student", ["mixed", "batch_norm_cnn", "encoder_layer", "aliased", "stateful"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes(method, student, optimizer, steps):
    case = make_case(student, optimizer, steps=steps)
    if steps:  # some gradients are there, some are not
        next(p for p in case.student.parameters() if p.grad is not None).grad = None
    before = everything(case)
    ratio_gradient(case.student, case.optimizer, **case.data, method=method, clip_norm=0.1, accumulate=3)
    assert_untouched(case, before)


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_nothing_changes_where_forward_mode_does_not_work(method):
    case = make_case("embedding_bag", "adam", steps=2)
    before = everything(case)
    ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    assert_untouched(case, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_student_in_eval_mode_stays_so(method):
    case = make_case("mixed", "momentum", steps=1)
    case.student.eval()
    before = everything(case)
    ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    assert_untouched(case, before)


class AlwaysRandom(DropoutMLP):
    """Draws random numbers in eval mode too."""

    def forward(self, x):
        return super().forward(x) * (1 + 0.1 * torch.rand(len(x), 1, dtype=x.dtype))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_for_a_student_that_is_random_in_eval_mode(method):
    student = AlwaysRandom().double()
    if method == "last_layer":
        student = nn.Sequential(student, nn.Linear(4, 4).double())
    case = make_case(student, "momentum")
    before = everything(case)
    ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    assert_untouched(case, before)


class RefusesInEval(DropoutMLP):
    """Fails on the validation inputs, when the further passes have begun."""

    def forward(self, x):
        if not self.training:
            raise RuntimeError("no evaluation here")
        return super().forward(x)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_when_the_student_fails_halfway(method):
    case = make_case(RefusesInEval().double(), "adam")
    before = everything(case)
    with pytest.raises(RuntimeError, match="no evaluation here"):
        ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    assert_untouched(case, before)


def test_nothing_changes_when_forward_mode_is_refused():
    case = make_case("embedding_bag", "momentum", steps=1)
    before = everything(case)
    with pytest.raises(NotImplementedError):
        ratio_gradient(case.student, case.optimizer, **case.data, method="forward")
    assert_untouched(case, before)


def test_a_buffer_that_two_modules_share_does_not_change():
    first, second = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    case = make_case(nn.Sequential(first, nn.Linear(5, 5, bias=False), second, nn.Linear(5, 4)).double(), "sgd")
    second.running_mean = first.running_mean
    before = everything(case)
    ratio_gradient(case.student, case.optimizer, **case.data)
    assert_untouched(case, before)


@pytest.mark.parametrize("method", METHODS)
def test_two_calls_give_the_same_result(method):
    case = make_case("mixed", "momentum", steps=1)
    first = ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    second = ratio_gradient(case.student, case.optimizer, **case.data, method=method)
    assert torch.equal(first, second)
    assert not first.requires_grad
