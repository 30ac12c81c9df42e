"""No training step waits for an accelerator.

The steps run on torch's ``meta`` device. It is not the CPU, so the code takes the same path as on an accelerator; and its
tensors hold no data, so whatever reads a value back (``item``, ``bool``, ``nonzero``, ``tolist``, ``cpu``) fails.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tgeokd import Distiller
from tgeokd.core.metrics import METRICS, Metrics
from tgeokd.methods import METHODS, build_method
from tgeokd.training.callbacks import Callback
from tgeokd.training.survey import Survey

META = torch.device("meta")
N, C, STEPS = 8, 3, 2


class Watch(TorchDispatchMode):
    """Collects what the host would wait for on an accelerator without a read: blocking copies, indices elsewhere."""

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
    """Where tensors were made of Python numbers on the device: a blocking copy, which is not visible on ``meta``."""
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
    """Let Lightning Fabric and the check of the first batch accept the meta device; neither belongs to a step."""
    monkeypatch.setattr(Fabric, "device", property(lambda self: META))
    monkeypatch.setattr(Fabric, "setup", lambda self, *modules, **_: modules)
    monkeypatch.setattr(Fabric, "setup_module", lambda self, module, **_: module)
    known = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != "meta" and known(kind))
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, **k: nullcontext() if kind == "meta" else autocast(kind, **k))
    for optimizer in (torch.optim.Adam, torch.optim.AdamW):  # meta lacks the fused kernel, which reads nothing
        build = optimizer.__init__
        monkeypatch.setattr(optimizer, "__init__", lambda self, *a, b=build, **k: b(self, *a, **(k | {"fused": False})))
    means = torch.full((C, C), 1 / C, device=META)
    noise = {"scale": torch.ones((), device=META), "bias": means[0], "log_rates": means}
    monkeypatch.setattr("tgeokd.training.step.survey", lambda *_, **__: Survey(C, means, noise, torch.arange(3)))
    monkeypatch.setattr("tgeokd.training.step.validate_labels", lambda *_: None)
    monkeypatch.setattr("tgeokd.bilevel.estimators.last_layer.find_head", lambda student, _: student[-1])


class Done(Exception):
    """Ends training: the end of an epoch reads its statistics."""


class WatchedSteps(Callback):
    """Watches some steps; tensors that are made once per run are made in the step before."""

    def __init__(self, made):
        self.made, self.watch, self.entered = made, Watch(), False

    def on_step_end(self, distiller):
        if distiller.step == 1:
            self.made.clear()
            self.watch.__enter__()
            self.entered = True
        elif distiller.step == 1 + STEPS:
            raise Done

    def on_exit(self, distiller):
        if self.entered:
            self.watch.__exit__(None, None, None)


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, C)
    ).to(META)


def batch():
    zeros = torch.zeros(N, dtype=torch.int64, device=META)
    return torch.empty(N, 2, 4, 4, device=META), zeros, zeros.clone()  # the ids are on the device too


OPTIONS = [
    *((name, {}) for name in METHODS if name not in ("tgeo", "posterior")),
    ("posterior", {"outer": "holdout"}),
    *(
        ("tgeo", {"hypergradient": name, "outer": "holdout", "update_interval": 2})
        for name in ("forward", "finite_difference", "last_layer")
    ),
    (
        "tgeo",
        {
            "hypergradient": "unrolled",
            "outer": "holdout",
            "update_interval": 2,
            "ema_decay": 0.0,
            "project_out_step_length": False,
        },
    ),
]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, capturable=False, foreach=False),
}


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize(
    ("method", "options"), OPTIONS, ids=lambda v: v if isinstance(v, str) else v.get("hypergradient", "")
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("clip_norm", "accumulate"), [(None, 1), (1.0, 2)])
def test_no_step_of_any_method_reads_anything_back(method, options, optimizer, clip_norm, accumulate, made):
    student, steps = network(), WatchedSteps(made)
    distiller = Distiller(
        student, network(), build_method(method, **options), OPTIMIZERS[optimizer](student.parameters()),
        clip_norm=clip_norm, accumulate=accumulate, callbacks=[steps], progress=False,
    )  # fmt: skip
    with pytest.raises(Done):
        distiller.fit([batch() for _ in range((STEPS + 2) * accumulate)], [batch()], epochs=2)
    assert steps.watch.seen > 50 * STEPS * accumulate
    assert steps.watch.found == []
    assert made == []


@pytest.mark.parametrize("exact", [50_000_000, 10])
@pytest.mark.parametrize("chunk", [2**24, 2 * C])
def test_no_batch_of_an_evaluation_reads_anything_back(exact, chunk, made, monkeypatch):
    monkeypatch.setattr("tgeokd.core.metrics.running.DEVICE_CHUNK", chunk)
    monkeypatch.setattr("tgeokd.core.metrics.areas.EXACT", exact)
    names = tuple(name for name in METRICS if name != "auc")
    found = Metrics(names, attack_classes=(1,)).accumulator()
    logits, target = torch.empty(N, C, device=META), torch.zeros(N, dtype=torch.int64, device=META)
    found.update(logits, target)  # tensors that are made once
    made.clear()
    with Watch() as watch:
        for _ in range(4):
            found.update(logits, target)
        found._flush()
    assert watch.seen > 50
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
def test_operations_that_would_wait_are_noticed(wait, made):
    with Watch() as watch:
        try:
            wait(torch.empty(3, device=META))
        except (RuntimeError, NotImplementedError):
            return
    assert watch.found or made
