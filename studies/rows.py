"""The seven suspected causes and the rows that test them.

Every row but those for reference is the default method with one change, and is compared with it seed by seed: same split,
teacher, initial student and order. Two rows have a control of their own, because they need other options switched off too:
``delay 4`` is compared with ``delay 0``, and ``forward`` with ``last layer``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tgeokd.runs.results import TrainOn

__all__ = ["CAUSES", "REFERENCE", "ROWS", "Cause", "Row", "variant"]

REFERENCE = "default"


@dataclass(frozen=True)
class Row:
    """A row of the study.

    Attributes:
        method: name of a method of switches.py or of the package.
        options: of the method.
        train_on: whether the student trains on the validation samples too, for methods without an outer problem.
        temperature: of the teacher term; None for the preset's.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    train_on: TrainOn = "train"
    temperature: float | None = None


def variant(*, temperature: float | None = None, **options: Any) -> Row:
    """The default method with some options changed."""
    return Row("variant", options, temperature=temperature)


@dataclass(frozen=True)
class Cause:
    """A suspected cause, what was expected of its remedy before the measurement, and the rows that test it."""

    title: str
    expected: str
    rows: dict[str, Row]


CAUSES = [
    Cause(
        "1. Short horizon",
        "The derivative of one step is greedy. A moving average of the validation gradient, a delayed validation gradient "
        "(some steps later) or training progress as an input should help.",
        {
            "no average": variant(ema_decay=0.0),
            "delay 4": variant(estimator="delayed", delay=4, project_out_step_length=False),
            "delay 0": variant(project_out_step_length=False),
            "progress": variant(progress=True),
        },
    ),
    Cause(
        "2. Alpha also sets the step size",
        "The gradients of kd_i and gt_i differ in length, so the outer gradient changes alpha to change the step's length. "
        "A fixed step length, a fixed batch mean (redistribution alone), equal norms or centring should help.",
        {
            "free length": variant(project_out_step_length=False),
            "centred": variant(estimator="centred", project_out_step_length=False),
            "equal norms": Row("equal_norms", {"project_out_step_length": False}),
            "unit slopes": variant(estimator="unit_norms", project_out_step_length=False),
            "kept mean .5": variant(ratio="kept_mean", project_out_step_length=False),
            "kept mean .3": variant(ratio="kept_mean", mean=(0.3, 0.3), project_out_step_length=False),
            "kept mean .9 to .1": variant(ratio="kept_mean", mean=(0.9, 0.1), project_out_step_length=False),
            "around .9 to .1": variant(ratio="around", mean=(0.9, 0.1)),
        },
    ),
    Cause(
        "3. Noise in the outer gradient",
        "A step uses few validation samples. Moving averages, class-balanced or larger outer batches and more frequent "
        "updates should help.",
        {
            "average .5": variant(ema_decay=0.5),
            "average .98": variant(ema_decay=0.98),
            "balanced outer": variant(estimator="balanced"),
            "every 1": variant(update_interval=1),
            "every 2": variant(update_interval=2),
            "every 8": variant(update_interval=8),
            "outer 32": variant(outer_batch_size=32),
        },
    ),
    Cause(
        "4. The approximation",
        "The classifier head's part of the gradient should lose little compared with the whole gradient.",
        {
            "forward": variant(hypergradient="forward", ema_decay=0.0, project_out_step_length=False),
            "last layer": variant(ema_decay=0.0, project_out_step_length=False),
        },
    ),
    Cause(
        "5. The inputs",
        "Standardised features, log-probabilities and the student's history should help; most of the geometry should matter.",
        {
            "standardised": variant(standardised=True),
            "logs": variant(standardised=True, logs=True),
            "history": variant(history=True),
            "softened": variant(softened=True),
            "vertices": variant(edges=False, angles=False),
            "edges": variant(vertices=False, angles=False),
            "angles": variant(vertices=False, edges=False),
            "no class mean": variant(inter_sample=False),
        },
    ),
    Cause(
        "6. The outer loss",
        "Cross-entropy should be sufficient; cross-entropy with kd, label smoothing or a margin might help.",
        {
            "outer ce + kd": variant(estimator="with_teacher"),
            "outer smoothed": variant(estimator="smoothed"),
            "outer margin": variant(estimator="margin"),
        },
    ),
    Cause(
        "7. Hyper-parameters",
        "The learning rate matters, weight decay of 0.05 pulls alpha to 0.5, the initial value matters little, the "
        "temperature matters.",
        {
            "lr .001": variant(lr=0.001),
            "lr .01": variant(lr=0.01),
            "lr .03": variant(lr=0.03),
            "decay .05": variant(weight_decay=0.05),
            "start .27": variant(start=-1.0),
            "start .73": variant(start=1.0),
            "tau 1": variant(temperature=1.0),
            "tau 4": variant(temperature=4.0),
        },
    ),
    Cause(
        "For reference",
        "The method without its extensions; without training on the validation samples; the methods without learned ratios "
        "on the same samples; and ratios that know which labels are wrong.",
        {
            "plain": variant(ema_decay=0.0, project_out_step_length=False, lr=0.01, update_interval=8),
            "holdout": variant(outer="holdout"),
            "kd .3": Row("kd", {"alpha": 0.3}, "train+val"),
            "kd .5": Row("kd", {"alpha": 0.5}, "train+val"),
            "ce": Row("ce", {}, "train+val"),
            "wls": Row("wls", {}, "train+val"),
            "known wrong .0/1": Row("oracle", {"right": 0.0}),
            "known wrong .3/1": Row("oracle", {"right": 0.3}),
        },
    ),
]
ROWS = {REFERENCE: variant()} | {label: row for cause in CAUSES for label, row in cause.rows.items()}
