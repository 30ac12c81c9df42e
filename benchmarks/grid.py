"""One run with a learned ratio beside five runs with a constant one, of which the best is kept.

Both use half of the validation set (the learned ratio as its outer samples) and are judged on the other half, as
:func:`tgeokd.runs.single.trial` chooses hyper-parameters. Test data are not used.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from harness import Figure

from tgeokd.methods.kd import VanillaKD
from tgeokd.runs.build import load_data
from tgeokd.runs.config import RunConfig, preset, replace
from tgeokd.runs.single import Score, trial
from tgeokd.runs.teacher import build_teacher

__all__ = ["figures", "of_task"]

GRID = VanillaKD.search_space["alpha"]


def _scores(config: RunConfig) -> tuple[Score, dict[float, Score]]:
    """Score of the learned ratio, and scores of the constants, with one teacher."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        build_teacher(config, load_data(config), path)
        learned = trial(config, path)
        kd = replace(config, method="kd")
        return learned, {a: trial(replace(kd, options={"alpha": a}), path) for a in GRID}


def of_task(name: str, config: RunConfig, seeds: int) -> list[Figure]:
    found = [_scores(replace(config, seed=seed)) for seed in range(seeds)]
    learned = [score.value for score, _ in found]
    mean = {a: statistics.mean(constants[a].value for _, constants in found) for a in GRID}
    best = max(mean, key=lambda a: mean[a])
    seconds = [score.seconds / sum(s.seconds for s in constants.values()) for score, constants in found]
    margin = [constants[best].value - value for value, (_, constants) in zip(learned, found, strict=True)]
    shown = ", ".join(f"{a}: {100 * value:.2f}" for a, value in mean.items())
    note = f"validation score of the learned ratio {100 * statistics.mean(learned):.2f}, of the constants {shown}"
    mean_margin = statistics.mean(margin)
    return [
        Figure.of(f"one tgeo run / five kd runs over an alpha grid ({name})", seconds, limit=0.25, note=note),
        Figure(
            f"best constant's validation score less the learned ratio's, in points ({name})",
            100 * mean_margin, 100 * min(margin), 100 * max(margin), seeds, 0.0, "mean over the seeds",
        ),
    ]  # fmt: skip


def figures(seeds: int, data_dir: Path | None) -> list[Figure]:
    """Digits with 30 % wrong labels, and power system attacks where their file is available."""
    digits = preset("digits")
    made = of_task("digits, 30 % wrong labels", replace(digits, data={**digits.data, "noise": 0.3}), seeds)
    if data_dir is not None:
        made += of_task("hil", replace(preset("hil"), data_dir=str(data_dir)), seeds)
    return made
