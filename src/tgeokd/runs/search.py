"""Hyper-parameter trials at an equal budget: as many for every method, drawn the same way."""

import itertools
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tgeokd.methods import METHODS, build_method
from tgeokd.runs.config import RunConfig, replace
from tgeokd.utils.errors import InputError

LR_FACTORS = (0.5, 1.0, 2.0)
WEIGHT_DECAY_FACTORS = (0.3, 1.0, 3.0)
TEMPERATURES = (1.0, 2.0, 4.0)

# What the factors stand for where the preset has no weight decay to multiply.
DECAY_INSTEAD = {0.3: 1e-5, 1.0: 0.0, 3.0: 1e-4}


@dataclass(frozen=True)
class Trial:
    """One candidate of a search."""

    options: dict[str, Any]  # of the method: those the row fixes, and those drawn
    # of the training: lr_factor, weight_decay_factor and, with a teacher, temperature; empty for the preset's own
    settings: dict[str, float] = field(default_factory=dict)

    def apply(self, config: RunConfig) -> RunConfig:
        """The run's config with the trial's options and settings."""
        optimizer = config.student.optimizer
        factor = self.settings.get("weight_decay_factor", 1.0)
        changed = replace(
            optimizer,
            lr=optimizer.lr * self.settings.get("lr_factor", 1.0),
            weight_decay=optimizer.weight_decay * factor if optimizer.weight_decay else DECAY_INSTEAD[factor],
        )
        return replace(
            config,
            options=dict(self.options),
            student=replace(config.student, optimizer=changed),
            temperature=self.settings.get("temperature", config.temperature),
        )


def trials(method: str, options: dict[str, Any], n: int, seed: int) -> list[Trial]:
    """The candidates of a row of a comparison with own ``options``: at most 9 for a method without a teacher, 25 with one.

    The first has the preset's settings and the row's own options. The others all differ, and the k-th has the same learning
    rate, weight decay and temperature for every method, so that no method has an advantage; its further options are drawn from
    the method's ``search_space``, each value about equally often. Options that the row fixes are not searched.
    """
    cls = METHODS[method]
    build_method(method, **options)
    shared = _shared(seed)
    if not cls.needs_teacher:  # without a temperature only the first pass over rates and decays holds different trials
        passes = len(LR_FACTORS) * len(WEIGHT_DECAY_FACTORS) - 1
        shared = [{key: value for key, value in s.items() if key != "temperature"} for s in shared[:passes]]
    if not 1 <= n <= 1 + len(shared):
        raise InputError(f"a search of {method!r} has 1 to {1 + len(shared)} trials, not {n}")
    free = {name: values for name, values in cls.search_space.items() if name not in options}
    drawn = {name: _cycle(values, n - 1, Random(f"{seed}/{method}/{name}")) for name, values in free.items()}
    found = [Trial(dict(options))]
    for k, settings in enumerate(shared[: n - 1]):
        found.append(Trial({**options, **{name: values[k] for name, values in drawn.items()}}, settings))
        build_method(method, **found[-1].options)
    return found


def _shared(seed: int) -> list[dict[str, float]]:
    """Rates, decays and temperatures of the trials after the first.

    Three passes over the pairs of rate and decay that differ from the preset's, each pair with another temperature in each
    pass, and each temperature about equally often in any stretch.
    """
    random = Random(f"{seed}/shared")
    pairs = [pair for pair in itertools.product(LR_FACTORS, WEIGHT_DECAY_FACTORS) if pair != (1.0, 1.0)]
    temperatures = random.sample(TEMPERATURES, len(TEMPERATURES))
    random.shuffle(pairs)
    return [
        {"lr_factor": lr, "weight_decay_factor": decay, "temperature": temperatures[(i + turn) % len(temperatures)]}
        for turn in range(len(temperatures))
        for i, (lr, decay) in enumerate(pairs)
    ]


def _cycle(values: tuple[Any, ...], n: int, random: Random) -> list[Any]:
    """N values: all of them in a random order, then all in another order, and so on."""
    drawn: list[Any] = []
    while len(drawn) < n:
        drawn += random.sample(values, len(values))
    return drawn[:n]
