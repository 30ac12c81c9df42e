"""`last_layer` against the exact hypergradient on the demo's task: accuracies, and how well the two gradients agree.

Run: python benchmarks/last_layer.py [--seeds N]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from tgeokd import TGeoKD
from tgeokd.bilevel import ratio_gradient
from tgeokd.methods import Signals, TrainingStep
from tgeokd.runs.build import build_distiller, build_student, fit, load_data
from tgeokd.runs.config import RunConfig, preset, replace
from tgeokd.runs.teacher import build_teacher, load_teacher


def agreement(step: TrainingStep, alpha: torch.Tensor) -> tuple[float, float]:
    """Of the two gradients of the step about to be taken: their correlation, and the share of samples with the same sign."""
    (batch,), outer, look = step.batches, step.outer(), step.lookahead
    assert batch.teacher_logits is not None
    exact, head = (
        ratio_gradient(
            look.student,
            look.optimizer,
            inputs=batch.inputs,
            target=batch.target,
            teacher_logits=batch.teacher_logits,
            alpha=alpha,
            val_inputs=outer.inputs,
            val_target=outer.target,
            temperature=look.temperature,
            clip_norm=look.clip_norm,
            method=method,
        )
        for method in ("forward", "last_layer")
    )
    correlation = float(torch.corrcoef(torch.stack([exact, head]))[0, 1])
    return correlation, float((exact.sign() == head.sign()).float().mean())


class Probe(TGeoKD):
    """TGeo-KD that compares the two gradients in every 20th step, from the same point on the same batches."""

    def __init__(self) -> None:
        super().__init__(hypergradient="forward")
        self.correlations: list[float] = []
        self.same_sign: list[float] = []

    def before_forward(self, step: TrainingStep) -> None:
        if step.index % 20:
            return
        (batch,), look = step.batches, step.lookahead
        assert batch.teacher_logits is not None
        with torch.no_grad():
            signals = Signals(look.student(batch.inputs), batch.teacher_logits, batch.target, look.temperature)
            alpha = self.alpha(signals).detach()
        correlation, same_sign = agreement(step, alpha)
        self.correlations.append(correlation)
        self.same_sign.append(same_sign)


def train(config: RunConfig, method: TGeoKD, teacher_path: Path) -> float:
    data = load_data(config)
    student, teacher = build_student(config, data), load_teacher(config, data, teacher_path)
    distiller = build_distiller(student, teacher, method, config, config.student, data, progress=False)
    fit(distiller, config.student, data, seed=config.seed)
    return distiller.evaluate(data.ordered_loader(data.test))["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    for name, noise in (("clean", 0.0), ("noise 30 %", 0.3)):
        exact, head, correlations, same_sign = [], [], [], []
        for seed in range(seeds):
            config = replace(preset("digits"), seed=seed, data={"noise": noise})
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "teacher.safetensors"
                build_teacher(config, load_data(config), path)
                exact.append(train(config, TGeoKD(hypergradient="forward"), path))
                head.append(train(config, TGeoKD(hypergradient="last_layer"), path))
                probe = Probe()
                train(config, probe, path)
            correlations += probe.correlations
            same_sign += probe.same_sign
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
