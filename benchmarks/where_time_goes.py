"""Where the time of a training step goes: milliseconds per step in each component, for each method of the benchmark.

Run: python benchmarks/where_time_goes.py
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from harness import threads
from torch.optim import SGD, AdamW
from workloads import METHODS, MLP, RESNET, Workload, distilled

from tgeokd import DistillationStep, Distiller, Method, TGeoKD
from tgeokd.bilevel import DirectionalEstimator
from tgeokd.bilevel.estimators.last_layer import LastLayerEstimator
from tgeokd.teachers.network import NetworkTeacher
from tgeokd.training.callbacks import Callback

__all__ = ["COMPONENTS", "measured"]

LOSS, GEOMETRY = "ratios and loss", "f_omega and geometry"
CALLS: list[tuple[str, Any, str]] = [
    ("teacher", NetworkTeacher, "logits"),
    (LOSS, Method, "loss"),
    (LOSS, TGeoKD, "loss"),
    (GEOMETRY, TGeoKD, "_weight"),
    ("backward", torch.Tensor, "backward"),
    ("optimizer step", SGD, "step"),  # with the record of the step
    ("optimizer step", AdamW, "step"),
    ("validation batch", DistillationStep, "after_update"),  # of what it calls, all else is counted below
    ("hypergradient", LastLayerEstimator, "estimate"),
    ("hypergradient", DirectionalEstimator, "estimate"),
    ("omega's step", TGeoKD, "learn"),
]
FORWARD = "student forward"  # with the record of the pass
COMPONENTS = list(dict.fromkeys(["teacher", FORWARD, *(name for name, _, _ in CALLS)]))


class Stopwatch(Callback):
    """Seconds by component: of a component within another, the time is counted in the inner one alone.

    As a callback it drops everything up to the end of the first step.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within = [0.0]  # time of the inner components, by nesting level

    def on_step_end(self, distiller: Distiller) -> None:
        if distiller.step == 1:
            self.seconds.clear()

    @contextmanager
    def component(self, name: str) -> Iterator[None]:
        self._within.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[name] += elapsed - self._within.pop()
            self._within[-1] += elapsed

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.component(name):
                return call(*args, **kwargs)

        return wrapper

    def timed_block(self, name: str, block: Callable[..., AbstractContextManager[None]]) -> Callable[..., Any]:
        @contextmanager
        def wrapper(*args: Any, **kwargs: Any) -> Iterator[None]:
            with self.component(name), block(*args, **kwargs):
                yield

        return wrapper

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure all components while the block runs."""
        wrappers = [(owner, attribute, self.timed(name, getattr(owner, attribute))) for name, owner, attribute in CALLS]
        block = self.timed_block(FORWARD, DistillationStep.forward_pass)
        wrappers.append((DistillationStep, "forward_pass", block))
        originals = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in wrappers]
        for owner, attribute, wrapper in wrappers:
            setattr(owner, attribute, wrapper)
        try:
            yield
        finally:
            for owner, attribute, original in originals:
                setattr(owner, attribute, original)


def measured(work: Workload, name: str) -> dict[str, float]:
    """Milliseconds per step of a method, by component, with ``total``."""
    watch = Stopwatch()
    run = distilled(work, name, callbacks=[watch])
    with threads(work.threads):
        run()
        with watch.running():
            total = run()
    found = {component: 1e3 * watch.seconds.get(component, 0.0) / work.steps for component in COMPONENTS}
    return {**found, "total": 1e3 * total}


def table(work: Workload) -> None:
    """Print the components of each method."""
    columns = [measured(work, name) for name in METHODS]

    def line(label: str, value: Callable[[dict[str, float]], float]) -> None:
        print(f"{label:26}" + "".join(f"{value(column):10.3f}" for column in columns))

    print(f"\n{work.name}, ms per step\n{'component':26}" + "".join(f"{name:>10}" for name in METHODS))
    for component in COMPONENTS:
        if component == GEOMETRY:
            line(f"  {GEOMETRY}", lambda column: column[GEOMETRY])
        elif component == LOSS:
            line(LOSS, lambda column: column[LOSS] + column[GEOMETRY])
        else:
            line(component, lambda column, component=component: column[component])
    line("rest of the loop", lambda column: column["total"] - sum(column[c] for c in COMPONENTS))
    line("total", lambda column: column["total"])


if __name__ == "__main__":
    table(RESNET)
    table(MLP)
