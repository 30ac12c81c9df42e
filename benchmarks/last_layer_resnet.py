"""Agreement of `last_layer` with the exact hypergradient along the training of a small ResNet.

    python benchmarks/last_layer_resnet.py --data-dir data --seeds 0 1 2

Small CIFAR-100 with 40 % symmetric noise; the student trains by `kd` with alpha 0.5. In every 25th step both gradients of the
coming step are computed on the same validation batch. Prints one line per seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from last_layer import Agreement, train

from tgeokd import VanillaKD
from tgeokd.methods import ForwardContext
from tgeokd.runs.build import load_data
from tgeokd.runs.config import RunConfig, override, preset, replace
from tgeokd.runs.teacher import build_teacher

NOISE = ["data.noise=symmetric", "data.noise_rate=0.4", "data.checksum=any"]


class Probe(VanillaKD):
    """`kd` that compares the gradients which a learned ratio would learn from."""

    outer = "holdout"
    outer_batch_limit = 128
    looks_before_forward = True

    def __init__(self, clip_norm: float | None) -> None:
        super().__init__(alpha=0.5)
        self.agreement = Agreement(25, clip_norm)

    def before_forward(self, context: ForwardContext) -> None:
        self.agreement(context, self)


def measured(config: RunConfig) -> Agreement:
    """The agreement along one training."""
    method = Probe(config.student.clip_norm)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        build_teacher(config, load_data(config), path)
        train(config, method, path)
    return method.agreement


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
