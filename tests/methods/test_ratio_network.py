"""The network of the fusion ratios and its optimizer, against autograd and torch's Adam."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from small_training import by_layer
from torch import nn

from tgeokd.methods.ratio_network import RatioNetwork


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
            return (features @ parts[-2].T + parts[-1]).squeeze(-1)

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
        assert torch.equal(network(features), torch.zeros(5))
        assert torch.equal(torch.cat([part.flatten() for layer in other.layers for part in layer]), other.omega)


def test_omega_starts_as_linear_layers_do():
    torch.manual_seed(5)
    network = RatioNetwork(6, (7,))
    torch.manual_seed(5)
    first = nn.Linear(6, 7)
    assert torch.equal(network.layers[0][0], first.weight)
    assert torch.equal(network.layers[0][1], first.bias)
    assert not network.layers[1][0].any()


def test_features_are_standardised_by_what_was_observed():
    torch.manual_seed(0)
    network = RatioNetwork(3, (4,), standardise=True)
    nn.init.normal_(network.omega)
    plain = RatioNetwork(3, (4,))
    plain.load_state_dict({"omega": network.omega})
    location, spread = torch.tensor([5.0, -2.0, 100.0]), torch.tensor([0.1, 3.0, 20.0])
    for _ in range(300):
        network.observe(location + spread * torch.randn(64, 3))
    features = location + spread * torch.randn(40, 3)
    before = copy.deepcopy(network.state_dict())
    found = network(features)
    torch.testing.assert_close(found, plain((features - location) / spread, learn=False), rtol=0.1, atol=0.1)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(network(features), plain(features))


def test_an_outlier_and_a_constant_feature_stay_finite():
    network = RatioNetwork(2, (), standardise=True)
    nn.init.ones_(network.omega)
    constant = torch.tensor([[1.0, 7.0]] * 8)
    for _ in range(5):
        network.observe(constant)
    assert float(network(torch.tensor([[1e30, 7.0]]), learn=False).abs().max()) < 20
