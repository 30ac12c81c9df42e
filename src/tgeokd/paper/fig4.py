"""`fig4`: the learned alpha on outliers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tgeokd.paper import ANALYSES
from tgeokd.paper.base import TGEO, Differences, SeedAnalysis
from tgeokd.paper.formatting import difference, interval, mean_text, verdict
from tgeokd.paper.outliers import below, feature_sd, has_numbers, noisy_inputs, relabellers, wrong_labels
from tgeokd.paper.predictions import new_teacher, sample, trained
from tgeokd.runs.build import load_data
from tgeokd.runs.config import RunConfig
from tgeokd.training.distiller import Distiller

MOST = 5000  # samples of each set that are evaluated
HISTOGRAM_BINS = 20
NORMAL, NOISE, CORRUPTED, CLEAN = "normal", "Gaussian noise", "corrupted label (training)", "clean label (training)"
LABEL, TEST = "wrong label, ", "test group, "


@ANALYSES.register("fig4")
class Fig4(SeedAnalysis):
    """Alpha of the trained ratio network on normal samples and outliers, with the student in eval mode.

    The groups: test samples unchanged, with Gaussian noise on the inputs, and with wrong labels (uniform, or human confusions
    where the data folder has the counts); the task's own groups of test samples; training samples with a known wrong label.
    Each has the mean and the histogram of alpha, and the area under the ROC curve for detecting its samples by a *low* alpha.
    """

    rows: ClassVar = {"tgeo": TGEO}
    facts: ClassVar = {"bins": HISTOGRAM_BINS}
    changes_inputs = True

    def measure_seed(self, config: RunConfig) -> dict[str, Any]:
        """The groups by name."""
        config = TGEO.apply(config)
        data = load_data(config)
        distiller = trained(config, data, new_teacher(config, data))
        rows, test = sample(data, data.test, MOST, config.seed)
        train_rows, train = sample(data, data.train, MOST, config.seed)
        normal = _ratios(distiller, test)
        groups = {NORMAL: _group(normal)}
        if has_numbers(data):
            noised = noisy_inputs(test, feature_sd(train), config.seed)
            groups[NOISE] = _group(_ratios(distiller, noised), NORMAL, normal)
        for kind, relabel in relabellers(config, data).items():
            relabelled, wrong = wrong_labels(test, relabel)
            if wrong.any():
                groups[LABEL + kind] = _group(_ratios(distiller, relabelled)[wrong], NORMAL, normal)
        groups |= groups_of_the_test_set(data.test_groups, rows, normal)
        corrupted = None if data.corrupted is None else data.corrupted[torch.tensor(train_rows)]
        if corrupted is not None and corrupted.any() and not corrupted.all():
            ratios = _ratios(distiller, train)
            groups[CLEAN] = _group(ratios[~corrupted])
            groups[CORRUPTED] = _group(ratios[corrupted], CLEAN, ratios[~corrupted])
        return groups

    def differences(self, data: dict[str, Any]) -> Differences:
        """Mean alpha of each group less that of the samples it is compared with, over the seeds that have the group."""
        compared = {name: found for name, found in _by_name(data).items() if found[0]["against"] is not None}
        return {name: difference(g["mean"] - g["mean_against"] for g in found) for name, found in compared.items()}

    def lines(self, data: dict[str, Any], differences: Differences) -> list[str]:
        """Noisy inputs; wrong labels; groups of the test set and corrupted training labels."""
        kinds: dict[str, list[str]] = {"Noisy inputs": [], "Wrong labels of test samples": [], "Groups of the data": []}
        noisy, labels, others = kinds.values()
        for name, gap in differences.items():
            found = _by_name(data)[name]
            own, other, area = (mean_text(g[key] for g in found) for key in ("mean", "mean_against", "auroc_low"))
            of_kind = noisy if name == NOISE else labels if name.startswith(LABEL) else others
            of_kind.append(
                f"{name}: mean alpha {own} compared with {other} ({found[0]['against']}), difference {interval(gap)}, "
                f"{verdict(gap, 'higher on these samples', 'lower on these samples')}; AUROC of a low alpha {area}"
            )
        return [f"{kind}: {'; '.join(texts) or 'not available for this task'}." for kind, texts in kinds.items()]


def groups_of_the_test_set(masks: Mapping[str, Tensor], rows: list[int], alpha: Tensor) -> dict[str, Any]:
    """The task's own groups of test samples, from their masks and the ratios ``alpha`` (len(rows),) of some ``rows``."""
    inside = {name: mask[torch.tensor(rows)] for name, mask in masks.items()}
    normal = inside.pop(NORMAL, None)
    groups = {}
    if normal is not None and normal.any():
        groups[TEST + NORMAL] = _group(alpha[normal])
    for name, mask in inside.items():
        against, reference = ("other test samples", ~mask) if normal is None else (TEST + NORMAL, normal)
        if mask.any() and reference.any():
            groups[TEST + name] = _group(alpha[mask], against, alpha[reference])
    return groups


def _ratios(distiller: Distiller, batches: Sequence[Any]) -> Tensor:
    return distiller.fusion_ratios(batches).detach()


def _group(alpha: Tensor, against: str | None = None, reference: Tensor | None = None) -> dict[str, Any]:
    """The record of a group; ``against`` names the samples it is compared with, and ``reference`` holds their ratios."""
    record = {
        "n": len(alpha),
        "mean": float(alpha.double().mean()),
        "histogram": torch.histc(alpha.float(), HISTOGRAM_BINS, 0.0, 1.0).long().tolist(),
        "against": against,
    }
    if reference is not None:
        record |= {"mean_against": float(reference.double().mean()), "auroc_low": below(alpha, reference)}
    return record


def _by_name(data: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The records of each group, of the seeds that have it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in data["seeds"]:
        for name, group in seed.items():
            found.setdefault(name, []).append(group)
    return found
