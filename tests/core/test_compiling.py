"""Compiled training: the same numbers as without, from one seed, with every estimator."""

from __future__ import annotations

import shutil

import pytest
import torch
from quick import short
from torch import nn
from torch.utils.data import DataLoader

from tgeokd import Distiller
from tgeokd.core.compiling import compile_module, forward_of, uncompiled
from tgeokd.data.arrays import ArrayDataset
from tgeokd.methods import build_method
from tgeokd.runs.build import build_distiller, build_student, load_data, method_of
from tgeokd.utils.errors import InputError

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler on the CPU"
)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of compilers would outlive the test


def loader(n, seed, size=12):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 3, 6, 6, generator=generator), torch.arange(n) % 3
    return DataLoader(ArrayDataset(x, y, torch.arange(n)), size)


def network(seed, *, dropout=0.25):
    """With batch norm and dropout: further passes must use the state and mask of the step."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(4, 3),
    )


def trained(method, *, compile, precision="32-true", epochs=2, **options):
    student = network(0)
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    built = build_method(method, **options)
    distiller = Distiller(
        student, network(1), built, optimizer, accelerator="cpu", precision=precision, progress=False, compile=compile
    )
    history = distiller.fit(loader(44, 0), loader(12, 1), epochs=epochs, seed=3)  # the last batch is short
    return distiller, history


def weights(distiller):
    return torch.cat([value.float().flatten() for value in distiller.student.state_dict().values()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ce", {}),
        ("tgeo", {"hypergradient": "forward"}),
        ("tgeo", {"hypergradient": "finite_difference"}),
        ("tgeo", {"hypergradient": "last_layer", "update_interval": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_compiled_run_gives_the_numbers_of_one_that_is_not(method, options):
    (plain, before), (fast, after) = (trained(method, compile=c, **options) for c in (False, True))
    torch.testing.assert_close(weights(fast), weights(plain), rtol=1e-4, atol=1e-5)
    for key in ("train_loss", "val_loss", "alpha_mean"):
        if before[key] != [None] * 2:
            assert after[key] == pytest.approx(before[key], rel=1e-4)


@pytest.mark.slow
def test_autocast_agrees_to_its_own_precision():
    (plain, _), (fast, _) = (trained("tgeo", compile=c, precision="bf16-mixed") for c in (False, True))
    torch.testing.assert_close(weights(fast), weights(plain), rtol=0.05, atol=0.02)


def test_student_and_teacher_are_compiled_once_per_batch_size_and_remain_the_users_modules(monkeypatch):
    graphs, passes = [], []

    def counted(module, **_):
        def backend(graph, inputs):
            graphs.append(module)
            return lambda *args: passes.append(module) or graph(*args)

        return real(module, backend=backend)

    real = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr("tgeokd.training.distiller.check_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", counted)
    distiller, _ = trained("kd", compile=True, epochs=3)
    student, teacher = distiller.student, distiller.teacher.model
    assert type(student) is nn.Sequential
    assert set(student.state_dict()) == set(network(0).state_dict())
    for module in (student, teacher):  # for 12 rows and for 8; torch compiles no third size
        assert graphs.count(module) == 2
    assert passes.count(student) == 3 * 4  # evaluation runs the module itself


@pytest.mark.slow
def test_a_hook_added_after_compiling_takes_effect():
    net = network(0)
    module, x = compile_module(net), torch.randn(6, 3, 6, 6)
    assert uncompiled(module) is net
    assert uncompiled(net) is net
    run = forward_of(module)
    seen = []
    for _ in range(2):
        run(x)
        handle = net[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
        run(x)
        handle.remove()
    assert seen == [(6, 4)] * 2


def test_a_missing_compiler_is_reported_before_training(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("No working C++ compiler found\nand a long explanation")

    monkeypatch.setattr(torch, "compile", lambda function: fails)
    with pytest.raises(InputError, match=r"compile=True .*cpu.*No working"):
        trained("kd", compile=True)


def test_the_setting_of_a_run_reaches_the_distiller(monkeypatch):
    checked = []
    monkeypatch.setattr("tgeokd.training.distiller.check_compiler", checked.append)
    for setting, expected in (("compile=true", 1), ("compile=false", 0)):
        checked.clear()
        config = short("method=ce", setting)
        data = load_data(config)
        build_distiller(
            build_student(config, data), None, method_of(config), config, config.student, data, progress=False
        )
        assert len(checked) == expected
