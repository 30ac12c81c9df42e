"""`fig4`: what the learned alpha does with outliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgeokd.paper.base import Findings, kept, over_seeds
from tgeokd.paper.outliers import below, feature_sd, noisy_inputs, relabellers, wrong_labels
from tgeokd.paper.training import check_teacher_sees, drawn, new_teacher, some_batches, trained
from tgeokd.paper.wording import difference, interval, mean, shown, verdict
from tgeokd.report.analyses import draw_fig4
from tgeokd.runs.build import load_data, use_threads
from tgeokd.runs.config import RunConfig, replace
from tgeokd.runs.plan import MethodSpec
from tgeokd.runs.single import check
from tgeokd.training.distiller import Distiller

__all__ = ["fig4", "lines"]

MOST = 5000
"""Samples of the test and of the training set that are looked at."""
BINS = 20
NORMAL, NOISE, CORRUPTED, CLEAN = "normal", "Gaussian noise", "corrupted label (training)", "clean label (training)"
LABEL, ONLY_TEST = "wrong label, ", "test group, "


def fig4(config: RunConfig, seeds: Sequence[int], out: Path, jobs: int | None = None) -> Findings:
    """Alpha that the trained ratio network gives normal samples and outliers, the student in eval mode.

    After training by ``tgeo``, on at most 5,000 random test samples: as they are (``normal``); with Gaussian noise added to
    the inputs as the model sees them, its standard deviation that of the training inputs (by feature; images by channel after
    normalisation; of tables the numbers); with a wrong label drawn uniformly; with a wrong label as people confuse the classes
    (CIFAR, where the data folder has the counts); and the task's own groups of test samples (``nsl_kdd``: kinds of attack that
    only the test set has), against its normal samples or, without such a group, all others. Then, on at most 5,000 training
    samples, those whose label is known to be wrong against the others. A task without groups or without known wrong labels has
    none of these.

    For each group: mean and histogram of alpha, and the area under the ROC curve for telling it from what it is compared with
    by a *low* alpha: 0.5 tells nothing, less than 0.5 means that the outliers get the higher alpha.
    """
    check_teacher_sees(config, "fig4")
    check(MethodSpec("tgeo").apply(replace(config, seed=seeds[0])))
    found = over_seeds(_job, config, seeds, out, jobs)
    data = {"bins": BINS, "seeds": found}
    return Findings(data, lines(data), partial(draw_fig4, data))


def _job(config: RunConfig, path: Path) -> dict[str, Any]:
    return kept(path, config, _measure)


def _measure(config: RunConfig) -> dict[str, Any]:
    """The groups of a seed by name."""
    use_threads(config)
    config = MethodSpec("tgeo").apply(config)
    data = load_data(config)
    distiller = trained(config, data, new_teacher(config, data))
    rows = drawn(len(data.test), MOST, config.seed)  # type: ignore[arg-type]
    test = some_batches(data, data.test, rows)
    train_rows = drawn(len(data.train), MOST, config.seed)  # type: ignore[arg-type]
    train = some_batches(data, data.train, train_rows)

    normal = ratios_of(distiller, test)
    groups = {NORMAL: _group(normal, None, None)}
    if data.inputs.kind == "array" or data.inputs.shape[0] > 0:  # noise needs a number to be added to
        noised = noisy_inputs(test, feature_sd(train), config.seed)
        groups[NOISE] = _group(ratios_of(distiller, noised), NORMAL, normal)
    for kind, relabel in relabellers(config, data).items():
        relabelled, wrong = wrong_labels(test, relabel)
        if wrong.any():
            groups[LABEL + kind] = _group(ratios_of(distiller, relabelled)[wrong], NORMAL, normal)
    groups |= groups_of_the_test_set(data.test_groups, rows, normal)
    corrupted = None if data.corrupted is None else data.corrupted[torch.tensor(train_rows)]
    if corrupted is not None and corrupted.any() and not corrupted.all():
        ratios = ratios_of(distiller, train)
        groups[CLEAN] = _group(ratios[~corrupted], None, None)
        groups[CORRUPTED] = _group(ratios[corrupted], CLEAN, ratios[~corrupted])
    return groups


def ratios_of(distiller: Distiller, batches: Sequence[Any]) -> Tensor:
    """Alpha of each sample as numbers, without the graph of the ratio network."""
    return distiller.fusion_ratios(batches).detach()


def groups_of_the_test_set(masks: Mapping[str, Tensor], rows: list[int], alpha: Tensor) -> dict[str, Any]:
    """The task's own groups of test samples, against its normal ones, or without such a group against all others.

    Args:
        masks: of the test set's samples by name, bool.
        rows: the rows of the test set that are looked at.
        alpha: their ratios, shape (len(rows),).
    """
    inside = {name: mask[torch.tensor(rows)] for name, mask in masks.items()}
    normal = inside.pop(NORMAL, None)
    groups = {}
    if normal is not None and normal.any():
        groups[ONLY_TEST + NORMAL] = _group(alpha[normal], None, None)
    for name, mask in inside.items():
        against, reference = ("other test samples", ~mask) if normal is None else (ONLY_TEST + NORMAL, normal)
        if mask.any() and reference.any():
            groups[ONLY_TEST + name] = _group(alpha[mask], against, alpha[reference])
    return groups


def _group(alpha: Tensor, against: str | None, reference: Tensor | None) -> dict[str, Any]:
    """What is kept of a group's ratios; ``against`` names the samples it is compared with, whose ratios ``reference`` are."""
    record = {
        "n": len(alpha),
        "mean": float(alpha.double().mean()),
        "histogram": torch.histc(alpha.float(), BINS, 0.0, 1.0).long().tolist(),
        "against": against,
    }
    if reference is not None:
        record |= {"mean_against": float(reference.double().mean()), "auroc_low": below(alpha, reference)}
    return record


def _told(data: dict[str, Any], name: str) -> str:
    """One group against what it is compared with, over the seeds that have it."""
    found = [seed[name] for seed in data["seeds"] if name in seed]
    gap = difference([g["mean"] - g["mean_against"] for g in found])
    says = verdict(gap, "higher on these", "lower on these")
    own, other = (shown(mean(g[key] for g in found)) for key in ("mean", "mean_against"))
    area = shown(mean(g["auroc_low"] for g in found))
    return (
        f"{name}: mean alpha {own} against {other} ({found[0]['against']}), difference {interval(gap)}, {says}; "
        f"AUROC of a low alpha {area}"
    )


def lines(data: dict[str, Any]) -> list[str]:
    """Noise on the inputs; wrong labels; groups that only the test set has and corrupted training labels."""
    names = list(dict.fromkeys(name for seed in data["seeds"] for name in seed))
    kinds = {
        "Noisy inputs": [name for name in names if name == NOISE],
        "Wrong labels of test samples": [name for name in names if name.startswith(LABEL)],
        "Groups of the data": [
            name for name in names if (name.startswith(ONLY_TEST) and name != ONLY_TEST + NORMAL) or name == CORRUPTED
        ],
    }
    return [
        f"{kind}: {'; '.join(_told(data, name) for name in members) if members else 'the task has none'}."
        for kind, members in kinds.items()
    ]
