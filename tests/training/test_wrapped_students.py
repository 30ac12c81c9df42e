"""Students wrapped by torch.compile, DataParallel and DistributedDataParallel: saved without the names of the wrappers."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, load_model
from small_training import FEATURES, data, weights
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import Distiller
from tgeokd.core.wrapped import load_plain_state, plain_state
from tgeokd.models.weights import load_weights


def plain():
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU())
    return nn.Sequential(OrderedDict(body=body, module=nn.Linear(8, 3)))  # a part may be called as a wrapper's


def compiled(module):
    return torch.compile(module, backend="eager")


def with_inner(wrap):
    student = plain()
    student.body = wrap(student.body)
    return student


STUDENTS = {
    "plain": plain,
    "compiled": lambda: compiled(plain()),
    "parallel": lambda: nn.DataParallel(plain()),
    "compiled parallel": lambda: compiled(nn.DataParallel(plain())),
    "parallel compiled": lambda: nn.DataParallel(compiled(plain())),
    "compiled part": lambda: with_inner(compiled),
    "parallel part": lambda: with_inner(nn.DataParallel),
}


def trained(student, out, epochs=2, **options):
    distiller = Distiller(
        *(student, nn.Linear(FEATURES, 3), "ce", SGD(student.parameters(), 0.1, momentum=0.9)),
        **{"accelerator": "cpu", "progress": False},
    )
    train = DataLoader(TensorDataset(*data(16)), 8, shuffle=True)
    held = DataLoader(TensorDataset(*data(8, 3)), 8)
    distiller.fit(train, held, epochs=epochs, patience=5, out=out, **options)
    return distiller


@pytest.mark.parametrize("name", STUDENTS)
def test_states_go_round_with_and_without_wrappers(name):
    student = STUDENTS[name]()
    assert plain_state(student).keys() == plain().state_dict().keys()
    for value in student.state_dict().values():
        value.copy_(torch.rand(value.shape) + 1)
    other = plain()
    load_plain_state(other, plain_state(student))
    again = STUDENTS[name]()
    load_plain_state(again, plain_state(other))
    own = STUDENTS[name]()
    load_plain_state(own, student.state_dict())  # as earlier versions saved it
    for made in (again, own):
        assert all(torch.equal(value, student.state_dict()[key]) for key, value in made.state_dict().items())


@pytest.mark.parametrize("name", STUDENTS)
def test_files_have_the_names_of_the_plain_student_and_are_resumed_by_any_wrapper(tmp_path, name):
    names = set(plain().state_dict())
    student = STUDENTS[name]()
    trained(student, tmp_path)
    file = tmp_path / "student.safetensors"
    assert set(load_file(file)) == names
    for load in (lambda model: load_weights(model, file), lambda model: load_model(model, str(file))):
        model = plain()
        load(model)
        assert all(torch.equal(value, plain_state(student)[key]) for key, value in weights(model).items())
    path = max((tmp_path / "checkpoints").glob("*.pt"))
    content = torch.load(path, weights_only=True)
    assert set(content["student"]) == names
    assert set(content["callbacks"][0][1]["weights"]) == names
    assert set(content["parameters"][0]) == {key for key, _ in plain().named_parameters()}
    other = plain() if name != "plain" else nn.DataParallel(plain())
    resumed = trained(other, tmp_path, epochs=3, resume=True)
    whole = trained(plain(), tmp_path / "whole", epochs=3)
    assert resumed.resumed_at == 2
    assert all(torch.equal(value, plain_state(other)[key]) for key, value in weights(whole.student).items())


def test_tied_weights_of_a_wrapped_student_are_written_once(tmp_path):
    def tied():
        torch.manual_seed(1)
        student = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, 3))
        student[1].weight = student[0].weight
        return student

    wrapped = nn.DataParallel(tied())
    trained(wrapped, tmp_path)
    model = tied()
    load_model(model, str(tmp_path / "student.safetensors"))
    assert torch.equal(model[1].weight, wrapped.module[0].weight)


def test_a_distributed_student(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        student = nn.parallel.DistributedDataParallel(plain())
        trained(student, tmp_path / "run")
        assert set(load_file(tmp_path / "run" / "student.safetensors")) == set(plain().state_dict())
        assert trained(student, tmp_path / "run", epochs=3, resume=True).resumed_at == 2
    finally:
        dist.destroy_process_group()
