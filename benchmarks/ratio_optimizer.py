"""Whether f_omega's own Adam is worth its lines: time per step beside ``torch.optim.Adam``, with the same numbers.

Both optimizers move the one parameter of the default ratio network. Short blocks of steps alternate (A B C ...) in one
process with one thread. A figure is the median over many blocks. Times are processor times, which other load of the machine
affects less than wall times.
Recorded in evidence/ratio_optimizer.json.

Run: python benchmarks/ratio_optimizer.py [--blocks N] [--steps N] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Figure, interleaved, ratios, threads
from torch import Tensor, nn
from workloads import MLP, Workload, distilled

from tgeokd import TGeoKD
from tgeokd.core.geometry.scalar import GeometryFeatures, num_scalar_features
from tgeokd.methods.ratio_network import Adam, RatioNetwork
from tgeokd.runs.executors import machine

__all__ = ["OPTIMIZERS", "agreement", "figures"]

LR, AGREEMENT_STEPS = 3e-3, 100


def own(omega: nn.Parameter) -> Callable[[Tensor], None]:
    return Adam(omega, LR).step


def of_torch(**options: Any) -> Callable[[nn.Parameter], Callable[[Tensor], None]]:
    def build(omega: nn.Parameter) -> Callable[[Tensor], None]:
        optimizer = torch.optim.Adam([omega], LR, **options)

        def step(gradient: Tensor) -> None:
            omega.grad = gradient
            optimizer.step()

        return step

    return build


OPTIMIZERS: dict[str, Callable[[nn.Parameter], Callable[[Tensor], None]]] = {
    "own": own,
    "torch": of_torch(),
    "torch foreach": of_torch(foreach=True),
    "torch fused": of_torch(fused=True),
}


def omega() -> nn.Parameter:
    """The weights of the default network, the same on every call."""
    torch.manual_seed(0)
    return RatioNetwork(num_scalar_features(GeometryFeatures())).omega


def gradients(count: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn_like(omega()) * 10.0 ** -(i % 5) for i in range(count)]


def agreement(name: str) -> float:
    """Largest difference of omega to the own Adam's after 100 steps, as a share of the largest movement."""
    found = []
    for optimizer in ("own", name):
        parameter = omega()
        step = OPTIMIZERS[optimizer](parameter)
        for gradient in gradients(AGREEMENT_STEPS):
            step(gradient)
        found.append(parameter.detach())
    return float((found[1] - found[0]).abs().max() / (found[0] - omega().detach()).abs().max())


def figures(blocks: int = 400, steps: int = 20, work: Workload = MLP) -> list[Figure]:
    """Time per step of each optimizer beside the own one, and the share of a whole training step that the difference is."""

    def block(name: str) -> Callable[[], float]:
        step, given = OPTIMIZERS[name](omega()), gradients(steps)

        def measure() -> float:
            started = time.process_time()
            for gradient in given:
                step(gradient)
            return (time.process_time() - started) / steps

        return measure

    others = list(OPTIMIZERS)[1:]
    with threads(1):
        values = interleaved({name: block(name) for name in OPTIMIZERS}, blocks)
        training = interleaved({"tgeo": distilled(work, "tgeo", time_of=time.process_time)}, 5)["tgeo"]
    median = {name: statistics.median(found) for name, found in values.items()}
    found = [Figure.of("µs per step of omega, own Adam", [1e6 * value for value in values["own"]])]
    for name in others:
        apart = f"after {AGREEMENT_STEPS} steps omega differs by {agreement(name):.0e} of its largest movement"
        note = f"{1e6 * median[name]:.1f} µs; {apart}"
        found.append(Figure.of(f"step of omega: {name} Adam / own Adam", ratios(values, name, "own"), note=note))
    fastest = min(others, key=median.__getitem__)
    interval = TGeoKD().update_interval
    saved = median[fastest] - median["own"]
    step_us = 1e6 * statistics.median(training)
    found.append(
        Figure.of(
            f"time that the own Adam saves / TGeo default step ({work.name})",
            [saved / interval / seconds for seconds in training],
            note=f"compared with {fastest}; one step of omega per {interval} training steps of {step_us:.0f} µs",
        )
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=400, help="counted blocks of each optimizer")
    parser.add_argument("--steps", type=int, default=20, help="in a block")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    found = figures(given.blocks, given.steps)
    for f in found:
        print(f"{f.name}: {f.value:.3g} ({f.low:.3g} to {f.high:.3g})" + (f"; {f.note}" if f.note else ""))
    if given.json is not None:
        content = {"machine": machine(), "figures": [dataclasses.asdict(f) for f in found]}
        given.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
