"""The facade: train a student by any method, on any device and in any precision that Lightning Fabric offers."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tgeokd.bilevel.optimizer_rules import unwrapped
from tgeokd.core.compiling import check_compiler, compile_module
from tgeokd.core.metrics import Metrics
from tgeokd.core.validation import check_count, check_type
from tgeokd.data.datasets import set_view
from tgeokd.methods import Method
from tgeokd.teachers.base import Teacher
from tgeokd.teachers.cache.store import TeacherCacheOptions
from tgeokd.teachers.cached import CachedTeacher
from tgeokd.teachers.network import teacher_of
from tgeokd.teachers.stored import StoredPredictions
from tgeokd.training.batches import FabricReader, length_of
from tgeokd.training.before_fit import check_fit, training_loader
from tgeokd.training.callbacks import Callback, EarlyStopping, ProgressBar
from tgeokd.training.checkpoint import write_weights
from tgeokd.training.divergence import Divergence, OnDivergence
from tgeokd.training.evaluate import evaluate, predict_logits, predict_ratios
from tgeokd.training.fingerprint import check_accepted
from tgeokd.training.loop import History, Loader, TrainingLoop
from tgeokd.training.saving import Saving
from tgeokd.training.step import DistillationStep
from tgeokd.training.survey import Survey
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import user_path
from tgeokd.utils.run_folder import RunFolder

__all__ = ["Distiller", "History"]

logger = logging.getLogger(__name__)


class Distiller:
    """Train a student on a teacher's predictions and on labels, with a method that decides how much of each.

    Loaders yield ``(inputs, target)``, ``(inputs, target, ids)`` or a mapping with ``labels``
    (:class:`tgeokd.data.batch.Batch`). ``target`` holds class indices, int64, shape (N,); ``ids``, integers, shape (N,), name
    the samples for stored teacher predictions. A model returns logits of shape (N, C), or an object that holds them in
    ``.logits``; one logit per sample means the two-class logits ``(0, z)``.

    Args:
        student: any module.
        teacher: any module or callable from inputs to logits (put in eval mode, without gradient), or a
            :class:`~tgeokd.teachers.base.Teacher`. None for a method that needs no teacher.
        method: a :class:`~tgeokd.methods.Method`, or its name for the default options.
        optimizer: over the student's parameters.
        temperature: ``tau`` of the teacher term.
        teacher_probs: the teacher returns class probabilities instead of logits. The two cannot be distinguished by looking at
            them, so this is never guessed.
        cache_teacher: query the teacher once about every training sample and train on the stored logits: faster wherever the
            teacher is the larger model. Loaders must yield ids. A training set that augments at random then has a fixed number
            of augmented views of each sample, used in turn. ``True`` uses the default
            :class:`~tgeokd.teachers.TeacherCacheOptions`.
        scheduler: learning-rate scheduler of ``optimizer``. ``ReduceLROnPlateau`` monitors the validation loss.
        scheduler_every: step it once per ``"epoch"`` or once per ``"step"``.
        clip_norm: clip the gradient to this norm before each step.
        accumulate: batches of the loader that make one optimizer step. The loss is the mean over all their samples.
        assume_sgd: let a bilevel method treat an optimizer other than SGD, Adam and AdamW as plain SGD.
        metrics: of :meth:`evaluate`; must have ``accuracy`` and ``nll``, which are recorded beside the primary one.
        callbacks: see :class:`~tgeokd.training.callbacks.Callback`.
        accelerator: as in Lightning Fabric, for example ``"auto"`` or ``"cuda"``.
        precision: as in Lightning Fabric: ``"32-true"``, ``"bf16-mixed"``, ``"64-true"``, ...; not ``"16-mixed"``.
        on_divergence: what to do where a step makes the loss or a gradient NaN or infinite. ``stop`` raises a DivergenceError;
            ``skip`` leaves out the step, at most 20 times (on an accelerator, this waits for it in every step); ``rollback``
            returns to the last checkpoint with half the learning rate, at most 3 times.
        compile: compile the student's training pass, and a teacher that is a module, with ``torch.compile``.
        allow_bad_teacher: warn instead of refusing a teacher whose agreement with the labels is absurd.
        progress: show a progress bar.

    Example:
        >>> distiller = Distiller(student, teacher, TGeoKD(), torch.optim.SGD(student.parameters(), 0.1))  # doctest: +SKIP
        >>> history = distiller.fit(train_loader, val_loader, epochs=100, out="runs/mine")                 # doctest: +SKIP
        >>> metrics = distiller.evaluate(test_loader)                                                      # doctest: +SKIP
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        method: Method | str,
        optimizer: Optimizer,
        *,
        temperature: float = 4.0,
        teacher_probs: bool = False,
        cache_teacher: bool | TeacherCacheOptions = False,
        scheduler: LRScheduler | ReduceLROnPlateau | None = None,
        scheduler_every: Literal["epoch", "step"] = "epoch",
        clip_norm: float | None = None,
        accumulate: int = 1,
        assume_sgd: bool = False,
        metrics: Metrics | None = None,
        callbacks: Sequence[Callback] = (),
        accelerator: str = "auto",
        precision: Any = "32-true",
        on_divergence: OnDivergence = "stop",
        compile: bool = False,
        allow_bad_teacher: bool = False,
        progress: bool = True,
    ) -> None:
        check_count(1, accumulate=accumulate)
        check_type(student=(student, nn.Module), optimizer=(optimizer, Optimizer), metrics=(metrics, Metrics | None))
        check_type(scheduler=(scheduler, LRScheduler | ReduceLROnPlateau | None))
        for callback in callbacks:
            check_type(callback=(callback, Callback))
        if scheduler_every not in ("epoch", "step"):
            raise InputError(f"scheduler_every must be 'epoch' or 'step', not {scheduler_every!r}")
        if isinstance(scheduler, ReduceLROnPlateau) and scheduler_every == "step":
            raise InputError("ReduceLROnPlateau monitors the loss of an epoch: scheduler_every must be 'epoch'")
        if str(precision) in ("16-mixed", "16"):
            raise InputError(
                "precision '16-mixed' needs loss scaling, which Distiller does not do: use 'bf16-mixed', or DistillationStep "
                "in a loop with torch.amp.GradScaler"
            )
        self.scheduler, self.scheduler_every, self.accumulate = scheduler, scheduler_every, accumulate
        self.on_divergence = Divergence(on_divergence).how
        self.metrics = metrics or Metrics()
        if not {"accuracy", "nll"} <= set(self.metrics.names):
            raise InputError(f"metrics must have accuracy and nll, not only {', '.join(self.metrics.names)}")
        self.callbacks = [*callbacks, *([ProgressBar()] if progress else [])]
        self.student, self.optimizer = student, unwrapped(optimizer)
        try:
            self.fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"accelerator={accelerator!r}, precision={precision!r}: {error}") from error
        self.device: torch.device = self.fabric.device
        # Fabric moves modules to the device and into the precision, in place. Its wrapper around them is not used: it requires
        # `fabric.backward`, which is not needed without loss scaling.
        self.fabric.setup(student, optimizer)
        if compile:
            check_compiler(self.device)
        self._reader = FabricReader(self.fabric)
        self._step = DistillationStep(
            *(compile_module(student) if compile else student, self.optimizer, method),
            temperature=temperature,
            clip_norm=clip_norm,
            assume_sgd=assume_sgd,
            reader=self._reader,
        )
        self.method = self._step.method
        if teacher is None and self.method.needs_teacher:
            raise InputError(f"method {self.method.name!r} needs a teacher, and None was given")
        options = {"probs": teacher_probs, "context": self._reader.autocast, "compile": compile}
        self.teacher = None if teacher is None else teacher_of(student, teacher, self.fabric, **options)
        self.allow_bad_teacher = allow_bad_teacher
        self.cache_teacher = TeacherCacheOptions() if cache_teacher is True else cache_teacher or None
        if self.cache_teacher is not None and isinstance(self.teacher, StoredPredictions):
            logger.info("the teacher is stored predictions already: cache_teacher changes nothing")
            self.cache_teacher = None
        self._cached: CachedTeacher | None = None
        self._loop: TrainingLoop | None = None
        self.history, self.resumed_at = History(), 0

    # ---- where training is, for callbacks

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self._loop.epoch if self._loop is not None else 0

    @property
    def epochs(self) -> int:
        """Epochs of the running call of :meth:`fit`."""
        return self._loop.epochs if self._loop is not None else 0

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self._step.index

    @property
    def precision(self) -> str:
        """As in Lightning Fabric."""
        return self._reader.precision

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch; None where the loader does not know its length."""
        length = length_of(self._loop.train_loader) if self._loop is not None else None
        return None if length is None else -(-length // self.accumulate)

    @property
    def should_stop(self) -> bool:
        """Whether training stops after the running epoch; callbacks set it."""
        return self._loop is not None and self._loop.should_stop

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if self._loop is not None:
            self._loop.should_stop = value

    def save_checkpoint(self) -> None:
        """Write a checkpoint now; for callbacks of a run with ``out``, also in the middle of an epoch."""
        if self._loop is None:
            raise InputError("a checkpoint is written during fit(..., out=...)")
        self._loop.saved.save()

    # ---- training

    def fit(
        self,
        train_loader: Loader,
        val_loader: Loader | None = None,
        *,
        epochs: int,
        seed: int = 0,
        patience: int | None = None,
        checkpoint_every: int = 1,
        checkpoint_minutes: float | None = 5.0,
        keep_checkpoints: int = 2,
        out: str | Path | None = None,
        resume: bool | Literal["best"] = False,
        accept_changes: Sequence[str] = (),
    ) -> History:
        """Train; returns the history, one record per epoch.

        Args:
            train_loader: training batches.
            val_loader: validation batches: for metrics, early stopping, and the outer problem of a bilevel method.
            epochs: passes over the training data.
            seed: of all random numbers from here on; the student's initial weights are the caller's.
            patience: stop when the validation loss has not fallen for this many epochs, and restore the best weights.
            checkpoint_every: epochs between two checkpoints. One is also written before the first step, after the last epoch,
                after an epoch that is the best one by the validation set (``checkpoints/best.pt``), and before a signal ends
                the training: ``SIGINT`` (Ctrl-C), ``SIGTERM`` and ``SIGUSR1`` wait for the end of the step, a second one does
                not.
            checkpoint_minutes: a checkpoint is written after a step where the last one is older than this; None for none.
            keep_checkpoints: how many of the newest are kept, beside the newest of the end of an epoch and the best one.
            out: folder for ``metrics.jsonl`` (one line per epoch), ``checkpoints/`` and ``student.safetensors``; with
                ``cache_teacher``, also for ``teacher-cache/``.
            resume: continue the run in ``out``, with the same arguments, as if it had not been interrupted; ``"best"`` goes on
                from the best checkpoint.
            accept_changes: names in :data:`tgeokd.training.fingerprint.CHANGEABLE` of what may differ from the checkpoint. The
                new value holds from here on. A new schedule stands where it would, had the run begun with it.

        Raises:
            InputError: for data that do not fit, a stale teacher cache, a folder that holds a run already or cannot be
                written, and a checkpoint of other settings. Data are checked before anything but a teacher cache is written.
            StorageError: where a file cannot be written; the checkpoints of before are intact.
            DivergenceError: where the student's logits or the loss are NaN or infinite.
        """
        check_fit(self, val_loader, epochs=epochs, seed=seed, patience=patience, out=out, resume=resume)
        saving = Saving(checkpoint_every, checkpoint_minutes, keep_checkpoints)
        accept_changes = check_accepted(accept_changes, resume=bool(resume))
        callbacks = [*self.callbacks, *([EarlyStopping(patience)] if patience is not None else [])]
        self.fabric.seed_everything(seed, verbose=False)
        if not self.student.training:  # otherwise leave layers that the user froze in eval mode as they are
            self.student.train()
        self._step.forget()
        self._step.index, self._step.seed = 0, seed
        self.resumed_at, self.history, self._loop = 0, History(), None
        if self.cache_teacher is not None and self._uses_teacher:
            self._cached = self._new_cache(user_path(out) / "teacher-cache" if out is not None else None)
            train_loader = self._cached.viewed(train_loader, epochs)
        try:
            train_loader = training_loader(self.method, train_loader, val_loader)
            divergence = Divergence(self.on_divergence)
            loop = TrainingLoop(self, self._step, train_loader, val_loader, epochs, callbacks, saving, divergence)
            try:
                self._run(loop, user_path(out) if out is not None else None, resume, accept_changes)
            finally:
                if loop.saved.folder is not None:
                    loop.saved.folder.close()
        finally:
            if self._cached is not None:
                self._cached.close()
        return self.history

    def _run(self, loop: TrainingLoop, out: Path | None, resume: bool | Literal["best"], accept: Sequence[str]) -> None:
        saved = loop.saved
        state = None if out is None else saved.open(out, resume=resume, accept=accept)
        # Data are checked before anything is written, except a teacher cache, for which the folder is claimed first.
        out = out if self._step.parallel.is_main else None  # one process writes
        if out is not None and self._cached is not None:
            saved.folder = RunFolder(out, resume=bool(resume))
        set_view(loop.train_loader, 0)
        self._step.validation = loop.validation
        loop.survey = self._step.prepare(
            loop.train_loader,
            self.teacher if self._uses_teacher else None,
            survey_result=None if state is None else Survey(**state.survey),
            before_survey=lambda: self._store(loop.train_loader, loop.validation),
            allow_bad_teacher=self.allow_bad_teacher,
        )
        if out is not None and saved.folder is None:
            saved.folder = RunFolder(out, resume=bool(resume))
        self._loop, self.history = loop, loop.history
        if state is not None:
            saved.load(state)
            self.resumed_at = loop.epoch
        loop.run()
        if saved.folder is not None:
            write_weights(saved.folder.path / "student.safetensors", self._step.student)

    def store_teacher(
        self, train_loader: Loader, val_loader: Loader | None = None, *, folder: str | Path, epochs: int
    ) -> None:
        """Query the teacher now and keep its logits, for trainings with ``cache_teacher`` that name the same folder.

        Args:
            train_loader: all samples that one of them will train on, validation samples too where it does.
            val_loader: validation batches, for a method that needs the teacher's logits of them (``rw``).
            folder: of the cache.
            epochs: of these trainings; no more views are made, unless ``cache_teacher`` gives their number.

        Raises:
            InputError: for data that cannot be recognised later, and a stale cache.
        """
        if self.cache_teacher is None or self.teacher is None:
            raise InputError("to store the teacher's logits, the Distiller needs cache_teacher and a teacher to query")
        self.cache_teacher = dataclasses.replace(self.cache_teacher, folder=str(folder))
        cached = self._new_cache(None)
        loaders = [cached.viewed(train_loader, epochs), *([] if val_loader is None else [val_loader])]
        for split, loader in zip(("train", "held-out"), loaders, strict=False):
            first = next(self._reader.read_all(loader, "loader"), None)
            if first is None:
                raise InputError("the loader is empty")
            cached.store(split, loader, self.teacher.logits(first).shape[-1])

    # ---- evaluation

    def evaluate(self, loader: Loader) -> dict[str, float]:
        """Metrics of the student in eval mode.

        Returns:
            By default ``accuracy`` in [0, 1] and ``nll``, the mean cross-entropy with the label in nats; see ``metrics``.
        """
        return evaluate(self.student, loader, self._reader, self.metrics)

    def predict(self, loader: Loader) -> tuple[Tensor, Tensor]:
        """Logits of the student in eval mode, shape (N, C), and labels, shape (N,), in the loader's order, on the CPU."""
        return predict_logits(self.student, loader, self._reader)

    def fusion_ratios(self, loader: Loader) -> Tensor:
        """Fusion ratio of each sample by the method now, the student in eval mode.

        Returns:
            Shape (N,), in the loader's order, on the CPU.

        Raises:
            NotImplementedError: for a method whose ratios are not a function of student, teacher and label.
        """
        teacher = self.teacher if self._uses_teacher else None
        if self._cached is not None:
            loader = self._cached.adopt(loader)
            teacher = self._cached.of(loader)
        return predict_ratios(self._step, loader, teacher)

    # ---- before training

    @property
    def _uses_teacher(self) -> bool:
        return self.teacher is not None and self.method.needs_teacher

    def _new_cache(self, folder: Path | None) -> CachedTeacher:
        assert self.cache_teacher is not None
        assert self.teacher is not None
        return CachedTeacher(self.teacher, self.cache_teacher, folder, precision=self.precision, move=self._reader.move)

    def _store(self, train_loader: Loader, val_loader: Loader | None) -> Teacher | None:
        """Store the teacher's logits of all samples whose logits the training needs; returns the teacher to query."""
        cached = self._cached
        if cached is None:
            return None
        assert self._reader.num_classes is not None
        cached.store("train", train_loader, self._reader.num_classes)
        queries_validation = self.method.needs_outer_teacher or self.method.needs_label_noise
        if queries_validation and self.method.outer in ("holdout", "union"):
            assert val_loader is not None
            cached.store("held-out", val_loader, self._reader.num_classes)
        return cached.of(train_loader)
