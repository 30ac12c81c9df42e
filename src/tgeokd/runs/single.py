"""One run from its config: data, teacher, student, results."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tgeokd.core.metrics import best_index
from tgeokd.data import TaskData
from tgeokd.data.datasets import subset
from tgeokd.runs.build import build_distiller, build_student, fit, load_data, method_of, saving, use_threads
from tgeokd.runs.config import RunConfig
from tgeokd.runs.results import RunRecord, RunResults
from tgeokd.runs.resumed import NewConfig
from tgeokd.runs.teacher import both_metrics, check_teacher, load_teacher
from tgeokd.training.callbacks import Callback
from tgeokd.training.distiller import Distiller
from tgeokd.utils.errors import InputError
from tgeokd.utils.memory import PeakMemory
from tgeokd.utils.run_folder import RunFolder, scratch


@dataclass(frozen=True)
class Score:
    """The result of a trial of hyper-parameters: its value on validation samples that it never saw, and its seconds."""

    value: float
    seconds: float


def check(config: RunConfig, data: TaskData | None = None) -> None:
    """Build what can be built without training, so that wrong settings fail before anything is written or trained."""
    method = method_of(config)
    data = data or load_data(config)
    check_teacher(config, data)
    top_k = config.teacher_cache.top_k if config.teacher_cache is not None else None
    if top_k is not None and top_k >= data.num_classes:
        raise InputError(f"teacher_cache.top_k must be below the {data.num_classes} classes, not {top_k}")
    student = build_student(config, data)
    build_distiller(student, torch.nn.Identity(), method, config, config.student, data, progress=False)


def run(
    config: RunConfig,
    teacher_path: Path,
    out: Path | None = None,
    *,
    resume: bool | Literal["best"] = False,
    progress: bool = False,
    key: str | None = None,
    accept_changes: Sequence[str] | None = None,
) -> RunRecord:
    """Distil the student and evaluate it on the test set.

    Args:
        config: the run, as :func:`check` accepts it.
        teacher_path: the teacher, as :func:`~tgeokd.runs.teacher.build_teacher` saved it.
        out: folder for the run's files; None writes nothing.
        resume: continue the run in ``out``; ``"best"`` from its best checkpoint.
        progress: show a progress bar.
        key: stored with the results, see :mod:`tgeokd.runs.stored`.
        accept_changes: of a run that is resumed with another config, which replaces ``config.yaml``, as
            :meth:`tgeokd.Distiller.fit` takes them; None where the config is that of before.
    """
    data = load_data(config)
    files: dict[str, Any] = {"out": out, "resume": resume, "accept_changes": accept_changes or ()}
    changed = [NewConfig(out, config)] if out is not None and accept_changes is not None else []
    distiller, seconds, memory = _train(config, data, teacher_path, progress=progress, callbacks=changed, **files)
    record = RunRecord(
        variant="default",
        method=config.method,
        options=config.options,
        train_on=config.train_on,
        seed=config.seed,
        metrics=both_metrics(distiller.evaluate, data),
        seconds=round(seconds, 3),
        epochs=len(distiller.history),
        best_epoch=best_index(distiller.history[f"val_{data.metrics.primary}"], data.metrics.primary),
        peak_memory_mb=round(memory, 1),
        trains_on_validation=config.train_on == "train+val" or method_of(config).outer == "union",
    )
    if out is not None:
        _write_results(config, distiller, data, record, RunFolder(out, resume=True), key)
    return record


def trial(config: RunConfig, teacher_path: Path, out: Path | None = None) -> Score:
    """Train with one choice of hyper-parameters and judge it on half of the validation set.

    The training uses only the other half (as outer samples, or among its training samples), so that the judgement is fair to
    methods that learn from validation samples. The test set is not used. ``out`` is a folder for checkpoints: a trial that was
    interrupted is continued by the next call; the caller removes it.
    """
    data = load_data(config)
    seen, judged = halves(data, config.seed)
    data = dataclasses.replace(data, held_out=seen)
    distiller, seconds, _ = _train(config, data, teacher_path, **(scratch(out) if out is not None else {}))
    return Score(distiller.evaluate(data.ordered_loader(judged))[data.metrics.choose_by], round(seconds, 3))


def halves(data: TaskData, seed: int) -> tuple[Any, Any]:
    """Two halves of the validation set with about the same classes; a class with one sample is in the first half."""
    target = torch.cat([batch[1] for batch in data.ordered_loader(data.held_out)]).numpy()
    order = np.random.default_rng(seed).permutation(len(target))
    by_class = [order[target[order] == c] for c in np.unique(target)]
    first = np.concatenate([rows[: -(-len(rows) // 2)] for rows in by_class])
    second = np.concatenate([rows[-(-len(rows) // 2) :] for rows in by_class])
    if not len(second):
        raise InputError(
            f"a validation set of {len(target)} samples is too small to choose hyper-parameters on half of it"
        )
    return subset(data.held_out, np.sort(first).tolist()), subset(data.held_out, np.sort(second).tolist())


def _train(
    config: RunConfig,
    data: TaskData,
    teacher_path: Path,
    *,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    **files: Any,
) -> tuple[Distiller, float, float]:
    """The Distiller after training, the seconds it took and the peak of memory, MiB."""
    use_threads(config)
    method, teacher = method_of(config), load_teacher(config, data, teacher_path)
    student = build_student(config, data)
    distiller = build_distiller(student, teacher, method, config, config.student, data, progress=progress)
    distiller.callbacks.extend(callbacks)
    both = config.train_on == "train+val"
    files |= saving(config)
    started = time.perf_counter()
    with PeakMemory(distiller.device) as memory:
        fit(distiller, config.student, data, with_held_out=both, seed=config.seed, **files)
    # Of a resumed run, the epochs that an earlier process trained count too.
    earlier = sum(record["seconds"] for record in distiller.history[: distiller.resumed_at])
    seconds = earlier + time.perf_counter() - started
    return distiller, seconds, memory.resident_mib if memory.cuda_mib is None else memory.cuda_mib


def _write_results(
    config: RunConfig, distiller: Distiller, data: TaskData, record: RunRecord, folder: RunFolder, key: str | None
) -> None:
    names = list(data.class_names) or [str(c) for c in range(data.num_classes)]
    results = RunResults(task=config.task, run=record, class_names=names, data=data.notes, key=key)
    try:
        ratios = distiller.fusion_ratios(data.ordered_loader(data.train))
    except NotImplementedError:  # the method has no ratios that are a function of the sample's geometry
        pass
    else:
        alpha = [round(a, 4) for a in ratios.tolist()]
        corrupted = None if data.corrupted is None else data.corrupted.tolist()
        folder.write_json("ratios.json", {"alpha": alpha, "corrupted": corrupted})
    if data.encoder is not None:
        folder.write_json("encoder.json", data.encoder.to_dict(), compact=True)
    folder.write_json("results.json", results.to_dict())
