"""Short trainings that are interrupted: each is started or continued by the same call, and its end is compared bit for bit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from tgeokd import Distiller, TGeoKD
from tgeokd.cli.main import main
from tgeokd.data.arrays import ArrayDataset
from tgeokd.teachers import TeacherCacheOptions
from tgeokd.utils.run_folder import begun

SHORT = ("student.epochs=2", "teacher.epochs=2", "teacher.patience=null", "checkpoint_minutes=0.002", "data.noise=0.3")
VOLATILE = ("seconds", "peak_memory_mb", "wall_seconds", "tuning_seconds", "machine", "memory_vs_kd", "seconds_vs_kd")


@dataclass(frozen=True)
class Training:
    """A training in a folder; ``go`` starts it, or continues what it finds there."""

    name: str
    go: Callable[[Path], None]


def fit(folder: Path) -> None:
    """A Distiller with everything that has a state: both levels, a cached teacher, accumulation, a schedule, views."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(5)
    student = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    x = torch.randn(120, 4, generator=generator)
    y = (x @ torch.randn(4, 3, generator=generator)).argmax(dim=1)
    optimizer = AdamW(student.parameters(), 0.01)
    distiller = Distiller(
        *(student, nn.Sequential(nn.Linear(4, 3)), TGeoKD(update_interval=2), optimizer),
        scheduler=OneCycleLR(optimizer, 0.02, total_steps=200),
        scheduler_every="step",
        cache_teacher=TeacherCacheOptions(),
        accumulate=2,
        clip_norm=1.0,
        accelerator="cpu",
        progress=False,
        allow_bad_teacher=True,
    )
    ids = torch.arange(120)
    train, validation = (ArrayDataset(x[part], y[part], ids[part]) for part in (slice(0, 96), slice(96, 120)))
    distiller.fit(
        *(DataLoader(train, 8, shuffle=True), DataLoader(validation, 24)),
        epochs=6,
        out=folder / "run",
        resume=begun(folder / "run"),
        checkpoint_minutes=1e-4,
    )


def distill(folder: Path) -> None:
    """The command, teacher and report included."""
    run = folder / "run"
    if (run / "config.yaml").exists():
        _command("distill", "--resume", run)
    else:
        _command("distill", "digits", "--out", run, *_settings())


def compare(folder: Path) -> None:
    """The comparison of two methods with a search of hyper-parameters, all in this process."""
    resume = ["--resume"] if (folder / "run" / "comparison.yaml").exists() else []
    rows = ["--methods", "kd,tgeo", "--seeds", "1", "--tune", "2"]
    _command("compare", "digits", "--out", folder / "run", *rows, *_settings(), *resume)


FIT, DISTILL = Training("fit", fit), Training("distill", distill)
TRAININGS = (FIT, DISTILL, Training("compare", compare))


def result(folder: Path) -> dict[str, Any]:
    """What a training has made, without what may differ: times, memory, checkpoints."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "run").rglob("*")):
        name = str(path.relative_to(folder))
        left_out = (".html", ".png", ".lock", ".json.sha256")  # times are in the json files
        if path.is_dir() or "/checkpoints/" in name or path.name.endswith(left_out):
            continue
        if path.suffix == ".jsonl":
            found[name] = [_settled(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = _settled(json.loads(path.read_text()))
        else:
            found[name] = path.read_bytes()
    return found


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _settled(item) for key, item in value.items() if key not in VOLATILE}
    return [_settled(item) for item in value] if isinstance(value, list) else value


def _settings() -> list[str]:
    return [part for setting in SHORT for part in ("--set", setting)]


def _command(*arguments: object) -> None:
    sys.argv = ["tgeokd", *map(str, arguments)]
    main()
