"""RW-KD: its ratios against gradients taken sample by sample and term by term."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tgeokd import ReweightingKD
from tgeokd.bilevel import Lookahead
from tgeokd.methods.base import Batch, Signals, TrainingStep
from tgeokd.utils.errors import InputError

N, M, C, WIDTH, TAU = 6, 5, 4, 5, 2.5


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, C)).double()


class NormAndDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Linear(WIDTH, 6, bias=False), nn.BatchNorm1d(6)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(6, C)

    def forward(self, x):
        return self.head(self.dropout(torch.tanh(self.norm(self.body(x)))))


def batch(n):
    inputs = torch.randn(n, WIDTH, dtype=torch.float64)
    return Batch(inputs, torch.randint(C, (n,)), 2 * torch.randn(n, C, dtype=torch.float64))


def kd_of(z, teacher):
    p = F.softmax(teacher / TAU, dim=1)
    return TAU**2 * (p * (p.log() - F.log_softmax(z / TAU, dim=1))).sum(dim=1)


def gt_of(z, target):
    return F.cross_entropy(z, target, reduction="none")


def ratios_by_brute_force(student, groups, train, held_out, beta, delta):
    """Algorithm 1, literally: one gradient a sample and term, one of the meta loss, inner products weighted by the rates."""
    student = copy.deepcopy(student)
    params = [p for p in student.parameters() if p.requires_grad]
    rates = groups(student)

    def products(loss, meta):
        own = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        return sum(
            r * (a * b).sum() for r, a, b in zip(rates, own, meta, strict=True) if a is not None and b is not None
        )

    modes = [module.training for module in student.modules()]
    student.eval()
    z = student(held_out.inputs)
    meta_loss = (kd_of(z, held_out.teacher_logits) + gt_of(z, held_out.target)).mean()
    meta = torch.autograd.grad(meta_loss, params, allow_unused=True)
    for module, mode in zip(student.modules(), modes, strict=True):
        module.training = mode

    z = student(train.inputs)
    kd, gt = kd_of(z, train.teacher_logits), gt_of(z, train.target)
    u_kd = torch.stack([products(term, meta) for term in kd]).mul(beta).clamp(min=delta)
    u_gt = torch.stack([products(term, meta) for term in gt]).mul(beta).clamp(min=delta)
    return u_kd / (u_kd + u_gt)


def same_rate(student):
    return [0.1] * sum(p.requires_grad for p in student.parameters())


def training_step(method, student, optimizer, batches, held_out, index=0):
    lookahead = Lookahead(student, optimizer, temperature=TAU, method="forward")
    return TrainingStep(index, lookahead, batches, lambda: held_out)


def ratios(method, student, optimizer, batches, held_out):
    step = training_step(method, student, optimizer, batches, held_out)
    method.before_forward(step)
    found = []
    for b in batches:
        found.append(method.alpha(Signals(torch.zeros(len(b.target), C), b.teacher_logits, b.target, TAU)))
    return torch.cat(found)


@pytest.mark.parametrize(("method", "tolerance"), [("exact", 1e-9), ("forward", 1e-9), ("finite_difference", 1e-6)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ratios_equal_gradients_taken_one_by_one(seed, method, tolerance):
    torch.manual_seed(seed)
    student, train, held_out = mlp(), batch(N), batch(M)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found = ratios(ReweightingKD(hypergradient=method), student, optimizer, [train], held_out)
    expected = ratios_by_brute_force(student, same_rate, train, held_out, beta=1.0, delta=1e-8)
    assert ((expected > 0.01) & (expected < 0.99)).any(), "all ratios are at their ends: the products are not tested"
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("beta", "delta"), [(1.0, 1e-3), (0.1, 1e-3), (1.0, 0.5)])
def test_beta_and_delta(beta, delta):
    torch.manual_seed(0)
    student, train, held_out = mlp(), batch(N), batch(M)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found = ratios(ReweightingKD(beta=beta, delta=delta), student, optimizer, [train], held_out)
    expected = ratios_by_brute_force(student, same_rate, train, held_out, beta, delta)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_two_groups_with_rates_of_their_own():
    torch.manual_seed(0)
    student, train, held_out = mlp(), batch(N), batch(M)
    groups = [{"params": student[0].parameters(), "lr": 0.5}, {"params": student[2].parameters(), "lr": 0.01}]
    found = ratios(ReweightingKD(), student, torch.optim.SGD(groups, lr=1.0), [train], held_out)
    own_rates = ratios_by_brute_force(student, lambda s: [0.5, 0.5, 0.01, 0.01], train, held_out, 1.0, 1e-8)
    torch.testing.assert_close(found, own_rates, rtol=1e-9, atol=1e-9)
    one_rate = ratios_by_brute_force(student, same_rate, train, held_out, 1.0, 1e-8)
    assert not torch.allclose(found, one_rate, atol=1e-3)


def test_frozen_and_foreign_parameters_do_not_count():
    torch.manual_seed(0)
    student, train, held_out = mlp(), batch(N), batch(M)
    student[0].weight.requires_grad_(False)
    held = [student[0].bias, student[2].weight]  # the last bias belongs to nobody
    found = ratios(ReweightingKD(), student, torch.optim.SGD(held, lr=0.1), [train], held_out)
    expected = ratios_by_brute_force(student, lambda s: [0.1, 0.1, 0.0], train, held_out, 1.0, 1e-8)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_any_optimizer_stands_for_plain_sgd_at_its_rate():
    torch.manual_seed(0)
    student, train, held_out = mlp(), batch(N), batch(M)
    expected = ratios_by_brute_force(student, same_rate, train, held_out, 1.0, 1e-8)
    for kind in (torch.optim.Adam, torch.optim.RMSprop):
        step = TrainingStep(0, None, [train], lambda: held_out)
        optimizer = kind(student.parameters(), lr=0.1)
        step.lookahead = Lookahead(student, optimizer, temperature=TAU, assume_sgd=True)
        method = ReweightingKD()
        method.before_forward(step)
        found = method.alpha(Signals(torch.zeros(N, C), train.teacher_logits, train.target, TAU))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_batch_norm_and_dropout_as_in_the_step_to_come():
    """Per-sample gradients go through the batch's statistics and the mask that the step's forward pass will meet."""
    torch.manual_seed(0)
    student = NormAndDropout().double()
    train, held_out = batch(N), batch(M)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    before, state = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    found = ratios(ReweightingKD(), student, optimizer, [train], held_out)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in student.parameters())
    assert all(module.training for module in student.modules())
    expected = ratios_by_brute_force(student, same_rate, train, held_out, 1.0, 1e-8)  # draws the same mask
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_sample_whose_terms_both_hurt_gets_one_half():
    torch.manual_seed(0)
    student = nn.Linear(WIDTH, 2, bias=False).double()
    with torch.no_grad():
        student.weight.zero_()
    x = torch.randn(1, WIDTH, dtype=torch.float64)
    sure_of = 8.0 * torch.eye(2, dtype=torch.float64)
    # held-out: the same input is of class 1, and the teacher says so; so label 0 hurts, and so does a teacher for 0
    held_out = Batch(x, torch.tensor([1]), sure_of[[1]])
    train = Batch(x.repeat(4, 1), torch.tensor([0, 1, 1, 0]), sure_of[[0, 1, 0, 1]])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    both_hurt, both_help, teacher_hurts, label_hurts = ratios(
        ReweightingKD(), student, optimizer, [train], held_out
    ).tolist()
    assert both_hurt == 0.5
    assert 0.0 < both_help < 1.0
    assert teacher_hurts == pytest.approx(0.0, abs=1e-6)
    assert label_hurts == pytest.approx(1.0, abs=1e-6)
    # both help, at z = 0: kd by tau (1/2 - T_tau) = tau / 2 tanh(8 / 2 tau), gt by 1/2, in the same direction
    kd = TAU * torch.tensor(4 / TAU).tanh().item()
    assert both_help == pytest.approx(kd / (kd + 1), rel=1e-5)


def test_micro_batches_get_their_own_ratios_in_order():
    torch.manual_seed(0)
    student, held_out = mlp(), batch(M)
    parts = [batch(2), batch(3), batch(1)]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found = ratios(ReweightingKD(), student, optimizer, parts, held_out)
    whole = Batch(*(torch.cat([getattr(p, name) for p in parts]) for name in ("inputs", "target", "teacher_logits")))
    expected = ratios_by_brute_force(student, same_rate, whole, held_out, 1.0, 1e-8)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_whole_step_trains_on_the_reweighted_loss():
    torch.manual_seed(0)
    student, train, held_out = mlp(), batch(N), batch(M)
    mine = copy.deepcopy(student)
    expected_alpha = ratios_by_brute_force(student, same_rate, train, held_out, 1.0, 1e-8)

    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    method = ReweightingKD()
    step = training_step(method, student, optimizer, [train], held_out)
    method.before_forward(step)
    logits = step.lookahead.forward(train.inputs, train.target, train.teacher_logits, record=method.records(0))
    result = method.loss(Signals(logits, train.teacher_logits, train.target, TAU))
    result.loss.mean().backward()
    step.lookahead.step()
    torch.testing.assert_close(result.alpha, expected_alpha, rtol=1e-9, atol=1e-9)
    assert not result.alpha.requires_grad

    z = mine(train.inputs)
    soft = -(F.softmax(train.teacher_logits / TAU, dim=1) * F.log_softmax(z / TAU, dim=1)).sum(dim=1)
    loss = (1 - expected_alpha) * gt_of(z, train.target) + expected_alpha * TAU**2 * soft
    torch.testing.assert_close(result.loss.detach(), loss.detach(), rtol=1e-9, atol=1e-9)
    loss.mean().backward()
    for found, start in zip(student.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), (start - 0.1 * start.grad).detach(), rtol=1e-9, atol=1e-10)


def test_the_ratios_of_a_step_are_used_once():
    student, train, held_out = mlp(), batch(N), batch(M)
    method = ReweightingKD()
    signals = Signals(torch.zeros(N, C), train.teacher_logits, train.target, TAU)
    with pytest.raises(NotImplementedError, match="belong to a training step"):
        method.alpha(signals)
    ratios(method, student, torch.optim.SGD(student.parameters(), lr=0.1), [train], held_out)
    with pytest.raises(NotImplementedError, match="belong to a training step"):
        method.alpha(signals)


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"delta": 0.0}, {"beta": -1.0}, {"delta": float("nan")}])
def test_beta_and_delta_must_be_positive(options):
    with pytest.raises(InputError, match="beta and delta must be > 0"):
        ReweightingKD(**options)


@pytest.mark.parametrize("method", ["last_layer", "unrolled", "backward"])
def test_only_directional_ways_to_the_hypergradient(method):
    with pytest.raises(InputError, match=f"must be exact, forward or finite_difference for rw, not '{method}'"):
        ReweightingKD(hypergradient=method)
