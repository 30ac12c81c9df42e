"""The network of the fusion ratios and its optimizer, against autograd and torch's Adam."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from small_training import by_layer
from torch import nn

from tgeokd.methods.ratio_network import Adam, RatioNetwork


def test_ratios_and_their_gradient_are_those_of_autograd_through_the_layers():
    torch.manual_seed(0)
    for hidden in ((), (7,), (8, 5, 3)):
        network = RatioNetwork(6, hidden).double()
        nn.init.normal_(network.omega)
        features = torch.randn(9, 6, dtype=torch.float64)

        def by_autograd(omega, network=network, features=features):
            parts = list(by_layer(network, omega).values())
            for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
                features = F.leaky_relu(features @ weight.T + bias)
            return (features @ parts[-2].T + parts[-1]).sigmoid().squeeze(-1)

        ratios = network(features)
        torch.testing.assert_close(ratios, by_autograd(network.omega))
        gradient = torch.randn(9, dtype=torch.float64)
        (found,) = torch.autograd.grad(ratios, network.omega, gradient)
        (truth,) = torch.autograd.grad(by_autograd(network.omega), network.omega, gradient)
        torch.testing.assert_close(found, truth)


def test_a_moved_or_copied_network_still_reads_its_own_omega():
    network = RatioNetwork(3, (4,))
    features = torch.randn(5, 3)
    for other in (copy.deepcopy(network), copy.deepcopy(network).double().float()):
        nn.init.normal_(other.omega)
        assert not torch.equal(other(features), network(features))
        assert torch.equal(network(features), torch.full((5,), 0.5))
        assert torch.equal(torch.cat([part.flatten() for layer in other.layers for part in layer]), other.omega)


def test_omega_starts_as_linear_layers_do():
    torch.manual_seed(5)
    network = RatioNetwork(6, (7,))
    torch.manual_seed(5)
    first = nn.Linear(6, 7)
    assert torch.equal(network.layers[0][0], first.weight)
    assert torch.equal(network.layers[0][1], first.bias)
    assert not network.layers[1][0].any()


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_many_steps_of_omega_are_those_of_torchs_adam(weight_decay):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(20, dtype=torch.float64))
    theirs = nn.Parameter(ours.detach().clone())
    adam, reference = Adam(ours, 0.03, weight_decay), torch.optim.Adam([theirs], lr=0.03, weight_decay=weight_decay)
    for _ in range(50):
        theirs.grad = torch.randn(20, dtype=torch.float64) * 10.0 ** float(torch.randint(-9, 3, ()))
        adam.step(theirs.grad)
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
