"""`last_layer` against the exact hypergradient on the demo's task: accuracies, and how well the two gradients agree.

It measures today's default ``TGeoKD()`` (update interval 4, averaged validation gradient, step length projected out) with each
of the two estimators. docs/method.md has numbers of earlier defaults.

Run: python benchmarks/last_layer.py [--seeds N]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from tgeokd import LossInputs, Method, TGeoKD
from tgeokd.bilevel import ratio_gradient
from tgeokd.methods import ForwardContext
from tgeokd.runs.build import build_distiller, build_student, fit, load_data
from tgeokd.runs.config import RunConfig, override, preset, replace
from tgeokd.runs.teacher import build_teacher, load_teacher

__all__ = ["Agreement", "train"]


class Agreement:
    """Compares the two gradients of the coming step in every k-th step, from the same point on the same batches.

    Args:
        interval: k.
        clip_norm: of the training.

    Attributes:
        correlations: of the two gradients, over the samples of a step.
        same_sign: shares of samples with the same sign.
    """

    def __init__(self, interval: int, clip_norm: float | None) -> None:
        self.interval, self.clip_norm = interval, clip_norm
        self.steps = 0
        self.correlations: list[float] = []
        self.same_sign: list[float] = []

    def __call__(self, context: ForwardContext, method: Method) -> None:
        """Compare, if the coming step is due. To be called before each forward pass."""
        self.steps += 1
        if (self.steps - 1) % self.interval:
            return
        batch = context.microbatch
        with torch.no_grad():
            logits = batch.replay(context.student, {})
            alpha = method.alpha(
                LossInputs(logits, context.teacher_logits, context.target, context.temperature)
            ).detach()
        val_inputs, val_target, _ = context.outer()

        def gradient(estimator: str) -> Tensor:
            return ratio_gradient(
                context.student,
                context.optimizer,
                inputs=batch.inputs,
                target=context.target,
                teacher_logits=context.teacher_logits,
                alpha=alpha,
                val_inputs=val_inputs,
                val_target=val_target,
                temperature=context.temperature,
                clip_norm=self.clip_norm,
                method=estimator,
            )

        exact, head = gradient("forward"), gradient("last_layer")
        self.correlations.append(float(torch.corrcoef(torch.stack([exact, head]))[0, 1]))
        self.same_sign.append(float((exact.sign() == head.sign()).float().mean()))


class Probe(TGeoKD):
    """TGeo-KD with the exact hypergradient that compares the two gradients in every 20th step."""

    looks_before_forward = True

    def __init__(self, clip_norm: float | None) -> None:
        super().__init__(hypergradient="forward")
        self.agreement = Agreement(20, clip_norm)

    def before_forward(self, context: ForwardContext) -> None:
        self.agreement(context, self)


def train(config: RunConfig, method: Method, teacher_path: Path) -> float:
    """Test accuracy of a student."""
    data = load_data(config)
    student, teacher = build_student(config, data), load_teacher(config, data, teacher_path)
    distiller = build_distiller(student, teacher, method, config, config.student, data, progress=False)
    fit(distiller, config.student, data, seed=config.seed)
    return distiller.evaluate(data.ordered_loader(data.test))["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the preset, for a quick trial"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, noise in (("clean", 0.0), ("noise 30 %", 0.3)):
        exact, head, correlations, same_sign = [], [], [], []
        for seed in range(given.seeds):
            config = override(replace(preset("digits"), seed=seed, data={"noise": noise}), given.set)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "teacher.safetensors"
                build_teacher(config, load_data(config), path)
                exact.append(train(config, TGeoKD(hypergradient="forward"), path))
                head.append(train(config, TGeoKD(hypergradient="last_layer"), path))
                probe = Probe(config.student.clip_norm)
                train(config, probe, path)
            correlations += probe.agreement.correlations
            same_sign += probe.agreement.same_sign
        quartiles = statistics.quantiles(correlations, n=4)
        print(
            f"{name}: accuracy forward {100 * statistics.mean(exact):.2f} ± {100 * statistics.stdev(exact):.2f} %, "
            f"last_layer {100 * statistics.mean(head):.2f} ± {100 * statistics.stdev(head):.2f} %; "
            f"correlation median {quartiles[1]:.3f} (quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f}); "
            f"same sign {100 * statistics.mean(same_sign):.0f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
