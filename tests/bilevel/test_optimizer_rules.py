"""The step of a parameter against torch's own optimizers, and its derivative against autograd and the real step."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from students import derivative
from torch import nn
from torch.optim import SGD, Adam, AdamW

from tgeokd.bilevel.optimizer_rules import rule_of, unwrapped

rates = st.floats(1e-4, 1.0)
decays = st.sampled_from([0.0, 0.01, 0.3])
seeds = st.integers(0, 2**31 - 1)


@st.composite
def sgds(draw):
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
    nesterov = momentum > 0 and draw(st.booleans())
    dampening = 0.0 if nesterov else draw(st.sampled_from([0.0, 0.3, 1.0]))
    options = {"lr": draw(rates), "momentum": momentum, "nesterov": nesterov, "dampening": dampening}
    options |= {"weight_decay": draw(decays), "maximize": draw(st.booleans())}
    return SGD, options


@st.composite
def adams(draw):
    betas = (draw(st.sampled_from([0.0, 0.5, 0.9])), draw(st.sampled_from([0.5, 0.9, 0.999])))
    options = {"lr": draw(rates), "betas": betas, "eps": draw(st.sampled_from([1e-8, 1e-4, 1e-1]))}
    options |= {"weight_decay": draw(decays), "amsgrad": draw(st.booleans()), "maximize": draw(st.booleans())}
    kind = draw(st.sampled_from([Adam, AdamW]))
    if kind is Adam:
        options["decoupled_weight_decay"] = draw(st.booleans())
    return kind, options


def parameter_and_gradients(seed, steps=5, size=4):
    """A parameter and gradients of very different sizes, some shrinking (so that amsgrad's maximum stays) and one zero."""
    generator = torch.Generator().manual_seed(seed)
    param = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))
    scales = 10.0 ** torch.empty(steps, size, dtype=torch.float64).uniform_(-3, 1, generator=generator)
    gradients = scales * torch.randn(steps, size, generator=generator, dtype=torch.float64)
    gradients[0, 0] = 0.0
    return param, gradients


@given(st.one_of(sgds(), adams()), seeds)
def test_new_value_and_derivative_over_several_steps(kind_and_options, seed):
    kind, options = kind_and_options
    param, gradients = parameter_and_gradients(seed)
    optimizer = kind([param], **options)
    (group,) = optimizer.param_groups
    rule = rule_of(optimizer)
    for gradient in gradients:
        state = optimizer.state.get(param, {})
        entries, before = len(optimizer.state), copy.deepcopy(optimizer.state_dict())
        g = gradient.clone().requires_grad_()
        predicted = rule.new_value(param.detach(), g, state, group)
        found = torch.as_tensor(rule.diagonal(param.detach(), gradient, state, group), dtype=torch.float64).expand(4)
        jacobian = torch.stack([torch.autograd.grad(predicted[i], g, retain_graph=True)[0] for i in range(4)])
        # Adam's derivative is a difference of two terms of size lr (1 - beta1) / root: that is what rounding scales with.
        rounding = 1e-11 * float(options["lr"]) / float(gradient[gradient != 0].abs().min())
        torch.testing.assert_close(torch.diag(-found), jacobian, rtol=1e-9, atol=rounding + 1e-13)
        assert len(optimizer.state) == entries
        torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)

        param.grad = gradient.clone()
        optimizer.step()
        torch.testing.assert_close(predicted.detach(), param.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SGD, {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}),
        (SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
        (Adam, {"eps": 0.1, "weight_decay": 0.2}),
        (Adam, {"eps": 0.1, "amsgrad": True, "betas": (0.6, 0.8), "maximize": True}),
        (AdamW, {"eps": 0.1, "weight_decay": 0.2}),
    ],
)
def test_derivative_is_the_difference_quotient_of_the_real_step(kind, options, steps):
    param, gradients = parameter_and_gradients(7)
    optimizer = kind([param], lr=0.1, **options)
    for gradient in gradients[:steps]:
        param.grad = gradient.clone()
        optimizer.step()
    gradient = 0.3 + gradients[steps].abs()

    def stepped(index, shift):
        (trial,), trial_optimizer = copy.deepcopy(([param], optimizer))
        trial.grad = gradient.clone()
        trial.grad[index] += shift
        trial_optimizer.step()
        return trial[index].item()

    expected = [-derivative(lambda s, i=i: stepped(i, s), 1e-3) for i in range(4)]
    state, (group,) = optimizer.state.get(param, {}), optimizer.param_groups
    found = torch.as_tensor(rule_of(optimizer).diagonal(param.detach(), gradient, state, group), dtype=torch.float64)
    torch.testing.assert_close(found.expand(4), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_amsgrad_has_no_derivative_through_a_second_moment_below_the_maximum():
    param = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Adam([param], lr=0.1, amsgrad=True, betas=(0.0, 0.5), eps=0.0)
    param.grad = torch.tensor([100.0], dtype=torch.float64)
    optimizer.step()  # the maximum is now 5000
    (group,), state = optimizer.param_groups, optimizer.state[param]
    # update = lr g / (sqrt(5000) / sqrt(1 - 1/4)) for a small g: the derivative is lr sqrt(3/4) / sqrt(5000)
    found = rule_of(optimizer).diagonal(param.detach(), torch.tensor([0.01], dtype=torch.float64), state, group)
    assert found.item() == pytest.approx(0.1 * 0.75**0.5 / 5000**0.5, rel=1e-12)


def test_a_gradient_that_has_always_been_zero_gives_finite_numbers():
    param = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = Adam([param], lr=0.1, eps=1e-2)
    (group,), rule = optimizer.param_groups, rule_of(optimizer)
    zero = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    value = rule.new_value(param.detach(), zero, {}, group)
    assert torch.equal(value, param.detach())
    # g / (|g| + eps) has the derivative 1 / eps at 0
    (jacobian,) = torch.autograd.grad(value.sum(), zero)
    torch.testing.assert_close(jacobian, torch.full_like(jacobian, -0.1 / 1e-2))
    torch.testing.assert_close(rule.diagonal(param.detach(), zero.detach(), {}, group), -jacobian)


def test_a_learning_rate_that_is_a_tensor():
    param, gradients = parameter_and_gradients(1)
    for kind in (SGD, Adam, AdamW):
        given, expected = kind([param], lr=torch.tensor(0.25, dtype=torch.float64)), kind([param], lr=0.25)
        for part in ("new_value", "diagonal"):
            a, b = (
                getattr(rule_of(optimizer), part)(param.detach(), gradients[1], {}, optimizer.param_groups[0])
                for optimizer in (given, expected)
            )
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_a_wrapped_optimizer_is_unwrapped():
    inner = Adam([nn.Parameter(torch.zeros(1))], lr=0.1)

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    assert unwrapped(Wrapper(inner)) is inner
    assert rule_of(Wrapper(inner)) is rule_of(inner)
    assert unwrapped(inner) is inner
    inner.optimizer = SimpleNamespace()  # an attribute of that name that is not an optimizer
    assert unwrapped(inner) is inner
