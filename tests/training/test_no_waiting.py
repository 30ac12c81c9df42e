"""No training step waits for an accelerator.

The steps run on torch's ``meta`` device. It is not the CPU, so everything takes the way it takes on an accelerator; and its
tensors hold no data, so whatever reads a value back (``item``, ``bool``, ``nonzero``, ``tolist``, ``cpu``) cannot.
"""

from __future__ import annotations

import sys

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tgeokd import Distiller
from tgeokd.core.ratio_statistics import RatioStatistics
from tgeokd.core.validation import FiniteGuard
from tgeokd.methods import METHODS, Batch, TrainingStep, build_method

META = torch.device("meta")
N, C, STEPS = 8, 3, 5


class Watch(TorchDispatchMode):
    """Notes what an accelerator would make the host wait for, though nothing is read: blocking copies, indices elsewhere."""

    def __init__(self):
        super().__init__()
        self.found, self.seen = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.seen += 1
        name = func._schema.name
        if name == "aten::_to_copy" and args[0].device.type == "cpu":
            if kwargs.get("device") == META and not kwargs.get("non_blocking"):
                self.found.append("a blocking copy of a tensor")
        elif name in ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"):
            if args[0].device == META and any(i is not None and i.device.type == "cpu" for i in args[1]):
                self.found.append("indices in main memory")
        elif name in ("aten::copy_",) and args[0].device == META and args[1].device.type == "cpu":
            if not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking"):
                self.found.append("a blocking copy into a tensor")
        elif name in ("aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::bincount"):
            self.found.append(name)
        return func(*args, **kwargs)


@pytest.fixture
def made(monkeypatch):
    """Where tensors were made of Python numbers on the device, which there is a blocking copy, and here leaves no trace."""
    found, real = [], torch.tensor

    def tensor(*args, device=None, **kwargs):
        if device == META:
            caller = sys._getframe(1)
            found.append(f"{caller.f_code.co_filename}:{caller.f_lineno}")
        return real(*args, device=device, **kwargs)

    monkeypatch.setattr(torch, "tensor", tensor)
    return found


@pytest.fixture
def on_meta(monkeypatch):
    """Lightning Fabric knows no meta device; all it does in a step is to say where it runs."""
    monkeypatch.setattr(Fabric, "device", property(lambda self: META))
    monkeypatch.setattr(Fabric, "setup", lambda self, *parts, **_: parts)
    monkeypatch.setattr(Fabric, "setup_module", lambda self, module, **_: module)
    known = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != "meta" and known(kind))
    build = torch.optim.AdamW.__init__
    no_kernel = {"fused": False}  # a kernel that meta lacks, and that reads nothing
    monkeypatch.setattr(torch.optim.AdamW, "__init__", lambda self, *a, **k: build(self, *a, **(k | no_kernel)))
    build_adam = torch.optim.Adam.__init__
    monkeypatch.setattr(torch.optim.Adam, "__init__", lambda self, *a, **k: build_adam(self, *a, **(k | no_kernel)))


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, C)
    ).to(META)


def batch():
    target = torch.zeros(N, dtype=torch.int64, device=META)
    return Batch(torch.empty(N, 2, 4, 4, device=META), target, torch.empty(N, C, device=META))


OPTIONS = [
    *((name, {}) for name in METHODS if name != "tgeo"),
    *(("tgeo", {"hypergradient": way}) for way in ("forward", "finite_difference", "last_layer")),
    ("tgeo", {"hypergradient": "unrolled", "average": 0.0, "fixed_length": False}),
]


def optimizers():
    return {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, capturable=False, foreach=False),
    }


@pytest.mark.parametrize(
    ("method", "options"), OPTIONS, ids=lambda v: v if isinstance(v, str) else v.get("hypergradient", "")
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_no_step_of_any_method_reads_anything_back(method, options, optimizer, clip, on_meta, made):
    student = network()
    distiller = Distiller(
        student, network(), build_method(method, **options), optimizers()[optimizer](student.parameters()),
        clip_norm=clip, progress=False,
    )  # fmt: skip
    distiller.epochs = 2
    distiller.method.prepare(C, torch.full((C, C), 1 / C, device=META), META)
    distiller._lookahead._head = (
        student[-1] if options.get("hypergradient") == "last_layer" else None
    )  # found by reading
    ratios, guard = RatioStatistics(META), FiniteGuard(META)

    def step():
        parts = [batch(), batch()]
        distiller._train_step(TrainingStep(distiller.step, distiller._lookahead, parts, batch), ratios, guard)
        distiller.step += 1

    step()  # what is made once a run is made in the first step
    made.clear()
    with Watch() as watch:
        for _ in range(STEPS):
            step()
    assert watch.seen > 50 * STEPS
    assert watch.found == []
    assert made == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x + torch.ones(3).to(META),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x + torch.tensor(1.0, device=META),
    ],
)
def test_what_would_wait_is_noticed(wait, made):
    with Watch() as watch:
        try:
            wait(torch.empty(3, device=META))
        except (RuntimeError, NotImplementedError):
            return
    assert watch.found or made
