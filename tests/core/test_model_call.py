"""How models are called."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tgeokd.core.model_call import class_logits, eval_mode, module_device, random_state, replayed, sliced
from tgeokd.utils.errors import InputError


class TwoInputs(nn.Module):
    def forward(self, a, b):
        return a + 2 * b


A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]])


@pytest.mark.parametrize("inputs", [{"b": B, "a": A}, (A, B), [A, B]])
def test_mappings_are_keywords_and_tuples_are_positions(inputs):
    assert class_logits(TwoInputs(), inputs).tolist() == [[21.0, 42.0]]


def test_a_tensor_is_passed_as_it_is():
    assert class_logits(nn.Identity(), A) is A


def test_any_callable_can_be_called():
    assert class_logits(lambda x: x * 2, A).tolist() == [[2.0, 4.0]]


def test_logits_are_found_in_an_output_object():
    assert class_logits(lambda x: SimpleNamespace(logits=x, loss=None), A) is A


def test_one_logit_becomes_two_classes():
    assert class_logits(lambda x: x[:, 0], A).tolist() == [[0.0, 1.0]]
    assert class_logits(lambda x: SimpleNamespace(logits=x[:, :1]), A).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("output", "given"),
    [([1.0], "float"), ({"scores": A}, "dict"), ((), "tuple"), ((None, A), "NoneType"), (None, "NoneType")],
)
def test_anything_else_is_refused_by_its_type(output, given):
    with pytest.raises(InputError, match=f"logits.* {given}"):
        class_logits(lambda x: output, A)


def test_logits_of_a_sequence_are_refused_by_their_shape():
    with pytest.raises(InputError, match=r"not \(2, 3, 4\)"):
        class_logits(lambda x: torch.zeros(2, 3, 4), A)


# ---- modes


def mixed_modes():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()), nn.Linear(2, 2))
    model.train()
    model[1][0].eval()  # a frozen batch norm
    model[2].eval()
    return model


def modes(model):
    return [module.training for module in model.modules()]


def test_eval_mode_restores_the_mode_of_every_module():
    model = mixed_modes()
    before = modes(model)
    assert before == [True, True, True, False, True, False]
    with eval_mode(model):
        assert not any(modes(model))
    assert modes(model) == before


def test_eval_mode_restores_after_an_error():
    model = mixed_modes()
    before = modes(model)
    with pytest.raises(KeyError), eval_mode(model):
        raise KeyError
    assert modes(model) == before


def test_eval_mode_of_a_model_in_eval_mode_leaves_it_there():
    model = nn.Dropout().eval()
    with eval_mode(model):
        pass
    assert not model.training


# ---- random state


def test_replayed_repeats_the_draws_and_restores_the_state():
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    state = random_state(cpu)
    first = torch.rand(5)
    torch.rand(7)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with replayed(state):
        assert torch.equal(torch.rand(5), first)
        torch.rand(100)
    assert torch.equal(torch.rand(3), expected)


def test_replayed_restores_the_state_after_an_error():
    state = random_state(torch.device("cpu"))
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with pytest.raises(RuntimeError, match="size"), replayed(state):
        torch.rand(9) + torch.rand(8)
    assert torch.equal(torch.rand(2), expected)


def test_replayed_repeats_a_dropout_mask():
    state = random_state(torch.device("cpu"))
    layer, x = nn.Dropout(), torch.ones(64)
    first = layer(x)
    with replayed(state):
        assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)


# ---- the rest


def test_device_of_modules():
    cpu = torch.device("cpu")
    assert module_device(nn.Linear(1, 1)) == cpu
    assert module_device(nn.BatchNorm1d(2, affine=False)) == cpu
    assert module_device(nn.ReLU()) == cpu
    assert module_device(nn.Linear(1, 1, device="meta")) == torch.device("meta")


def test_rows_are_cut_out_of_every_tensor_in_a_batch():
    x = torch.arange(6).reshape(3, 2)
    rows = slice(1, 3)
    assert sliced(x, rows).tolist() == [[2, 3], [4, 5]]
    assert sliced({"a": x, "b": None}, rows)["a"].tolist() == [[2, 3], [4, 5]]
    assert sliced({"a": x, "b": None}, rows)["b"] is None
    cut = sliced((x, [x[:, 0]]), rows)
    assert isinstance(cut, tuple)
    assert cut[1][0].tolist() == [2, 4]
