"""Sets and rows of the final comparison (frozen.py). Settings were chosen on the development sets alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["ROWS", "SETS", "Row", "Set"]

OLD = {"encoding": "scalar", "label": "given", "prior": False, "penalty": 0.0}


@dataclass(frozen=True)
class Row:
    """A row of the comparison.

    Attributes:
        method: its name; ``known`` knows the wrong labels.
        options: of the method.
        train_on: whether the student trains on the validation samples too, for methods without an outer problem.
        kind: ``published`` rows are what TGeo must beat; ``bound`` is a bound; ``own`` are the closed form and TGeo.
        rate: factor of the learning rate, from the grid 1/3, 1, 3 (tuned on the development set cifar100-symmetric).
        search: values of alpha to choose from on half of the validation set.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    train_on: Literal["train", "train+val"] = "train+val"
    kind: Literal["published", "own", "bound"] = "published"
    rate: float = 1.0
    search: tuple[float, ...] = ()


@dataclass(frozen=True)
class Set:
    """Data, teacher and student of a comparison: a preset with settings.

    Attributes:
        needs_truth: whether rows that know the wrong labels can be run.
        slow: leave out rows that are not near the best elsewhere.
        rates: whether the rows' factors of the learning rate, which were tuned with the small network, apply.
    """

    task: str
    preset: str
    settings: tuple[str, ...] = ()
    metric: str = "accuracy"
    seeds: int = 10
    needs_truth: bool = True
    slow: bool = False
    rates: bool = True
    development: bool = False

    def uses(self, row: str) -> bool:
        """Whether a row is run on this set."""
        if ROWS[row].kind == "bound" and not self.needs_truth:
            return False
        return not self.slow or row in SLOW_ROWS


ROWS: dict[str, Row] = {
    "ce train": Row("ce", train_on="train", rate=1 / 3),
    "kd .5 train": Row("kd", {"alpha": 0.5}, "train"),
    "wls train": Row("wls", train_on="train"),
    "mwnet train": Row("mwnet", train_on="train", rate=1 / 3),
    "ce": Row("ce", rate=1 / 3),
    "kd .1": Row("kd", {"alpha": 0.1}),
    "kd .3": Row("kd", {"alpha": 0.3}),
    "kd .5": Row("kd", {"alpha": 0.5}),
    "kd .7": Row("kd", {"alpha": 0.7}),
    "kd tuned": Row("kd", search=(0.1, 0.3, 0.5, 0.7)),
    "wls": Row("wls"),
    "dkd": Row("dkd"),
    "lskd": Row("lskd"),
    "eakd": Row("eakd"),
    "rld": Row("rld"),
    "gce": Row("gce", rate=1 / 3),
    "mwnet": Row("mwnet", {"outer": "union"}, rate=1 / 3),
    "posterior": Row("posterior", kind="own"),
    "tgeo, nothing learned": Row("tgeo", {"lr": 0.0}, kind="own"),
    "tgeo, base .3": Row("tgeo", {"base": 0.3}, kind="own"),
    "tgeo, base .3, nothing learned": Row("tgeo", {"base": 0.3, "lr": 0.0}, kind="own"),
    "tgeo before": Row("tgeo", OLD, kind="own"),
    "tgeo holdout": Row("tgeo", {"outer": "holdout"}, kind="own"),
    "tgeo, base .3, exact": Row("tgeo", {"base": 0.3, "hypergradient": "exact"}, kind="own"),
    "tgeo": Row("tgeo", kind="own"),
    "known wrong": Row("known", {"right": 0.3}, kind="bound"),
}
SLOW_ROWS = ("ce", "kd .3", "kd .5", "wls", "gce", "posterior", "tgeo before", "tgeo, base .3", "tgeo", "known wrong")

_ANY = "data.checksum=any"
# 240 epochs of batches of 64 do not fit into minutes on a GPU: fewer epochs, larger batches, half precision.
_SHORT = (
    "precision=bf16-mixed",
    *(
        f"{side}.{setting}"
        for side in ("teacher", "student")
        for setting in (
            "epochs=26",
            "batch_size=256",
            "optimizer.lr=0.1",
            "optimizer.milestones=[15, 20, 23]",
        )
    ),
)
SETS: dict[str, Set] = {
    "cifar100-symmetric": Set("cifar100", "pretrained", (_ANY, "data.noise=symmetric", "data.noise_rate=0.4")),
    "cifar100-human": Set("cifar100", "pretrained", (_ANY, "data.noise=human")),
    "cifar10n-worst": Set("cifar10n", "pretrained", (_ANY,)),
    "cifar10n-random": Set("cifar10n", "pretrained", (_ANY, "data.cifar_n_labels=random_label1")),
    "cifar10n-aggregate": Set("cifar10n", "pretrained", (_ANY, "data.cifar_n_labels=aggre_label")),
    "cifar100-clean": Set("cifar100", "pretrained", (_ANY,), needs_truth=False),
    "noisy-ag-news": Set("text", "noisy-ag-news"),
    "banking77": Set("text", "banking77", needs_truth=False),
    "clinc150": Set("text", "lite", ("data.file=clinc150/clinc150.parquet",), needs_truth=False),
    "nsl_kdd-full": Set("nsl_kdd", "full", metric="macro_f1", needs_truth=False),
    "cic-ids2017-web": Set("tabular", "cic-ids2017-web", metric="macro_f1", needs_truth=False),
    "adult": Set("adult", "lite", metric="auc", needs_truth=False),
    "hil": Set("hil", "lite", metric="macro_f1", needs_truth=False),
    "cifar100-symmetric-folds": Set(
        "cifar100", "pretrained", (_ANY, "data.noise=symmetric", "data.noise_rate=0.4", "teacher.folds=5")
    ),
    "cifar100-human-folds": Set("cifar100", "pretrained", (_ANY, "data.noise=human", "teacher.folds=5")),
    "cifar10n-worst-folds": Set("cifar10n", "pretrained", (_ANY, "teacher.folds=5")),
    "noisy-ag-news-folds": Set("text", "noisy-ag-news", ("teacher.folds=5",)),
    "digits-noise": Set("digits", "lite", ("data.noise=0.3",), development=True),
    "cifar10n-worst-resnet8": Set("cifar10n", "lite", (_ANY,), seeds=5, slow=True, rates=False),
    "cifar100-symmetric-resnet8x4": Set(
        "cifar100",
        "paper-resnet32x4-resnet8x4",
        (_ANY, "data.noise=symmetric", "data.noise_rate=0.4", *_SHORT),
        seeds=1,
        slow=True,
        rates=False,
    ),
}
