"""Where the time of a training step goes: milliseconds a step in each part, for the ways that the benchmark compares.

Run: python benchmarks/where_time_goes.py
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from harness import threads
from workloads import ALPHA, MLP, RESNET, Workload, distilled

from tgeokd import Distiller, TGeoKD, VanillaKD
from tgeokd.bilevel import Lookahead
from tgeokd.methods import Method

PARTS: list[tuple[str, Any, str]] = [
    ("teacher (or its cache)", Distiller, "_teacher_logits"),
    ("student forward", Lookahead, "forward"),
    ("ratios and loss", Method, "loss"),
    ("f_omega, geometry", TGeoKD, "alpha"),
    ("backward", torch.Tensor, "backward"),
    ("optimizer's step", Lookahead, "step"),
    ("hypergradient", Lookahead, "ratio_gradient"),
    ("omega's step", TGeoKD, "learn"),
]
INSIDE = {"f_omega, geometry": "ratios and loss"}  # counted in another part already


@contextmanager
def timed(totals: dict[str, float]) -> Iterator[None]:
    """Every part adds its wall time to the totals while the block runs; a call within a call of the same part counts once."""
    originals = []
    for name, owner, attribute in PARTS:
        original = getattr(owner, attribute)
        originals.append((owner, attribute, original))

        def wrapper(*args: Any, _name: str = name, _call: Callable[..., Any] = original, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return _call(*args, **kwargs)
            finally:
                totals[_name] += time.perf_counter() - started

        setattr(owner, attribute, wrapper)

    step, warmed_up = Distiller._train_step, []

    def train_step(*args: Any) -> Any:
        result = step(*args)
        if not warmed_up:  # what came before, and the first step, are not counted
            warmed_up.append(True)
            totals.clear()
        return result

    originals.append((Distiller, "_train_step", step))
    Distiller._train_step = train_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        for owner, attribute, original in originals:
            setattr(owner, attribute, original)


def table(work: Workload) -> None:
    """Print the parts of each way, in ms a step."""
    ways = {
        "kd": lambda: VanillaKD(alpha=ALPHA),
        "tgeo": TGeoKD,
        "forward": lambda: TGeoKD(hypergradient="forward", every=1, outer_batch_size=work.batch_size),
    }
    columns, sums = {}, {}
    with threads(work.threads):
        for name, method in ways.items():
            run = distilled(work, method)
            run()
            totals: dict[str, float] = defaultdict(float)
            with timed(totals):
                sums[name] = 1e3 * run()
            columns[name] = {part: 1e3 * seconds / work.steps for part, seconds in totals.items()}
    print(f"\n{work.name}, ms a step\n{'part':26}" + "".join(f"{name:>10}" for name in ways))
    for part, _, _ in PARTS:
        label = f"  of it {part}" if part in INSIDE else part
        print(f"{label:26}" + "".join(f"{columns[name].get(part, 0.0):10.3f}" for name in ways))
    rest = [sums[n] - sum(v for p, v in columns[n].items() if p not in INSIDE) for n in ways]
    print(f"{'the rest of the loop':26}" + "".join(f"{value:10.3f}" for value in rest))
    print(f"{'in all':26}" + "".join(f"{sums[name]:10.3f}" for name in ways))


if __name__ == "__main__":
    table(RESNET)
    table(MLP)
