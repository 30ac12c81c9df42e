"""On a CUDA device: the same training as on the CPU in double precision, half precision, and no step that waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_training import ratio_alone
from torch import nn
from torch.optim import SGD, AdamW

from tgeokd import Distiller, TGeoKD
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.loaders import BatchLoader
from tgeokd.methods import METHODS, build_method
from tgeokd.training.callbacks import Callback

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

C, SIDE, EPOCHS = 4, 6, 3


def images(n: int, seed: int, dtype: torch.dtype) -> ArrayDataset:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % C
    inputs = torch.randn(n, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)
    inputs[torch.arange(n), target % 2, target // 2] += 1.5
    return ArrayDataset(inputs.to(dtype), target, torch.arange(n) + 1000 * seed)


def network(seed: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 16, C))
    return nn.Sequential(*layers).to(dtype)


def trained(
    accelerator: str, method: Any, optimizer: Any, *, precision: str = "64-true", resident: bool = False, **options: Any
) -> Distiller:
    """A short run; the same initial weights and batches on each device. ``resident`` data lie on it, ids included."""
    dtype = torch.float64 if precision == "64-true" else torch.float32
    student = network(1, dtype)
    distiller = Distiller(
        student, network(2, dtype), method, optimizer(student.parameters()),
        accelerator=accelerator, precision=precision, progress=False, **options,
    )  # fmt: skip
    device = distiller.device if resident else torch.device("cpu")
    train, held_out = (images(n, seed, dtype).to(device) for n, seed in ((64, 0), (24, 1)))
    distiller.fit(BatchLoader(train, 16), BatchLoader(held_out, 12), epochs=EPOCHS)
    return distiller


def sgd(params: Any) -> SGD:
    return SGD(params, 0.05, momentum=0.9, weight_decay=1e-3)


METHOD_OPTIONS = [
    *((name, {}) for name in METHODS if name != "tgeo"),
    ("tgeo", {"update_interval": 1}),
    *(
        ("tgeo", {"update_interval": 1, "hypergradient": name})
        for name in ("last_layer", "forward", "finite_difference")
    ),
]


@pytest.mark.parametrize(
    ("method", "options"), METHOD_OPTIONS, ids=lambda v: v if isinstance(v, str) else v.get("hypergradient", "")
)
@pytest.mark.parametrize("resident", [False, True], ids=["", "resident"])
def test_double_precision_equals_the_cpu(method, options, resident):
    on_cpu, on_cuda = (
        trained(device, build_method(method, **options), sgd, resident=resident) for device in ("cpu", "cuda")
    )
    # A difference quotient amplifies rounding by the inverse of its step; mwnet's network is in single precision.
    amplified = options.get("hypergradient") == "finite_difference" or method == "mwnet"
    tolerance = 1e-5 if amplified else 1e-8
    assert on_cuda.device.type == "cuda"
    for name, value in on_cpu.student.state_dict().items():
        found = on_cuda.student.state_dict()[name].cpu()
        torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(sgd, {"clip_norm": 0.5}), (sgd, {"accumulate": 2}), (lambda p: AdamW(p, 1e-3), {})],
    ids=["clipping", "accumulation", "adamw"],
)
def test_clipping_accumulation_and_adamw_equal_the_cpu(optimizer, options):
    states = [trained(d, TGeoKD(update_interval=1), optimizer, **options).student.state_dict() for d in ("cpu", "cuda")]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name].cpu(), value, rtol=1e-7, atol=1e-7, msg=name)


@pytest.mark.parametrize("hypergradient", ["last_layer", "forward"])
def test_half_precision_stays_near_single(hypergradient):
    """The same data, weights and batches: bf16 keeps 8 bits of each number, so ratios agree to a few percent."""
    ratios = []
    for precision in ("32-true", "bf16-mixed"):
        method = ratio_alone(update_interval=1, hypergradient=hypergradient)
        distiller = trained("cuda", method, sgd, precision=precision)
        loader = BatchLoader(images(64, 0, torch.float32), 16)
        alpha = distiller.fusion_ratios(loader)
        assert bool(alpha.isfinite().all())
        ratios.append(alpha.cpu())
    assert float((ratios[0] - ratios[1]).abs().max()) < 0.05


class NoWaiting(Callback):
    """Makes torch raise an error at whatever waits for the device, from the second step to the last but one of an epoch."""

    def __init__(self, last: int) -> None:
        self.last, self.watched = last, 0

    def on_step_end(self, distiller: Distiller) -> None:
        watch = 1 <= distiller.step < self.last
        torch.cuda.set_sync_debug_mode("error" if watch else "default")
        self.watched += watch

    def on_exit(self, distiller: Distiller) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", ["kd", "tgeo", "posterior", "mwnet", "wls"])
def test_no_step_waits_for_the_device(method):
    train, held_out = (
        images(n, seed, torch.float32).to("cuda") for n, seed in ((64, 0), (64, 1))
    )  # no new pass over them while watched
    student, watch = network(1, torch.float32), NoWaiting(last=7)
    distiller = Distiller(
        student, network(2, torch.float32), build_method(method), sgd(student.parameters()),
        accelerator="cuda", callbacks=[watch], progress=False,
    )  # fmt: skip
    distiller.fit(BatchLoader(train, 8), BatchLoader(held_out, 8), epochs=1)
    assert watch.watched == 6
