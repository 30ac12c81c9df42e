"""How well the classifier head's part of the hypergradient stands for the whole, along the training of a small ResNet.

    python benchmarks/last_layer_resnet.py --data-dir data --seeds 0 1 2

Small CIFAR-100 with 40 % symmetric noise, a student that trains by `kd` with alpha 0.5; in every 25th step both gradients of
the step about to be taken are found, on the same held-out batch. A line a seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from last_layer import agreement

from tgeokd.methods import TrainingStep, VanillaKD
from tgeokd.runs.build import build_distiller, build_student, fit, load_data
from tgeokd.runs.config import RunConfig, override, preset, replace
from tgeokd.runs.teacher import build_teacher, load_teacher

EVERY = 25
NOISE = ["data.noise=symmetric", "data.noise_rate=0.4", "data.checksum=any"]


class BothWays(VanillaKD):
    """`kd` that also finds, every now and then, what a learned ratio would learn from."""

    outer = "holdout"
    outer_batch_most = 128

    def __init__(self) -> None:
        super().__init__(alpha=0.5)
        self.correlations: list[float] = []
        self.same_sign: list[float] = []

    def before_forward(self, step: TrainingStep) -> None:
        if step.index % EVERY:
            return
        correlation, same_sign = agreement(step, torch.full((len(step.batches[0].target),), self.constant))
        self.correlations.append(correlation)
        self.same_sign.append(same_sign)


def measured(config: RunConfig) -> BothWays:
    """Train once."""
    data, method = load_data(config), BothWays()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        build_teacher(config, data, path)
        teacher = load_teacher(config, data, path)
    student = build_student(config, data)
    distiller = build_distiller(student, teacher, method, config, config.student, data, progress=False)
    fit(distiller, config.student, data, seed=config.seed)
    return method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    for seed in given.seeds:
        config = override(preset("cifar100"), NOISE)
        found = measured(replace(config, data_dir=given.data_dir, seed=seed))
        low, median, high = torch.tensor(found.correlations).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        sign = sum(found.same_sign) / len(found.same_sign)
        print(f"seed {seed}: correlation {median:.2f} (quartiles {low:.2f} to {high:.2f}), same sign {sign:.2f}")


if __name__ == "__main__":
    main()
