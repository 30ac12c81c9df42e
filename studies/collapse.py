"""The collapse of the earlier default in seconds, and which change removes it: the table of docs/why-it-works.md.

python studies/collapse.py
"""

from __future__ import annotations

import torch
from ratio_variants import Ratio
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tgeokd import Distiller, Method, TGeoKD
from tgeokd.data.arrays import ArrayDataset

BEFORE = {"encoding": "scalar", "label": "given", "prior": False, "penalty": 0.0}
ROWS: dict[str, dict[str, object]] = {
    "before": {},
    "validation samples held out": {"outer": "holdout"},
    "exact hypergradient": {"hypergradient": "forward"},
    "every step, average 0.98": {"update_interval": 1, "ema_decay": 0.98},
    "penalty": {"penalty": 0.1},
    "logarithms, standardised": {"encoding": "log"},
    "start at the closed form": {"prior": True},
    "corrected labels": {"label": "posterior"},
}
CLASSES, DIM, N, N_VALIDATION = 40, 16, 2000, 400


def problem(seed: int) -> tuple[nn.Module, ArrayDataset, ArrayDataset, Tensor]:
    """Many overlapping clusters and a teacher in doubt; 35 % of the labels are the class it finds second most probable."""
    generator = torch.Generator().manual_seed(seed)
    centres = 0.9 * torch.randn(CLASSES, DIM, generator=generator)

    class Teacher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -0.1 * torch.cdist(x, centres) ** 2

    def draw(count: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(CLASSES, (count,), generator=generator)
        return centres[y] + torch.randn(count, DIM, generator=generator), y

    (x, y), (val_x, val_y) = draw(N), draw(N_VALIDATION)
    draw(3000)
    teacher = Teacher()
    second = teacher(x).scatter(1, y[:, None], -torch.inf).argmax(dim=1)
    wrong = torch.rand(N, generator=generator) < 0.35
    train = ArrayDataset(x, torch.where(wrong, second, y), torch.arange(N))
    return teacher, train, ArrayDataset(val_x, val_y, torch.arange(N_VALIDATION) + N), wrong


def ratios(method: Method, seed: int) -> tuple[Tensor, Tensor]:
    """The ratios of the training samples after training, and which labels are wrong."""
    teacher, train, validation, wrong = problem(seed)
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Linear(DIM, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, CLASSES))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    distiller = Distiller(student, teacher, method, optimizer, progress=False)
    distiller.fit(DataLoader(train, 50, shuffle=True), DataLoader(validation, 50), epochs=20, seed=seed)
    return distiller.fusion_ratios(DataLoader(train, 500)), wrong


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(
        "| change of the earlier default | mean ratio | largest ratio | AUC for wrong labels |\n| --- | --- | --- | --- |"
    )
    methods = {name: lambda o=options: TGeoKD(**(BEFORE | o)) for name, options in ROWS.items()}
    methods["default"] = TGeoKD
    methods["default, learning from validation samples' own ratios"] = lambda: Ratio(self_influence=True)
    for name, make in methods.items():
        cells = []
        for seed in (0, 1):
            alpha, wrong = ratios(make(), seed)
            cells.append((f"{alpha.mean():.3f}", f"{alpha.max():.3f}", f"{roc_auc_score(wrong, alpha):.3f}"))
        print(f"| {name} | {' | '.join(', '.join(column) for column in zip(*cells, strict=True))} |", flush=True)


if __name__ == "__main__":
    main()
