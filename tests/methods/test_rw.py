"""RW-KD: its ratios against gradients taken sample by sample and term by term."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from small_training import Samples, TableTeacher, refused
from torch import nn

from tgeokd import DistillationStep, LossInputs, ReweightingKD
from tgeokd.bilevel import MicroBatch
from tgeokd.methods import ForwardContext
from tgeokd.training.survey import Survey

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
    return Samples(inputs, torch.randint(C, (n,)), 2 * torch.randn(n, C, dtype=torch.float64))


def kd_of(z, teacher):
    p = F.softmax(teacher / TAU, dim=1)
    return TAU**2 * (p * (p.log() - F.log_softmax(z / TAU, dim=1))).sum(dim=1)


def gt_of(z, target):
    return F.cross_entropy(z, target, reduction="none")


def ratios_by_brute_force(student, groups, train, validation, beta, delta):
    """Algorithm 1, literally: one gradient per sample and term, one of the meta loss, inner products weighted by the rates."""
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
    z = student(validation.inputs)
    meta_loss = (kd_of(z, validation.teacher_logits) + gt_of(z, validation.target)).mean()
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


def context(student, optimizer, batch, validation, *, first=True):
    """What the method is given before the forward pass of a batch."""
    microbatch = MicroBatch.begin(student, batch.inputs)
    outer = (validation.inputs, validation.target, validation.teacher_logits)
    known = (batch.target, batch.teacher_logits)
    return ForwardContext(student, optimizer, TAU, microbatch, *known, lambda: outer, first)


def ratios(method, student, optimizer, batches, validation):
    for k, b in enumerate(batches):
        method.before_forward(context(student, optimizer, b, validation, first=k == 0))
    found = [method.alpha(LossInputs(torch.zeros(len(b.target), C), b.teacher_logits, b.target, TAU)) for b in batches]
    return torch.cat(found)


@pytest.mark.parametrize(("method", "tolerance"), [("exact", 1e-9), ("forward", 1e-9), ("finite_difference", 1e-6)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ratios_equal_gradients_taken_one_by_one(seed, method, tolerance):
    torch.manual_seed(seed)
    student, train, validation = mlp(), batch(N), batch(M)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found = ratios(ReweightingKD(hypergradient=method), student, optimizer, [train], validation)
    expected = ratios_by_brute_force(student, same_rate, train, validation, beta=1.0, delta=1e-8)
    assert ((expected > 0.01) & (expected < 0.99)).any(), "all ratios are at their ends: the products are not tested"
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("beta", "delta"), [(1.0, 1e-3), (0.1, 1e-3), (1.0, 0.5)])
def test_beta_and_delta(beta, delta):
    torch.manual_seed(0)
    student, train, validation = mlp(), batch(N), batch(M)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found = ratios(ReweightingKD(beta=beta, delta=delta), student, optimizer, [train], validation)
    expected = ratios_by_brute_force(student, same_rate, train, validation, beta, delta)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_two_groups_with_rates_of_their_own():
    torch.manual_seed(0)
    student, train, validation = mlp(), batch(N), batch(M)
    groups = [{"params": student[0].parameters(), "lr": 0.5}, {"params": student[2].parameters(), "lr": 0.01}]
    found = ratios(ReweightingKD(), student, torch.optim.SGD(groups, lr=1.0), [train], validation)
    own_rates = ratios_by_brute_force(student, lambda s: [0.5, 0.5, 0.01, 0.01], train, validation, 1.0, 1e-8)
    torch.testing.assert_close(found, own_rates, rtol=1e-9, atol=1e-9)
    one_rate = ratios_by_brute_force(student, same_rate, train, validation, 1.0, 1e-8)
    assert not torch.allclose(found, one_rate, atol=1e-3)


def test_frozen_and_foreign_parameters_do_not_count():
    torch.manual_seed(0)
    student, train, validation = mlp(), batch(N), batch(M)
    student[0].weight.requires_grad_(False)
    held = [student[0].bias, student[2].weight]  # the optimizer does not hold the last bias
    found = ratios(ReweightingKD(), student, torch.optim.SGD(held, lr=0.1), [train], validation)
    expected = ratios_by_brute_force(student, lambda s: [0.1, 0.1, 0.0], train, validation, 1.0, 1e-8)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_any_optimizer_stands_for_plain_sgd_at_its_rate():
    torch.manual_seed(0)
    student, train, validation = mlp(), batch(N), batch(M)
    expected = ratios_by_brute_force(student, same_rate, train, validation, 1.0, 1e-8)
    for kind in (torch.optim.Adam, torch.optim.RMSprop):
        found = ratios(ReweightingKD(), student, kind(student.parameters(), lr=0.1), [train], validation)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_batch_norm_and_dropout_as_in_the_step_to_come():
    """Per-sample gradients go through the batch's statistics and the mask that the step's forward pass will meet."""
    torch.manual_seed(0)
    student = NormAndDropout().double()
    train, validation = batch(N), batch(M)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    before, state = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    found = ratios(ReweightingKD(), student, optimizer, [train], validation)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in student.parameters())
    assert all(module.training for module in student.modules())
    expected = ratios_by_brute_force(student, same_rate, train, validation, 1.0, 1e-8)  # draws the same mask
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_sample_whose_terms_both_hurt_gets_one_half():
    torch.manual_seed(0)
    student = nn.Linear(WIDTH, 2, bias=False).double()
    with torch.no_grad():
        student.weight.zero_()
    x = torch.randn(1, WIDTH, dtype=torch.float64)
    sure_of = 8.0 * torch.eye(2, dtype=torch.float64)
    # validation: the same input is of class 1, and the teacher predicts it; so label 0 hurts, and so does a teacher for 0
    validation = Samples(x, torch.tensor([1]), sure_of[[1]])
    train = Samples(x.repeat(4, 1), torch.tensor([0, 1, 1, 0]), sure_of[[0, 1, 0, 1]])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    both_hurt, both_help, teacher_hurts, label_hurts = ratios(
        ReweightingKD(), student, optimizer, [train], validation
    ).tolist()
    assert both_hurt == 0.5
    assert 0.0 < both_help < 1.0
    assert teacher_hurts == pytest.approx(0.0, abs=1e-6)
    assert label_hurts == pytest.approx(1.0, abs=1e-6)
    # both help, at z = 0: kd by tau (1/2 - T_tau) = tau / 2 tanh(8 / 2 tau), gt by 1/2, in the same direction
    kd = TAU * torch.tensor(4 / TAU).tanh().item()
    assert both_help == pytest.approx(kd / (kd + 1), rel=1e-5)


def test_microbatches_get_their_own_ratios_in_order():
    torch.manual_seed(0)
    student, validation = mlp(), batch(M)
    parts = [batch(2), batch(3), batch(1)]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found = ratios(ReweightingKD(), student, optimizer, parts, validation)
    whole = Samples(*(torch.cat([getattr(p, name) for p in parts]) for name in ("inputs", "target", "teacher_logits")))
    expected = ratios_by_brute_force(student, same_rate, whole, validation, 1.0, 1e-8)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_whole_step_trains_on_the_reweighted_loss():
    torch.manual_seed(0)
    student, train, validation = mlp(), batch(N), batch(M)
    mine = copy.deepcopy(student)
    expected_alpha = ratios_by_brute_force(student, same_rate, train, validation, 1.0, 1e-8)

    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    held = TableTeacher.numbered([validation], N)
    step = DistillationStep(student, optimizer, ReweightingKD(), temperature=TAU, validation=held)
    step.prepare(TableTeacher.numbered([train]), TableTeacher([train, validation]), survey_result=Survey(C))
    found = step.loss(*TableTeacher.numbered([train]))
    found.backward()
    optimizer.step()
    assert step.index == 1
    assert step.statistics.ratios.mean() == pytest.approx(expected_alpha.mean().item(), rel=1e-9)

    z = mine(train.inputs)
    soft = -(F.softmax(train.teacher_logits / TAU, dim=1) * F.log_softmax(z / TAU, dim=1)).sum(dim=1)
    loss = (1 - expected_alpha) * gt_of(z, train.target) + expected_alpha * TAU**2 * soft
    torch.testing.assert_close(found.detach(), loss.mean().detach(), rtol=1e-9, atol=1e-9)
    loss.mean().backward()
    for moved, start in zip(student.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(moved.detach(), (start - 0.1 * start.grad).detach(), rtol=1e-9, atol=1e-10)


def test_the_ratios_of_a_step_are_used_once():
    student, train, validation = mlp(), batch(N), batch(M)
    method = ReweightingKD()
    inputs = LossInputs(torch.zeros(N, C), train.teacher_logits, train.target, TAU)
    with pytest.raises(NotImplementedError, match="rw"):
        method.alpha(inputs)
    ratios(method, student, torch.optim.SGD(student.parameters(), lr=0.1), [train], validation)
    with pytest.raises(NotImplementedError, match="rw"):
        method.alpha(inputs)


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"delta": 0.0}, {"beta": -1.0}, {"delta": float("nan")}])
def test_beta_and_delta_must_be_positive(options):
    ((name, value),) = options.items()
    with refused(name, value):
        ReweightingKD(**options)


@pytest.mark.parametrize("method", ["last_layer", "unrolled", "backward"])
def test_only_directional_estimators_are_accepted(method):
    with refused(method):
        ReweightingKD(hypergradient=method)
